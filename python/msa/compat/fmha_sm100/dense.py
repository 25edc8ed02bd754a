# SPDX-License-Identifier: MIT
"""fmha_sm100: dense attention, block maxima and sparse attention through a plan."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ._attend import dense_attention, sparse_attention
from ._checks import (
    BLOCK,
    E4M3,
    check_attention_tensors,
    check_keys,
    host_scale,
    invalid,
    not_served,
    output_dtype,
    slots_inside,
    want_int32,
    want_tensor,
)
from ._contents import check_contents
from ._pages import SharedList, of_requests, page_table
from .plan import token_by_token

Result = tuple[torch.Tensor | None, torch.Tensor | None]
Scale = float | torch.Tensor | None


def fmha_sm100(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor | None,
    plan_info: Any,
    kv_indices: torch.Tensor | None = None,
    kv_block_indexes: torch.Tensor | None = None,
    q_offset_override: int | torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    max_score: torch.Tensor | None = None,
    sm_scale: float | None = None,
    q_scale: float | None = None,
    k_scale: float | torch.Tensor | None = None,
    v_scale: float | torch.Tensor | None = None,
    o_scale: float | None = None,
    output_maxscore: bool = True,
    output_o: bool = True,
    check_input_valid: bool = False,
    *,
    max_score_layout: str | None = None,
    lse: torch.Tensor | None = None,
) -> Result:
    """Runs a plan of `fmha_sm100_plan`: `(out or None, max_score or None)`.

    q: [T, Hq, D]. k, v: [N, Hkv, D], or pages [P, Hkv, page_size, D] in any strides. kv_indices: int32,
    the physical pages of one request after the other; longer than needed is fine. kv_block_indexes:
    int32 [T, Hkv or Hq, kv_block_num], logical ids in any order, -1 ends a row. out: [T, Hq, Dv], of
    q's dtype, beside q in e4m3 bf16. max_score: f32 [Hq, K, T] or [T, Hq, K]: unscaled maxima of tiles
    of 128 keys, -inf where nothing is visible; it needs no filling beforehand. v may be None where only
    maxima are wanted. Keys and values are of q's dtype, or e4m3 beside any q; k_scale and v_scale are
    host numbers, beside e4m3 also f32 tensors of one element on the device, which nobody reads on the
    host.

    Beyond upstream: lse, f32 [T, Hq], receives the natural log-sum-exp; max_score_layout "HKT" or
    "THK" settles a buffer whose shape fits both.
    """
    plan = plan_of(plan_info)
    call = _Call(q, k, v, plan, kv_indices, q_offset_override)
    call.check_inputs()
    if not (output_o or output_maxscore):
        invalid("output_o", "output_o or output_maxscore", "neither")
    scores, maxima = _score_buffer(call, max_score, max_score_layout, output_maxscore, kv_block_indexes)
    wants_out = output_o or scores is None
    call.check_outputs(wants_out, out, lse)
    if check_input_valid:
        check_contents(plan, q, k, kv_indices, kv_block_indexes, q_offset_override)
    k_scale, v_scale = call.take_device_scales(k_scale, v_scale, scores is not None)
    scale = (1.0 / math.sqrt(q.shape[-1]) if sm_scale is None else float(sm_scale)) * host_scale("q_scale", q_scale)
    scale *= host_scale("k_scale", k_scale)
    gain = host_scale("v_scale", v_scale) * host_scale("o_scale", o_scale)
    if kv_block_indexes is not None:
        return call.sparse(kv_block_indexes, scale, gain, out, lse), None
    return call.dense(scale, gain, out, lse, maxima, wants_out), scores


def plan_of(plan_info: Any) -> dict[str, Any]:
    plan = plan_info[3] if isinstance(plan_info, (tuple, list)) and len(plan_info) == 5 else plan_info
    if not isinstance(plan, dict) or "qo_segment_offsets" not in plan:
        raise TypeError(f"plan_info: expected what fmha_sm100_plan returned, got {type(plan_info).__name__}")
    return plan


@dataclass
class _Call:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor | None
    plan: dict[str, Any]
    kv_indices: torch.Tensor | None
    q_offset_override: int | torch.Tensor | None
    scales: dict[str, torch.Tensor] = field(default_factory=dict)  # that the library applies

    # ---- checks ----

    def check_inputs(self) -> None:
        q, k, plan = self.q, self.k, self.plan
        check_attention_tensors(q, k, self.v)
        paged = self.kv_indices is not None
        if paged != (plan["page_size"] > 0):
            invalid("kv_indices", "a list of pages" if not paged else "None, as the plan has no page_size", "the other")
        if paged:
            want_int32("kv_indices", self.kv_indices, 1, q.device)
        check_keys(k, self.v, plan["page_size"])
        if plan.get("use_fp8_kvcache") and k.dtype != E4M3:
            invalid("k", f"{E4M3} as planned", k.dtype)
        if q.device != plan["qo_offset"].device:
            invalid("q", f"a tensor on the plan's device {plan['qo_offset'].device}", q.device)
        if q.shape[1] != plan["orig_num_qo_heads"]:
            invalid("q", f"{plan['orig_num_qo_heads']} heads as planned", q.shape[1])
        if plan["num_kv_heads"] not in (-1, self.kv_heads):
            invalid("k", f"{plan['num_kv_heads']} heads as planned", self.kv_heads)
        if q.shape[1] % max(self.kv_heads, 1):
            invalid("k", f"heads that divide {q.shape[1]} query heads", self.kv_heads)

    def check_outputs(self, wants_out: bool, out: torch.Tensor | None, lse: torch.Tensor | None) -> None:
        if wants_out and self.v is None:
            invalid("v", "values, as an output is wanted", None)
        if not wants_out and (out is not None or lse is not None):
            invalid("out", "None where output_o is False", "a tensor")

    def take_device_scales(self, k_scale: Scale, v_scale: Scale, has_scores: bool) -> tuple[Scale, Scale]:
        """Tensors of a GPU become scales of keys and values in e4m3; what is left is for the host."""
        given = {"k_scale": k_scale, "v_scale": v_scale}
        on_device = [name for name, scale in given.items() if _lies_on_a_device(scale)]
        if not on_device or self.k.dtype != E4M3 or self.v is None:
            return k_scale, v_scale
        if has_scores:
            name = on_device[0]
            not_served(f"{name} as a tensor of the device beside max_score", "scores are unscaled", name)
        for name, scale in given.items():
            if name not in on_device or not isinstance(scale, torch.Tensor):
                scale = torch.full((1,), host_scale(name, scale), dtype=torch.float32, device=self.q.device)
            elif scale.numel() != 1 or scale.dtype != torch.float32 or scale.device != self.q.device:
                expected = f"one float32 element on {self.q.device}"
                invalid(name, expected, f"{scale.dtype} {tuple(scale.shape)} on {scale.device}")
            self.scales[name] = scale.reshape(1)
        return None, None

    @property
    def kv_heads(self) -> int:
        return self.k.shape[1]

    # ---- what a run reads ----

    def keys(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.kv_indices is None:
            return self.k, self.v
        return slots_inside(self.k), None if self.v is None else slots_inside(self.v)

    def offsets(self) -> torch.Tensor:
        given = self.q_offset_override
        planned: torch.Tensor = self.plan["qo_offset"]
        if given is None:
            return planned
        if isinstance(given, int):
            return torch.full_like(planned, given)
        return want_tensor("q_offset_override", given).to(torch.int32)

    def batch(self) -> dict[str, Any]:
        """Lengths and places as the library takes them; all tensors stay on the device."""
        plan = self.plan
        batch: dict[str, Any] = {
            "cu_seqlens_q": plan["qo_segment_offsets"],
            "seqlens_k": plan["kv_segment_lens"],
            "q_offsets": self.offsets(),
            "max_seqlen_q": plan["max_qo_len"],
            "max_seqlen_k": plan["max_kv_len"],
            "causal": True,  # causal=False is an offset behind the longest request
        }
        if self.kv_indices is None:
            batch["cu_seqlens_k"] = plan["kv_segment_offsets"]
            return batch
        columns = -(-plan["max_kv_len"] // plan["page_size"])
        batch["page_table"] = page_table(self.kv_indices, plan["kv_page_indptr"], columns)
        return batch

    # ---- runs ----

    def dense(
        self,
        scale: float,
        gain: float,
        out: torch.Tensor | None,
        lse: torch.Tensor | None,
        maxima: torch.Tensor | None,
        wants_out: bool,
    ) -> torch.Tensor | None:
        k, v = self.keys()
        if not wants_out:
            dense_attention(self.q, k, None, block_max=maxima, block_size=BLOCK, softmax_scale=scale, **self.batch())
            return None
        out, target = _output_of(self.q, v, gain, out)
        settings = {"block_size": BLOCK, "softmax_scale": scale, **self.scales, **self.batch()}
        dense_attention(self.q, k, v, out=target, lse=lse, block_max=maxima, **settings)
        return _scaled(target, gain, out)

    def sparse(
        self, ids: torch.Tensor, scale: float, gain: float, out: torch.Tensor | None, lse: torch.Tensor | None
    ) -> torch.Tensor:
        ids = self._checked_ids(ids)
        k, v = self.keys()
        assert v is not None  # check_outputs
        batch = self.batch_of_lists(ids)
        ids = batch.pop("block_ids")
        out, target = _output_of(self.q, v, gain, out)
        settings = {"block_size": BLOCK, "softmax_scale": scale, **self.scales, **batch}
        if ids.shape[1] == self.kv_heads:
            sparse_attention(self.q, k, v, ids, out=target, lse=lse, **settings)
            return _scaled(target, gain, out)
        # A list of its own for every query head: one run for each place in a group, all strided views.
        group = self.q.shape[1] // self.kv_heads
        for g in range(group):
            part = None if lse is None else lse[:, g::group]
            sparse_attention(
                self.q[:, g::group], k, v, ids[:, g::group], out=target[:, g::group], lse=part, **settings
            )
        return _scaled(target, gain, out)

    def batch_of_lists(self, ids: torch.Tensor) -> dict[str, Any]:
        plan = self.plan
        pages = self.kv_indices
        follows = pages is not None and token_by_token(plan) and plan["page_size"] % BLOCK == 0
        if not follows or plan["batch"] == 0:
            return {"block_ids": ids, **self.batch()}
        assert pages is not None
        shared = SharedList(pages, plan["kv_page_indptr"], plan["page_size"])
        batch = {
            "cu_seqlens_q": plan["qo_segment_offsets"],
            "seqlens_k": plan["kv_segment_lens"],
            "q_offsets": self.offsets(),
            "max_seqlen_q": plan["max_qo_len"],
            "max_seqlen_k": shared.max_seqlen_k,
            "page_table": shared.table,
            "causal": True,
            "block_ids": ids,
        }
        if plan["batch"] > 1:
            starts, longest = plan["qo_segment_offsets"], plan["max_qo_len"]
            alike = plan["qo_len_uniform"] and ids.shape[0] == plan["batch"] * longest
            first = of_requests(shared.first_page, starts, ids.shape[0], longest if alike else 0)
            batch["seqlens_k"], batch["q_offsets"] = shared.move_tokens(batch["seqlens_k"], batch["q_offsets"])
            batch["block_ids"] = shared.move_blocks(ids, first, BLOCK)
        return batch

    def _checked_ids(self, ids: torch.Tensor) -> torch.Tensor:
        want_int32("kv_block_indexes", ids, 3, self.q.device)
        wanted = self.plan["kv_block_num"]
        if wanted < 1:
            invalid("kv_block_indexes", "None, as the plan has no kv_block_num", tuple(ids.shape))
        heads = (self.kv_heads, self.q.shape[1])
        if ids.shape[0] != self.q.shape[0] or ids.shape[1] not in heads or ids.shape[2] != wanted:
            expected = f"[{self.q.shape[0]}, {heads[0]} or {heads[1]}, {wanted}]"
            invalid("kv_block_indexes", expected, tuple(ids.shape))
        return ids


def _lies_on_a_device(scale: Scale) -> bool:
    return isinstance(scale, torch.Tensor) and scale.device.type != "cpu"


# ---- outputs ----


def _output_of(
    q: torch.Tensor, v: torch.Tensor | None, gain: float, out: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the caller gets, and what the library writes: f32 where a factor follows, so that the
    result is rounded once."""
    assert v is not None
    shape = (q.shape[0], q.shape[1], v.shape[-1])
    dtype = output_dtype(q)
    if out is None:
        out = q.new_empty(shape, dtype=dtype)
    elif tuple(want_tensor("out", out).shape) != shape or out.dtype != dtype:
        invalid("out", f"{dtype} {shape}", f"{out.dtype} {tuple(out.shape)}")
    return out, out if gain == 1.0 else q.new_empty(shape, dtype=torch.float32)


