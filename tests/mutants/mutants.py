# SPDX-License-Identifier: MIT
"""Plants small faults one at a time in a copy of the tree, builds what changed and says which test sees each.

usage: mutants.py [--only WORD] [--list] [--build DIR] [--jobs N] [--no-tests]

The faults stand in tests/mutants/cpu.txt. Each must be killed: by `msa verify` on the committed cases or by the unit
tests. Ends with "N passed, N failed", a mutant that survives counting as failed."""
import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HANG = 300  # seconds; a hang is seen too


class MutantError(Exception):
    """The list of mutants does not fit the tree."""


@dataclass
class Place:
    path: str
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


@dataclass
class Mutant:
    name: str
    isa: str = ""
    places: list[Place] = field(default_factory=list)


def parse(text: str) -> list[Mutant]:
    mutants: list[Mutant] = []
    path = ""
    for number, line in enumerate(text.splitlines(), 1):
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#"):
            continue
        if word == "mutant":
            mutants.append(Mutant(rest))
            path = ""
        elif word == "isa" and mutants:
            mutants[-1].isa = rest
        elif word == "in" and mutants:
            path = rest
        elif word == "-" and path:
            places = mutants[-1].places
            if not places or places[-1].path != path or places[-1].new:
                places.append(Place(path))
            places[-1].old.append(rest.strip())
        elif word == "+" and path and mutants[-1].places:
            mutants[-1].places[-1].new.append(rest)
        else:
            raise MutantError(f"line {number}: expected mutant, isa, in, - or +, got '{line}'")
    for mutant in mutants:
        if not mutant.places or not all(p.old and p.new for p in mutant.places):
            raise MutantError(f"mutant '{mutant.name}': expected lines with - and with +")
    return mutants


def planted(text: str, place: Place) -> str:
    """The file with the place's lines replaced; they must stand there exactly once."""
    lines = text.split("\n")
    count = len(place.old)
    found = [i for i in range(len(lines) - count + 1)
             if [line.strip() for line in lines[i:i + count]] == place.old]
    if len(found) != 1:
        raise MutantError(f"{place.path}: expected once, got {len(found)} times: {place.old[0]}")
    return "\n".join(lines[:found[0]] + place.new + lines[found[0] + count:])


def plant(mutant: Mutant, tree: Path) -> dict[str, str]:
    """Changes the tree; returns what the changed files held."""
    before: dict[str, str] = {}
    for place in mutant.places:
        file = tree / place.path
        text = file.read_text()
        before.setdefault(place.path, text)
        file.write_text(planted(text, place))
    return before


def copy_tree(tree: Path) -> None:
    """The files that git knows. What did not change keeps its time, so that builds stay incremental."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode()
    known = [name for name in names.split("\0") if name and (ROOT / name).is_file()]
    for name in known:
        source, target = ROOT / name, tree / name
        if target.is_file() and target.read_bytes() == source.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    keep = set(known)
    for file in tree.rglob("*"):
        if file.is_file() and str(file.relative_to(tree)) not in keep:
            file.unlink()


class Builder:
    def __init__(self, folder: Path, jobs: int):
        self.tree, self.build, self.jobs = folder / "tree", folder / "build", jobs
        self.log = folder / "build.log"
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = open(folder / "lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MutantError(f"another run uses {folder}: two would see each other's mutants") from None
        copy_tree(self.tree)
        # Light optimisation: most of the time goes into compiling.
        self.run("cmake", "-S", self.tree, "-B", self.build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                 "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG", "-DMSA_CUDA=OFF", "-DBUILD_SHARED_LIBS=ON")

    def run(self, *command: object) -> None:
        with open(self.log, "w") as log:
            done = subprocess.run([str(c) for c in command], stdout=log, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise MutantError(f"{command[0]} failed, see {self.log}")

    def make(self, *targets: str) -> None:
        self.run("cmake", "--build", self.build, "-j", self.jobs, "--target", *targets)

    def tool(self) -> Path:
        return self.build / "tools/msa/msa"


def first_failure(command: list[str], pattern: str) -> str:
    """What the command says first that matches, "" where it ends well. It is stopped as soon as it has failed."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               errors="replace")
    assert process.stdout is not None
    end = time.monotonic() + HANG
    try:
        for line in process.stdout:
            if re.match(pattern, line):
                return line.strip()
            if time.monotonic() > end:
                return "it hangs"
        code = process.wait(max(1.0, end - time.monotonic()))
        return "" if code == 0 else f"exit status {code}"
    except subprocess.TimeoutExpired:
        return "it hangs"
    finally:
        process.kill()
        process.wait()


