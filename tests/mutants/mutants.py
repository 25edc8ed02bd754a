# SPDX-License-Identifier: MIT
"""Plants small faults one at a time and says which test sees each.

usage: mutants.py [--table cpu|cuda] [--only WORD] [--build DIR] [--jobs N] [--until STAGE] [--list] [--check]

The faults stand in tests/mutants/cpu.txt and cuda.txt; the latter needs a GPU. The tree is built once. Every mutant
gets a copy of tree and build of its own, in which only what its lines touch is compiled again; several run at a time.
Each must be killed: by the cases and tests that it names as likely, then by all committed cases, then by the unit tests.
The tree without a mutant must pass all of them. Ends with "N passed, N failed": a mutant that survives, does not
compile or no longer fits its file has failed. So has one that merely runs out of time, unless the table says that it
hangs."""
import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HANG = 300  # seconds of one command
TIME = f"no answer in {HANG} s"
TESTS = "-*CostsAtMost*:Costs.*"  # all but those that measure: several mutants share the machine


class MutantError(Exception):
    """The list of mutants does not fit the tree, or the tree does not build."""


# ---- the tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """What mutants of a backend are built with and shown to."""
    backend: str
    cmake: tuple[str, ...]
    smoke: tuple[str, ...]
    cases: tuple[str, ...]
    tests: tuple[str, ...]


# Light optimisation of the host's code: most of the time goes into compiling.
LIGHT = ("-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -DNDEBUG", "-DBUILD_SHARED_LIBS=ON")
TABLES = {
    "cpu": Table("cpu", (*LIGHT, "-DMSA_CUDA=OFF"), ("tests/cases/smoke.txt",), ("tests/cases/all.txt",),
                 ("cpu_test", "core_test", "hostile_test")),
    "cuda": Table("cuda", (*LIGHT, "-DMSA_CUDA=ON", "-DMSA_CUDA_ARCHITECTURES=90"), (), ("tests/cases/cuda.txt", "tests/cases/all.txt"),
                  ("gpu_test", "cuda_test")),
}


@dataclass
class Place:
    path: str
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


@dataclass
class Mutant:
    name: str
    isa: str = ""
    hangs: bool = False
    tries: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def paths(self) -> set[str]:
        return {place.path for place in self.places}


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
        elif line.strip() == "hangs" and mutants:
            mutants[-1].hangs = True
        elif word == "try" and mutants:
            mutants[-1].tries.append(rest)
        elif word == "in" and mutants:
            path = rest
        elif word == "-" and path:
            places = mutants[-1].places
            if not places or places[-1].path != path or places[-1].new:
                places.append(Place(path))
            places[-1].old.append(rest.strip())
        elif word == "+" and path and mutants[-1].places:
            mutants[-1].places[-1].new.append(rest.strip())
        else:
            raise MutantError(f"line {number}: expected mutant, isa, hangs, try, in, - or +, got '{line}'")
    for mutant in mutants:
        if not mutant.places or not all(p.old and p.new for p in mutant.places):
            raise MutantError(f"mutant '{mutant.name}': expected lines with - and with +")
    return mutants


def planted(text: str, place: Place) -> str:
    """The file with the place's text replaced; it must stand there exactly once. Indentation is lost."""
    lines = "\n".join(line.strip() for line in text.split("\n"))
    old = "\n".join(place.old)
    count = lines.count(old)
    if count != 1:
        raise MutantError(f"{place.path}: expected once, got {count} times: {place.old[0]}")
    return lines.replace(old, "\n".join(place.new))


def plant(mutant: Mutant, tree: Path) -> None:
    """All or nothing."""
    texts: dict[str, str] = {}
    for place in mutant.places:
        if not (tree / place.path).is_file():
            raise MutantError(f"no file {place.path}")
        text = texts.get(place.path) or (tree / place.path).read_text()
        texts[place.path] = planted(text, place)
    for path, text in texts.items():
        (tree / path).write_text(text)


def narrowed(line: str, wanted: dict[str, str]) -> str:
    """Those cases of a line that hold the wanted values, as a line; "" where there are none."""
    words = dict(word.partition("=")[::2] for word in line.split("#")[0].split())
    for key, value in wanted.items():
        if value not in words.get(key, "").split("|"):
            return ""
        words[key] = value
    return " ".join(f"{key}={value}" for key, value in words.items())


def cases_like(words: str, files: tuple[str, ...]) -> list[str]:
    """The committed cases that hold words such as op=dense page=64."""
    wanted = dict(word.partition("=")[::2] for word in words.split())
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    return [found for found in (narrowed(line, wanted) for line in lines) if found]


