# SPDX-License-Identifier: MIT
"""Padded batches: the oracle is each row alone (stock transformers counts blocks in slots and is wrong on the left)."""
import pytest
import torch
from transformers import StaticCache

pytestmark = pytest.mark.seconds(30)  # a busy machine

PAD = 77  # no multiple of a block


@pytest.fixture
def left(prompts):
    mask = torch.ones_like(prompts)
    mask[1, :PAD] = 0
    return prompts * mask, mask


@pytest.fixture(scope="module")
def rows(shared_model, prompts):
    """The rows that are to be met again in a padded batch."""
    shared_model.set_attn_implementation("msa")
    return prompts[:1], prompts[1:, PAD:]


@pytest.fixture(scope="module")
def alone(shared_model, rows):
    with torch.no_grad():
        return [shared_model(row).logits[0] for row in rows]


@pytest.fixture(scope="module")
def alone_tokens(shared_model, rows):
    from functools import cache

    @cache
    def tokens(num_beams, new):
        with torch.no_grad():
            return [shared_model.generate(row, do_sample=False, eos_token_id=None, pad_token_id=0, num_beams=num_beams,
                                          max_new_tokens=new)[0, row.shape[1]:].tolist() for row in rows]

    return tokens


@pytest.mark.parametrize("positions", ["none", "of the row", "as generate makes them", "slots"])
def test_left(model, left, alone, positions):
    ids, mask = left
    count = mask.cumsum(-1) - 1
    given = {"none": None, "of the row": count, "as generate makes them": count.masked_fill(mask == 0, 1),
             "slots": torch.arange(ids.shape[1])[None]}[positions]
    logits = model(ids, attention_mask=mask, position_ids=given).logits
    assert (logits[0] - alone[0]).abs().max() < 1e-4
    assert (logits[1, PAD:] - alone[1]).abs().max() < 1e-4


def test_right(model, prompts):
    mask = torch.ones_like(prompts)
    mask[1, -PAD:] = 0
    logits = model(prompts * mask, attention_mask=mask).logits
    assert (logits[1, :-PAD] - model(prompts[1:, :-PAD]).logits[0]).abs().max() < 1e-4


def test_row_of_padding_alone(model, prompts, alone):
    """It sees nothing and disturbs nobody."""
    mask = torch.ones_like(prompts)
    mask[1] = 0
    logits = model(prompts, attention_mask=mask).logits
    assert (logits[0] - alone[0]).abs().max() < 1e-4
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("mode", ["dynamic", "static", "growing", "dynamic-chunked", "static-chunked", "beams"])
def test_generate(model, left, alone_tokens, patched, cache_name, greedy, mode):
    ids, mask = left
    if mode == "beams":
        greedy.update(num_beams=2, max_new_tokens=24)
    if mode.startswith("static"):
        greedy["cache_implementation"] = "static"
    if mode == "growing":
        greedy[cache_name] = patched.GrowingCache(model.config)
    if mode.endswith("chunked"):
        greedy["prefill_chunk_size"] = 64  # the first chunk of row 1 is padding alone
    got = model.generate(ids, attention_mask=mask, **greedy)[:, ids.shape[1]:]
    assert got.tolist() == alone_tokens(greedy.get("num_beams", 1), greedy["max_new_tokens"])


def test_static_cache_by_hand(model, left, alone, cache_name):
    ids, mask = left
    cache = StaticCache(config=model.config, max_cache_len=512)
    logits = [model(ids[:, a:b], attention_mask=mask[:, :b], **{cache_name: cache}).logits
              for a, b in ((0, 50), (50, 399), (399, 400))]
    assert (torch.cat(logits, 1)[1, PAD:] - alone[1]).abs().max() < 1e-4
