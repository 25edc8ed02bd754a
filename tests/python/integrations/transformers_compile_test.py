# SPDX-License-Identifier: MIT
"""torch.compile(fullgraph=True): one forward, and static-cache generation through transformers' own compilation. The
backend is aot_eager, which runs all of tracing, fake tensors and functionalisation; inductor is asked in tests marked
slow. One dense and one sparse layer, as tracing takes seconds."""
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig

pytestmark = pytest.mark.seconds(60)  # a busy machine

PAD = 77


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model(patched, make_model):
    model = make_model(layers=2)
    model.set_attn_implementation("msa")
    return model


@pytest.fixture
def eager(make_model):
    model = make_model(layers=2)
    model.set_attn_implementation("eager")
    return model


def how(backend):
    config = CompileConfig(fullgraph=True, mode="default", backend=backend)
    config._compile_all_devices = True  # transformers compiles on GPUs only unless told
    return dict(cache_implementation="static", compile_config=config)


def expect_one_graph():
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_forward(model, prompts, eager):
    """Checks of values run inside the graph."""
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    positions = torch.arange(prompts.shape[1])[None]
    logits = compiled(prompts, position_ids=positions).logits
    assert (logits - eager(prompts).logits).abs().max() < 1e-4
    with pytest.raises(RuntimeError, match="positions count each row's tokens from its first"):
        compiled(prompts, position_ids=positions * 2)
    expect_one_graph()


def test_forward_of_a_padded_batch(model, prompts):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    mask = torch.ones_like(prompts)
    mask[1, :PAD] = 0
    logits = compiled(prompts, attention_mask=mask).logits
    assert (logits[1, PAD:] - model(prompts[1:, PAD:]).logits[0]).abs().max() < 1e-4
    mask[1, 200] = 0
    with pytest.raises(RuntimeError, match="the ones of each row of the 2-D mask are one run"):
        compiled(prompts, attention_mask=mask)
    expect_one_graph()


def test_generate_static(model, prompts, eager, greedy):
    ids = prompts[:1]
    want = eager.generate(ids, attention_mask=torch.ones_like(ids), **greedy)
    got = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy, **how("aot_eager"))
    assert got.tolist() == want.tolist()
    expect_one_graph()


def test_generate_static_padded(model, prompts, greedy):
    mask = torch.ones_like(prompts)
    mask[1, :PAD] = 0
    want = model.generate(prompts[1:, PAD:], **greedy)[0, -64:].tolist()
    got = model.generate(prompts * mask, attention_mask=mask, **greedy, **how("aot_eager"))
    assert got[1, -64:].tolist() == want
    expect_one_graph()


@pytest.mark.slow
def test_generate_static_chunked(model, prompts, greedy):
    """transformers compiles the prefill as well then: a graph for the first chunk, one for the others, one for decode."""
    mask = torch.ones_like(prompts)
    mask[1, :PAD] = 0
    want = model.generate(prompts * mask, attention_mask=mask, **greedy)
    got = model.generate(prompts * mask, attention_mask=mask, prefill_chunk_size=100, **greedy, **how("aot_eager"))
    assert got.tolist() == want.tolist()
    assert counters["stats"]["unique_graphs"] <= 3 and not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_generate_static_inductor(model, prompts, eager, greedy, batch):
    """Two rows pass keys to the op as a view that overlaps itself."""
    ids = prompts[:batch]
    want = eager.generate(ids, attention_mask=torch.ones_like(ids), **greedy)
    got = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy, **how("inductor"))
    assert got.tolist() == want.tolist()
    expect_one_graph()
