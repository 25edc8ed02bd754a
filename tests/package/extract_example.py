#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the first C++ block of a markdown file to a source file: extract_example.py README.md OUT.cpp"""
import pathlib
import re
import sys

text = pathlib.Path(sys.argv[1]).read_text()
block = re.search(r"```cpp\n(.*?)```", text, re.S)
if not block:
    sys.exit(f"{sys.argv[1]} holds no C++ block")
pathlib.Path(sys.argv[2]).write_text(block.group(1))
