# SPDX-License-Identifier: MIT
"""attn_implementation="msa" on a GPU, in bf16. Greedy tokens are no criterion there: stock's own eager and sdpa part after
some tokens. So: one layer from the same inputs (blocks up to near-ties, error against fp64 at most 1.1 times that of
sdpa), whole models by their distance from an fp32 run, and equal bits where the same kernels run captured."""
import inspect

import pytest

torch = pytest.importorskip("torch", reason="torch drives the GPU here")
pytest.importorskip("transformers", reason="the integration is for transformers")

from torch._dynamo.utils import counters  # noqa: E402
from transformers import CompileConfig, MiniMaxM3VLForCausalLM, StaticCache  # noqa: E402
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as modeling  # noqa: E402
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig  # noqa: E402

from msa.integrations import transformers as integration  # noqa: E402

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
# Renamed in transformers 5.24.
CACHE_NAME = "cache" if "cache" in inspect.signature(MiniMaxM3VLForCausalLM.forward).parameters else "past_key_values"
LENGTH = 4096
CACHE = 2048
PROMPT = 1500
PAD = 131


@pytest.fixture(autouse=True)
def in_force():
    with torch.no_grad(), integration.enabled():
        yield


def config(**more):
    numbers = dict(
        vocab_size=512, hidden_size=512, num_hidden_layers=3, num_attention_heads=32, num_key_value_heads=2,
        head_dim=128, intermediate_size=128, dense_intermediate_size=256, shared_intermediate_size=128,
        num_local_experts=4, num_experts_per_tok=2,
        layer_types=["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"], mlp_layer_types=["dense"] * 3,
        index_n_heads=2, index_head_dim=128, index_block_size=128, index_topk_blocks=4, index_local_blocks=1,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
        max_position_embeddings=1 << 20, initializer_range=0.05, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return MiniMaxM3VLTextConfig(**(numbers | more))


def build(dtype=torch.bfloat16, device=None, implementation="msa"):
    torch.manual_seed(0)
    model = MiniMaxM3VLForCausalLM(config()).eval().to(dtype).to(device or DEVICE)
    model.set_attn_implementation(implementation)
    return model


@pytest.fixture
def prompts():
    return torch.randint(3, 512, (2, PROMPT), generator=torch.Generator().manual_seed(1)).to(DEVICE)


# ---- one layer from the same inputs ---------------------------------------------------------------------------------------


class Recorder:
    """What reaches the attention function of one layer."""

    def __init__(self, index, dtype):
        torch.manual_seed(0)
        self.config = config()
        self.layer = modeling.MiniMaxM3VLAttention(self.config, index).to(DEVICE, dtype).eval().requires_grad_(False)
        self.hidden = torch.randn(1, LENGTH, 512, device=DEVICE, dtype=dtype)
        self.positions = torch.arange(LENGTH, device=DEVICE)[None]
        rotary = modeling.MiniMaxM3VLRotaryEmbedding(self.config).to(DEVICE)
        self.rotary = rotary(self.hidden, self.positions)
        self.scaling = self.layer.scaling
        shape = (1, LENGTH, -1, 128)
        q = self.layer.q_norm(self.layer.q_proj(self.hidden).view(shape)).transpose(1, 2)
        k = self.layer.k_norm(self.layer.k_proj(self.hidden).view(shape)).transpose(1, 2)
        self.v = self.layer.v_proj(self.hidden).view(shape).transpose(1, 2)
        self.q, self.k = modeling.apply_rotary_pos_emb(q, k, *self.rotary)

    def blocks(self):
        self.config._attn_implementation = "msa"
        return self.layer.indexer(self.hidden, self.rotary, None, self.positions)

    def attend(self, implementation, mask=None, blocks=None):
        function = modeling.ALL_ATTENTION_FUNCTIONS[implementation]
        return function(self.layer, self.q, self.k, self.v, mask, dropout=0.0, scaling=self.scaling,
                        block_indices=blocks, position_ids=self.positions)[0]


def exact(recorder, keep):
    """fp64 over the keys that `keep` [1, Hq, N, N] allows: [1, N, Hq, D]."""
    out = []
    for head in range(recorder.q.shape[1]):
        kv = head // (recorder.q.shape[1] // recorder.k.shape[1])
        scores = recorder.q[0, head].double() @ recorder.k[0, kv].double().T * recorder.scaling
        weights = torch.softmax(scores.masked_fill(~keep[0, head], -torch.inf), -1)
        out.append(weights @ recorder.v[0, kv].double())
    return torch.stack(out, 1)[None]


def rms(x):
    return x.double().square().mean().sqrt().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_sparse_layer(dtype):
    recorder = Recorder(1, dtype)
    blocks = recorder.blocks()
    mask = recorder.layer.indexer.build_block_mask(
        blocks.long(), None, LENGTH, dtype, blocks.device, recorder.positions)
    want = exact(recorder, mask == 0)
    ours = rms(recorder.attend("msa", blocks=blocks) - want)
    stock = rms(recorder.attend("sdpa", mask=mask) - want)
    assert ours <= 1.1 * stock, f"{ours} against sdpa's {stock}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_dense_layer(dtype):
    recorder = Recorder(0, dtype)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=DEVICE).tril()[None, None]
    want = exact(recorder, causal.expand(1, recorder.q.shape[1], -1, -1))
    ours = rms(recorder.attend("msa") - want)
    stock = rms(recorder.attend("sdpa") - want)
    assert ours <= 1.1 * stock, f"{ours} against sdpa's {stock}"


