# SPDX-License-Identifier: MIT
"""fp4_indexer_block_scores against fp64 over the numbers that tables and places give."""
import math
from dataclasses import dataclass

import four_bits
import pytest
import torch

GROUPS = {"mxfp4": 32, "nvfp4": 16}
TABLES = {"mxfp4": four_bits.E8M0, "nvfp4": four_bits.E4M3}
TYPES = {"mxfp4": torch.float8_e8m0fnu, "nvfp4": torch.float8_e4m3fn}
LENS = ((3, 1, 0, 4), (300, 140, 9, 129))
HEADS, HEADS_K, DIM = 4, 2, 64


@dataclass
class Index:
    kind: str
    q: torch.Tensor
    k: torch.Tensor
    q_scale: torch.Tensor  # linear
    k_scale: torch.Tensor
    kv_indices: torch.Tensor

    def call(self, fmha, lens=LENS, **changes):
        sums = [torch.tensor([0, *n], dtype=torch.int32).cumsum(0, dtype=torch.int32) for n in lens]
        pages = torch.tensor([0, *(-(-n // 128) for n in lens[1])], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        call = {
            "q_fp4": self.q, "k_fp4": self.k, "q_scale": self.q_scale, "k_scale": self.k_scale, "cu_seqlens_q": sums[0],
            "cu_seqlens_k": sums[1], "cu_page_offsets": pages, "max_seqlen_q": max(lens[0]),
            "max_seqlen_k": max(lens[1]), "kv_indices": self.kv_indices, "fp4_format": self.kind,
            "scale_layout": "public",
        }
        return fmha.fp4_indexer_block_scores(**(call | changes))

    def wanted(self, naive, lens=LENS, offsets=None):
        table = TABLES[self.kind]
        pages, keys, first = four_bits.values(self.k, self.k_scale, table), [], 0
        for length in lens[1]:
            count = -(-length // 128)
            own = pages[self.kv_indices[first : first + count].long()].transpose(1, 2).reshape(-1, HEADS_K, DIM)
            keys.append(own[:length])
            first += count
        q = four_bits.values(self.q, self.q_scale, table)
        found = naive.maxima(q, torch.cat(keys), *lens, offsets=offsets, tiles=-(-max(lens[1]) // 128))
        return found.permute(1, 2, 0)

    def tiled(self):
        """Scales in the order of products: [L, tiles of rows, tiles of groups, 32, 4, 4]."""
        by_head = self.q_scale.permute(1, 0, 2)
        tall, wide = -(-by_head.shape[1] // 128), -(-self.q_scale.shape[2] // 4)
        q = torch.stack([four_bits.tiles(matrix) for matrix in by_head]).view(-1, tall, wide, 32, 4, 4)
        k = torch.stack([four_bits.tiles(matrix) for matrix in self.k_scale.flatten(0, 1)]).view(-1, 1, wide, 32, 4, 4)
        return {"q_scale": q, "k_scale": k, "scale_layout": "preordered_mma"}


def make(kind, lens=LENS, seed=1):
    """Scales are powers of two or little numbers, so that sums are exact; of pages that nobody lists they are NaN."""
    draw = torch.Generator().manual_seed(seed)
    groups, count = DIM // GROUPS[kind], sum(-(-n // 128) for n in lens[1])
    kv_indices = torch.randperm(count + 2, generator=draw)[:count].to(torch.int32)
    lowest = {"mxfp4": 125, "nvfp4": 48}[kind]
    scale = lambda *shape: torch.randint(lowest, lowest + 5, shape, dtype=torch.uint8, generator=draw)  # noqa: E731
    shapes = (sum(lens[0]), HEADS, DIM // 2), (count + 2, HEADS_K, 128, DIM // 2)
    q, k = (four_bits.random_codes(shape, draw) for shape in shapes)
    k_scale = scale(count + 2, HEADS_K, 128, groups)
    hidden = torch.ones(count + 2, dtype=torch.bool)
    hidden[kv_indices.long()] = False
    k_scale[hidden] = 255
    return Index(kind, q, k, scale(sum(lens[0]), HEADS, groups), k_scale, kv_indices)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("layout", ["public", "preordered_mma"])
@pytest.mark.parametrize("causal", [False, True])
def test_scores_are_exact(fmha, naive, kind, layout, causal):
    index = make(kind)
    found = index.call(fmha, causal=causal, **(index.tiled() if layout != "public" else {}))
    assert found.dtype == torch.float32 and found.shape == (HEADS, 3, 8)
    offsets = None if causal else LENS[1]
    assert torch.equal(found.double(), index.wanted(naive, offsets=offsets))
    assert (found[:, 2, 3:] == -math.inf).all()


@pytest.mark.parametrize("given", ["int", "tensor"])
def test_offsets_types_and_a_longer_list(fmha, naive, given):
    index = make("nvfp4")
    offsets = [120, 120, 120, 120] if given == "int" else [5, 139, 0, -2]
    wanted = index.wanted(naive, offsets=offsets)
    index.q, index.k = index.q.view(torch.int8), index.k.view(torch.float4_e2m1fn_x2)
    index.q_scale, index.k_scale = index.q_scale.view(TYPES["nvfp4"]), index.k_scale.view(TYPES["nvfp4"])
    index.kv_indices = torch.cat([index.kv_indices, torch.tensor([0, 1], dtype=torch.int32)])
    qo_offset = 120 if given == "int" else torch.tensor(offsets, dtype=torch.int32)
    assert torch.equal(index.call(fmha, causal=True, qo_offset=qo_offset).double(), wanted)


def test_strided_keys_and_many_rows(fmha, naive):
    lens = ((130,), (200,))
    index = make("mxfp4", lens)
    wanted = index.wanted(naive, lens)
    assert torch.equal(index.call(fmha, lens, causal=True, **index.tiled()).double(), wanted)
    index.k = index.k.transpose(1, 2).contiguous().transpose(1, 2)
    index.k_scale = index.k_scale.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(index.call(fmha, lens, causal=True).double(), wanted)


def test_every_code_and_every_scale(fmha):
    # One query that picks one element out, one key.
    for kind, table in TABLES.items():
        q = torch.zeros(1, 1, DIM // 2, dtype=torch.uint8)
        q[..., 0] = 2  # 1.0
        one = {"mxfp4": 127, "nvfp4": 0x38}[kind]
        codes, scales = (x.flatten() for x in torch.meshgrid(torch.arange(16), torch.arange(256), indexing="ij"))
        k = torch.zeros(4096, 1, 128, DIM // 2, dtype=torch.uint8)
        k[:, 0, 0, 0] = codes | 0x70  # and 6 times the scale beside it, which counts nothing
        k_scale = torch.full((4096, 1, 128, DIM // GROUPS[kind]), one, dtype=torch.uint8)
        k_scale[:, 0, 0, 0] = scales
        q_scale = torch.full((4096, 1, DIM // GROUPS[kind]), one, dtype=torch.uint8)
        index = Index(kind, q.expand(4096, 1, -1), k, q_scale, k_scale, torch.arange(4096, dtype=torch.int32))
        found = index.call(fmha, ((1,) * 4096, (1,) * 4096))[0, 0].double()
        wanted = four_bits.E2M1[codes] * table[scales]
        large = 6 * table[scales].abs() >= 2.0**128  # beyond f32 in the element beside it: 0 * inf
        wanted[wanted.isnan() | large] = -math.inf
        ok = (found == wanted) | ((wanted.abs() < 2.0**-126) & ((found - wanted).abs() <= 2.0**-126))
        assert ok.all(), (kind, codes[~ok], scales[~ok], found[~ok])


def test_a_scale_that_is_no_number_hides_its_key(fmha):
    # All codes and the other scales are 1, so that an infinite scale would give an infinite score.
    ones = lambda *shape: torch.full(shape, 0x22, dtype=torch.uint8)  # noqa: E731
    for kind, one, nan in (("mxfp4", 127, [255]), ("nvfp4", 0x38, [0x7F, 0xFF])):
        groups = DIM // GROUPS[kind]
        k_scale = torch.full((1, 1, 128, groups), one, dtype=torch.uint8)
        index = Index(kind, ones(1, 1, DIM // 2), ones(1, 1, 128, DIM // 2), k_scale[:, :, 0], k_scale.clone(),
                      torch.zeros(1, dtype=torch.int32))
        assert index.call(fmha, ((1,), (2,))).tolist() == [[[DIM]]]
        for code in nan:
            index.k_scale[:, :, 0, 1] = code
            assert index.call(fmha, ((1,), (2,))).tolist() == [[[DIM]]]
            assert index.call(fmha, ((1,), (1,))).tolist() == [[[-math.inf]]]


def test_bad_pages_are_errors(fmha):
    index = make("nvfp4")
    for page in (-1, index.k.shape[0]):
        bad = index.kv_indices.clone()
        bad[1] = page
        with pytest.raises(ValueError):
            index.call(fmha, kv_indices=bad)


def test_nothing_to_score(fmha):
    index = make("nvfp4", ((), ()))
    lens = ((0, 2), (0, 0))
    index.q, index.q_scale = (torch.zeros(2, HEADS, n, dtype=torch.uint8) for n in (DIM // 2, 4))
    for pages in (2, 0):
        index.k, index.k_scale = index.k[:pages], index.k_scale[:pages]
        assert index.call(fmha, lens).shape == (HEADS, 0, 2)
        assert (index.call(fmha, lens, max_seqlen_k=300) == -math.inf).all()


BAD = {
    "fp4_format": (lambda i: {"fp4_format": "fp4"}, ValueError),
    "scale_layout": (lambda i: {"scale_layout": "linear"}, ValueError),
    "qo_offset": (lambda i: {"qo_offset": 3}, ValueError),
    "qo_offset shape": (lambda i: {"qo_offset": torch.zeros(3, dtype=torch.int32), "causal": True}, ValueError),
    "q_fp4": (lambda i: {"q_fp4": i.q.float()}, TypeError),
    "q_fp4 groups": (lambda i: {"q_fp4": i.q[..., :20]}, ValueError),
    "k_fp4": (lambda i: {"k_fp4": i.k[:, :, :64]}, ValueError),
    "k_fp4 dim": (lambda i: {"k_fp4": i.k[..., :16]}, ValueError),
    "q_scale": (lambda i: {"q_scale": i.q_scale[:, :2]}, ValueError),
    "q_scale type": (lambda i: {"q_scale": i.q_scale.view(torch.float8_e8m0fnu)}, TypeError),
    "k_scale": (lambda i: i.tiled() | {"k_scale": i.k_scale}, ValueError),
    "k_scale strides": (lambda i: i.tiled() | {"k_scale": i.tiled()["k_scale"].transpose(-1, -2)}, ValueError),
    "k_scale type": (lambda i: {"k_scale": i.k_scale.float()}, TypeError),
    "cu_page_offsets": (lambda i: {"cu_page_offsets": torch.zeros(3, dtype=torch.int32)}, ValueError),
    "kv_indices": (lambda i: {"kv_indices": i.kv_indices.long()}, TypeError),
    "cu_seqlens_k": (lambda i: {"cu_seqlens_k": torch.zeros(5)}, TypeError),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_by_name(fmha, name):
    index = make("nvfp4")
    changes, kind = BAD[name]
    with pytest.raises(kind, match=f"^{name.split()[0]}: "):
        index.call(fmha, **changes(index))
