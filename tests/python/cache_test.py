# SPDX-License-Identifier: MIT
"""PagedCache: histories of operations against plain lists, and what calls over it compute."""
from __future__ import annotations

import arrays
import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule  # noqa: E402

import msa  # noqa: E402

PAGES, SIZE, HEADS, DIM = 6, 16, 1, 2


class Histories(RuleBasedStateMachine):
    """Adds, forks, grows, cuts and frees; a dictionary of plain arrays does the same."""

    def __init__(self):
        super().__init__()
        self.cache = msa.PagedCache.empty(np.zeros(0, np.float32), pages=PAGES, page_size=SIZE, heads_kv=HEADS,
                                          head_dim=DIM, index_dim=DIM)
        self.model = {}
        self.counter = 0

    def rows(self, count):
        first = self.counter
        self.counter += count
        return np.arange(first, first + count, dtype=np.float32)[:, None, None] * np.ones((1, HEADS, DIM), np.float32)

    def pick(self, data):
        return data.draw(st.sampled_from(sorted(self.model)))

    @rule()
    def add(self):
        number = self.cache.add()
        assert number not in self.model
        self.model[number] = np.zeros((0, HEADS, DIM), np.float32)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def fork(self, data):
        source = self.pick(data)
        self.model[self.cache.fork(source)] = self.model[source].copy()

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def free(self, data):
        number = self.pick(data)
        self.cache.free(number)
        del self.model[number]
        with pytest.raises(msa.InvalidArgument, match="^sequence"):
            self.cache.length(number)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def truncate(self, data):
        number = self.pick(data)
        length = data.draw(st.integers(0, len(self.model[number])))
        self.cache.truncate(number, length)
        self.model[number] = self.model[number][:length]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def extend(self, data):
        numbers = data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True, min_size=1))
        counts = [data.draw(st.integers(0, 20)) for _ in numbers]
        rows = self.rows(sum(counts))
        before = {n: (self.cache.length(n), self.cache.pages(n)) for n in self.model}
        free = self.cache.free_pages
        try:
            self.cache.extend(numbers, counts, rows, rows + 1000, rows + 2000)
        except msa.OutOfMemory as error:
            assert error.argument == "pages"
            assert before == {n: (self.cache.length(n), self.cache.pages(n)) for n in self.model}
            assert self.cache.free_pages == free
            return
        first = 0
        for number, count in zip(numbers, counts):
            self.model[number] = np.concatenate([self.model[number], rows[first:first + count]])
            first += count

    @invariant()
    def same(self):
        used = set()
        for number, rows in self.model.items():
            pages = self.cache.pages(number)
            used |= set(pages)
            assert self.cache.length(number) == len(rows)
            assert len(pages) == -(-len(rows) // SIZE)
            if pages:
                for stored, shift in ((self.cache.k, 0), (self.cache.v, 1000), (self.cache.index_k, 2000)):
                    found = np.concatenate([stored[page] for page in pages])[:len(rows)]
                    assert np.array_equal(found, rows + shift)
        assert self.cache.free_pages == PAGES - len(used)
        assert self.cache.sequences == list(self.model)


Histories.TestCase.settings = hypothesis.settings(max_examples=60, stateful_step_count=30, deadline=None,
                                                  derandomize=True, database=None,
                                                  suppress_health_check=list(hypothesis.HealthCheck))
test_histories = pytest.mark.seconds(40)(Histories.TestCase)


@pytest.mark.parametrize("kind", ["numpy", "torch", "words"])
def test_attention_over_the_cache(kind, rng):
    """Two forks that part after a shared prefix, against one ragged call each."""
    xp = arrays.make(kind)
    words = {"dtype": "bf16"} if kind == "words" else {}
    cache = msa.PagedCache.empty(xp.floats(np.zeros(0)), pages=40, page_size=32, heads_kv=2, head_dim=32, index_dim=32)
    rows = {name: rng.standard_normal((100, heads, 32)) for name, heads in (("k", 2), ("v", 2), ("i", 1))}
    first = cache.add()
    cache.append(first, *(xp.floats(rows[n][:70]) for n in "kvi"))
    second = cache.fork(first)
    cache.extend([second, first], [5, 25], *(xp.floats(rows[n][70:100]) for n in "kvi"))
    q, iq = rng.standard_normal((2, 4, 32)), rng.integers(-3, 3, (2, 2, 32))
    found = msa.msa_attention(xp.floats(q), cache.k, cache.v, xp.floats(iq), cache.index_k, block_size=32, topk=2,
                              cu_seqlens_q=xp.integers([0, 1, 2]), **cache.batch([first, second]), **words)
    for row, keys in ((0, np.r_[0:70, 75:100]), (1, np.r_[0:75])):
        alone = msa.msa_attention(*(xp.floats(x) for x in (q[row:row + 1], rows["k"][keys], rows["v"][keys],
                                                           iq[row:row + 1], rows["i"][keys])),
                                  block_size=32, topk=2, **words)
        np.testing.assert_allclose(xp.read(found)[row], xp.read(alone)[0], rtol=xp.tolerance, atol=xp.tolerance)


def test_what_the_cache_refuses():
    cache = msa.PagedCache.empty(np.zeros(0, np.float32), pages=2, page_size=16, heads_kv=1, head_dim=4)
    one = cache.add()
    rows = np.zeros((3, 1, 4), np.float32)
    for k, v, index, argument in ((rows.astype(np.float64), rows, None, "k"), (rows, rows[:2], None, "v"),
                                  (rows, rows, rows, "index_k"), (rows[..., :3], rows, None, "k")):
        with pytest.raises(msa.InvalidArgument) as caught:
            cache.append(one, k, v, index)
        assert caught.value.argument == argument and cache.length(one) == 0
    with pytest.raises(msa.InvalidArgument, match="sequences"):
        cache.extend([one, one], [1, 2], rows, rows)
    with pytest.raises(msa.OutOfMemory):
        cache.append(one, *(np.zeros((33, 1, 4), np.float32),) * 2)
    with pytest.raises(msa.InvalidArgument, match="length"):
        cache.truncate(one, 1)
    with pytest.raises(msa.InvalidArgument, match="pages"):
        cache.append(one, *(np.zeros((32, 1, 4), np.float32),) * 2)
        cache.batch([one], pages=1)
    with pytest.raises(msa.InvalidArgument):
        msa.PagedCache(np.zeros((2, 15, 1, 4)), np.zeros((2, 15, 1, 4)))
    with pytest.raises(TypeError):
        cache.append(one, *(pytest.importorskip("torch").zeros(1, 1, 4),) * 2)
    assert cache.batch([one], pages=5)["page_table"].shape == (1, 5)
    assert cache.batch([])["page_table"].shape == (0, 1)