def read_table(name: str) -> list[Mutant]:
    """The mutants of a table, all of which fit the tree."""
    path = Path(__file__).parent / f"{name}.txt"
    try:
        mutants = parse(path.read_text())
    except MutantError as error:
        raise MutantError(f"{path.name}: {error}") from None
    wrong = []
    names: set[str] = set()
    for mutant in mutants:
        try:
            if mutant.name in names:
                raise MutantError("its name stands twice")
            names.add(mutant.name)
            check_fits(mutant, TABLES[name])
        except MutantError as error:
            wrong.append(f"{path.name}: mutant '{mutant.name}': {error}")
    if wrong:
        raise MutantError("\n".join(wrong))
    return mutants


def check_fits(mutant: Mutant, table: Table) -> None:
    texts: dict[str, str] = {}
    for place in mutant.places:
        if not (ROOT / place.path).is_file():
            raise MutantError(f"no file {place.path}")
        before = texts.get(place.path) or (ROOT / place.path).read_text()
        texts[place.path] = planted(before, place)
    for words in mutant.tries:
        test = words.split()[0]
        if "=" in test and not cases_like(words, table.cases):
            raise MutantError(f"no committed case holds {words}")
        if "=" not in test and test not in table.tests:
            raise MutantError(f"expected words of cases or one of {', '.join(table.tests)}, got {words}")


# ---- building --------------------------------------------------------------------------------------------------------


def run_logged(log: Path, *command: object) -> None:
    with open(log, "w") as file:
        done = subprocess.run([str(c) for c in command], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise MutantError(f"{command[0]} failed, see {log}: {reason_in(log)}")


def reason_in(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in lines if re.search(r"\berror\b", line, re.I)), lines[-1] if lines else "")


def files_of_tree() -> list[str]:
    """What git knows; in a tree that travels without its repository, everything but hidden and build folders."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = [name for name in done.stdout.split("\0") if name] if done.returncode == 0 else []
    if not names:
        found = (file.relative_to(ROOT) for file in ROOT.rglob("*"))
        names = [str(file) for file in found if not re.match(r"\.|build", file.parts[0])]
    return [name for name in names if (ROOT / name).is_file()]


def copy_tree(tree: Path) -> None:
    """What did not change keeps its time, so that builds stay incremental."""
    known = files_of_tree()
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


def make_movable(build: Path, tree: Path) -> None:
    """Paths in build.ninja become relative, and neither CMake nor git is asked again: a copy of tree and build then
    builds itself. The commit's header is there by then."""
    blocks = re.split(r"\n(?=\S)", (build / "build.ninja").read_text())
    kept = [block for block in blocks if not re.match(r"build [^\n]*: (RERUN_CMAKE|VERIFY_GLOBS)\b", block)]
    text = re.sub(r" \|( \$\{cmake_ninja_workdir\}\S+?)+(?=:)", "", "\n".join(kept))
    text = re.sub(r"(?m)^  COMMAND = cd .*$", "  COMMAND = :", text)
    text = text.replace(f"{build}/", "").replace(str(build), ".").replace(str(tree), "../tree")
    (build / "build.ninja").write_text(text)


@dataclass
class Build:
    """A folder with a tree and its build. Commands run in the build's folder, as its paths are relative."""
    folder: Path
    table: Table
    gpus: tuple[str, ...] = ()  # that its commands see; () all of them, in the machine's order

    def __post_init__(self) -> None:
        self.tree, self.build = self.folder / "tree", self.folder / "build"

    def make(self, jobs: int, *targets: str) -> None:
        run_logged(self.folder / "build.log", "ninja", "-C", self.build, "-j", jobs, *targets)

    def tool(self) -> str:
        return str(self.build / "tools/msa/msa")

    def copy(self, folder: Path, gpus: tuple[str, ...]) -> "Build":
        if folder.exists():
            shutil.rmtree(folder)
        subprocess.run(["cp", "-a", self.folder, folder], check=True)
        return Build(folder, self.table, gpus)

    def environment(self) -> dict[str, str]:
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}
        return {**os.environ, "OMP_NUM_THREADS": "2", **seen}


def make_base(folder: Path, table: Table, jobs: int) -> Build:
    base = Build(folder, table)
    folder.mkdir(parents=True, exist_ok=True)
    copy_tree(base.tree)
    run_logged(folder / "cmake.log", "cmake", "-S", base.tree, "-B", base.build, "-G", "Ninja", *table.cmake,
               "-DCMAKE_GTEST_DISCOVER_TESTS_DISCOVERY_MODE=PRE_TEST")
    base.make(jobs, "msa_commit")
    make_movable(base.build, base.tree)
    base.make(jobs, "msa_tool", *table.tests)
    return base


