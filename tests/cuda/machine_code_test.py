#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Reads the machine code of the CUDA kernels: nothing spilled, no tensor-core product waits for the one before.

usage: machine_code_test.py FILE...     objects or a libmsa.so; needs cuobjdump and nvdisasm, no GPU

ptxas only notes both (C7510 and its kin), and each costs a large part of a kernel's speed. Products of one
step leave as a batch whose last instruction commits it (gsb0): at least four, the k16 steps of a head dim of
64. Serialised ones commit one by one. Ends with 'N passed, N failed'; one test a kernel.
"""
import collections
import re
import shutil
import subprocess
import sys

CODE = re.compile(r"\s*code for (sm_\w+)")
FUNCTION = re.compile(r"\s*Function : (\S+)")
SPILL = re.compile(r"\b(LDL|STL)\b")
PRODUCT = re.compile(r"\b[HI]GMMA\b")
LEAST_BATCH = 4


def functions(path):
    """Machine code of each kernel in the file, by architecture and mangled name."""
    output = subprocess.run(["cuobjdump", "-sass", path], check=True, capture_output=True, text=True).stdout
    found = collections.defaultdict(list)
    name, architecture = None, ""
    for line in output.splitlines():
        code, match = CODE.match(line), FUNCTION.match(line)
        if code:
            architecture = code.group(1)
        elif match:
            name = (architecture, match.group(1))
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def faults(lines):
    spills = sum(bool(SPILL.search(line)) for line in lines)
    products = [line for line in lines if PRODUCT.search(line)]
    commits = sum("gsb0" in line for line in products)
    if spills:
        yield f"{spills} loads and stores of local memory"
    if len(products) < LEAST_BATCH * commits:
        yield f"{len(products)} products in {commits} batches: some are serialised"


def readable(name):
    if shutil.which("c++filt"):
        name = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip() or name
    return name.split(">(")[0][:160]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__.split("\n\n")[1])
    for tool in ("cuobjdump", "nvdisasm"):
        if not shutil.which(tool):
            sys.exit(f"machine_code_test.py: {tool} is not installed")
    passed, failed, products = 0, 0, 0
    for path in sys.argv[1:]:
        for (architecture, name), lines in functions(path).items():
            wrong = list(faults(lines))
            products += any(PRODUCT.search(line) for line in lines)
            passed += not wrong
            failed += bool(wrong)
            for what in wrong:
                print(f"FAILED {architecture} {readable(name)}: {what}")
    if not products:
        print("FAILED: no kernel with tensor-core products: is this a build for sm_90a?")
        failed += 1
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
