#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures this machine and writes benchmarks/results/cpu-<machine>.json, whole.

One run does it all: `msa bench --roofline` for our own rows, then PyTorch's scaled_dot_product_attention (pinned, in a
virtual environment under build/) between our own runs, after its output was checked against double precision.
Rows are called cpu.*, and cpu.host.* on a machine of more than two cores, all of which they take. --own measures ours
alone; with --msa it needs no network, no compiler and no history, only this tree and a tool that was built from a
commit:

    benchmarks/cpu.py --own --msa build/release/tools/msa/msa --out cpu-host.json

usage: benchmarks/cpu.py [--filter GLOB]... [--own] [--threads N] [--allow-dirty] [--out FILE] [--msa PATH]
                         [--pip-option OPT]...
"""
import argparse
import datetime
import fnmatch
import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKER = pathlib.Path(__file__).resolve().with_name("torch_worker.py")
BUILD = ROOT / "build" / "bench"
TORCH = "2.13.0"
PEER = "torch sdpa 2.13"

# id, what, our case, what PyTorch does, rounds of (ours, theirs); 32K takes PyTorch a minute or two a run. Rows of amx run
# where that level is, and force it.
TORCH_ROWS = [
    ("torch.dense.8k", "dense causal prefill, 8K tokens", "op=dense lens=8192:8192", "dense.8192", 5),
    ("amx.torch.dense.8k", "dense causal prefill, 8K tokens, in tiles", "op=dense lens=8192:8192", "dense.8192", 5),
    ("torch.dense.32k", "dense causal prefill, 32K tokens", "op=dense lens=32768:32768", "dense.32768", 2),
    ("torch.msa.32k", "MSA prefill, selection and attention, 32K tokens, against PyTorch's dense attention",
     "op=msa lens=32768:32768 regime=drift", "dense.32768", 2),
    ("torch.decode.128k", "dense decode of one token over 128K", "op=dense lens=1:131072", "decode.131072", 15),
]

# (vendor, family, model range) -> name; the rest are named after their model name
FAMILIES = [
    ("AuthenticAMD", 23, (0x30, 0xAF), "zen2"), ("AuthenticAMD", 23, (0x00, 0x2F), "zen"),
    ("AuthenticAMD", 25, (0x00, 0x0F), "zen3"), ("AuthenticAMD", 25, (0x20, 0x5F), "zen3"),
    ("AuthenticAMD", 25, (0x10, 0x1F), "zen4"), ("AuthenticAMD", 25, (0x60, 0xAF), "zen4"),
    ("AuthenticAMD", 26, (0x00, 0xFF), "zen5"),
    ("GenuineIntel", 6, (106, 106), "icelake"), ("GenuineIntel", 6, (108, 108), "icelake"),
    ("GenuineIntel", 6, (143, 143), "sapphirerapids"), ("GenuineIntel", 6, (207, 207), "emeraldrapids"),
    ("GenuineIntel", 6, (173, 174), "graniterapids"), ("GenuineIntel", 6, (79, 79), "broadwell"),
    ("GenuineIntel", 6, (63, 63), "haswell"),
]


def fail(message):
    sys.exit(f"cpu.py: {message}")


def progress(message):
    print(message, file=sys.stderr, flush=True)


def machine_name(cpu):
    """A short name of the CPU's family out of /proc/cpuinfo."""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0], re.M))
    vendor = fields.get("vendor_id", "")
    family, model, stepping = (int(fields.get(k, -1)) for k in ("cpu family", "model", "stepping"))
    if (vendor, family, model) == ("GenuineIntel", 6, 85):
        return "skylakex" if stepping <= 4 else "cascadelake" if stepping <= 7 else "cooperlake"
    for known_vendor, known_family, (low, high), name in FAMILIES:
        if (vendor, family) == (known_vendor, known_family) and low <= model <= high:
            return name
    return re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-") or "unknown"


def git(*args):
    return subprocess.run(["git", "-C", ROOT, *args], capture_output=True, text=True, check=True).stdout.strip()


