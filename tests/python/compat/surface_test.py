# SPDX-License-Identifier: MIT
"""Every name and keyword of upstream, the alias `fmha_sm100`, and upstream's intended flow as it stands."""
import inspect
import subprocess
import sys

import pytest
import torch

import msa
import msa.compat.fmha_sm100 as dropin
from msa.compat.fmha_sm100 import sparse, sparse_fmha_adapter

PLAN = (
    "qo_segment_lens kv_segment_lens num_qo_heads num_kv_heads qo_offset num_kv_splits page_size output_maxscore "
    "kv_block_num usable_SM_count causal sparse_kernel_mode use_fp8_kvcache device stream"
)
ATTEN = (
    "q k v k2q_row_ptr k2q_q_indices topK / cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k blk_kv causal "
    "softmax_scale lse_temperature_scale return_temperature_lse partial_dtype return_softmax_lse page_table seqused_k "
    "schedule usable_SM_count qk_dtype pv_dtype output_scale out enable_fp16_softmax enable_2x_fp8"
)
NVFP4 = ATTEN.replace("v k2q", "v k_scale_128x4 v_scale_128x4 k_global_scale v_global_scale k2q").partition(
    " usable_SM_count"
)[0]
DECODE = "q k v q2k_indices / page_table seqused_k seqlen_q max_seqlen_k blk_kv causal softmax_scale return_softmax_lse"
# Names before the slash also go by position, in this order; the rest by keyword.
SIGNATURES = {
    "fmha_sm100_plan": PLAN + " / split_prefill_decode decode_backend prefill_backend kv_dtype block_scale_shift",
    "fmha_sm100": "q k v plan_info kv_indices kv_block_indexes q_offset_override out max_score sm_scale q_scale k_scale "
    "v_scale o_scale output_maxscore output_o check_input_valid /",
    "sparse_topk_select": "max_score topk num_valid_pages output force_begin_blocks force_end_blocks max_score_layout "
    "block_table seq_lens block_size decode_query_len /",
    "sparse_atten_func": ATTEN,
    "sparse_atten_nvfp4_kv_func": NVFP4,
    "fp4_indexer_block_scores": "q_fp4 k_fp4 q_scale k_scale cu_seqlens_q cu_seqlens_k cu_page_offsets / max_seqlen_q "
    "max_seqlen_k kv_indices fp4_format causal qo_offset scale_layout",
    "sparse.quantize_bf16_to_nvfp4_128x4": "x /",
    "sparse.quantize_kv_bf16_to_nvfp4_128x4": "k v /",
    "sparse.dequantize_nvfp4_128x4_to_bf16": "qx / include_global_scale",
    "sparse.swizzle_nvfp4_scale_to_128x4": "scale / rows cols",
    "sparse.nvfp4_scale_128x4_offset": "row col scale_cols /",
    "sparse.nvfp4_global_scale_from_amax": "amax /",
    "sparse.Nvfp4QuantizedTensor": "data scale_128x4 global_scale logical_scale_shape original_shape /",
    "sparse_decode_atten_func": DECODE + " schedule O_partial LSE_partial",
    "build_k2q_csr": "q2k_indices cu_seqlens_q cu_seqlens_k kv_block_size / total_k max_seqlen_k max_seqlen_q total_rows "
    "qhead_per_kv return_schedule",
    "SparseK2qCsrBuilderSm100.__call__": "self q2k_indices cu_seqlens_q cu_seqlens_k / total_k blk_kv max_seqlen_k "
    "max_seqlen_q total_rows qhead_per_kv return_schedule",
    "SparseDecodePagedAttentionWrapper.__init__": "self / blk_kv causal",
    "SparseDecodePagedAttentionWrapper.plan": "self / page_table seqused_k seqlen_q max_seqlen_k q2k_indices num_qo_heads "
    "num_kv_heads head_dim enable_cuda_graph max_grid_size fixed_split_size disable_split_kv",
    "SparseDecodePagedAttentionWrapper.run": "self q k v / softmax_scale return_softmax_lse out lse",
    "kvouter_attention": "q k_cache v_cache selected block_tables / cu_seqlens_q softmax_scale causal used_kv_lens "
    "block_size page_size out_dtype return_lse out",
    "can_run_sparse_kvouter": "dtype /",
    "warmup": "kv_cache_dtype index_cache_dtype num_q_heads num_kv_heads topk decode_query_lens /",
}
DEFAULTS = {
    "fmha_sm100_plan": {"num_kv_heads": -1, "page_size": -1, "kv_block_num": -1, "causal": True,
                        "sparse_kernel_mode": "auto", "block_scale_shift": 3},
    "fmha_sm100": {"output_maxscore": True, "output_o": True, "check_input_valid": False},
    "sparse_topk_select": {"max_score_layout": "HKT", "force_end_blocks": 0},
    "sparse_atten_func": {"causal": False, "blk_kv": 128, "partial_dtype": torch.bfloat16,
                          "lse_temperature_scale": 1.0},
    "sparse_decode_atten_func": {"causal": True},
    "sparse_atten_nvfp4_kv_func": {"causal": False, "partial_dtype": torch.bfloat16, "scale_layout": "128x4"},
    "fp4_indexer_block_scores": {"causal": False, "scale_layout": "preordered_mma"},
}


