# SPDX-License-Identifier: MIT
"""msa inside other people's frameworks. Nothing is imported until a name is asked for; an
integration knows its framework and msa, never another integration."""
