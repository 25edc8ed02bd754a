# SPDX-License-Identifier: MIT
"""The vision tower shares the implementation's name and is neither causal nor sparse: it goes to sdpa, bit for bit."""
import pytest
import torch
from transformers import MiniMaxM3SparseForConditionalGeneration
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as modeling
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLConfig, MiniMaxM3VLVisionConfig

VISION = dict(hidden_size=120, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
IMAGE = 500  # the token that stands for a piece of an image
GRID = torch.tensor([[1, 8, 8], [1, 4, 4]])


def pixels(config):
    generator = torch.Generator().manual_seed(3)
    patch = config.num_channels * config.temporal_patch_size * config.patch_size ** 2
    return torch.randn(int(GRID.prod(-1).sum()), patch, generator=generator)


def test_tower(patched):
    torch.manual_seed(0)
    config = MiniMaxM3VLVisionConfig(**VISION)
    tower = modeling.MiniMaxM3VLVisionModel(config).eval()
    found = {}
    for name in ("sdpa", "msa"):
        tower.set_attn_implementation(name)
        found[name] = tower(pixels(config), GRID).last_hidden_state
    assert found["sdpa"].std() > 0.1 and torch.equal(found["sdpa"], found["msa"])


@pytest.fixture
def multimodal(make_model):
    text = make_model().config.to_dict()
    torch.manual_seed(0)
    config = MiniMaxM3VLConfig(text_config=text, vision_config=VISION, image_token_id=IMAGE, video_token_id=501)
    return MiniMaxM3SparseForConditionalGeneration(config).eval()


def test_text_and_images(patched, multimodal, greedy):
    config = multimodal.config.vision_config
    ids = torch.randint(3, 400, (1, 300), generator=torch.Generator().manual_seed(2))
    ids[0, 20:36] = ids[0, 100:104] = IMAGE
    inputs = dict(input_ids=ids, pixel_values=pixels(config), image_grid_thw=GRID)
    greedy["max_new_tokens"] = 16
    logits, tokens = {}, {}
    for name in ("eager", "msa"):
        multimodal.set_attn_implementation(name)
        logits[name] = multimodal(**inputs).logits
        tokens[name] = multimodal.generate(**inputs, **greedy).tolist()
    assert multimodal.config.vision_config._attn_implementation == "msa"
    assert logits["eager"].std() > 1 and (logits["msa"] - logits["eager"]).abs().max() < 1e-4
    assert tokens["msa"] == tokens["eager"]