def found(name):
    owner = dropin
    for part in name.split("."):
        owner = getattr(owner, part)
    return inspect.signature(owner).parameters


@pytest.mark.parametrize("name", SIGNATURES)
def test_keywords_and_order(name):
    parameters = found(name)
    positional, _, keywords = (part.split() for part in SIGNATURES[name].partition("/"))
    given = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in given][: len(positional)] == positional
    assert set(keywords) <= set(parameters)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    for parameter, value in DEFAULTS[name].items():
        assert found(name)[parameter].default == value


def test_the_bridges_signatures():
    plan = list(inspect.signature(sparse_fmha_adapter.sparse_fmha_plan).parameters)
    assert plan == (
        "qo_segment_lens kv_segment_lens num_qo_heads num_kv_heads qo_offset num_kv_splits page_size output_maxscore "
        "kv_block_num causal usable_SM_count use_fp8_kvcache"
    ).split()
    run = list(inspect.signature(sparse_fmha_adapter.sparse_fmha).parameters)
    assert run == (
        "q k v plan_info out max_score sm_scale q_scale k_scale v_scale o_scale kv_indices output_maxscore output_o "
        "kv_block_indexes q_offset_override check_input_valid"
    ).split()


REFUSED = [
    "BatchDecodeIndexerQ8KV4Wrapper", "BatchDecodeIndexerQ8KV8Wrapper", "BatchPrefillIndexerQ8KV8Wrapper",
    "sparse_atten_nvfp4_kv_cache_func", "plan_decode", "run_decode",
]


@pytest.mark.parametrize("name", REFUSED)
def test_the_forks_packed_caches_are_refused_by_name(name):
    with pytest.raises(NotImplementedError, match=name) as caught:
        getattr(dropin, name)()
    assert isinstance(caught.value, msa.Unsupported) and isinstance(caught.value, msa.Error)


def test_warm_up_says_that_it_does_nothing(capfd):
    assert "nothing to warm up" in dropin.warmup(kv_cache_dtype="bf16") == dropin.plan_warmup()
    assert capfd.readouterr() == ("", "")


