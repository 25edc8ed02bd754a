# SPDX-License-Identifier: MIT
"""attn_implementation="msa" against "eager", in fp32 on the CPU: logits, and the same greedy tokens in every mode."""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache

import msa.torch as ops

pytestmark = pytest.mark.seconds(30)  # a busy machine

ROOM = 600  # slots of a static cache: prompt, new tokens and candidates


def test_logits(model, prompts, eager):
    want = eager.logits()
    assert 1 < want.std() < 2
    assert (model(prompts).logits - want).abs().max() < 1e-4


def test_dense_attention_would_fail(model, prompts, eager):
    """The comparison above has the power to see silent dense attention."""
    indexers = [layer.self_attn.indexer for layer in model.model.layers[1:]]
    for indexer in indexers:
        indexer.topk_blocks = 16
    try:
        assert (model(prompts).logits - eager.logits()).abs().max() > 1
    finally:
        for indexer in indexers:
            indexer.topk_blocks = 4


def test_every_layer_calls_msa(model, prompts, monkeypatch):
    calls = []
    for name in ("select_blocks", "sparse_attention", "dense_attention"):
        original = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, _o=original, _n=name, **k: (calls.append(_n), _o(*a, **k))[1])
    model(prompts[:1])
    assert calls == ["dense_attention"] + 2 * ["select_blocks", "sparse_attention"]


MODES = {
    "dynamic": dict(),
    "static": dict(cache="static"),
    "growing": dict(cache="growing"),
    "dynamic-chunked": dict(prefill_chunk_size=128),
    "static-chunked": dict(cache="static", prefill_chunk_size=128),
    "growing-chunked": dict(cache="growing", prefill_chunk_size=128),
    "dynamic-beams": dict(num_beams=3),
    "growing-beams": dict(cache="growing", num_beams=3),
    "dynamic-lookup": dict(prompt_lookup_num_tokens=4),
    "growing-lookup": dict(cache="growing", prompt_lookup_num_tokens=4),
    "no-cache": dict(use_cache=False, max_new_tokens=8),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_same_tokens(model, prompts, eager, patched, cache_name, greedy, mode, batch):
    how = dict(MODES[mode])
    if "prompt_lookup_num_tokens" in how and batch > 1:
        pytest.skip("transformers serves prompt lookup for one row only")
    want = eager.tokens(batch, **{k: v for k, v in how.items() if k == "num_beams"})
    kind = how.pop("cache", None)
    if kind == "static":
        how["cache_implementation"] = "static"
    elif kind == "growing":
        how[cache_name] = patched.GrowingCache(model.config)
    greedy.update(how)
    ids = prompts[:batch]
    got = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy)[:, ids.shape[1]:]
    assert got.tolist() == want[:, : greedy["max_new_tokens"]].tolist()


@pytest.mark.parametrize("kind", ["dynamic", "growing"])
def test_assistant_model(model, make_model, prompts, eager, patched, cache_name, greedy, kind):
    """Candidates of another model: most are refused and cropped."""
    assistant = make_model(seed=5, layers=2)
    assistant.set_attn_implementation("msa")
    if kind == "growing":
        greedy[cache_name] = patched.GrowingCache(model.config)
    got = model.generate(prompts[:1], assistant_model=assistant, **greedy)[:, prompts.shape[1]:]
    assert got.tolist() == eager.tokens(1).tolist()


@pytest.mark.parametrize("kind", ["dynamic", "static", "growing"])
def test_two_turns(model, prompts, eager, patched, cache_name, kind):
    """One cache over several calls, with more than one new token in the later ones."""
    cache = {"dynamic": lambda: DynamicCache(config=model.config),
             "static": lambda: StaticCache(config=model.config, max_cache_len=ROOM),
             "growing": lambda: patched.GrowingCache(model.config)}[kind]()
    at, logits = 0, []
    for step in (150, 1, 49, 200):
        logits.append(model(prompts[:, at : at + step], **{cache_name: cache}, use_cache=True).logits)
        at += step
    assert (torch.cat(logits, 1) - eager.logits()).abs().max() < 1e-4


class Largest(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_nothing_of_queries_times_keys(model):
    """The largest tensor of a forward of 1,024 padded tokens is that of a linear layer; stock's is its mask per head."""
    ids = torch.randint(3, 512, (2, 1024))
    mask = torch.ones_like(ids)
    mask[1, :100] = 0
    with Largest() as msa_peak:
        model(ids, attention_mask=mask, logits_to_keep=1)
    assert msa_peak.numel == 2 * 1024 * 8 * 64
    model.set_attn_implementation("sdpa")
    with Largest() as sdpa_peak:
        model(ids, attention_mask=mask, logits_to_keep=1)
    assert sdpa_peak.numel >= 2 * 8 * 1024 * 1024  # the measure sees what it should


def test_indexer_returns_the_blocks(model, prompts, cache_name):
    """What stock's indexer promises: [B, H, Sq, k], valid ids first, -1 behind them, the same sets."""
    layer, seen = model.model.layers[1].self_attn, []
    hook = layer.indexer.register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        model(prompts)
        model.set_attn_implementation("eager")
        model(prompts)
    finally:
        hook.remove()
    ours, stock = seen
    assert ours.shape == stock.shape
    assert torch.equal(ours.sort(-1).values.long(), stock.sort(-1).values)
    assert ((ours >= 0).long().diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_other_implementations_are_untouched(model, prompts, eager, name):
    model.set_attn_implementation(name)
    assert (model(prompts).logits - eager.logits()).abs().max() < 1e-4


def test_two_threads_share_a_model(model, prompts, eager):
    """What layers share within a forward is the thread's own."""
    from concurrent.futures import ThreadPoolExecutor

    def logits(row):
        with torch.no_grad():
            return model(prompts[row : row + 1, : 200 + 100 * row]).logits[0]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(logits, [0, 1] * 4))
    for number, got in enumerate(found):
        assert (got - eager.logits()[number % 2, : len(got)]).abs().max() < 1e-4
