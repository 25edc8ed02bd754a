# SPDX-License-Identifier: MIT
"""A picture of block lists: queries downwards, blocks to the right, darker where more heads chose a block."""
from __future__ import annotations

from typing import Any

from .stats import lists_of

__all__ = ["Picture", "blocks"]

_STYLE = "shape-rendering:crispEdges;background:#fff"
_SHADES = ("#dbe7f3", "#a9c8e6", "#6aa2d4", "#2f78b7", "#0b4a86")


class Picture:
    """SVG that notebooks show; str() of it is the file."""

    def __init__(self, svg: str) -> None:
        self._svg = svg

    def __str__(self) -> str:
        return self._svg

    def _repr_svg_(self) -> str:
        return self._svg

    def _repr_html_(self) -> str:
        return f'<div style="overflow:auto">{self._svg}</div>'

    def save(self, path: str) -> None:
        """Writes an .svg file."""
        with open(path, "w", encoding="ascii") as file:
            file.write(self._svg)


def _counts(lists: list[list[list[int]]], head: int | None) -> tuple[list[dict[int, int]], int]:
    rows = []
    for heads in lists:
        counts: dict[int, int] = {}
        for ids in heads if head is None else [heads[head]]:
            for one in set(ids):
                counts[one] = counts.get(one, 0) + 1
        rows.append(counts)
    return rows, max((one for counts in rows for one in counts), default=-1) + 1


def _squeeze(rows: list[dict[int, int]], most: int) -> tuple[list[dict[int, int]], int]:
    """Joins neighbours, so that at most `most` lines are drawn; a joined line keeps the largest count of each block."""
    step = max(1, -(-len(rows) // most))
    joined = []
    for first in range(0, len(rows), step):
        counts: dict[int, int] = {}
        for row in rows[first:first + step]:
            for one, count in row.items():
                counts[one] = max(counts.get(one, 0), count)
        joined.append(counts)
    return joined, step


def blocks(block_ids: Any, *, head: int | None = None, width: int = 640, most_rows: int = 400) -> Picture:
    """Draws block ids [T, H, k] of one sequence; head: one head alone.

    >>> import numpy as np
    >>> picture = msa.show.blocks(np.array([[[0, 2]], [[1, -1]]], np.int32))
    >>> str(picture).count("<rect")
    3
    """
    lists = lists_of(block_ids)
    heads = len(lists[0]) if lists else 0
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"head: expected 0 to {heads - 1}, got {head}")
    rows, columns = _counts(lists, head)
    rows, step = _squeeze(rows, most_rows)
    size = max(1.0, min(12.0, width / max(columns, 1)))
    high = max(1.0, min(12.0, 400 / max(len(rows), 1)))
    most = 1 if head is not None else max(heads, 1)
    cells = []
    for y, counts in enumerate(rows):
        for x, count in sorted(counts.items()):
            shade = _SHADES[min(len(_SHADES) - 1, (count - 1) * len(_SHADES) // most if most > 1 else len(_SHADES) - 1)]
            cells.append(f'<rect x="{x * size:.2f}" y="{y * high:.2f}" width="{size:.2f}" height="{high:.2f}"'
                         f' fill="{shade}"><title>row {y * step}, block {x}: {count} of {most} heads</title></rect>')
    total = f'width="{columns * size:.0f}" height="{len(rows) * high:.0f}"'
    return Picture(f'<svg xmlns="http://www.w3.org/2000/svg" {total} style="{_STYLE}">{"".join(cells)}</svg>')
