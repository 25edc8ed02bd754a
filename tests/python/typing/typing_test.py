#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Types that users see: files under pass/ check clean, every line of fail/ that says '# error' has one, and the stub of
the extension is what the extension has.
"""
import importlib
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def mypy(path):
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(path)],
                          capture_output=True, text=True)
    return {int(line) for line in re.findall(r"^[^:]+:(\d+): error", done.stdout, re.M)}, done.stdout + done.stderr


def main():
    bad = []
    for path in sorted(HERE.glob("pass/*.py")):
        errors, text = mypy(path)
        bad += [text] if errors or "error" in text else []
    for path in sorted(HERE.glob("fail/*.py")):
        errors, text = mypy(path)
        wanted = {n for n, line in enumerate(path.read_text().splitlines(), 1) if line.endswith("# error")}
        bad += [f"{path.name}: expected errors in lines {sorted(wanted)}, got {sorted(errors)}\n{text}"] \
            if errors != wanted else []
    core = importlib.import_module("msa._core")
    stub = pathlib.Path(core.__file__).with_name("_core.pyi").read_text()
    declared = set(re.findall(r"^(?:def|class) (\w+)|^(__version__):", stub, re.M))
    declared = {a or b for a, b in declared}
    found = {name for name in dir(core) if not name.startswith("__") or name == "__version__"}
    bad += [f"_core.pyi and the module differ in {sorted(declared ^ found)}"] if declared != found else []
    print("\n".join(bad))
    print(f"{3 - len(bad)} passed, {len(bad)} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
