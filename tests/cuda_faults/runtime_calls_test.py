#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The library calls the functions of runtime_calls.txt and no other of the CUDA runtime or driver.

usage: runtime_calls_test.py LIBRARY.a...     needs nm, no GPU; ends with 'N passed, N failed'
"""
import pathlib
import re
import subprocess
import sys

LIST = pathlib.Path(__file__).with_name("runtime_calls.txt")
# What the compiler puts beside a kernel, to register and launch it.
OF_THE_COMPILER = re.compile(r"__cuda")


def called(path):
    output = subprocess.run(["nm", "--undefined-only", path], check=True, capture_output=True, text=True).stdout
    names = set(re.findall(r" U (cu[A-Za-z0-9_]*|__cuda\w*)$", output, re.M))
    return {name for name in names if not OF_THE_COMPILER.match(name)}


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__.split("\n\n")[1])
    listed = {line.split()[0] for line in LIST.read_text().splitlines() if line and not line.startswith("#")}
    found = set().union(*map(called, sys.argv[1:]))
    for name in sorted(found - listed):
        print(f"{name} is called, but not listed in {LIST.name}")
    for name in sorted(listed - found):
        print(f"{name} is listed in {LIST.name}, but not called")
    print(f"{len(found & listed)} passed, {len(found ^ listed)} failed")
    sys.exit(bool(found ^ listed))


if __name__ == "__main__":
    main()
