# SPDX-License-Identifier: MIT
"""Batches for tests of several ranks, and what one process makes of them."""
from __future__ import annotations

from typing import NamedTuple

import torch

import msa
from msa.distributed import blocks_of

BLOCK, TOPK = 32, 4


class Form(NamedTuple):
    """Shapes that a backend serves, and where its tensors lie."""

    block: int
    heads_q: int
    heads_kv: int
    head_dim: int
    value_dim: int
    index_dim: int
    dtypes: tuple[torch.dtype, ...]
    device: str


CPU = Form(BLOCK, 4, 2, 32, 48, 16, (torch.float32, torch.bfloat16), "cpu")
GPU = Form(128, 8, 2, 128, 128, 128, (torch.bfloat16,), "cuda")


class Batch:
    """Whole sequences, one after the other. lengths: in units that make as many blocks in every form."""

    def __init__(self, lengths, *, new=None, dtype=None, seed=0, init=0, local=1, topk=TOPK, form=CPU):
        self.lengths = lengths = [n * (form.block // BLOCK) for n in lengths]
        self.new = list(lengths) if new is None else new
        self.init, self.local, self.topk, self.form = init, local, topk, form
        dtype = form.dtypes[0] if dtype is None else dtype
        generator = torch.Generator().manual_seed(seed)

        def draw(rows, heads, dim):
            return torch.randn((rows, heads, dim), generator=generator).to(form.device, dtype)

        rows, keys = sum(self.new), sum(lengths)
        self.q, self.index_q = draw(rows, form.heads_q, form.head_dim), draw(rows, form.heads_kv, form.index_dim)
        self.k, self.v = draw(keys, form.heads_kv, form.head_dim), draw(keys, form.heads_kv, form.value_dim)
        self.index_k = draw(keys, 1, form.index_dim)

    def whole(self, backend=None):
        """out, lse and block_ids of one process."""
        starts = self.integers([sum(self.new[:b]) for b in range(len(self.new) + 1)])
        return msa.msa_attention(self.q, self.k, self.v, self.index_q, self.index_k, cu_seqlens_q=starts,
                                 seqlens_k=self.integers(self.lengths), block_size=self.form.block, topk=self.topk,
                                 local_blocks=self.local, init_blocks=self.init, threads=1, backend=backend,
                                 max_seqlen_q=max(self.new), max_seqlen_k=max(self.lengths), return_lse=True,
                                 return_block_ids=True)

    def integers(self, values):
        """i32, where this batch lies."""
        return torch.tensor(values, dtype=torch.int32, device=self.form.device)

    def tensors(self, rows=slice(None)):
        """q, k, v, index_q and index_k of some rows."""
        return [tensor[rows] for tensor in (self.q, self.k, self.v, self.index_q, self.index_k)]

    def settings(self):
        """Keywords of a ContextParallel."""
        return {"block_size": self.form.block, "topk": self.topk, "local_blocks": self.local, "init_blocks": self.init,
                "threads": 1}

    def cache(self, layout, rank, ranks, page=None, stored=None):
        """k, v, index_k, or other rows, in pages of this rank, page_table and positions; garbage elsewhere."""
        block = self.form.block
        page = block if page is None else page
        stored = [self.k, self.v, self.index_k] if stored is None else stored
        held = [blocks_of(layout, -(-length // block), rank, ranks) for length in self.lengths]
        width, per = max(map(len, held), default=0), block // page
        positions = torch.full((len(held), width), torch.iinfo(torch.int32).max, dtype=torch.int32)
        table = torch.full((len(held), width * per), -7, dtype=torch.int32)
        pools = [torch.full((sum(map(len, held)) * per + 1, page, *rows.shape[1:]),
                            float("nan") if rows.is_floating_point() else 0x7f, dtype=rows.dtype,
                            device=rows.device) for rows in stored]
        free, start = sum(map(len, held)) * per, 0  # pages are taken from the end: their order is not that of tokens
        for request, own in enumerate(held):
            positions[request, :len(own)] = torch.tensor(own, dtype=torch.int32)
            for slot, place in enumerate(own):
                for part in range(per):
                    begin = place * block + part * page
                    end = min(begin + page, self.lengths[request])
                    free -= 1
                    table[request, slot * per + part] = free
                    for pool, rows in zip(pools, stored):
                        if end > begin:
                            pool[free, :end - begin] = rows[start + begin:start + end]
            start += self.lengths[request]
        return pools, table.to(self.form.device), positions.to(self.form.device)


def close(out, wanted):
    """Merged in another order: a few roundings apart, those of bf16 where that is what comes out."""
    tolerance = 2e-5 if wanted.dtype == torch.float32 else 1.6e-2
    torch.testing.assert_close(out.float(), wanted.float(), rtol=tolerance, atol=tolerance)
