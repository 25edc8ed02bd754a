# SPDX-License-Identifier: MIT
"""Flat lists of pages as page tables, on the device and without reading it.

Upstream's `kv_indices` holds the pages of request 0, then those of request 1, and so on; a request's
part begins at `kv_page_indptr[b]`. The list may be longer than needed, and both may change between
replays of a CUDA graph, so the host knows only their shapes.
"""
from __future__ import annotations

import torch


def page_table(kv_indices: torch.Tensor, indptr: torch.Tensor, columns: int) -> torch.Tensor:
    """int32 [B, columns]; what lies behind a request's last page is some page of the list."""
    requests = indptr.shape[0] - 1
    if requests == 1:
        return kv_indices.unsqueeze(0)  # indptr[0] is 0: the list is the table
    if kv_indices.shape[0] == 0 or columns == 0 or requests == 0:
        return kv_indices.new_zeros((requests, columns))
    column = torch.arange(columns, dtype=torch.int32, device=indptr.device)
    place = (indptr[:-1, None] + column).clamp_(0, kv_indices.shape[0] - 1)
    return kv_indices.index_select(0, place.view(-1)).view(requests, columns)


def of_requests(numbers: torch.Tensor, cu_seqlens_q: torch.Tensor, tokens: int, each: int) -> torch.Tensor:
    """[B] as [tokens]: the number of the request whose query each row is. each: queries of every request where
    they are alike and no row lies behind the last request, else 0; such rows count as the last request's."""
    if each > 0:
        return numbers if each == 1 else numbers[:, None].expand(-1, each).reshape(-1)
    rows = torch.arange(tokens, dtype=torch.int32, device=cu_seqlens_q.device)
    last = max(cu_seqlens_q.shape[0] - 2, 0)
    request = torch.searchsorted(cu_seqlens_q[1:].contiguous(), rows, right=True).clamp_(max=last)
    return numbers[request]


class SharedList:
    """One table row for all requests: the flat list itself.

    A request's keys then follow those of the requests before it: block ids, lengths and positions
    move by the pages in front. Nothing depends on how long requests are, so a captured run follows
    lengths that grow past the planned ones. Only for lists of blocks: a dense run would see the
    keys in front.
    """

    def __init__(self, kv_indices: torch.Tensor, indptr: torch.Tensor, page_size: int) -> None:
        self.table = kv_indices.unsqueeze(0).expand(indptr.shape[0] - 1, -1)
        self.max_seqlen_k = kv_indices.shape[0] * page_size
        self.first_page = indptr[:-1]
        self._page_size = page_size

    def move_tokens(self, *numbers: torch.Tensor) -> list[torch.Tensor]:
        """Lengths or positions, each [B]; one kernel for all of them."""
        return list(torch._foreach_add(numbers, [self.first_page] * len(numbers), alpha=self._page_size))

    def move_blocks(self, block_ids: torch.Tensor, first_page: torch.Tensor, block: int) -> torch.Tensor:
        """[T, H, k]; negative ids stay as they are. first_page: of each row's request."""
        listed = torch.ge(block_ids, 0, out=torch.empty_like(block_ids))
        return torch.addcmul(block_ids, listed, first_page[:, None, None], value=self._page_size // block)