def _scaled(target: torch.Tensor, gain: float, out: torch.Tensor) -> torch.Tensor:
    if target is not out:
        torch.mul(target, gain, out=target)
        out.copy_(target)
    return out


def _score_buffer(
    call: _Call,
    given: torch.Tensor | None,
    layout: str | None,
    wanted: bool,
    ids: torch.Tensor | None,
) -> Result:
    """The buffer of block maxima as the caller gets it, and its view [T, Hq, K]; None: there are none."""
    plan, q = call.plan, call.q
    tiles = plan["max_k_tiles"]
    if ids is None and plan["kv_block_num"] > 0:
        invalid("kv_block_indexes", "block ids, as the plan has kv_block_num", None)
    if not wanted or tiles < 0 or ids is not None:
        if given is not None:
            invalid("max_score", "None, as this run has no scores (output_maxscore of the plan and the run)", "a tensor")
        return None, None
    shapes = {"HKT": (q.shape[1], tiles, q.shape[0]), "THK": (q.shape[0], q.shape[1], tiles)}
    if layout is not None and layout not in shapes:
        invalid("max_score_layout", "'HKT' or 'THK'", repr(layout))
    if given is None:
        layout = layout or "HKT"
        given = q.new_empty(shapes[layout], dtype=torch.float32)
    if want_tensor("max_score", given).dtype != torch.float32:
        raise TypeError(f"max_score: expected float32, got {given.dtype}")
    fits = [name for name, shape in shapes.items() if tuple(given.shape) == shape and layout in (None, name)]
    if not fits:
        invalid("max_score", f"[H, K, T] {shapes['HKT']} or [T, H, K] {shapes['THK']}", tuple(given.shape))
    if len(fits) > 1:
        invalid("max_score_layout", f"'HKT' or 'THK', as {tuple(given.shape)} is the shape of both", None)
    return given, given if fits == ["THK"] else given.permute(2, 0, 1)
