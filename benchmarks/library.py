#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Builds libmsa.so for every GPU architecture and writes its size to benchmarks/results/library-<compiler>.json, whole.

Needs the CUDA toolkit and no GPU. The build is what users get who ask for nothing else: Release, not stripped.

usage: benchmarks/library.py [--build DIR] [--allow-dirty] [--out FILE]     (default: build/every-gpu)
"""
import argparse
import datetime
import json
import pathlib
import re
import subprocess
import sys

import cpu

ROOT = pathlib.Path(__file__).resolve().parents[1]


def cached(directory, name):
    """A value out of the cache of a build."""
    return re.search(rf"^{name}:\w+=(.*)$", (directory / "CMakeCache.txt").read_text(), re.M).group(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "every-gpu", help="folder to build in")
    parser.add_argument("--allow-dirty", action="store_true", help="measure a tree with changes, for a trial")
    parser.add_argument("--out", type=pathlib.Path, help="default: benchmarks/results/library-<compiler>.json")
    args = parser.parse_args()

    head = cpu.check_tree(args.allow_dirty)
    for command in (["cmake", "-S", ROOT, "-B", args.build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DMSA_CUDA=ON",
                     "-DMSA_UNITY=ON", "-DMSA_BUILD_TOOLS=OFF", "-DBUILD_SHARED_LIBS=ON"],
                    ["cmake", "--build", args.build, "--target", "msa"]):
        if subprocess.run(command, stdout=sys.stderr).returncode != 0:
            sys.exit("library.py: the build failed: nothing written")
    library = (args.build / "src" / "libmsa.so").resolve()
    version = re.search(r"release ([\d.]+)", subprocess.run([cached(args.build, "CMAKE_CUDA_COMPILER"), "--version"],
                                                            capture_output=True, text=True, check=True).stdout).group(1)
    architectures = cached(args.build, "MSA_CUDA_ARCHITECTURES").split(";")
    row = {"id": "library.all", "what": f"libmsa.so, all backends, CUDA {version} for {', '.join(architectures)}",
           "bytes": library.stat().st_size}
    document = {"machine": {"cpu": "any", "isa": "every one"}, "commit": head,
                "version": re.search(r'VERSION_STRING "(.*)"', (ROOT / "include/msa/version.h").read_text()).group(1),
                "command": "benchmarks/library.py", "date": datetime.date.today().isoformat(), "rows": [row]}
    out = args.out or ROOT / "benchmarks" / "results" / f"library-cuda-{version}.json"
    cpu.write_whole(out, document)
    print(f"{row['bytes']} bytes; wrote {out}")


if __name__ == "__main__":
    main()