FLOW = """
import sys, torch
import msa.compat
assert msa.compat.provide() and msa.compat.provide()
import fmha_sm100
import fmha_sm100.sparse, fmha_sm100.api
from fmha_sm100 import fmha_sm100_plan, fmha_sm100 as run, sparse_topk_select, build_k2q_csr, sparse_atten_func
from fmha_sm100.cute.interface import sparse_atten_func as same
from fmha_sm100.sparse_fmha_adapter import sparse_fmha_plan
assert same is sparse_atten_func is fmha_sm100.sparse.sparse_atten_func
import fmha_sm100.csr, msa.compat.fmha_sm100.csr
assert fmha_sm100.csr is msa.compat.fmha_sm100.csr  # one module, two names

torch.manual_seed(0)
T, Hq, Hkv, D = 700, 4, 2, 32
q, k, v = torch.randn(T, Hq, D), torch.randn(T, Hkv, D), torch.randn(T, Hkv, D)
index_q, index_k = torch.randn(T, Hkv, D), torch.randn(T, 1, D)
lens, cu = torch.tensor([T], dtype=torch.int32), torch.tensor([0, T], dtype=torch.int32)

plan = fmha_sm100_plan(lens, lens, Hkv, num_kv_heads=1, output_maxscore=True, device="cpu")
_, max_score = run(index_q, index_k, index_k, plan, output_o=False, output_maxscore=True)
ids = sparse_topk_select(max_score, 16, num_valid_pages=-(-T // 128), force_end_blocks=1)

plan = fmha_sm100_plan(lens, lens, Hq, num_kv_heads=Hkv, kv_block_num=16, device="cpu")
one, _ = run(q, k, v, plan, kv_block_indexes=ids)
rows = build_k2q_csr(ids.permute(1, 0, 2).contiguous(), cu, cu, 128, total_k=T, max_seqlen_q=T, max_seqlen_k=T,
                     qhead_per_kv=2, return_schedule=True)
two = sparse_atten_func(q, k, v, *rows[:2], 16, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=T, max_seqlen_k=T,
                        causal=True, schedule=rows[2])
dense = torch.nn.functional.scaled_dot_product_attention(
    q.transpose(0, 1), k.transpose(0, 1).repeat_interleave(2, 0), v.transpose(0, 1).repeat_interleave(2, 0),
    is_causal=True).transpose(0, 1)
assert (one - dense).abs().max() < 2e-5 and (two - dense).abs().max() < 2e-5  # 6 blocks: all of them are listed
print("flow")
"""


def run_python(code, *options):
    answer = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_upstreams_flow_with_its_own_import():
    assert run_python(FLOW) == "flow\n"


def test_names_in_the_registry_of_tvm_ffi(naive):
    tvm_ffi = pytest.importorskip("tvm_ffi", reason="tvm-ffi is not installed")
    dropin.register_tvm_ffi(override=True)
    b = naive.batch((3,), (200,))
    plan, run, select = (
        tvm_ffi.get_global_func(f"minfer.ops.{name}") for name in ("fmha_sm100_plan", "fmha_sm100", "sparse_topk_select")
    )
    planned = plan(*b.plan_lens(), 4, 2, None, -1, -1, True, -1, -1, True, "auto", False, "cpu")
    out, scores = run(b.q, b.k, b.v, planned)
    naive.close(torch.from_dlpack(out), naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k)[0])
    assert torch.from_dlpack(select(scores, 16, 2))[..., 2:].eq(-1).all()


def test_an_installed_package_is_never_hidden(tmp_path, monkeypatch):
    (tmp_path / "fmha_sm100.py").write_text("real = True\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import msa.compat
assert msa.compat.provide() is False
import fmha_sm100
print(fmha_sm100.real)
"""
    assert run_python(code) == "True\n"


def test_the_one_file_package(pytestconfig):
    source = pytestconfig.rootpath / "python" / "fmha_sm100"
    code = f"""
import sys
sys.path.insert(0, {str(source)!r})
import fmha_sm100
from fmha_sm100.sparse import sparse_atten_func
import msa.compat.fmha_sm100
assert fmha_sm100 is msa.compat.fmha_sm100 is sys.modules["fmha_sm100"]
assert sparse_atten_func is fmha_sm100.sparse_atten_func
print(fmha_sm100.fmha_sm100.__name__)
"""
    assert run_python(code) == "fmha_sm100\n"
    assert f'version = "{msa.__version__}"' in (source / "pyproject.toml").read_text()
