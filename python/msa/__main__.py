# SPDX-License-Identifier: MIT
"""python -m msa: the command-line tool that the package was built with."""
from __future__ import annotations

import os
import pathlib
import sys


def main() -> int:
    """Becomes the tool; says so where the package has none."""
    tool = pathlib.Path(__file__).with_name("bin") / "msa"
    if not tool.exists():
        print("python -m msa: this package was built without the tool, as the headers of CLI11, fmt and nlohmann-json"
              " were not there", file=sys.stderr)
        return 2
    os.execv(tool, ["msa", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