def check_tree(allow_dirty):
    """The commit that the results speak of. A tree carried without its history has its commit in the binary."""
    if not (ROOT / ".git").exists():
        return None
    dirty = git("status", "--porcelain")
    if dirty and not allow_dirty:
        fail(f"the tree has changes; commit them first, or pass --allow-dirty for a trial\n{dirty}")
    return git("rev-parse", "HEAD")


def built_package(allow_dirty):
    """What the installed Python package says of itself, and its best instruction set. It is built from the tree's commit."""
    head = check_tree(allow_dirty)
    import msa
    built = msa.info()
    if head and built["commit"] != head and not allow_dirty:
        fail(f"msa was built from {built['commit']}, the tree is at {head}")
    return built, next(i["name"] for b in built["backends"] if b["name"] == "cpu" for i in b["isas"] if i["available"])


def build_tool():
    progress("building the tool")
    subprocess.run(["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                    "-DMSA_BUILD_TESTS=OFF", "-DMSA_CUDA=OFF", "--log-level=WARNING"], check=True, stdout=sys.stderr)
    subprocess.run(["cmake", "--build", BUILD, "--target", "msa_tool"], check=True, stdout=sys.stderr)
    return BUILD / "tools" / "msa" / "msa"


def check_commit(msa, head, allow_dirty):
    commit = json.loads(subprocess.run([msa, "info", "--json"], capture_output=True, text=True, check=True).stdout)["commit"]
    if head and commit != head and not allow_dirty:
        fail(f"{msa} was built from {commit}, the tree is at {head}")
    if not re.fullmatch(r"[0-9a-f]{40}", commit) and not allow_dirty:
        fail(f"{msa} does not know a clean commit that it was built from: {commit}")


def has_tiles(msa):
    backends = json.loads(subprocess.run([msa, "info", "--json"], capture_output=True, text=True, check=True).stdout)["backends"]
    return any(isa["name"] == "amx" and isa["available"] for backend in backends for isa in backend.get("isas", []))


def torch_python(pip_options):
    """The interpreter of a virtual environment that has the pinned PyTorch."""
    folder = BUILD / f"venv-torch-{TORCH}"
    python = folder / "bin" / "python"
    probe = [python, "-c", f"import numpy, torch; assert torch.__version__.split('+')[0] == '{TORCH}'"]
    if not python.exists() or subprocess.run(probe, capture_output=True).returncode != 0:
        progress(f"installing torch {TORCH} in {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *pip_options, f"torch=={TORCH}", "numpy"], check=True)
        subprocess.run(probe, check=True)
    return python


class Runner:
    """A process that is ready to run one thing, and runs it once for each line it is sent: its answer is the seconds."""

    def __init__(self, command, environment):
        self.command = [str(word) for word in command]
        self.process = subprocess.Popen(self.command, env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        ready = self.process.stdout.readline()
        if not ready.startswith("ready"):
            self.process.wait()
            fail(f"{shlex.join(self.command)}: exit code {self.process.returncode}, nothing measured")
        self.note = ready.strip().split("\t")[1:]

    def seconds(self):
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            fail(f"{shlex.join(self.command)}: ended early with exit code {self.process.wait()}")
        return float(line)

    def close(self):
        self.process.stdin.close()
        if self.process.wait() != 0:
            fail(f"{shlex.join(self.command)}: exit code {self.process.returncode}")


def own_rows(msa, filters, threads, environment):
    """Rows, machine and peaks of `msa bench --roofline`."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "own.json"
        command = [msa, "bench", "--roofline", "--threads", str(threads), "--json", out]
        for pattern in filters:
            command += ["--filter", pattern]
        progress(shlex.join(str(word) for word in command))
        if subprocess.run(command, env=environment, stdout=sys.stderr).returncode != 0:
            fail("a row of ours was wrong or could not be measured: nothing written")
        return json.loads(out.read_text())


def torch_rows(chosen, msa, python, threads, environment):
    """Ours and theirs in turn. Rows that share PyTorch's work share its runs, all in the same minutes."""
    rows = []
    for work in dict.fromkeys(row[3] for row in chosen):
        group = [row for row in chosen if row[3] == work]
        progress(f"{work}: checking and choosing among PyTorch's layouts")
        theirs = Runner([python, WORKER, work, str(threads)], environment)
        progress(f"{work}: PyTorch is fastest with {' '.join(theirs.note)}")
        ours = {}
        for row_id, _, case, _, _ in group:
            progress(f"{row_id}: verifying {case}")
            forced = ["--isa", "amx"] if ".amx." in row_id else []
            ours[row_id] = Runner([msa, "bench", "--case", case, "--on-demand", "--threads", str(threads), *forced], environment)
        own_seconds, peer_seconds = {row[0]: [] for row in group}, []
        for _ in range(max(row[4] for row in group)):
            for row_id, runner in ours.items():
                own_seconds[row_id].append(runner.seconds())
            peer_seconds.append(theirs.seconds())
        for runner in [*ours.values(), theirs]:
            runner.close()
        for row_id, what, _, _, _ in group:
            seconds, peer = statistics.median(own_seconds[row_id]), statistics.median(peer_seconds)
            progress(f"{row_id}: {seconds:.4f} s, PyTorch {peer:.4f} s, {peer / seconds:.2f}x")
            rows.append({"id": row_id, "what": f"{what}; PyTorch with {' '.join(theirs.note)}", "seconds": seconds,
                         "spread": [min(own_seconds[row_id]), max(own_seconds[row_id])], "peer": PEER,
                         "peer_seconds": peer, "ratio": peer / seconds, "verified": True})
    return rows


def write_whole(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w") as f:
        f.write(json.dumps(document, indent=1) + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", action="append", default=[], metavar="GLOB", help="rows to measure, as 'cpu.torch.*'")
    parser.add_argument("--own", action="store_true", help="our rows alone, nothing beside PyTorch")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of ours and of PyTorch's")
    parser.add_argument("--allow-dirty", action="store_true", help="measure a tree with changes, for a trial")
    parser.add_argument("--out", type=pathlib.Path, help="default: benchmarks/results/cpu-<machine>.json")
    parser.add_argument("--msa", type=pathlib.Path, help="a tool that is built already")
    parser.add_argument("--pip-option", action="append", default=[], help="handed to pip install, one option each time")
    args = parser.parse_args()

    head = check_tree(args.allow_dirty)
    msa = (args.msa or build_tool()).resolve()
    check_commit(msa, head, args.allow_dirty)
    # Both sides get the same threads, bound the same way, and huge pages where the system leaves them to madvise.
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_PROC_BIND": "true", "THP_MEM_ALLOC_ENABLE": "1"}
    host = len(os.sched_getaffinity(0)) > 2
    prefix = "cpu.host." if host else "cpu."

    def chosen(row_id):
        return not args.filter or any(fnmatch.fnmatchcase(row_id, pattern) for pattern in args.filter)

    listed = subprocess.run([msa, "bench", "--list"], capture_output=True, text=True, check=True, env=environment).stdout
    own_ids = [line.split("\t")[0] for line in listed.splitlines()[1:]]
    own_filters = [row_id for row_id in own_ids if chosen(row_id)]
    peers = [(prefix + row[0], *row[1:]) for row in TORCH_ROWS if not args.own and chosen(prefix + row[0])
             and (not row[0].startswith("amx.") or has_tiles(msa))]
    if not own_filters and not peers:
        fail("--filter: no row has such a name; `msa bench --list` shows ours")
    document = own_rows(msa, own_filters or ["cpu*.decode.dense.128k"], args.threads, environment)
    if not own_filters:
        document["rows"] = []  # the run was for the machine's description alone
    if peers:
        document["rows"] += torch_rows(peers, msa, torch_python(args.pip_option), args.threads, environment)
    # Folders of one machine tell nobody anything.
    document["command"] = shlex.join(["benchmarks/cpu.py", *(pathlib.PurePath(a).name for a in sys.argv[1:])])
    document["date"] = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    out = args.out or ROOT / "benchmarks" / "results" / f"cpu-{machine_name(document['machine']['cpu'])}-{document['machine']['isa']}.json"
    write_whole(out, document)
    progress(f"wrote {out}")


if __name__ == "__main__":
    main()
