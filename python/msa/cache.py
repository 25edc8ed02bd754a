# SPDX-License-Identifier: MIT
"""PagedCache: keys, values and index keys of many sequences in pages of one size, with the books kept on the host."""
from __future__ import annotations

from typing import Any, TypedDict

from .arrays import device_of, empty, integers
from .errors import InvalidArgument, OutOfMemory

__all__ = ["Batch", "PagedCache"]


class Batch(TypedDict):
    """Keywords of a call over sequences of a cache."""

    page_table: Any
    seqlens_k: Any
    max_seqlen_k: int


class _Sequence:
    __slots__ = ("length", "pages")

    def __init__(self, pages: list[int], length: int) -> None:
        self.pages = pages
        self.length = length


def _refuse(argument: str, expected: str, got: object) -> InvalidArgument:
    return InvalidArgument(f"{argument}: expected {expected}, got {got}", argument)


class PagedCache:
    """Pages that sequences fill, share and give back.

    k: [P, S, Hkv, D]; v: [P, S, Hkv, Dv]; index_k: [P, S, Hik, Di] or None: arrays of numpy or torch on one device,
    which the cache writes to and never replaces.

    A fork shares every page; a page is copied when one of its owners writes to it. Not safe for threads that change it
    at the same time.

    >>> import numpy as np
    >>> cache = msa.PagedCache.empty(np.zeros(0, np.float32), pages=4, page_size=128, heads_kv=1, head_dim=16)
    >>> first = cache.add()
    >>> cache.append(first, np.ones((130, 1, 16), np.float32), np.ones((130, 1, 16), np.float32))
    >>> second = cache.fork(first)
    >>> q, starts = np.ones((2, 1, 16), np.float32), np.array([0, 1, 2], np.int32)
    >>> msa.dense_attention(q, cache.k, cache.v, cu_seqlens_q=starts, **cache.batch([first, second])).shape
    (2, 1, 16)
    >>> cache.free_pages
    2
    """

    def __init__(self, k: Any, v: Any, index_k: Any = None) -> None:
        for name, array in (("k", k), ("v", v), ("index_k", index_k)):
            if array is None and name == "index_k":
                continue
            shape = tuple(getattr(array, "shape", ()))
            if len(shape) != 4 or shape[:2] != tuple(k.shape)[:2]:
                raise _refuse(name, "pages [P, S, heads, dim], as many and as long as those of k", list(shape))
            if device_of(array) != device_of(k):
                raise _refuse(name, f"pages on {device_of(k)}", device_of(array))
        if k.shape[1] < 1 or k.shape[1] % 16 != 0:
            raise _refuse("k", "pages of a multiple of 16 tokens", k.shape[1])
        self.k, self.v, self.index_k = k, v, index_k
        self._users = [0] * k.shape[0]
        self._free = list(range(k.shape[0] - 1, -1, -1))
        self._sequences: dict[int, _Sequence] = {}
        self._next = 0

    @classmethod
    def empty(cls, like: Any, *, pages: int, page_size: int = 128, heads_kv: int, head_dim: int,
              value_dim: int | None = None, index_heads_k: int = 1, index_dim: int = 0) -> PagedCache:
        """A cache with new pages, of the library, dtype and device of the array `like`; index_dim 0: no index."""
        def make(heads: int, dim: int) -> Any:
            return empty(like, (pages, page_size, heads, dim))

        index_k = make(index_heads_k, index_dim) if index_dim else None
        return cls(make(heads_kv, head_dim), make(heads_kv, head_dim if value_dim is None else value_dim), index_k)

    # ---- what there is ----

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return int(self.k.shape[1])

    @property
    def free_pages(self) -> int:
        """Pages that nobody uses."""
        return len(self._free)

    @property
    def sequences(self) -> list[int]:
        """The sequences that live, oldest first."""
        return list(self._sequences)

    def length(self, sequence: int) -> int:
        """Tokens of a sequence."""
        return self._find(sequence).length

    def pages(self, sequence: int) -> list[int]:
        """Pages of a sequence, in order."""
        return list(self._find(sequence).pages)

    # ---- what changes ----

    def add(self) -> int:
        """A new empty sequence; returns its number, which is never used again."""
        return self._put(_Sequence([], 0))

    def fork(self, sequence: int) -> int:
        """A sequence that begins as the given one, on the same pages."""
        source = self._find(sequence)
        for page in source.pages:
            self._users[page] += 1
        return self._put(_Sequence(list(source.pages), source.length))

    def free(self, sequence: int) -> None:
        """Ends a sequence; pages that nobody else uses are free again."""
        self._release(self._find(sequence).pages)
        del self._sequences[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        """Drops the tokens behind `length`, such as those that a draft got wrong."""
        found = self._find(sequence)
        if not 0 <= length <= found.length:
            raise _refuse("length", f"0 to {found.length}", length)
        keep = self._pages_of(length)
        self._release(found.pages[keep:])
        del found.pages[keep:]
        found.length = length

    def append(self, sequence: int, k: Any, v: Any, index_k: Any = None) -> None:
        """Adds tokens at the end of a sequence. k: [n, Hkv, D]; v: [n, Hkv, Dv]; index_k: [n, Hik, Di]."""
        self.extend([sequence], [int(k.shape[0])], k, v, index_k)

    def extend(self, sequences: list[int], counts: list[int], k: Any, v: Any, index_k: Any = None) -> None:
        """Adds counts[i] rows to sequences[i], which lie one after the other in k, v and index_k; all or nothing."""
        pairs = self._rows_fit(sequences, counts, k, v, index_k)
        found = [self._find(sequence) for sequence in sequences]
        needed = self._pages_needed(found, counts)
        if needed > len(self._free):
            raise OutOfMemory(f"pages: expected {needed} free pages, got {len(self._free)}", "pages")
        pages: list[int] = []
        slots: list[int] = []
        for one, count in zip(found, counts):
            self._make_room(one, count)
            for position in range(one.length, one.length + count):
                pages.append(one.pages[position // self.page_size])
                slots.append(position % self.page_size)
            one.length += count
        if pages:
            at, inside = integers(self.k, pages, wide=True), integers(self.k, slots, wide=True)
            for stored, rows in pairs:
                stored[at, inside] = rows

    # ---- for a call ----

    def batch(self, sequences: list[int], *, pages: int | None = None) -> Batch:
        """page_table, seqlens_k and max_seqlen_k of the sequences, in this order, as keywords of a call.

        pages: columns of the table where it must keep its shape, as under a CUDA graph.
        """
        found = [self._find(sequence) for sequence in sequences]
        widest = max((len(s.pages) for s in found), default=0)
        if pages is None:
            pages = max(widest, 1)
        if widest > pages:
            raise _refuse("pages", f"{widest} columns or more", pages)
        table = [page for s in found for page in s.pages + [0] * (pages - len(s.pages))]
        return {"page_table": integers(self.k, table).reshape(len(found), pages),
                "seqlens_k": integers(self.k, [s.length for s in found]),
                "max_seqlen_k": max((s.length for s in found), default=0)}

    # ---- books ----

    def _find(self, sequence: int) -> _Sequence:
        found = self._sequences.get(sequence)
        if found is None:
            raise _refuse("sequence", "one that lives", sequence)
        return found

    def _put(self, sequence: _Sequence) -> int:
        number = self._next
        self._next += 1
        self._sequences[number] = sequence
        return number

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _shares_last(self, one: _Sequence) -> bool:
        return one.length % self.page_size != 0 and self._users[one.pages[-1]] > 1

    def _pages_needed(self, found: list[_Sequence], counts: list[int]) -> int:
        needed = 0
        left: dict[int, int] = {}  # owners that this very call takes away from a shared page
        for one, count in zip(found, counts):
            if count == 0:
                continue
            needed += self._pages_of(one.length + count) - len(one.pages)
            if one.length % self.page_size != 0:
                last = one.pages[-1]
                if self._users[last] - left.get(last, 0) > 1:
                    needed += 1
                    left[last] = left.get(last, 0) + 1
        return needed

    def _take(self) -> int:
        page = self._free.pop()
        self._users[page] = 1
        return page

    def _release(self, pages: list[int]) -> None:
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                self._free.append(page)

    def _make_room(self, one: _Sequence, count: int) -> None:
        if count == 0:
            return
        if self._shares_last(one):
            shared, own = one.pages[-1], self._take()
            for stored in self._stored():
                stored[own] = stored[shared]
            self._users[shared] -= 1
            one.pages[-1] = own
        while len(one.pages) < self._pages_of(one.length + count):
            one.pages.append(self._take())

    def _stored(self) -> list[Any]:
        return [self.k, self.v] if self.index_k is None else [self.k, self.v, self.index_k]

    def _rows_fit(self, sequences: list[int], counts: list[int], k: Any, v: Any, index_k: Any) -> list[tuple[Any, Any]]:
        if len(sequences) != len(counts) or len(set(sequences)) != len(sequences):
            raise _refuse("sequences", "different ones, as many as counts", sequences)
        if any(count < 0 for count in counts):
            raise _refuse("counts", "0 or more", counts)
        if (index_k is None) != (self.index_k is None):
            raise _refuse("index_k", "index keys exactly where the cache holds some", type(index_k).__name__)
        pairs = []
        for name, rows, stored in (("k", k, self.k), ("v", v, self.v), ("index_k", index_k, self.index_k)):
            if stored is None:
                continue
            if type(rows).__module__.partition(".")[0] != type(stored).__module__.partition(".")[0]:
                raise TypeError(f"{name}: expected an array of the cache's library, got {type(rows).__name__}")
            wanted = (sum(counts), *tuple(stored.shape)[2:])
            if tuple(rows.shape) != wanted:
                raise _refuse(name, f"rows {list(wanted)}", list(rows.shape))
            if rows.dtype != stored.dtype or device_of(rows) != device_of(stored):
                raise _refuse(name, f"{stored.dtype} on {device_of(stored)}", f"{rows.dtype} on {device_of(rows)}")
            pairs.append((stored, rows))
        return pairs
