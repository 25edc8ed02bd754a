#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks what compilers do not: who includes whom, headers that compile alone, words that have no place
in a library, formatting, portability, versions and links that agree.

usage: style_test.py [--only NAME]... [--list]

Prints one line a check and 'N passed, N failed' at the end; exit status 1 when a check fails.
A check whose tool is not installed fails: test.sh installs what is needed.
"""
import argparse
import concurrent.futures
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODE = {".h", ".c", ".cpp", ".inl", ".cu", ".cuh"}
SCRIPTS = {".py", ".sh", ".cmake"}

# Which rooms a room may include (besides itself). tests look inside on purpose.
ROOMS = {
    "include/msa": [],
    "src/core": ["include/msa"],
    "src/api.cpp": ["include/msa", "src/core"],
    "src/c_api.cpp": ["include/msa", "src/core"],
    "src/reference": ["include/msa", "src/core"],
    "src/cpu": ["include/msa", "src/core"],
    "src/cuda": ["include/msa", "src/core"],
    "python": ["include/msa"],
    "testkit": ["include/msa"],
    "examples": ["include/msa"],
    "tools": ["include/msa", "testkit"],
    "benchmarks": ["include/msa", "testkit"],
    "fuzz": ["include/msa", "testkit", "tools"],
    "tests": ["include/msa", "testkit", "tools", "src/core", "src/reference", "src/cpu", "src/cuda"],
}
# Third-party and CUDA headers, and the rooms that may name them.
FOREIGN = [
    (r"(fmt|nlohmann)/", {"testkit", "tools", "benchmarks", "fuzz", "tests"}),
    (r"CLI/", {"tools", "benchmarks"}),
    (r"(gtest|gmock)/", {"tests"}),
    (r"(dlpack|tvm)/", {"python"}),
    (r"(torch|ATen|c10)/", set()),
    (r"(cuda|cub/|cooperative_groups|thrust/|nv/)", {"src/cuda", "testkit", "tools", "benchmarks", "tests", "examples"}),
    (r"(immintrin|x86intrin|cpuid)\.h", {"src/cpu", "src/core", "tools", "tests"}),
]


def tracked():
    out = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                         check=True, capture_output=True).stdout
    return [ROOT / p for p in sorted(set(out.decode().split("\0"))) if p and (ROOT / p).is_file()]


FILES = tracked()


def rel(path):
    return path.relative_to(ROOT).as_posix()


def code_files():
    return [f for f in FILES if f.suffix in CODE]


def room_of(path):
    name = rel(path)
    for room in ROOMS:
        if name == room or name.startswith(room + "/"):
            return room
    return None


def strip_comments_and_strings(text):
    """Blanks comments, strings and characters; keeps line numbers."""
    pattern = re.compile(r'R"([^(\s]*)\(.*?\)\1"|//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.S)
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group(0)), text)


def includes(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        m = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if m:
            yield number, m.group(1), m.group(2)


def resolve(path, name):
    for base in (path.parent, ROOT / "include", ROOT / "src", ROOT, ROOT / "tools/msa", ROOT / "python"):
        if (base / name).is_file():
            return (base / name).resolve()
    return None


def check_include_directions():
    bad = []
    for path in code_files():
        room = room_of(path)
        if room is None:
            bad.append(f"{rel(path)}: belongs to no room of docs/architecture.md")
            continue
        for line, kind, name in includes(path):
            where = f"{rel(path)}:{line}"
            if kind == "<":
                for pattern, allowed in FOREIGN:
                    if re.match(pattern, name) and room not in allowed:
                        bad.append(f"{where}: <{name}> has no place in {room}")
                continue
            # The consumer project uses installed headers.
            if rel(path).startswith("tests/package/") and name.startswith("msa/"):
                continue
            target = resolve(path, name)
            if target is None:
                bad.append(f'{where}: "{name}" is not a file of this tree (system headers take <>)')
                continue
            other = room_of(target)
            if other != room and other not in ROOMS[room]:
                bad.append(f"{where}: {room} must not include {other} ({name})")
    return bad


def alone_flags(include_dirs, extra):
    return ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", *extra, *[f"-I{d}" for d in include_dirs]]


def compile_alone(compiler, header, include_dirs, extra=()):
    with tempfile.NamedTemporaryFile("w", suffix=".cpp", delete=False) as unit:
        unit.write(f'#include "{header}"\n#include "{header}"\n')
    try:
        cmd = [compiler, *alone_flags(include_dirs, extra), "-fsyntax-only", unit.name]
        done = subprocess.run(cmd, capture_output=True, text=True)
        if done.returncode == 0:
            return []
        first = next((l for l in done.stderr.splitlines() if "error" in l), done.stderr.strip()[:300])
        return [f"{header} with {compiler}: {first}"]
    finally:
        os.unlink(unit.name)


def in_parallel(jobs):
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return [line for result in pool.map(lambda job: job[0](*job[1:]), jobs) for line in result]


def compilers(*names):
    missing = [n for n in names if not shutil.which(n)]
    return [f"{n} is not installed" for n in missing]


def check_public_headers_alone():
    bad = compilers("g++", "clang++-14")
    headers = [f for f in FILES if rel(f).startswith("include/msa/") and f.suffix == ".h"]
    if not headers:
        bad.append("no public headers found")
    return bad or in_parallel([(compile_alone, c, f"msa/{h.name}", [ROOT / "include"], ("-pedantic",))
                               for h in headers for c in ("g++", "clang++-14")])


def first_included():
    """Headers that a source of the library includes before anything else: every build compiles them alone with it. Other
    sources do not count, as a build may compile them behind others in one unit."""
    rooms = ("src/api.cpp", "src/c_api.cpp", "src/core", "src/cpu", "src/reference")
    for f in code_files():
        first = next(includes(f), None) if f.suffix == ".cpp" else None
        if first and first[1] == '"' and room_of(f) in rooms:
            yield resolve(f, first[2])


def reached(path, found):
    """Adds to `found` what the includes at the top of a file bring in: files of the tree, and names of others."""
    top = re.match(r"(\s|//[^\n]*|#pragma once|#include [^\n]*)*", path.read_text()).group(0)
    for kind, name in re.findall(r'^#include ([<"])([^>"]+)', top, re.M):
        target = resolve(path, name) if kind == '"' else name
        if target and target not in found:
            found.add(target)
            if kind == '"':
                reached(target, found)
    return found


@contextlib.contextmanager
def precompiled(command, names):
    """Compiles headers once, larger ones named first. Gives what tells the options with which a file begins with one of
    them: one that its own includes, all above its first declaration, bring in anyhow, so that it sees no more than alone."""
    with tempfile.TemporaryDirectory() as folder:
        texts = {name: pathlib.Path(folder) / name.replace("/", "_") for name in names}

        def compile_header(name):
            texts[name].write_text(f'#include "{name}"\n')
            # Where this fails nothing is lost: the text is included instead, and whoever includes it fails, too.
            subprocess.run([*command, "-x", "c++-header", texts[name], "-o", f"{texts[name]}.gch"], capture_output=True)
            return []

        def options(path):
            there = reached(path, set())
            return next((["-include", str(texts[name])] for name in names if resolve(path, name) in there), [])

        in_parallel([(compile_header, name) for name in names])
        yield options


def check_internal_headers_alone():
    """Compiles those headers alone that no build does."""
    bad = compilers("g++")
    dirs = [ROOT / "include", ROOT / "src", ROOT, ROOT / "tools/msa"]
    headers = [f for f in FILES if f.suffix == ".h" and room_of(f) not in (None, "include/msa", "src/cuda", "python")
               and not rel(f).startswith(("tests/cuda/", "tests/emulator/"))]  # they need CUDA's headers
    # src/cpu/isa/vec_*.h are bodies: each is included inside its instruction set's target region and namespace.
    built = set(first_included())
    alone = [h for h in headers if not rel(h).startswith("src/cpu/isa/vec_") and h.resolve() not in built]
    if bad:
        return bad
    with precompiled(["g++", *alone_flags(dirs, ("-fopenmp",))],
                     ("testkit/oracle.h", "testkit/case.h", "msa/operands.h", "msa/problem.h")) as options:
        return in_parallel([(compile_alone, "g++", str(h), dirs, ("-fopenmp", *options(h))) for h in alone])


def check_no_x86():
    """The reference and the scalar code compile for another processor. Most of a small file's time is headers: files of
    one room go together, as in a build with MSA_UNITY, and those alone whose names of their own others have, too."""
    compiler = "aarch64-linux-gnu-g++"
    bad = compilers(compiler)
    sources = [f for f in FILES if f.suffix == ".cpp" and room_of(f) in ("src/core", "src/api.cpp", "src/reference",
                                                                         "src/cpu")]
    together = [f for f in sources if room_of(f) != "src/cpu" and f.name != "steps.cpp"]
    groups = [[f] for f in sources if f not in together] + [together[i::4] for i in range(4)]

    command = [compiler, "-std=c++20", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", f"-I{ROOT / 'include'}",
               f"-I{ROOT / 'src'}"]

    def one(group, options):
        unit = "".join(f'#include "{f}"\n' for f in group)
        done = subprocess.run([*command, *options, "-fsyntax-only", "-x", "c++", "-"], input=unit, capture_output=True,
                              text=True)
        first = next((l for l in done.stderr.splitlines() if "error" in l), done.stderr.strip()[:300])
        return [] if done.returncode == 0 else [first]

    if bad:
        return bad
    with precompiled(command, ("core/call.h", "cpu/isa/common.h")) as options:
        return in_parallel([(one, g, options(g[0])) for g in groups if g])


def text_files():
    for f in FILES:
        if f.suffix in CODE | SCRIPTS or f.name == "CMakeLists.txt" or rel(f) == ".ci/run":
            yield f


def check_text():
    """ASCII, one SPDX line at the top, no tabs, no trailing blanks, a final newline."""
    bad = []
    for f in text_files():
        data = f.read_bytes()
        if not data:
            bad.append(f"{rel(f)}: empty")
            continue
        for number, line in enumerate(data.split(b"\n"), 1):
            if any(b > 126 or (b < 32) for b in line):
                bad.append(f"{rel(f)}:{number}: a character outside printable ASCII")
            if line.endswith(b" "):
                bad.append(f"{rel(f)}:{number}: trailing blank")
        if not data.endswith(b"\n") or data.endswith(b"\n\n"):
            bad.append(f"{rel(f)}: must end with exactly one newline")
        if b"SPDX-License-Identifier: MIT" not in b"\n".join(data.split(b"\n")[:2]):
            bad.append(f"{rel(f)}: no SPDX line at the top")
    return bad


def check_silent_library():
    """The library never prints, exits or aborts."""
    bad = []
    call = re.compile(r"(?<![\w.>])(?:std::|::)?(v?f?printf|puts|fputs|putchar|perror|fwrite|abort|exit|_exit|_Exit|"
                      r"quick_exit|terminate|assert)\s*\(")
    stream = re.compile(r"std::(cout|cerr|clog)\b")
    for f in code_files():
        if not rel(f).startswith(("src/", "include/")):
            continue
        for number, line in enumerate(strip_comments_and_strings(f.read_text()).splitlines(), 1):
            m = call.search(line) or stream.search(line)
            if m:
                bad.append(f"{rel(f)}:{number}: {m.group(0).strip()}")
    return bad


def check_unfinished():
    """No postponed work, no disabled code, no fast-math."""
    bad = []
    word = re.compile(r"TO[D]O|FIX[M]E|XX[X]\b|HA[C]K\b")
    for f in FILES:
        if f.suffix not in CODE | SCRIPTS | {".txt", ".md"} or f == pathlib.Path(__file__).resolve():
            continue
        for number, line in enumerate(f.read_text(errors="replace").splitlines(), 1):
            if word.search(line):
                bad.append(f"{rel(f)}:{number}: {word.search(line).group(0)}")
            if f.suffix in CODE and re.match(r"\s*#\s*if\s+0\b", line):
                bad.append(f"{rel(f)}:{number}: #if 0")
            if f.suffix == ".cmake" or f.name == "CMakeLists.txt":
                if "-ffast-math" in line.split("#")[0] or "-Ofast" in line.split("#")[0]:
                    bad.append(f"{rel(f)}:{number}: fast-math")
    return bad


def check_item_bits():
    """Sizes in bytes come from size_in_bytes(): item_bits() / 8 is 0 for formats of four bits."""
    # Where bits are what is meant, and where the function and its names for other languages stand.
    allowed = {"include/msa/tensor.h", "src/core/tensor.cpp", "src/core/overlap.cpp", "src/c_api.cpp",
               "tests/core/problem_test.cpp", "tests/core/overlap_test.cpp"}
    return [f"{rel(f)}:{number}: item_bits" for f in code_files() if rel(f) not in allowed
            for number, line in enumerate(strip_comments_and_strings(f.read_text()).splitlines(), 1)
            if re.search(r"\bitem_bits\s*\(", line)]


def check_cpuid():
    """The processor is asked once, by cpu_features(): each cpuid leaves a virtual machine."""
    return [f"{rel(f)}:{number}: {m.group(0)}" for f in code_files()
            if rel(f).startswith("src/") and not rel(f).startswith("src/core/cpu_features.")
            for number, line in enumerate(strip_comments_and_strings(f.read_text()).splitlines(), 1)
            for m in [re.search(r"\b(detect_cpu_features|__get_cpuid\w*|__cpuid\w*|__builtin_cpu_\w+)\b", line)] if m]


def check_vector_layer():
    """Every wrapper of the vector layer is used: by the kernels, or by the wrappers of its own or a higher level."""
    generic = [f for f in code_files() if rel(f).startswith("src/cpu/generic/") and f.name != "vector_checks.inl"]
    headers = [f for f in code_files() if rel(f).startswith("src/cpu/isa/vec_")]
    wrapper = re.compile(r"MSA_INLINE (?:static )?[\w:]+ (\w+)\(")
    bad = []
    for header in headers:
        above = [f for f in headers if f.name.startswith(header.stem)]  # vec_avx512.h: and vec_avx512_bf16.h
        text = "".join(wrapper.sub("", strip_comments_and_strings(f.read_text())) for f in generic + above)
        names = set(wrapper.findall(header.read_text()))
        bad += [f"{rel(header)}: nobody uses {name}" for name in sorted(names) if not re.search(rf"\b{name}\b", text)]
    return bad


def check_comments():
    """A comment stands above a declaration: behind one that is too long it tears the declaration apart."""
    bad = []
    for f in code_files():
        lines = f.read_text().splitlines()
        for number, (line, following) in enumerate(zip(lines, lines[1:]), 1):
            if "//" not in line and re.search(r"[=(]\s*$", line) and re.search(r";\s+//", following):
                bad.append(f"{rel(f)}:{number}: {line.strip()}")
    return bad


def check_environment():
    """Only core/environment.cpp reads the environment of the library."""
    bad = []
    for f in code_files():
        if rel(f).startswith("src/") and rel(f) != "src/core/environment.cpp":
            for number, line in enumerate(strip_comments_and_strings(f.read_text()).splitlines(), 1):
                if re.search(r"\b(secure_)?getenv\s*\(", line):
                    bad.append(f"{rel(f)}:{number}: getenv")
    return bad


def check_format():
    bad = compilers("clang-format-14")
    if bad:
        return bad
    done = subprocess.run(["clang-format-14", "--dry-run", "-Werror", *[str(f) for f in code_files()]], cwd=ROOT,
                          capture_output=True, text=True)
    places = [l for l in done.stderr.splitlines() if "error:" in l]
    return [p.replace(str(ROOT) + "/", "").split(" error:")[0] + " not as clang-format-14 writes it" for p in places]


def check_scripts():
    bad = []
    for f in FILES:
        if f.suffix == ".sh" or rel(f) == ".ci/run":
            done = subprocess.run(["bash", "-n", str(f)], capture_output=True, text=True)
            bad += [f"{rel(f)}: {done.stderr.strip()}"] if done.returncode else []
        elif f.suffix == ".py":
            try:
                compile(f.read_text(), rel(f), "exec")
            except SyntaxError as e:
                bad.append(f"{rel(f)}:{e.lineno}: {e.msg}")
        else:
            continue
        if f.read_bytes().startswith(b"#!") and not os.access(f, os.X_OK):
            bad.append(f"{rel(f)}: has a #! line but is not executable")
    return bad


def find(pattern, name):
    path = ROOT / name
    m = re.search(pattern, path.read_text(), re.M) if path.is_file() else None
    return m.group(1) if m else None


def check_versions():
    version = find(r'MSA_VERSION_STRING "([^"]+)"', "include/msa/version.h")
    parts = ".".join(find(rf"MSA_VERSION_{p} (\d+)", "include/msa/version.h") for p in ("MAJOR", "MINOR", "PATCH"))
    bad = [] if parts == version else [f"version.h: {parts} in parts, {version} as a string"]
    node = version.rsplit(".", 1)[0] if version.startswith("0.") else version.split(".")[0]
    for name, pattern, want in (("CITATION.cff", r"^version: \"?([\d.]+)", version),
                                ("CHANGELOG.md", r"^## \[?(\d+\.\d+\.\d+)", version),
                                ("cmake/msa.map", r"^MSA_([\d.]+) \{", node)):
        found = find(pattern, name)
        if found != want:
            bad.append(f"{name}: expected {want}, found {found}")
    return bad


def check_links():
    """Relative links of the documents lead to files of the tree."""
    bad = []
    for f in FILES:
        if f.suffix != ".md":
            continue
        text = re.sub(r"```.*?```", "", f.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target) or target.startswith("#"):
                continue
            if not (f.parent / target.split("#")[0]).exists():
                bad.append(f"{rel(f)}: {target} leads nowhere")
    index = (ROOT / "docs/kernels/README.md").read_text()
    bad += [f"docs/kernels/README.md does not list {f.name}" for f in FILES
            if rel(f).startswith("docs/kernels/") and f.name != "README.md" and f"({f.name})" not in index]
    return bad


def check_contract_tests():
    """Tests that the contract names exist, and every numbered or bulleted line of it names some."""
    text = (ROOT / "docs/contract.md").read_text()
    there = set()
    for f in FILES:
        if rel(f).startswith("tests/") and f.name.endswith("_test.cpp"):
            there |= {f"{suite}.{name}" for suite, name in re.findall(r"^TEST(?:_F|_P)?\((\w+), (\w+)\)", f.read_text(), re.M)}
    named = [name for line in re.findall(r"\*Tests:\*(.*)", text) for name in re.findall(r"`([^`]+)`", line)]
    bad = [f"docs/contract.md names no test of the tree: {name}" for name in named if name not in there]
    for item in re.split(r"\n(?=\d\. |- |## )", text):
        if re.match(r"\d\. |- ", item) and "*Tests:*" not in item:
            bad.append(f"docs/contract.md: no test beside: {item.splitlines()[0][:60]}")
    return bad


def check_mutants():
    """Every mutant of tests/mutants still fits the file that it changes, and the cases that it names are there."""
    done = subprocess.run([sys.executable, "tests/mutants/mutants.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    return [] if done.returncode == 0 else [done.stderr.strip() or done.stdout.strip()]


def check_readme_commands():
    """Every command of the README exists, and takes the options it is shown with."""
    bad = []
    readme = ROOT / "README.md"
    if not readme.is_file():
        return ["no README.md"]
    lines = [l for block in re.findall(r"```sh\n(.*?)```", readme.read_text(), re.S) for l in block.splitlines()]
    for line in lines:
        words = line.split("#")[0].split()
        if not words or not words[0].startswith("./"):
            continue
        script = ROOT / words[0]
        if not os.access(script, os.X_OK):
            bad.append(f"{words[0]} is not an executable of the tree")
            continue
        try:
            usage = subprocess.run([str(script), "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            bad.append(f"{words[0]} --help does not end within a minute")
            continue
        if usage.returncode != 0:
            bad.append(f"{words[0]} --help ends with {usage.returncode}")
        for option in (w for w in words[1:] if w.startswith("--")):
            if option.split("=")[0] not in usage.stdout:
                bad.append(f"{line.strip()}: {option} is not in its --help")
    for command in ("./demo.sh", "./test.sh"):
        if not any(l.startswith(command) for l in lines):
            bad.append(f"README.md does not show {command}")
    return bad


def check_figures():
    """The tables of measured figures are what the committed results say."""
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/readme_table.py"), "--check"], capture_output=True,
                          text=True)
    return [done.stderr.strip()] if done.returncode else []


CHECKS = {name[len("check_"):]: fn for name, fn in list(globals().items()) if name.startswith("check_")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=sorted(CHECKS), help="run this check alone (repeatable)")
    parser.add_argument("--list", action="store_true", help="list the checks")
    args = parser.parse_args()
    if args.list:
        print("\n".join(CHECKS))
        return 0
    failed = 0
    chosen = [c for c in CHECKS if not args.only or c in args.only]
    for name in chosen:
        bad = CHECKS[name]()
        print(("FAILED " if bad else "ok     ") + name, flush=True)
        for line in bad[:20]:
            print("       " + line)
        if len(bad) > 20:
            print(f"       and {len(bad) - 20} more")
        failed += bool(bad)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
