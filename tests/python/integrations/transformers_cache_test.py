# SPDX-License-Identifier: MIT
"""GrowingCache: what DynamicCache says, without copying what it holds."""
import pytest
import torch
import transformers
from transformers import DynamicCache
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLSparseCacheLayer

from msa.integrations._patch import release_of


@pytest.fixture
def cache(model, patched):
    return patched.GrowingCache(model.config)


def states(batch, tokens, seed=0):
    torch.manual_seed(seed)
    return torch.randn(batch, 2, tokens, 64), torch.randn(batch, 2, tokens, 64), torch.randn(batch, 1, tokens, 64)


def append(cache, k, v, i):
    for at, layer in enumerate(cache.layers):
        got = cache.update(k, v, at)
        if hasattr(layer, "update_index"):
            got = (*got, layer.update_index(i))
    return got


def same(a, b):
    return all(torch.equal(getattr(x, name), getattr(y, name)) for x, y in zip(a.layers, b.layers)
               for name in ("keys", "values", "idx_keys") if hasattr(y, name))


def crop(cache):
    """Seven tokens fewer. DynamicCache of 5.13 takes twice as many index keys away where the number is negative, and is
    therefore told how many tokens to keep, as generate tells it in that version."""
    early = release_of(transformers.__version__) < (5, 14) and isinstance(cache, DynamicCache)
    cache.crop(cache.get_seq_length() - 7 if early else -7)


def test_like_dynamic(cache, model):
    """A history of everything transformers calls, on both."""
    both = (cache, DynamicCache(config=model.config))
    for seed, tokens in enumerate((5, 1, 300, 1, 700)):
        for one in both:
            out = append(one, *states(2, tokens, seed))
            assert out[0].shape[2] == one.get_seq_length()
        assert same(*both)
        assert both[0].get_mask_sizes(3, 0) == both[1].get_mask_sizes(3, 0)
    for change in (crop, lambda c: c.reorder_cache(torch.tensor([1, 1])),
                   lambda c: c.batch_repeat_interleave(3), lambda c: c.batch_select_indices(torch.tensor([0, 2, 5]))):
        for one in both:
            change(one)
        assert same(*both)
        for one in both:
            append(one, *states(one.layers[0].keys.shape[0], 2, 99))
        assert same(*both)


def test_appends_in_place(cache):
    append(cache, *states(1, 200))
    first = [layer.buffers["keys"].store.data_ptr() for layer in cache.layers]
    copies = 0
    for token in range(1000):
        append(cache, *states(1, 1, token))
        now = [layer.buffers["keys"].store.data_ptr() for layer in cache.layers]
        copies += now != first
        first = now
    assert copies == 3  # 256 -> 512 -> 1024 -> 2048
    assert cache.layers[1].capacity() == 2048
    assert cache.get_seq_length() == 1200


def test_decode_copies_no_history(model, prompts, cache, cache_name):
    """Bytes that copies and concatenations write while one token is decoded, against DynamicCache."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Written(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func in (torch.ops.aten.cat.default, torch.ops.aten.copy_.default, torch.ops.aten.clone.default):
                self.total = getattr(self, "total", 0) + out.numel() * out.element_size()
            return out

    ids, totals = prompts[:1].repeat(1, 5)[:, :1500], []
    for one in (cache, DynamicCache(config=model.config)):
        model(ids, **{cache_name: one})
        with Written() as written:
            model(ids[:, :1], **{cache_name: one})
        totals.append(written.total)
    held = 3 * 2 * 2 * 1500 * 64 * 4
    assert totals[0] < held / 20 < held < totals[1]


def test_reset(cache):
    append(cache, *states(2, 40))
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.layers[1].keys is None
    append(cache, *states(1, 3))
    assert cache.layers[1].idx_keys.shape == (1, 1, 3, 64)


def test_crop_of_nothing(cache):
    append(cache, *states(1, 40))
    cache.crop(0)
    cache.crop(torch.tensor(-1))  # what assisted decoding passes
    assert cache.get_seq_length() == 39


def test_crop_to_a_length_of_early_versions(cache):
    append(cache, *states(1, 40))
    cache.layers[1].crop(30)
    assert cache.layers[1].get_seq_length() == 30
    cache.layers[1].crop(50)
    assert cache.layers[1].get_seq_length() == 30


def test_offload_and_back(cache):
    k, v, i = states(1, 40)
    append(cache, k, v, i)
    for layer in cache.layers:
        layer.offload()
        layer.prefetch()
    assert torch.equal(cache.layers[1].idx_keys, i) and torch.equal(cache.layers[0].values, v)


def test_made_under_inference_mode_and_continued(cache):
    k, v, i = states(1, 40)
    with torch.inference_mode():
        append(cache, k, v, i)
    append(cache, k, v, i)
    assert torch.equal(cache.layers[1].keys, torch.cat([k, k], 2))


def test_old_views_stay_right(cache):
    """A view handed out before is not written again by what is appended."""
    before = append(cache, *states(1, 100))[0].clone()
    view = cache.layers[0].keys
    append(cache, *states(1, 100, 1))
    assert torch.equal(view, before)


def test_is_not_registered(model):
    """Our classes do not take the place of transformers' own layers."""
    assert type(DynamicCache(config=model.config).layers[1]) is MiniMaxM3VLSparseCacheLayer
