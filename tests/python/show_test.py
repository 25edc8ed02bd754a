# SPDX-License-Identifier: MIT
"""Pictures and statistics of block lists."""
from __future__ import annotations

import xml.etree.ElementTree

import numpy as np
import pytest

import msa

IDS = np.array([[[0, 1, -1], [0, -1, -1]], [[0, 2, 4], [2, 3, 4]], [[-1, -1, -1], [4, 0, -1]]], np.int32)


def rects(picture):
    root = xml.etree.ElementTree.fromstring(str(picture))
    return root, [child for child in root if child.tag.endswith("rect")]


def test_picture_has_a_cell_for_each_listed_block():
    root, cells = rects(msa.show.blocks(IDS))
    assert len(cells) == 2 + 4 + 2
    assert {cell[0].text for cell in cells} >= {"row 0, block 0: 2 of 2 heads", "row 1, block 3: 1 of 2 heads"}
    _, one = rects(msa.show.blocks(IDS, head=1))
    assert len(one) == 1 + 3 + 2
    assert msa.show.blocks(IDS)._repr_html_().startswith("<div") and float(root.get("width")) > 0


def test_picture_of_many_rows_is_joined(tmp_path):
    picture = msa.show.blocks(np.repeat(IDS, 500, axis=0), most_rows=100)
    root, cells = rects(picture)
    assert float(root.get("height")) <= 1200 and len(cells) < 1000
    picture.save(str(tmp_path / "a.svg"))
    assert (tmp_path / "a.svg").read_text() == str(picture)
    rects(msa.show.blocks(np.zeros((0, 2, 3), np.int32)))


def test_stats():
    stats = msa.stats.of(IDS)
    assert stats.rows == 5
    assert stats.listed == (2 + 1 + 3 + 3 + 2) / 5
    assert stats.sink == 4 / 5
    assert stats.local == 5 / 11
    assert stats.overlap == (1 + 0 + 1) / (3 + 3 + 2)
    assert stats.distance == (1 + 0 + (4 + 2) + (2 + 1) + 4) / 11
    assert msa.stats.of(np.full((2, 1, 3), -1, np.int32)) == (0, 0, 0, 0, 0, 0)


def test_what_is_refused():
    for wrong in (np.zeros((2, 3), np.int32), [[1]], "text"):
        with pytest.raises(TypeError, match="block_ids"):
            msa.show.blocks(wrong)
    with pytest.raises(ValueError, match="head"):
        msa.show.blocks(IDS, head=2)
