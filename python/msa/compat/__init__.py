# SPDX-License-Identifier: MIT
"""Names of other packages over msa's operations.

`provide()` lets programs that say `import fmha_sm100` run without a change where that package is not
installed: docs/dropin.md says what is served and how.
"""
from __future__ import annotations

import importlib
import importlib.util
import sys

__all__ = ["provide"]

_NAME = "fmha_sm100"
_MODULES = ("api", "sparse", "sparse_fmha_adapter", "kvouter", "cute", "cute.interface")


def provide() -> bool:
    """Makes `fmha_sm100` and its modules (`fmha_sm100.sparse`, `fmha_sm100.cute.interface`, ...) names
    of msa's drop-in. True: they are; calling it again changes nothing.

    Does nothing where an installed package has the name, and returns False: it is never hidden.
    """
    if _NAME in sys.modules:
        return sys.modules[_NAME] is sys.modules.get(f"{__name__}.{_NAME}")
    if _is_installed():
        return False
    _alias()
    return True


def _is_installed() -> bool:
    spec = importlib.util.find_spec(_NAME)
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin


def _alias() -> None:
    """The aliases themselves; the one-file package `fmha_sm100` calls this while it is imported. Every module
    gets its second name, so that none is ever loaded twice."""
    ours = f"{__name__}.{_NAME}"
    for name in ("", *(f".{module}" for module in _MODULES)):
        importlib.import_module(ours + name)
    for name, module in list(sys.modules.items()):
        if name == ours or name.startswith(f"{ours}."):
            sys.modules[_NAME + name.removeprefix(ours)] = module
