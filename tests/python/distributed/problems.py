# SPDX-License-Identifier: MIT
"""Batches for tests of several ranks, and what one process makes of them."""
from __future__ import annotations

import torch

import msa
from msa.distributed import blocks_of

BLOCK, TOPK = 32, 4


class Batch:
    """Whole sequences, one after the other."""

    def __init__(self, lengths, *, new=None, dtype=torch.float32, seed=0, init=0, local=1, topk=TOPK):
        self.lengths, self.new = lengths, list(lengths) if new is None else new
        self.init, self.local, self.topk = init, local, topk
        generator = torch.Generator().manual_seed(seed)

        def draw(rows, heads, dim):
            return torch.randn((rows, heads, dim), generator=generator).to(dtype)

        rows, keys = sum(self.new), sum(lengths)
        self.q, self.index_q = draw(rows, 4, 32), draw(rows, 2, 16)
        self.k, self.v, self.index_k = draw(keys, 2, 32), draw(keys, 2, 48), draw(keys, 1, 16)

    def whole(self, backend=None):
        """out, lse and block_ids of one process."""
        starts = torch.tensor([sum(self.new[:b]) for b in range(len(self.new) + 1)], dtype=torch.int32)
        return msa.msa_attention(self.q, self.k, self.v, self.index_q, self.index_k, cu_seqlens_q=starts,
                                 seqlens_k=torch.tensor(self.lengths, dtype=torch.int32), block_size=BLOCK,
                                 topk=self.topk, local_blocks=self.local, init_blocks=self.init, threads=1,
                                 backend=backend, return_lse=True, return_block_ids=True)

    def settings(self):
        """Keywords of a ContextParallel."""
        return {"block_size": BLOCK, "topk": self.topk, "local_blocks": self.local, "init_blocks": self.init,
                "threads": 1}

    def cache(self, layout, rank, ranks, page=BLOCK, stored=None):
        """k, v, index_k, or other rows, in pages of this rank, page_table and positions; garbage elsewhere."""
        stored = [self.k, self.v, self.index_k] if stored is None else stored
        held = [blocks_of(layout, -(-length // BLOCK), rank, ranks) for length in self.lengths]
        width, per = max(map(len, held), default=0), BLOCK // page
        positions = torch.full((len(held), width), torch.iinfo(torch.int32).max, dtype=torch.int32)
        table = torch.full((len(held), width * per), -7, dtype=torch.int32)
        pools = [torch.full((sum(map(len, held)) * per + 1, page, *rows.shape[1:]),
                            float("nan") if rows.is_floating_point() else 0x7f, dtype=rows.dtype) for rows in stored]
        free, start = sum(map(len, held)) * per, 0  # pages are taken from the end: their order is not that of tokens
        for request, own in enumerate(held):
            positions[request, :len(own)] = torch.tensor(own, dtype=torch.int32)
            for slot, block in enumerate(own):
                for part in range(per):
                    begin = block * BLOCK + part * page
                    end = min(begin + page, self.lengths[request])
                    free -= 1
                    table[request, slot * per + part] = free
                    for pool, rows in zip(pools, stored):
                        if end > begin:
                            pool[free, :end - begin] = rows[start + begin:start + end]
            start += self.lengths[request]
        return pools, table, positions


def close(out, wanted):
    """Merged in another order: a few roundings apart, those of bf16 where that is what comes out."""
    tolerance = 2e-5 if wanted.dtype == torch.float32 else 1.6e-2
    torch.testing.assert_close(out.float(), wanted.float(), rtol=tolerance, atol=tolerance)
