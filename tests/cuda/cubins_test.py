#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Lists the machine code in a build: for every card that it is for, as many cubins of all that is not Hopper's alone.

usage: cubins_test.py FILE ARCHITECTURE...     objects or a libmsa.so, and what MSA_CUDA_ARCHITECTURES held: 80, or
                                               120-virtual for PTX; needs cuobjdump, no GPU

Ends with 'N passed, N failed'; one test an architecture, and one for Hopper's own kernels.
"""
import collections
import re
import shutil
import subprocess
import sys

NAME = re.compile(r"\.(sm_\w+)\.(?:cubin|ptx)$", re.MULTILINE)


def listed(path, what):
    output = subprocess.run(["cuobjdump", what, path], check=True, capture_output=True, text=True).stdout
    return collections.Counter(NAME.findall(output))


def faults(path, architectures):
    """What is wrong with each architecture, '' where nothing is."""
    cubins, ptx = listed(path, "--list-elf"), listed(path, "--list-ptx")
    most = max((count for name, count in cubins.items() if name != "sm_90a"), default=0)
    for architecture in architectures:
        number, virtual = architecture.removesuffix("-virtual"), architecture.endswith("-virtual")
        count = (ptx if virtual else cubins)[f"sm_{number}"]
        yield architecture, "" if count == most and count > 0 else f"{count} files of {most}"
    yield "90a", "" if cubins["sm_90a"] > 0 else "no kernel of Hopper alone"
    wanted = {f"sm_{a}" for a in architectures} | {"sm_90a"}
    strange = sorted(set(cubins) - wanted)
    yield "nothing else", f"cubins that nobody asked for: {', '.join(strange)}" if strange else ""


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__.split("\n\n")[1])
    if not shutil.which("cuobjdump"):
        sys.exit("cubins_test.py: cuobjdump is not installed")
    failed = 0
    results = list(faults(sys.argv[1], sys.argv[2:]))
    for architecture, wrong in results:
        failed += bool(wrong)
        if wrong:
            print(f"FAILED {architecture}: {wrong}")
    print(f"{len(results) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
