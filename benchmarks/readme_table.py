#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Rewrites the measured figures from benchmarks/results/*.json: every row in docs/performance.md, a few in README.md,
what formats cost in accuracy in docs/numerics.md.

usage: readme_table.py [--check]     --check: change nothing, exit 1 when a table is out of date
"""
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The rows of README.md; one that no file holds is left out there, never made up.
CHOSEN = ["cpu.msa.32k.drift", "cpu.torch.msa.32k", "cpu.decode.msa.1m", "hopper.decode.1m.b1", "hopper.decode.128k.b32",
          "hopper.msa.128k.drift", "hopper.msa.1m.drift", "hopper.m3.8k"]
BLOCK = re.compile(r"(<!-- figures: begin -->\n).*?(<!-- figures: end -->)", re.S)


def duration(seconds):
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def size(count):
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count} B"


def row_line(row):
    time = duration(row["seconds"]) if "seconds" in row else ""
    share = f"{row['share']:.2f}" if "share" in row else ""
    against = f"{row['ratio']:.2f}x {row.get('peer', '')}".strip() if "ratio" in row else ""
    if "bytes" in row:
        time = ", ".join(x for x in (time, size(row["bytes"])) if x)
    verified = {True: "yes", False: "no"}.get(row.get("verified"), "")
    return f"| `{row['id']}` | {row.get('what', '')} | {time} | {share} | {against} | {verified} |"


def machine_of(doc):
    """The machine's name, and the facts that go with it."""
    machine = doc["machine"]
    facts = [f"{machine['gpus']} GPUs" if "gpus" in machine else "", machine.get("isa", ""), f"{machine['threads']} threads" if "threads" in machine else "",
             f"driver {machine['driver']}" if "driver" in machine else ""]
    return machine.get("gpu") or machine.get("cpu", "unknown"), ", ".join(f for f in facts if f)


def table(path):
    doc = json.loads(path.read_text())
    name, facts = machine_of(doc)
    head = f"{name} ({facts}), {doc.get('date', '')}, commit `{doc['commit'][:12]}`: " \
           f"[{path.name}](../benchmarks/results/{path.name}), written by `{doc['command']}`"
    return "\n".join([head, "", "| id | what | time or size | share of floor | against | verified |",
                      "|---|---|---|---|---|---|", *[row_line(r) for r in doc["rows"]], ""])


def chosen(files):
    """A few rows of all machines, and when and of what they were measured."""
    lines, sources = [], []
    for path in files:
        doc = json.loads(path.read_text())
        name, facts = machine_of(doc)
        rows = {r["id"]: r for r in doc["rows"]}
        picked = [rows[i] for i in CHOSEN if i in rows]
        if not picked:
            continue
        sources.append(f"{name} ({facts}): {doc.get('date', '')}, commit `{doc['commit'][:12]}`")
        for row in picked:
            against = f"{row['ratio']:.2f}x {row.get('peer', '')}".strip() if "ratio" in row else ""
            share = f"{row['share']:.2f}" if "share" in row else ""
            lines.append(f"| {name} | {row.get('what', '')} | {duration(row['seconds'])} | {share} | {against} |")
    return "\n".join(["| machine | what | time | share of floor | against |", "|---|---|---|---|---|", *lines, "",
                      "; ".join(sources) + ".", ""])


def accuracy(path):
    """What formats cost: attention's error and the index's recall by format, candidates by length."""
    doc = json.loads(path.read_text())
    rows = {r["id"]: r for r in doc["rows"]}
    kinds = list(dict.fromkeys(r["id"].split(".")[1] for r in doc["rows"] if r["id"].startswith("attend.")))
    lengths = list(dict.fromkeys(r["id"].split(".")[1] for r in doc["rows"] if r["id"].startswith("candidates.")))

    def error(kind, data):
        row = rows[f"attend.{kind}.{data}"]
        return f"{100 * row['relative_error']:.1f} % ({100 * row['worst_row']:.0f})"

    def recall(kind, data):
        held = [rows.get(f"select.{kind}.{length}.{data}") for length in lengths]
        return " / ".join(f"{row['recall']:.3f}" for row in held if row)

    lines = [f"Written by `{doc['command']}` at commit `{doc['commit'][:12]}` on `{doc['machine']['isa']}`: "
             f"[{path.name}](../benchmarks/results/{path.name}).", "",
             "| format | error of `out`: drift (worst row) | uneven channels | "
             f"lists kept, {' / '.join(lengths)}: drift | uneven channels |", "|---|---|---|---|---|"]
    lines += [f"| `{kind}` | {error(kind, 'drift')} | {error(kind, 'channels')} | {recall(kind, 'drift')} | "
              f"{recall(kind, 'channels')} |" for kind in kinds]
    alone = [kind for kind in ("i8/page", "i8/page/rotated") if recall(kind, "drift")]
    lines += [f"| `{kind}`, codes alone |  |  | {recall(kind, 'drift')} | {recall(kind, 'channels')} |" for kind in alone]
    lines += ["", "Blocks that a row scored from their keys beside the exact 8-bit filter:", "",
              "| data | of | mean | 10 % | 50 % | 90 % | 99 % | largest |", "|---|---|---|---|---|---|---|---|"]
    for row in doc["rows"]:
        if row["id"].startswith("candidates."):
            length, data = row["id"].removeprefix("candidates.").replace(".rotated", ", rotated").split(".")
            shares = " | ".join(str(row[f"at_{p}"]) for p in (10, 50, 90, 99))
            lines.append(f"| {data}, {length} | {row['what'].split()[2]} | {row['mean']:.0f} | {shares} | "
                         f"{row['largest']} |")
    return "\n".join([*lines, ""])


def rewrite(name, text, check):
    path = ROOT / name
    old = path.read_text()
    new, count = BLOCK.subn(lambda m: m.group(1) + text + m.group(2), old)
    if count != 1:
        sys.exit(f"{name} has no block between '<!-- figures: begin -->' and '<!-- figures: end -->'")
    if check and new != old:
        sys.exit(f"the figures of {name} are out of date: run benchmarks/readme_table.py")
    if not check:
        path.write_text(new)


def main():
    check = "--check" in sys.argv[1:]
    files = sorted((ROOT / "benchmarks/results").glob("*.json"))
    costs = [f for f in files if f.name == "accuracy.json"]
    files = [f for f in files if f not in costs]
    nothing = "not measured yet\n"
    rewrite("docs/performance.md", "\n".join(table(f) for f in files) if files else nothing, check)
    rewrite("docs/numerics.md", accuracy(costs[0]) if costs else nothing, check)
    rewrite("README.md", chosen(files) if files else nothing, check)


if __name__ == "__main__":
    main()
