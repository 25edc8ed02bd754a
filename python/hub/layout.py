#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Lays a wheel out as the `kernels` package of Hugging Face loads it: build/VARIANT/ with metadata.json and the files.

usage: layout.py WHEEL FOLDER [--repo ORG/NAME]

One build serves every torch that has DLPack's exchange interface, so the variants are those of torch's stable ABI. The
ops of such a copy live in a namespace of its own, so that it may be loaded beside an installed msa.
What is built on Debian 12 needs glibc 2.34 and is above what the hub accepts for publishing (2.28).
"""
import argparse
import json
import pathlib
import platform
import zipfile

LEFT_OUT = ("msa/bin/", "msa/compat/")  # the tool, and names that other projects own


def variants(cuda):
    """Folder names by backend: the stable ABI from torch 2.10 on, and the exact names that older loaders look for."""
    machine = f"{platform.machine()}-linux"
    if cuda:
        return {f"torch-stable-abi210-cu130-{machine}": "cuda"}
    return {f"torch-stable-abi210-cpu-{machine}": "cpu"}


def lay_out(wheel, folder, repo):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("msa/") and not name.startswith(LEFT_OUT)]
        version = pathlib.Path(wheel).name.split("-")[1]
        cuda = b"libcuda.so" in archive.read("msa/_core.abi3.so")
        for variant, backend in variants(cuda).items():
            target = folder / "build" / variant
            for name in names:
                path = target / name.removeprefix("msa/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
            metadata = {"id": f"_msa_{backend}_{version.replace('.', '_')}", "name": "msa", "version": 1,
                        "license": "MIT", "python-depends": [], "backend": {"type": backend}}
            (target / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")
    (folder / "build.toml").write_text(f"""[general]
name = "msa"
version = 1
edition = 5
license = "MIT"
backends = ["{'cuda' if cuda else 'cpu'}"]

[general.hub]
repo-id = "{repo}"
""")
    return sorted(p.name for p in (folder / "build").iterdir())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--repo", default="msa/msa", help="the name on the hub")
    args = parser.parse_args()
    print("\n".join(lay_out(args.wheel, args.folder, args.repo)))


if __name__ == "__main__":
    main()
