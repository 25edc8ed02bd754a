#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Introduces MiniMax-M3 in transformers on msa: a tiny model, text from it, and a picture of what each layer chose.

usage: python examples/tutorial_m3.py [FOLDER]

Wants torch, transformers and msa; no GPU and no download, as the weights are random. Writes FOLDER/m3_blocks.html, the
current folder by default.
"""
import inspect
import pathlib
import sys
import time

import torch
from transformers import MiniMaxM3VLForCausalLM
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig

import msa.show
import msa.stats
from msa.integrations import transformers as msa_transformers

PROMPT, NEW = 600, 32

# 1. Make attn_implementation="msa" known. Nothing changes for models that do not choose it; disable() takes it back.
msa_transformers.enable()
print("transformers", msa_transformers.status().version, "of", msa_transformers.status().supported)

# 2. A model of M3's kind: the first layer is dense, the others choose 4 blocks of 32 keys for each query. A real one comes
#    from from_pretrained(..., attn_implementation="msa", dtype=torch.bfloat16) and chooses 16 blocks of 128.
torch.manual_seed(0)
model = MiniMaxM3VLForCausalLM(MiniMaxM3VLTextConfig(
    vocab_size=512, hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, head_dim=64,
    layer_types=["full_attention"] + 3 * ["minimax_m3_sparse"], index_n_heads=2, index_head_dim=64,
    index_block_size=32, index_topk_blocks=4, index_local_blocks=1,
    mlp_layer_types=["dense"] + 3 * ["sparse"], num_local_experts=4, num_experts_per_tok=2, intermediate_size=128,
    dense_intermediate_size=256, shared_intermediate_size=128, initializer_range=0.08,
    rope_parameters={"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
    bos_token_id=1, eos_token_id=2, pad_token_id=0)).eval()
model.set_attn_implementation("msa")
prompt = torch.randint(3, 512, (1, PROMPT))

# 3. Text. The growing cache writes each new token behind the others; transformers' own DynamicCache works too and copies
#    all of its keys and values at every token.
how = dict(attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW, eos_token_id=None)
cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # renamed in 5.24
start = time.perf_counter()
text = model.generate(prompt, **{cache: msa_transformers.GrowingCache(model.config)}, **how)
print(f"{NEW} tokens after {PROMPT} in {time.perf_counter() - start:.2f} s:", text[0, PROMPT : PROMPT + 8].tolist(), "...")

# 4. The same tokens as the implementation that forms every score, which is what "exact" means here: msa computes the
#    model's own attention. In fp32, that is; in bf16 two implementations part after some tokens, whichever they are.
model.set_attn_implementation("eager")
assert torch.equal(model.generate(prompt, **how), text), "msa and eager should agree in fp32"
model.set_attn_implementation("msa")
print("eager gives the same tokens")

# 5. A batch padded on the left: each row equals itself alone, since blocks are counted from a row's own first token.
batch, mask = prompt.repeat(2, 1), torch.ones(2, PROMPT, dtype=torch.long)
mask[1, :77] = 0
with torch.no_grad():
    padded = model(batch * mask, attention_mask=mask).logits[1, 77:]
    alone = model(prompt[:, 77:]).logits[0]
print(f"a row padded by 77 tokens differs from itself alone by {(padded - alone).abs().max():.0e}")
assert (padded - alone).abs().max() < 1e-4

# 6. What each layer chose: the indexer's forward returns block ids [B, heads, queries, 4], so a plain hook sees them.
chosen = {}
for number, layer in enumerate(model.model.layers):
    if layer.self_attn.indexer is not None:
        layer.self_attn.indexer.register_forward_hook(
            lambda module, args, ids, number=number: chosen.__setitem__(number, ids[0].transpose(0, 1)))
with torch.no_grad():
    model(text)

page = ["<!doctype html><meta charset=utf-8><title>What each layer chose</title>"]
for number, ids in chosen.items():  # [queries, heads, 4]
    stats = msa.stats.of(ids)
    line = (f"layer {number}: {stats.listed:.1f} blocks a row, {stats.overlap:.0%} of them shared with the query before, "
            f"{stats.distance:.1f} blocks away on average")
    print(line)
    page.append(f"<h3>{line}</h3>{msa.show.blocks(ids)._repr_html_()}")

# 7. What msa does not serve it refuses by name, instead of falling back to dense attention.
try:
    with torch.no_grad():
        model(prompt, output_attentions=True)
except msa_transformers.Refused as refused:
    print("refused:", refused)

path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".") / "m3_blocks.html"
path.write_text("\n".join(page), encoding="utf-8")
print(path)