def test_blocks_up_to_near_ties():
    """Against exact scores of the same index queries and keys: what differs lies within rounding of the last chosen."""
    from msa.integrations.transformers.indexer import index_states

    recorder = Recorder(1, torch.bfloat16)
    blocks = recorder.blocks()[0]  # [H, N, k]
    q, k = index_states(recorder.layer.indexer, recorder.hidden, recorder.rotary)
    size, topk = recorder.layer.indexer.block_size, recorder.layer.indexer.topk_blocks
    own = recorder.positions[0] // size
    for head in range(blocks.shape[0]):
        scores = q[0, :, head].double() @ k[0, :, 0].double().T
        near = 1e-5 * (q[0, :, head].double().norm(dim=-1) * k.double().norm(dim=-1).max())
        hidden = torch.arange(LENGTH, device=DEVICE) > recorder.positions[0][:, None]
        best = scores.masked_fill(hidden, -torch.inf).view(LENGTH, -1, size).amax(-1)
        best.scatter_(1, own[:, None], torch.inf)
        count = (own + 1).clamp(max=topk)
        ids = blocks[head].long()
        assert torch.equal((ids >= 0).sum(-1), count)
        last = best.sort(-1, descending=True).values.gather(1, (count - 1)[:, None])[:, 0]
        chosen = torch.where(ids >= 0, best.gather(1, ids.clamp(min=0)), torch.inf)
        assert (chosen >= (last - near)[:, None]).all()
        assert (torch.where(ids >= 0, ids, LENGTH + torch.arange(topk, device=DEVICE)).diff(dim=-1) > 0).all()


# ---- whole models ---------------------------------------------------------------------------------------------------------


def test_logits(prompts):
    """No further from an fp32 run than sdpa is."""
    want = build(torch.float32, "cpu", "eager")(prompts[:1].cpu()).logits.to(DEVICE)
    ours = rms(build()(prompts[:1]).logits - want)
    stock = rms(build(implementation="sdpa")(prompts[:1]).logits - want)
    assert ours <= 1.1 * stock, f"{ours} against sdpa's {stock}"


