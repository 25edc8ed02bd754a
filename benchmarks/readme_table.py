#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Rewrites the table of measured figures in README.md from benchmarks/results/*.json.

usage: readme_table.py [--check]     --check: change nothing, exit 1 when the table is out of date
"""
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
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


def table(path):
    doc = json.loads(path.read_text())
    machine = doc["machine"]
    name = machine.get("gpu") or machine.get("cpu", "unknown")
    facts = [machine.get("isa", ""), f"{machine['threads']} threads" if "threads" in machine else "",
             f"driver {machine['driver']}" if "driver" in machine else ""]
    head = f"{name} ({', '.join(f for f in facts if f)}), {doc.get('date', '')}, commit `{doc['commit'][:12]}`: " \
           f"[{path.name}](benchmarks/results/{path.name}), written by `{doc['command']}`"
    return "\n".join([head, "", "| id | what | time or size | share of floor | against | verified |",
                      "|---|---|---|---|---|---|", *[row_line(r) for r in doc["rows"]], ""])


def main():
    files = sorted((ROOT / "benchmarks/results").glob("*.json"))
    text = "\n".join(table(f) for f in files) if files else "not measured yet\n"
    readme = ROOT / "README.md"
    old = readme.read_text()
    new, count = BLOCK.subn(lambda m: m.group(1) + text + m.group(2), old)
    if count != 1:
        sys.exit("README.md has no block between '<!-- figures: begin -->' and '<!-- figures: end -->'")
    if "--check" in sys.argv[1:]:
        if new != old:
            sys.exit("the figures of README.md are out of date: run benchmarks/readme_table.py")
        return
    readme.write_text(new)


if __name__ == "__main__":
    main()