def dependents(base: Build) -> dict[str, int]:
    """How many objects each file of the tree goes into."""
    text = subprocess.run(["ninja", "-C", base.build, "-t", "deps"], capture_output=True, text=True).stdout
    count: dict[str, int] = {}
    for path in re.findall(r"^    \.\./tree/(\S+)$", text, re.M):
        count[path] = count.get(path, 0) + 1
    return count


# ---- killing ---------------------------------------------------------------------------------------------------------


class Race:
    """Commands side by side, until one has failed or all are done. Of a failure, the line that says so and the next."""

    def __init__(self, commands: list[list[str]], pattern: str, build: Build):
        self.pattern, self.found, self.lock = pattern, "", threading.Lock()
        self.processes = [subprocess.Popen(command, cwd=build.build, env=build.environment(), text=True, errors="replace",
                                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for command in commands]

    def run(self) -> str:
        timer = threading.Timer(HANG, self.stop, [TIME])
        timer.start()
        watchers = [threading.Thread(target=self.watch, args=[process]) for process in self.processes]
        for watcher in watchers:
            watcher.start()
        for watcher in watchers:
            watcher.join()
        timer.cancel()
        return self.found

    def watch(self, process: "subprocess.Popen[str]") -> None:
        last = ""
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.strip() or last
                if re.match(self.pattern, line):
                    self.stop(line.strip() + " " + process.stdout.readline().strip())
        if process.returncode != 0:
            self.stop(f"exit status {process.returncode}: {last}")

    def stop(self, found: str) -> None:
        with self.lock:
            if self.found:
                return
            self.found = found
        for process in self.processes:
            process.kill()


def verify(build: Build, isa: str, cases: list[str], parts: int) -> str:
    backend = build.table.backend
    own = ROOT / "tests/support" / f"{backend}-{isa}.txt"  # of an instruction set that takes less, or more
    support = own if own.exists() else ROOT / "tests/support" / f"{backend}.txt"
    command = [build.tool(), "verify", "--backend", backend, "--repeats", "1", "--support", str(support)]
    command += ["--isa", isa] if isa else []
    files = [[*command, "--part", f"{part}/{parts}", *cases] for part in range(1, parts + 1)]
    return Race(files, "FAILED", build).run()


def run_test(build: Build, name: str, jobs: int, gtest_filter: str = TESTS) -> str:
    build.make(jobs, name)
    command = [str(build.build / "tests" / name), "--gtest_fail_fast", f"--gtest_filter={gtest_filter}"]
    return Race([command], r"\[  FAILED  \]", build).run()


def likely_killer(build: Build, mutant: Mutant, jobs: int) -> str:
    for words in mutant.tries:
        name, _, rest = words.partition(" ")
        if "=" not in name:
            found = run_test(build, name, jobs, rest or TESTS)
            where = name
        else:
            build.make(jobs, "msa_tool")
            cases = build.folder / "try.txt"
            cases.write_text("\n".join(cases_like(words, build.table.cases)) + "\n")
            found = verify(build, mutant.isa, [str(cases)], 1)
            where = f"cases with {words}"
        if found:
            return f"{where}: {found}"
    if not build.table.smoke:
        return ""
    build.make(jobs, "msa_tool")
    found = verify(build, mutant.isa, [str(ROOT / file) for file in build.table.smoke], 1)
    return found and f"smoke cases: {found}"


def any_killer(build: Build, isa: str, jobs: int, until: str) -> str:
    """All cases, in processes of every N-th: a kind of cases stands together. Then the tests."""
    if until == "likely":
        return ""
    build.make(jobs, "msa_tool")
    found = verify(build, isa, [str(ROOT / file) for file in build.table.cases], jobs)
    if found or until == "cases":
        return found and f"cases: {found}"
    for name in build.table.tests:
        found = run_test(build, name, jobs)
        if found:
            return f"{name}: {found}"
    return ""


def levels(build: Build) -> set[str]:
    info = json.loads(subprocess.run([build.tool(), "info", "--json"], check=True, capture_output=True).stdout)
    cuda = [backend for backend in info["backends"] if backend["name"] == "cuda"]
    if build.table.backend == "cuda" and not any(backend["available"] for backend in cuda):
        raise MutantError("no GPU to run the mutants of cuda.txt on")
    return {isa["name"] for backend in info["backends"] for isa in backend.get("isas", []) if isa["available"]}


def visible_gpus() -> tuple[str, ...]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(number for number in given.split(",") if number)
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return tuple(subprocess.run(query, check=True, capture_output=True, text=True).stdout.split())


class Run:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.gpus = visible_gpus() if options.table == "cuda" else ()
        self.whole = threading.Lock()  # one run of all cases at a time takes the whole machine
        self.killed = self.failed = 0

    def judge(self, base: Build, mutant: Mutant, number: int) -> str:
        """What kills the mutant, "" where nothing does."""
        jobs = self.options.jobs
        first = number % max(1, len(self.gpus))  # every mutant sees all GPUs, each another one first
        build = base.copy(self.options.build / f"mutant-{number}", self.gpus[first:] + self.gpus[:first])
        try:
            plant(mutant, build.tree)
            found = likely_killer(build, mutant, max(1, jobs // 4))
            if not found:
                with self.whole:
                    found = any_killer(build, mutant.isa, jobs, self.options.until)
            if found.endswith(TIME) and not mutant.hangs:
                raise MutantError(found)
            return found
        finally:
            shutil.rmtree(build.folder)

    def check_base(self, base: Build) -> str:
        with self.whole:
            return any_killer(base, "", self.options.jobs, self.options.until)

    def tell(self, mutant: Mutant, begin: float, found: str, fits: bool = True) -> None:
        self.killed += bool(found) and fits
        self.failed += not found or not fits
        word = ("killed" if found else "SURVIVED") if fits else "BROKEN"
        print(f"{word:9} {mutant.name} ({time.monotonic() - begin:.0f} s)", flush=True)
        if found:
            print(f"          {found[:300]}", flush=True)

    def run(self, mutants: list[Mutant]) -> int:
        options = self.options
        options.build.mkdir(parents=True, exist_ok=True)
        lock = open(options.build / "lock", "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MutantError(f"another run uses {options.build}: two would see each other's mutants") from None
        begin = time.monotonic()
        base = make_base(options.build / "base", TABLES[options.table], options.jobs)
        available = levels(base)
        print(f"built in {time.monotonic() - begin:.0f} s", flush=True)
        there = [m for m in mutants if not m.isa or m.isa in available]
        for mutant in (m for m in mutants if m not in there):
            print(f"not run   {mutant.name}: this machine lacks {mutant.isa}")
        weight = dependents(base)  # those that take longest to compile first
        there.sort(key=lambda m: -sum(weight.get(path, 1) for path in m.paths()))
        with ThreadPoolExecutor(options.jobs + 1) as pool:
            sound = None if options.no_base else pool.submit(self.check_base, base)
            jobs = {pool.submit(self.timed, base, mutant, number): mutant for number, mutant in enumerate(there)}
            for job in as_completed(jobs):
                started, found, fits = job.result()
                self.tell(jobs[job], started, found, fits)
            if sound is not None and sound.result():
                raise MutantError(f"without a mutant a test fails already: {sound.result()}")
        print(f"{self.killed} passed, {self.failed} failed")
        return 1 if self.failed or not self.killed else 0

    def timed(self, base: Build, mutant: Mutant, number: int) -> tuple[float, str, bool]:
        begin = time.monotonic()
        try:
            return begin, self.judge(base, mutant, number), True
        except MutantError as error:
            return begin, str(error), False


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", choices=sorted(TABLES), default="cpu")
    parser.add_argument("--only", default=[], action="append", metavar="WORD", help="mutants whose name or file holds it")
    parser.add_argument("--list", action="store_true", help="the names")
    parser.add_argument("--check", action="store_true", help="whether every mutant of every table fits the tree")
    parser.add_argument("--build", type=Path, default=None, help="default: build/mutants-TABLE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--until", choices=("likely", "cases", "tests"), default="tests", metavar="STAGE",
                        help="likely: what a mutant names; cases: all of them, too; tests: everything, the default")
    parser.add_argument("--no-base", action="store_true", help="do not show that the tree without a mutant passes")
    options = parser.parse_args()
    options.build = (options.build or ROOT / "build" / f"mutants-{options.table}").resolve()
    return options


def main() -> int:
    options = parse_options()
    if options.check:
        count = sum(len(read_table(name)) for name in TABLES)
        print(f"{count} mutants fit the tree")
        return 0
    mutants = [m for m in read_table(options.table)
               if not options.only or any(word in m.name or any(word in path for path in m.paths()) for word in options.only)]
    if options.list:
        print("\n".join(m.name for m in mutants))
        return 0
    return Run(options).run(mutants)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MutantError as error:
        print(f"mutants: {error}", file=sys.stderr)
        print("0 passed, 1 failed")
        sys.exit(1)
