# SPDX-License-Identifier: MIT
"""enable and disable; the canary on transformers' names; the range of versions."""
import copy
import importlib.metadata
import inspect
import subprocess
import sys

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as modeling

from msa.integrations import transformers as integration

FORWARDS = (modeling.MiniMaxM3VLIndexer, modeling.MiniMaxM3VLTextModel)


@pytest.fixture
def off(patched, monkeypatch):
    """Disabled for one test."""
    integration.disable()
    yield
    monkeypatch.undo()
    integration.disable()
    integration.enable()


def names():
    return [cls.forward for cls in FORWARDS], set(AttentionInterface._global_mapping), \
        set(AttentionMaskInterface._global_mapping)


def test_undo(off):
    before = names()
    assert not integration.status().enabled
    integration.enable()
    integration.enable()  # twice is once
    status = integration.status()
    assert status.enabled and len(status.patched) == 4
    assert status.version == importlib.metadata.version("transformers")
    assert names() != before
    integration.disable()
    integration.disable()
    assert names() == before


def test_enabled_leaves_it_as_it_was(off):
    with integration.enabled():
        with integration.enabled():
            pass
        assert integration.status().enabled
    assert not integration.status().enabled


def test_disable_keeps_what_somebody_else_put_there(off):
    integration.enable()
    ours = modeling.MiniMaxM3VLIndexer.forward

    def theirs(self, *args, **kwargs):
        return ours(self, *args, **kwargs)

    modeling.MiniMaxM3VLIndexer.forward = theirs
    try:
        with pytest.raises(integration.IntegrationError, match="MiniMaxM3VLIndexer.forward was replaced by somebody"):
            integration.disable()
        assert modeling.MiniMaxM3VLIndexer.forward is theirs
        assert "msa" not in AttentionInterface._global_mapping and not integration.status().enabled
    finally:
        modeling.MiniMaxM3VLIndexer.forward = ours.__wrapped__


def test_all_or_nothing(off, monkeypatch):
    before = names()

    def moved(self, states, position_embeddings, cache, position_ids):
        pass

    monkeypatch.setattr(modeling.MiniMaxM3VLIndexer, "forward", moved)
    with pytest.raises(integration.IntegrationError, match="MiniMaxM3VLIndexer.forward .* hidden_states as parameter 1"):
        integration.enable()
    assert names()[1:] == before[1:] and modeling.MiniMaxM3VLTextModel.forward is before[0][1]
    monkeypatch.delattr(modeling, "MiniMaxM3VLIndexer")
    with pytest.raises(integration.IntegrationError, match="found nothing there"):
        integration.enable()
    assert not integration.status().enabled


def test_a_key_that_is_taken(off, monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, "msa", print)
    with pytest.raises(integration.IntegrationError, match="found <built-in function print> there already"):
        integration.enable()
    assert AttentionInterface._global_mapping["msa"] is print


@pytest.mark.parametrize("version", ["5.12.1", "4.57.6", "6.0.0"])
def test_versions_outside(off, monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: version)
    with pytest.raises(integration.IntegrationError) as caught:
        integration.enable()
    assert integration.SUPPORTED in str(caught.value) and version in str(caught.value)


@pytest.mark.parametrize("version", ["5.13", "5.13.0", "5.24.0.dev0", "5.99"])
def test_versions_inside(off, monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: version)
    integration.enable()


def test_canary():
    """What this is written against; a newer transformers that moves one of these fails here by name."""
    cache = ("cache", "past_key_values")
    wanted = {
        (modeling.MiniMaxM3VLAttention.forward, 5): ["self", "hidden_states", "position_embeddings", "attention_mask", cache],
        (modeling.MiniMaxM3VLIndexer.forward, 5): ["self", "hidden_states", "position_embeddings", cache, "position_ids"],
        (modeling.MiniMaxM3VLTextModel.forward, 6): ["self", "input_ids", "attention_mask", "position_ids", cache, "inputs_embeds"],
        (modeling.apply_rotary_pos_emb, 5): ["q", "k", "cos", "sin", "unsqueeze_dim"],
        (modeling.MiniMaxM3VLSparseCacheLayer.update_index, 2): ["self", "idx_k"],
        (modeling.MiniMaxM3VLSparseStaticCacheLayer.update_index, 2): ["self", "idx_k"],
        (modeling.MiniMaxM3VLIndexer.build_block_mask, 7): [
            "self", "block_indices", "attention_mask", "key_length", "dtype", "device", "position_ids"],
    }
    for (function, count), names in wanted.items():
        found = list(inspect.signature(function).parameters)[:count]
        assert len(found) == len(names), function.__qualname__
        for name, want in zip(found, names):
            assert name == want or name in want, f"{function.__qualname__}: {name} where {want} stood"


def test_attributes(shared_model):
    layer = shared_model.model.layers[1].self_attn
    for name in ("indexer", "layer_idx", "head_dim", "scaling", "is_causal", "config"):
        assert hasattr(layer, name), name
    for name in ("num_heads", "head_dim", "block_size", "topk_blocks", "local_blocks", "q_proj", "k_proj", "q_norm",
                 "k_norm", "layer_idx"):
        assert hasattr(layer.indexer, name), name
    assert shared_model.model.layers[0].self_attn.indexer is None


def test_models_made_before_and_after(off, make_model, prompts):
    """The class is patched, not its instances."""
    early = make_model()
    integration.enable()
    late = copy.deepcopy(early)
    for one in (early, late):
        one.set_attn_implementation("msa")
    assert torch.equal(early(prompts[:1]).logits, late(prompts[:1]).logits)


def test_from_config(patched, make_model, prompts, eager):
    model = make_model(attn_implementation="msa")
    assert model.config._attn_implementation == "msa"
    assert (model(prompts).logits - eager.logits()).abs().max() < 1e-4


def test_import_alone_imports_nothing():
    code = ("import sys, msa.integrations\n"
            "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
            "import msa.integrations.transformers as t\n"
            "assert 'transformers' not in sys.modules\n"
            "assert not t.status().enabled and 'transformers' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