@pytest.mark.parametrize("kind", ["dynamic", "static", "growing"])
def test_padded_rows_are_the_rows_alone(prompts, kind):
    """Prefill and eight tokens after it, the tokens forced."""
    model = build()
    mask = torch.ones_like(prompts)
    mask[1, :PAD] = 0

    def caches():
        if kind == "static":
            return StaticCache(config=model.config, max_cache_len=CACHE)
        return integration.GrowingCache(model.config) if kind == "growing" else None

    def run(ids, mask):
        cache = caches()
        out = model(ids[:, :-8], attention_mask=mask[:, :-8], use_cache=True, **{CACHE_NAME: cache})
        logits, cache = [out.logits], getattr(out, CACHE_NAME)
        for at in range(ids.shape[1] - 8, ids.shape[1]):
            logits.append(model(ids[:, at : at + 1], attention_mask=mask[:, : at + 1], **{CACHE_NAME: cache}).logits)
        return torch.cat(logits, 1)

    both = run(prompts * mask, mask)
    for row, start in ((0, 0), (1, PAD)):
        alone = run(prompts[row : row + 1, start:], mask[row : row + 1, start:])[0]
        assert rms(both[row, start:] - alone) <= 0.02 * rms(alone)


def decode_step(model, cache):
    token = torch.full((1, 1), 7, device=DEVICE)
    positions = torch.full((1, 1), PROMPT, device=DEVICE)

    def step():
        return model(token, position_ids=positions, **{CACHE_NAME: cache}).logits

    return token, positions, step


def test_graph_capture(prompts):
    """A decode step of a static cache, captured once and replayed for other tokens: the bits of the eager run."""
    model = build()
    tokens = [7, 11, 200, 3]

    def prefill():
        cache = StaticCache(config=model.config, max_cache_len=CACHE)
        model(prompts[:1], **{CACHE_NAME: cache})
        return cache

    cache = prefill()
    want = [model(torch.full((1, 1), t, device=DEVICE), position_ids=torch.full((1, 1), PROMPT + n, device=DEVICE),
                  **{CACHE_NAME: cache}).logits for n, t in enumerate(tokens)]

    # A cache each: a step lengthens its cache, and its positions would no longer fit.
    warm = [decode_step(model, prefill())[2] for _ in range(3)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in warm:
            step()
    torch.cuda.current_stream().wait_stream(side)

    cache = prefill()
    token, positions, step = decode_step(model, cache)
    lengths = [getattr(layer, n) for layer in cache.layers for n in ("cumulative_length", "idx_cumulative_length")
               if hasattr(layer, n)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for length in lengths:
        length.fill_(PROMPT)
    for n, t in enumerate(tokens):
        token.fill_(t)
        positions.fill_(PROMPT + n)
        graph.replay()
        assert torch.equal(out, want[n])


def test_generate_compiled(prompts):
    """transformers' own compilation of static-cache decoding: fullgraph, with CUDA graphs, one graph, no break. As the
    compiler fuses roundings away, tokens may part: the first eight of an uncompiled run must agree in most places."""
    model = build()
    torch._dynamo.reset()
    counters.clear()
    how = dict(do_sample=False, eos_token_id=None, pad_token_id=0, max_new_tokens=32, cache_implementation="static")
    mask = torch.ones_like(prompts[:1])
    want = model.generate(prompts[:1], attention_mask=mask, disable_compile=True, **how)
    got = model.generate(prompts[:1], attention_mask=mask, compile_config=CompileConfig(fullgraph=True), **how)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert got.shape == want.shape
    assert (got == want)[0, PROMPT : PROMPT + 8].sum() >= 4


def test_fp32_is_refused_with_the_reason(prompts):
    model = build(torch.float32)
    with pytest.raises(integration.Refused, match="f32") as caught:
        model(prompts)
    assert caught.value.name == "unsupported" and "cuda" in str(caught.value)


def test_checks_cost_no_graph(prompts):
    """Holes in a mask are refused before anything is computed, on a GPU too."""
    mask = torch.ones_like(prompts)
    mask[1, 40:50] = 0
    with pytest.raises(integration.Refused, match="one run"):
        build()(prompts, attention_mask=mask)
