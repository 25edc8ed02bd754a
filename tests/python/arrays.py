# SPDX-License-Identifier: MIT
"""The libraries that the tests hand arrays of: how to make one out of numpy's, and how to read one."""
from __future__ import annotations

import importlib.util

import numpy as np
import pytest


class Numpy:
    """numpy arrays of float32."""

    name, dtype, tolerance = "numpy", "f32", 2e-5

    def floats(self, array):
        return np.ascontiguousarray(array, np.float32)

    def integers(self, array):
        return np.ascontiguousarray(array, np.int32)

    def read(self, array):
        return np.asarray(array)


class Words(Numpy):
    """numpy arrays of 16-bit words that hold bf16."""

    name, dtype, tolerance = "words", "bf16", 1.5e-2

    def floats(self, array):
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)

    def read(self, array):
        if array.dtype == np.uint16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


class MlDtypes(Numpy):
    """numpy arrays of ml_dtypes.bfloat16."""

    name, dtype, tolerance = "ml_dtypes", "bf16", 1.5e-2

    def __init__(self):
        self.kind = importlib.import_module("ml_dtypes").bfloat16

    def floats(self, array):
        return np.asarray(array, np.float32).astype(self.kind)

    def read(self, array):
        return np.asarray(array).astype(np.float32) if array.dtype == self.kind else np.asarray(array)


class Torch:
    """torch tensors."""

    def __init__(self, name="float32", dtype="f32", tolerance=2e-5):
        self.torch = importlib.import_module("torch")
        self.kind, self.dtype, self.tolerance, self.name = getattr(self.torch, name), dtype, tolerance, f"torch-{name}"

    def floats(self, array):
        return self.torch.tensor(np.asarray(array, np.float32)).to(self.kind)

    def integers(self, array):
        return self.torch.tensor(np.asarray(array, np.int32))

    def read(self, array):
        return (array.float() if array.is_floating_point() else array).numpy()


class Capsule:
    """An array of a library that nobody knows: DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


KINDS = {"numpy": Numpy, "words": Words, "ml_dtypes": MlDtypes, "torch": Torch,
         "torch-bf16": lambda: Torch("bfloat16", "bf16", 1.5e-2), "torch-f16": lambda: Torch("float16", "f16", 2e-3)}
NEEDS = {"ml_dtypes": "ml_dtypes", "torch": "torch", "torch-bf16": "torch", "torch-f16": "torch"}


def make(kind):
    """The kind of this name, or a skip with the reason."""
    needed = NEEDS.get(kind)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    return KINDS[kind]()
