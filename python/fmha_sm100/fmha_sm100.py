# SPDX-License-Identifier: MIT
"""The import name of MiniMax's package, served by msa: this module replaces itself with
msa.compat.fmha_sm100 and names its submodules."""
from msa.compat import _alias

_alias()
