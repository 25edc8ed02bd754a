# SPDX-License-Identifier: MIT
"""fmha_sm100_plan: the tuple that upstream documents, and the dict that engines reach into."""
import pytest
import torch

import msa

LIVE = ("kv_segment_lens", "kv_segment_offsets", "kv_page_indptr", "qo_offset", "qo_segment_lens", "qo_segment_offsets")


def lens(*numbers, dtype=torch.int32):
    return torch.tensor(numbers, dtype=dtype)


def test_the_tuple_and_the_tensors_in_it(fmha):
    plan = fmha.fmha_sm100_plan(lens(1, 3), lens(200, 130), 4, num_kv_heads=2, page_size=128, device="cpu")
    assert isinstance(plan, tuple) and plan[:3] == (False, 0, 2) and plan[4] is None
    live = plan[3]
    assert type(live) is dict
    assert all(live[name].dtype == torch.int32 for name in LIVE)
    assert live["kv_segment_lens"].tolist() == [200, 130]
    assert live["kv_segment_offsets"].tolist() == [0, 200, 330]
    assert live["kv_page_indptr"].tolist() == [0, 2, 4]
    assert live["qo_offset"].tolist() == [199, 127]
    assert live["qo_segment_offsets"].tolist() == [0, 1, 4]
    assert live["predicted_speedup"] == 1.0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_lengths_of_both_widths(fmha, dtype):
    plan = fmha.fmha_sm100_plan(lens(2, dtype=dtype), lens(5, dtype=dtype), 1, device="cpu")
    assert plan[3]["qo_offset"].tolist() == [3] and plan[3]["kv_page_indptr"] is None


def test_a_mixed_batch_in_any_order_is_one_plan(fmha):
    # Upstream cuts at the first long request, and only right where short ones come first.
    for order in ((1, 200, 1), (200, 1, 300)):
        plan = fmha.fmha_sm100_plan(lens(*order), lens(300, 300, 300), 4, num_kv_heads=4, device="cpu")
        assert plan[0] is False and plan[3]["batch"] == 3 and plan[4] is None


def test_offsets(fmha):
    for given in (7, lens(7, 7)):
        plan = fmha.fmha_sm100_plan(lens(1, 1), lens(9, 20), 1, qo_offset=given, device="cpu")
        assert plan[3]["qo_offset"].tolist() == [7, 7]
    plan = fmha.fmha_sm100_plan(lens(1, 1), lens(9, 20), 1, causal=False, device="cpu")
    assert plan[3]["qo_offset"].tolist() == [20, 20]


def test_score_columns_are_a_multiple_of_128_and_never_dropped(fmha):
    columns = lambda n, tokens=1: fmha.fmha_sm100_plan(  # noqa: E731
        lens(tokens), lens(n), 64, 4, output_maxscore=True, device="cpu"
    )[3]["max_k_tiles"]
    assert columns(1) == 128 and columns(128 * 128) == 128 and columns(128 * 128 + 1) == 256
    # 64 * 8192 * 131072 scores: upstream turns them off.
    assert columns(1 << 20, 131072) == 8192
    assert fmha.fmha_sm100_plan(lens(1), lens(1), 1, device="cpu")[3]["max_k_tiles"] == -1


def test_an_empty_batch(fmha):
    plan = fmha.fmha_sm100_plan(lens(), lens(), 4, 2, page_size=128, output_maxscore=True, device="cpu")
    assert plan[:3] == (False, 0, 0) and plan[3]["max_qo_len"] == 0


def test_hints_change_nothing(fmha):
    plain = fmha.fmha_sm100_plan(lens(1), lens(9), 4, 2, device="cpu")
    hinted = fmha.fmha_sm100_plan(
        lens(1), lens(9), 4, 2, num_kv_splits=4, usable_SM_count=3, sparse_kernel_mode="prefill",
        split_prefill_decode=False, device="cpu", stream=None,
    )
    for name, value in plain[3].items():
        assert torch.equal(value, hinted[3][name]) if isinstance(value, torch.Tensor) else value == hinted[3][name]


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"decode_backend": "q8kv4"}, "decode_backend"),
        ({"prefill_backend": "cute_dsl"}, "prefill_backend"),
        ({"kv_dtype": "nvfp4"}, "kv_dtype"),
    ],
)
def test_named_backends_are_refused(fmha, options, argument):
    with pytest.raises(NotImplementedError, match=argument) as caught:
        fmha.fmha_sm100_plan(lens(1), lens(9), 4, 2, device="cpu", **options)
    assert isinstance(caught.value, msa.Unsupported) and caught.value.argument == argument


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda f: f(lens(1, 1), lens(9), 4), "kv_segment_lens"),
        (lambda f: f(lens(-1), lens(9), 4), "qo_segment_lens"),
        (lambda f: f(torch.tensor([1.0]), lens(9), 4), "qo_segment_lens"),
        (lambda f: f(lens(1), lens(9), 0), "num_qo_heads"),
        (lambda f: f(lens(1), lens(9), 4, 3), "num_kv_heads"),
        (lambda f: f(lens(1), lens(9), 4, qo_offset=lens(1, 2)), "qo_offset"),
        (lambda f: f(lens(1), lens(9), 4, page_size=0), "page_size"),
        (lambda f: f(lens(1), lens(9), 4, kv_block_num=0), "kv_block_num"),
        (lambda f: f(lens(1), lens(9), 4, kv_block_num=4, output_maxscore=True), "output_maxscore"),
        (lambda f: f(lens(1), lens(9), 4, prefill_backend="other"), "prefill_backend"),
        (lambda f: f(lens(1), lens(9), 4, kv_dtype="bf16"), "kv_dtype"),
    ],
)
def test_numbers_that_cannot_be(fmha, call, argument):
    with pytest.raises(ValueError, match=argument) as caught:
        call(lambda *a, **k: fmha.fmha_sm100_plan(*a, device="cpu", **k))
    assert caught.value.argument == argument
