# SPDX-License-Identifier: MIT
"""The page of a run, drawn from its records alone."""
from __future__ import annotations

import html

COLOURS = ("#2a6fb0", "#d07a2a", "#3a9a5a", "#9a4a9a", "#888888", "#7a5a2a")
TITLES = {"full": "Full", "pt": "PT", "cpt": "CPT"}
WIDE, HIGH, LEFT = 640, 200, 46
STYLE = """body { font: 15px/1.5 sans-serif; max-width: 760px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } .missed { color: #b00020 } svg { width: 100%; height: auto }"""
PROVES_NOT = """It shows routing, not gradients: with wrong gradients of index keys, or a teacher of one head, the accuracy of
such a run hardly moves. Gradients are held to central differences in the library's tests. It is one task, in which a row
needs one block; the model is given keys that are made of the token before, and says nothing of how soon larger ones find
that out. Lists of sequences this short hold a large share of all blocks."""


def chart(title, lines, top=None, phases=()):
    """Curves over steps: lines are (name, [(step, value)])."""
    points = [point for _, line in lines for point in line]
    if not points:
        return ""
    last = max(step for step, _ in points) or 1
    top = top or max(value for _, value in points) or 1
    text = [f'<h3>{html.escape(title)}</h3><svg viewBox="0 0 {WIDE + LEFT + 10} {HIGH + 44}" font-size="11">',
            f'<rect x="{LEFT}" y="4" width="{WIDE}" height="{HIGH}" fill="none" stroke="#ccc"/>']

    def place(step, value):
        return f"{LEFT + step / last * WIDE:.1f},{4 + HIGH - min(value, top) / top * HIGH:.1f}"

    for part in range(5):
        y = 4 + HIGH * part / 4
        text.append(f'<text x="{LEFT - 4}" y="{y + 4:.0f}" text-anchor="end">{top * (4 - part) / 4:.2g}</text>')
    for start, name in phases:
        x = LEFT + start / last * WIDE
        text.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{4 + HIGH}" stroke="#bbb" stroke-dasharray="3"/>'
                    f'<text x="{x + 3:.1f}" y="{HIGH + 18}">{html.escape(name)}</text>')
    for n, (name, line) in enumerate(lines):
        colour = COLOURS[n % len(COLOURS)]
        text.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="'
                    + " ".join(place(*point) for point in line) + '"/>'
                    f'<text x="{LEFT + 100 * n}" y="{HIGH + 38}" fill="{colour}">{html.escape(name)}</text>')
    return "\n".join([*text, "</svg>"])


def curves(records, recipe, field):
    """Lines of a recipe over its phases, one behind the other, a mean of eight steps: (name, points) of each seed, and of
    each layer where the field has a value of each; and where phases begin. Steps that lack the field are passed over.
    """
    found, phases = {}, {}
    seeds = sorted({one["seed"] for one in records})
    for seed in seeds:
        before = 0
        for phase in (f"{recipe}.warm", recipe):
            steps = [one for one in records if (one["seed"], one["phase"]) == (seed, phase) and "step" in one]
            if not steps:
                continue
            if recipe != "full":
                phases[before] = "warm-up" if phase.endswith("warm") else "own lists"
            told = [(before + one["step"], one[field]) for one in steps if field in one]
            layers = range(len(told[0][1])) if told and isinstance(told[0][1], list) else [None]
            for layer in layers:
                values = [(step, value if layer is None else value[layer]) for step, value in told]
                words = ([] if layer is None else [f"layer {layer}"]) + ([f"seed {seed}"] if len(seeds) > 1 else [])
                line = found.setdefault(", ".join(words) or field, [])
                for n, (step, _) in enumerate(values):
                    near = [value for _, value in values[max(0, n - 7):n + 1]]
                    line.append((step, sum(near) / len(near)))
            before += len(steps)
    return sorted(found.items()), sorted(phases.items())


def table(records):
    evaluations = [one for one in records if "evaluation" in one]
    if not evaluations:
        return ""
    names = list(evaluations[0]["evaluation"])
    rows = "".join("<tr><td>" + html.escape(f"{TITLES[one['phase']]}, seed {one['seed']}") + "</td>"
                   + "".join(f"<td>{one['evaluation'].get(name, float('nan')):.3f}</td>" for name in names) + "</tr>"
                   for one in evaluations)
    head = "".join(f"<th>{html.escape(name.replace('.', ' '))}</th>" for name in names)
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def draw(records, marks, form):
    parts = [f"<!doctype html><meta charset='utf-8'><title>Learning to route</title><style>{STYLE}</style>",
             f"<h1>Learning to route</h1><p>Form {html.escape(form)}. Accuracy of answers with lists of all blocks (dense), "
             "of the index branch (own), of attention's largest weights (oracle), drawn at random, and of the last blocks "
             "(local). Planted: questions whose lists hold the pair's block, by layer; blocks: the oracle's blocks that "
             "the own lists hold.</p>", table(records)]
    parts.append("<h2>Marks</h2><ul>" + "".join(
        f"<li{'' if reached else ' class=missed'}>{'reached' if reached else 'MISSED'}: {html.escape(words)}</li>"
        for words, reached in marks) + "</ul>")
    for recipe, title in TITLES.items():
        for field, words, top in (("accuracy", "accuracy of a batch", 1),
                                  ("planted", "planted recall of a batch, by layer", 1),
                                  ("kl", "KL of attention and index branch, nats", None)):
            if recipe != "full" or field == "accuracy":
                lines, phases = curves(records, recipe, field)
                parts.append(chart(f"{title}: {words}", lines, top=top, phases=phases))
    parts.append(f"<h2>What it does not show</h2><p>{PROVES_NOT}</p>")
    return "\n".join(parts) + "\n"
