# SPDX-License-Identifier: MIT
"""torch.compile(fullgraph=True): one forward, and static-cache generation through transformers' own compilation. The
backend is aot_eager, which runs all of tracing, fake tensors and functionalisation; inductor is asked once, marked slow."""
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig

PAD = 77


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def how(backend):
    config = CompileConfig(fullgraph=True, mode="default", backend=backend)
    config._compile_all_devices = True  # transformers compiles on GPUs only unless told
    return dict(cache_implementation="static", compile_config=config)


def test_forward(model, prompts, eager):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    assert (compiled(prompts).logits - eager.logits()).abs().max() < 1e-4
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_forward_of_a_padded_batch(model, prompts):
    """Checks of values run inside the graph."""
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    mask = torch.ones_like(prompts)
    mask[1, :PAD] = 0
    logits = compiled(prompts, attention_mask=mask).logits
    assert (logits[1, PAD:] - model(prompts[1:, PAD:]).logits[0]).abs().max() < 1e-4
    mask[1, 200] = 0
    with pytest.raises(RuntimeError, match="the ones of each row of the 2-D mask are one run"):
        compiled(prompts, attention_mask=mask)
    assert counters["stats"]["unique_graphs"] == 1


def test_generate_static(model, prompts, eager, greedy):
    ids = prompts[:1]
    got = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy, **how("aot_eager"))
    assert got[:, ids.shape[1]:].tolist() == eager.tokens(1).tolist()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_generate_static_padded(model, prompts, greedy):
    mask = torch.ones_like(prompts)
    mask[1, :PAD] = 0
    want = model.generate(prompts[1:, PAD:], **greedy)[0, -64:].tolist()
    got = model.generate(prompts * mask, attention_mask=mask, **greedy, **how("aot_eager"))
    assert got[1, -64:].tolist() == want
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.slow
def test_generate_static_inductor(model, prompts, eager, greedy):
    ids = prompts[:1]
    got = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy, **how("inductor"))
    assert got[:, ids.shape[1]:].tolist() == eager.tokens(1).tolist()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
