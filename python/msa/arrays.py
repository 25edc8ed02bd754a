# SPDX-License-Identifier: MIT
"""Whose array is this, and how to make one like it. Nothing is imported that the process has not imported."""
from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from .errors import InvalidArgument

__all__ = ["Array", "Parts", "allocate", "device_of", "dtype_name", "empty", "integers", "namespace"]


class Array(Protocol):
    """What speaks DLPack: arrays of numpy, tensors of torch, cupy, jax, ..."""

    def __dlpack_device__(self) -> Any:
        """(type, index)."""


Parts: TypeAlias = "Array | list[Any] | tuple[Any, ...]"

_TORCH = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i32": "int32", "i64": "int64", "u8": "uint8",
          "i8": "int8", "e4m3": "float8_e4m3fn", "e2m1": "uint8"}
_NUMPY = {"f32": "float32", "f16": "float16", "i32": "int32", "i64": "int64", "u8": "uint8", "i8": "int8",
          "e4m3": "uint8", "e2m1": "uint8"}
_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "i32", "int64": "i64",
          "float8_e4m3fn": "e4m3"}

_makers: dict[type, Callable[[Any, tuple[int, ...], str, Any], Any]] = {}
_torch_dtypes: dict[str, Any] = {}


def namespace(array: Any) -> str:
    """"torch" or "numpy" where the array's type is one of theirs, else the name of the type's module."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return "torch"
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(array, numpy.ndarray):
        return "numpy"
    return type(array).__module__.partition(".")[0]


def dtype_name(dtype: Any) -> str:
    """"bf16" of torch.bfloat16, numpy.float32's "f32": the library's name of a dtype."""
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    name = str(name).removeprefix("torch.")
    return _NAMES.get(name, name)


def allocate(like: Any, shape: tuple[int, ...], dtype: str, stream: Any) -> Any:
    """An uninitialised array where `like` lives, for work on `stream` (None: the current one)."""
    kind = type(like)
    maker = _makers.get(kind)
    if maker is None:
        maker = _makers[kind] = _find_maker(like)
    return maker(like, shape, dtype, stream)


def _find_maker(like: Any) -> Callable[[Any, tuple[int, ...], str, Any], Any]:
    space = namespace(like)
    if space == "torch":
        torch = sys.modules["torch"]
        _torch_dtypes.update({name: getattr(torch, text) for name, text in _TORCH.items()})
        return _torch_empty
    return _numpy_empty if space == "numpy" else _refuse


def _torch_empty(like: Any, shape: tuple[int, ...], dtype: str, stream: Any) -> Any:
    if stream is None or not like.is_cuda:
        return like.new_empty(shape, dtype=_torch_dtypes[dtype])
    torch = sys.modules["torch"]
    # Memory must belong to the stream that works on it, or the allocator may hand it out again too early.
    handle = next((getattr(stream, name) for name in ("cuda_stream", "ptr") if hasattr(stream, name)), stream)
    with torch.cuda.stream(torch.cuda.ExternalStream(handle, device=like.device)):
        return like.new_empty(shape, dtype=_torch_dtypes[dtype])


def _numpy_empty(like: Any, shape: tuple[int, ...], dtype: str, stream: Any) -> Any:
    numpy = sys.modules["numpy"]
    # numpy has no bf16: the words, or the extension type, that the caller came with.
    words = like.dtype if like.dtype.itemsize == 2 else "uint16"
    return numpy.empty(shape, dtype=words if dtype == "bf16" else _NUMPY[dtype])


def _refuse(like: Any, shape: tuple[int, ...], dtype: str, stream: Any) -> Any:
    raise InvalidArgument(f"out: expected every output and the workspace given, as msa does not allocate for"
                          f" {type(like).__module__}.{type(like).__qualname__}, got none", "out")


def device_of(array: Any) -> str:
    """"cpu" or "cuda:0"; older numpy does not say, and has no choice."""
    return str(getattr(array, "device", "cpu"))


def empty(like: Any, shape: tuple[int, ...]) -> Any:
    """An uninitialised array of the library, dtype and device of `like`."""
    space = namespace(like)
    if space == "torch":
        return like.new_empty(shape)
    if space == "numpy":
        return sys.modules["numpy"].empty(shape, like.dtype)
    raise TypeError(f"like: expected an array of numpy or torch, got {type(like).__name__}")


def integers(like: Any, values: list[int], wide: bool = False) -> Any:
    """A vector of int32, or int64, where `like` lives."""
    if namespace(like) == "torch":
        torch = sys.modules["torch"]
        return torch.tensor(values, dtype=torch.int64 if wide else torch.int32, device=like.device)
    numpy = sys.modules["numpy"]
    return numpy.asarray(values, dtype=numpy.int64 if wide else numpy.int32)
