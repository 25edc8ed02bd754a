# SPDX-License-Identifier: MIT
"""The table of ops: torch.ops.msa.NAME returns new tensors, torch.ops.msa.NAME.out writes into given ones.

Schemas come from the library's table of fields, kernels are msa._core itself, for the CPU and CUDA alike.
"""
from __future__ import annotations

import re
from typing import Any

import torch

from .. import _core
from ..results import result_class
from . import fakes, gradients

__all__ = ["LIBRARY", "NAMESPACE", "OPS", "inputs_of", "result", "schema", "write"]

OPS = tuple(_core.fields())
# A copy under another package name, such as one that a hub loads, keeps its ops apart.
NAMESPACE = re.sub(r"\W", "_", __name__.partition(".")[0])

_SETTINGS = {
    "block_size": "int block_size=128", "topk": "int topk=16", "local_blocks": "int local_blocks=1",
    "init_blocks": "int init_blocks=0", "causal": "bool causal=True", "softmax_scale": "float? softmax_scale=None",
    "max_seqlen_q": "SymInt? max_seqlen_q=None", "max_seqlen_k": "SymInt? max_seqlen_k=None",
    "backend": "str? backend=None", "isa": "str? isa=None", "threads": "int threads=0",
    "batch_invariant": "bool batch_invariant=False", "kv_format": "str? kv_format=None",
    "index_k_format": "str? index_k_format=None", "index_filter": "str? index_filter=None",
    "precision": "str? precision=None",
    "grad_dtype": "ScalarType? grad_dtype=None",
    "index_scale": "float? index_scale=None",
    "accumulate": "bool accumulate=False",
}
_INPUT, _OPTIONAL_INPUT, _OUTPUT, _OPTIONAL_OUTPUT = range(4)


def inputs_of(op: str) -> list[str]:
    """The input tensors of an op: those of the batch come last."""
    return [row[0] for row in _core.fields()[op] if row[1] in (_INPUT, _OPTIONAL_INPUT)]


def parameters(op: str) -> list[str]:
    """All parameters of an op, in the order of msa._core: inputs, settings, out_dtype, flags of the outputs."""
    outputs = [row for row in _core.fields()[op] if row[1] in (_OUTPUT, _OPTIONAL_OUTPUT)]
    formats = ["out_dtype"] if any(row[3] == "out" for row in outputs) else []
    return inputs_of(op) + list(_core.settings()[op]) + formats + [row[0] for row in outputs]


def schema(op: str, out: bool) -> str:
    """The schema of an op, or of its variant that writes into given tensors."""
    rows = _core.fields()[op]
    first, marks = [], iter("abcdefgh")
    for name, role, parts, _, _ in rows:
        if role == _OPTIONAL_INPUT:
            first.append(f"Tensor? {name}=None")
        elif role == _INPUT:
            first.append(f"Tensor[] {name}" if parts else f"Tensor {name}")
    rest = [_SETTINGS[name] for name in _core.settings()[op]]
    results = [row for row in rows if row[1] in (_OUTPUT, _OPTIONAL_OUTPUT)]
    if any(row[3] == "out" for row in results):
        rest.append("ScalarType? out_dtype=None")
    if out:
        optional = (_OPTIONAL_OUTPUT,)
        rest.append("*")
        rest += [f"Tensor({next(marks)}!)? {row[0]}=None" if row[1] in optional else f"Tensor({next(marks)}!) {row[0]}"
                 for row in results]
        return f"{op}.out({', '.join(first + rest)}) -> ()"
    # What is always written has no flag; a place for it keeps the order that msa._core has.
    for name, role, _, _, _ in results:
        rest.append("bool? out=None" if role == _OPTIONAL_OUTPUT and name == "out"
                    else f"bool {name}={role != _OPTIONAL_OUTPUT}")
    return f"{op}({', '.join(first + rest)}) -> Tensor[]"


def overload(op: str, variant: str = "default") -> Any:
    """torch.ops.msa.OP.VARIANT."""
    return getattr(getattr(getattr(torch.ops, NAMESPACE), op), variant)


def _kernel(op: str) -> Any:
    run, tensor = getattr(_core, op), torch.Tensor

    def kernel(*args: Any, **given: Any) -> list[Any]:
        result = run(*args, **given)
        return [result] if isinstance(result, tensor) else list(result)

    return kernel


def _kernel_out(op: str) -> Any:
    run = getattr(_core, op)
    outputs = [row[0] for row in _core.fields()[op] if row[1] in (_OUTPUT, _OPTIONAL_OUTPUT)]

    def kernel(*args: Any, **given: Any) -> None:
        run(*args, **given)
        # What others have saved of these tensors is no longer what it was.
        torch.autograd.graph.increment_version([given[name] for name in outputs if given.get(name) is not None])

    return kernel


def _define() -> Any:
    library = torch.library.Library(NAMESPACE, "DEF")
    for op in OPS:
        library.define(schema(op, out=False))
        library.define(schema(op, out=True))
        kernel = _kernel(op)
        autograd = gradients.autograd_kernel(op, kernel, overload, parameters(op), inputs_of(op))
        library.impl(op, autograd, "Autograd", with_keyset=True)
        for key in ("CPU", "CUDA"):
            library.impl(op, kernel, key)
            library.impl(f"{op}.out", _kernel_out(op), key)
        torch.library.register_fake(f"{NAMESPACE}::{op}", fakes.make_fake(op, parameters(op)), lib=library)
        torch.library.register_fake(f"{NAMESPACE}::{op}.out", lambda *args, **given: None, lib=library)
    return library


LIBRARY = _define()


def result(found: list[torch.Tensor], *outputs: tuple[str, bool]) -> Any:
    """The named tuple of what was found for the wanted outputs."""
    return result_class(tuple(name for name, wanted in outputs if wanted))(*found)


def write(op: str, inputs: tuple[Any, ...], outputs: dict[str, Any], out_dtype: torch.dtype | None,
          **given: Any) -> Any:
    """Runs the variant that writes into given tensors; wanted outputs that were not given (True) are allocated."""
    missing = {name for name, value in outputs.items() if value is True}
    if missing:
        named = {**given, **dict(zip(inputs_of(op), inputs)), "out_dtype": out_dtype}
        outputs = {**outputs, **fakes.allocate(op, named, missing)}
    outputs = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    if out_dtype is not None and "out" in outputs:
        has = outputs["out"].dtype
        torch._check(has == out_dtype, lambda: f"out_dtype: expected {has}, as out has, got {out_dtype}")
    overload(op, "out")(*inputs, **given, **outputs)
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    return result_class(tuple(outputs))(*outputs.values())