def killer_in_cases(builder: Builder, isa: str, jobs: int) -> str:
    verify = [str(builder.tool()), "verify", "--backend", "cpu", "--repeats", "1", "--support", "tests/support/cpu.txt"]
    verify += ["--isa", isa] if isa else []
    found = first_failure([*verify, "tests/cases/smoke.txt"], "FAILED")
    if found:
        return f"smoke cases: {found}"
    # Cases of one kind stand together; other parts see other kinds first.
    for part in range(1, jobs + 1):
        found = first_failure([*verify, "--part", f"{part}/{jobs}", "tests/cases/all.txt"], "FAILED")
        if found:
            return f"cases: {found}"
    return ""


def killer_in_tests(builder: Builder) -> str:
    for name in ("cpu_test", "core_test", "hostile_test"):
        builder.make(name)
        found = first_failure([str(builder.build / "tests" / name), "--gtest_fail_fast"], r"\[  FAILED  \]")
        if found:
            return f"{name}: {found}"
    return ""


def levels(builder: Builder) -> set[str]:
    info = json.loads(subprocess.run([str(builder.tool()), "info", "--json"], check=True, capture_output=True).stdout)
    return {isa["name"] for backend in info["backends"] for isa in backend.get("isas", []) if isa["available"]}


def judge(builder: Builder, mutant: Mutant, options: argparse.Namespace) -> str:
    """Which test sees the mutant, "" where none does. The tree is as it was afterwards."""
    before = plant(mutant, builder.tree)
    try:
        builder.make("msa_tool")
        found = killer_in_cases(builder, mutant.isa, options.jobs)
        if not found and not options.no_tests:
            found = killer_in_tests(builder)
        return found
    finally:
        for path, text in before.items():
            (builder.tree / path).write_text(text)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="mutants whose name or file holds it")
    parser.add_argument("--list", action="store_true", help="the names; whether each fits its file")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-tests", action="store_true", help="cases alone, no unit tests")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    mutants = parse((Path(__file__).parent / "cpu.txt").read_text())
    mutants = [m for m in mutants if options.only in m.name or any(options.only in p.path for p in m.places)]
    for mutant in mutants:  # before anything is built
        for path in {p.path for p in mutant.places}:
            text = (ROOT / path).read_text()
            for place in (p for p in mutant.places if p.path == path):
                text = planted(text, place)
    if options.list:
        print("\n".join(m.name for m in mutants))
        return 0
    builder = Builder(options.build, options.jobs)
    builder.make("msa_tool")
    sound = killer_in_cases(builder, "", options.jobs)
    if sound:
        raise MutantError(f"without a mutant a test fails already: {sound}")
    available = levels(builder)
    killed = survived = 0
    for mutant in mutants:
        if mutant.isa and mutant.isa not in available:
            print(f"not run   {mutant.name}: this machine lacks {mutant.isa}")
            continue
        begin = time.monotonic()
        found = judge(builder, mutant, options)
        killed += bool(found)
        survived += not found
        print(f"{'killed  ' if found else 'SURVIVED'}  {mutant.name} ({time.monotonic() - begin:.0f} s)", flush=True)
        if found:
            print(f"            {found[:200]}", flush=True)
    print(f"{killed} passed, {survived} failed")
    return 1 if survived or not killed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MutantError as error:
        print(f"mutants: {error}", file=sys.stderr)
        print("0 passed, 1 failed")
        sys.exit(1)
