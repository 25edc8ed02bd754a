# SPDX-License-Identifier: MIT
"""Each row of REFUSALS: the call that meets it, refused by that name, in words that say what to do."""
import pathlib
import pickle

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.masking_utils import and_masks, causal_mask_function
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as modeling

from msa.integrations.transformers import REFUSALS, SUPPORTED, Refused, inputs

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs" / "transformers.md"


@pytest.fixture
def ids(prompts):
    return prompts[:, :96]


def mask_4d(model, ids, name):
    model(ids, attention_mask=torch.ones(2, 1, 96, 96, dtype=torch.bool))


def mask_kind(model, ids, name):
    model(ids, attention_mask=torch.ones(2, 96, 96))


def mask_length(model, ids, name):
    out = model(ids, use_cache=True)
    model(ids[:, :1], attention_mask=torch.ones(2, 1), **{name: getattr(out, name)})


def mask_holes(model, ids, name):
    mask = torch.ones_like(ids)
    mask[1, 40:50] = 0
    model(ids, attention_mask=mask)


def mask_function(model, ids, name):
    both = and_masks(causal_mask_function, lambda b, h, q, k: q - k < 64)
    modeling.create_causal_mask(model.config, torch.empty(2, 96, 0), torch.ones_like(ids), None, and_mask_function=both)


def positions_shape(model, ids, name):
    model(ids, position_ids=torch.zeros(3, 2, 96, dtype=torch.long))


def positions_packed(model, ids, name):
    model(ids, position_ids=torch.cat([torch.arange(50), torch.arange(46)])[None])


def positions_gaps(model, ids, name):
    positions = torch.arange(96)
    positions[60:] += 5
    model(ids, position_ids=positions[None])


def cache_without_index(model, ids, name):
    model(ids, **{name: DynamicCache()})


def cache_lengths(model, ids, name):
    cache = DynamicCache(config=model.config)
    model(ids, **{name: cache})
    cache.layers[1].idx_keys = cache.layers[1].idx_keys[:, :, :-4]
    model(ids[:, :1], **{name: cache})


def not_causal(model, ids, name):
    model.config.is_causal = False
    try:
        model(ids)
    finally:
        del model.config.is_causal


def dropout(model, ids, name):
    model.config.attention_dropout = 0.1
    try:
        model.train()(ids)
    finally:
        model.config.attention_dropout = 0.0
        model.eval()


def grad(model, ids, name):
    with torch.enable_grad():
        model(ids, **{name: DynamicCache(config=model.config)})


def output_attentions(model, ids, name):
    model(ids, output_attentions=True)


def other_model(model, ids, name):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        attn_implementation="msa"))(ids)


def sparse_without_blocks(model, ids, name):
    layer = model.model.layers[1].self_attn
    q, kv = torch.zeros(1, 8, 4, 64), torch.zeros(1, 2, 4, 64)
    modeling.ALL_ATTENTION_FUNCTIONS["msa"](layer, q, kv, kv, None, block_indices=None)


def unsupported(model, ids, name):
    model.double()
    try:
        model(ids)
    finally:
        model.float()


CASES = [mask_4d, mask_kind, mask_length, mask_holes, mask_function, positions_shape, positions_packed, positions_gaps,
         cache_without_index, cache_lengths, not_causal, dropout, grad, output_attentions, other_model,
         sparse_without_blocks, unsupported]


def test_every_row_has_a_case():
    assert [case.__name__ for case in CASES] == list(REFUSALS)


def test_the_page_knows_every_row():
    page = PAGE.read_text()
    assert SUPPORTED in page
    for name in REFUSALS:
        assert f"`{name}`" in page or f"`{name.split('_')[0]}_*`" in page, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_refused(model, ids, cache_name, case):
    row = REFUSALS[case.__name__]
    with pytest.raises(Refused) as caught:
        case(model, ids, cache_name)
    error = caught.value
    assert (error.name, error.argument, error.code) == (case.__name__, row.argument, "unsupported")
    assert str(error) == f"msa: {row.asked}; found {error.found}; {row.do}"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.name) == (str(error), error.name)
    model(ids)  # and the model works on


def test_packed_positions_with_a_cache(model, ids, cache_name):
    """Nobody upstream notices these."""
    positions = torch.cat([torch.arange(50), torch.arange(46)])[None]
    with pytest.raises(Refused, match="one sequence in each row"):
        model(ids, position_ids=positions, **{cache_name: DynamicCache(config=model.config)})


@pytest.mark.parametrize("static", [False, True])
def test_padding_on_the_right_cannot_go_on(model, ids, greedy, static):
    mask = torch.ones_like(ids)
    mask[1, -10:] = 0
    how = {"cache_implementation": "static"} if static else {}
    with pytest.raises(Refused) as caught:
        model.generate(ids, attention_mask=mask, **greedy, **how)
    assert caught.value.name in ("mask_holes", "positions_gaps", "positions_packed")


def test_cache_lengths_of_a_static_cache(model, ids, cache_name):
    cache = StaticCache(config=model.config, max_cache_len=128)
    model(ids, **{cache_name: cache})
    cache.layers[1].idx_cumulative_length.sub_(1)
    with pytest.raises(Refused, match="as many index keys as keys"):
        model(ids[:, :1], **{cache_name: cache})


def test_grad_of_embeddings(model, ids, cache_name):
    embeds = model.model.embed_tokens(ids).requires_grad_()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad(), pytest.raises(Refused, match="without a cache"):
            model(inputs_embeds=embeds, **{cache_name: DynamicCache(config=model.config)})
        with torch.enable_grad():  # nothing requires grad: served in grad mode
            model(ids, **{cache_name: DynamicCache(config=model.config)})
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(True)


def test_reasons_of_the_backends_are_told(model, ids, monkeypatch):
    """What a GPU says to fp32, with an answer made up; the real one is asked in tests/python/gpu."""
    import msa

    class No:
        reasons = {"cuda": "dtype f32: bf16 and f16 are served"}

        def __bool__(self):
            return False

    model.model.__dict__.pop(inputs._SERVED, None)
    monkeypatch.setattr(msa, "supports", lambda op, **numbers: No())
    with pytest.raises(Refused, match="cuda: dtype f32: bf16 and f16 are served"):
        model(ids)
