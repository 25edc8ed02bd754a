# SPDX-License-Identifier: MIT
"""Upstream's folder of kernels, of which `interface` is public."""
