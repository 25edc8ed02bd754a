# SPDX-License-Identifier: MIT
"""A tiny MiniMax-M3 from a config, and what the eager implementation of transformers says about it, once per run."""
import inspect

import pytest

torch = pytest.importorskip("torch", reason="the integration is for torch models")
pytest.importorskip("transformers", reason="the integration is for transformers")

from transformers import MiniMaxM3VLForCausalLM  # noqa: E402
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig  # noqa: E402

from msa.integrations import transformers as integration  # noqa: E402

PROMPT = 400  # tokens: 13 blocks of 32, of which 4 are chosen
NEW = 64
GREEDY = dict(do_sample=False, eos_token_id=None, pad_token_id=0, max_new_tokens=NEW)


def build(seed=0, layers=3, block=32, topk=4, heads=8, kv=2, head_dim=64, hidden=256, **more):
    torch.manual_seed(seed)
    sparse = "minimax_m3_sparse"
    return MiniMaxM3VLForCausalLM(MiniMaxM3VLTextConfig(
        vocab_size=512, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=head_dim, intermediate_size=128, dense_intermediate_size=256,
        shared_intermediate_size=128, num_local_experts=4, num_experts_per_tok=2,
        layer_types=["full_attention"] + [sparse] * (layers - 1), mlp_layer_types=["dense"] + ["sparse"] * (layers - 1),
        index_n_heads=kv, index_head_dim=head_dim, index_block_size=block, index_topk_blocks=topk, index_local_blocks=1,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
        max_position_embeddings=1 << 20,
        initializer_range=0.08,  # smaller ones give near-ties everywhere
        bos_token_id=1, eos_token_id=2, pad_token_id=0, **more)).eval()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two threads are slower for layers of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def patched():
    with integration.enabled():
        yield integration


@pytest.fixture(scope="session")
def shared_model(patched):
    return build()


@pytest.fixture
def model(shared_model):
    """The tiny model under "msa"."""
    shared_model.set_attn_implementation("msa")
    return shared_model.eval()


@pytest.fixture(scope="session")
def prompts():
    return torch.randint(3, 512, (2, PROMPT), generator=torch.Generator().manual_seed(1))


class Eager:
    """The same model under "eager", each question asked once."""

    def __init__(self, model, prompts):
        self.model, self.prompts, self.known = model, prompts, {}

    def _ask(self, key, question):
        if key not in self.known:
            before = self.model.config._attn_implementation
            self.model.set_attn_implementation("eager")
            self.known[key] = question()
            self.model.set_attn_implementation(before)
        return self.known[key]

    def logits(self):
        return self._ask("logits", lambda: self.model(self.prompts).logits)

    def tokens(self, batch, **how):
        """int64 [batch, NEW]"""
        def question():
            ids = self.prompts[:batch]
            return self.model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY, **how)[:, PROMPT:]

        return self._ask((batch, *sorted(how.items())), question)


@pytest.fixture(scope="session")
def eager(shared_model, prompts):
    return Eager(shared_model, prompts)


@pytest.fixture(scope="session")
def cache_name():
    """What generate and forward call a cache: past_key_values before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(MiniMaxM3VLForCausalLM.forward).parameters else "past_key_values"


@pytest.fixture
def make_model():
    return build


@pytest.fixture
def greedy():
    return dict(GREEDY)
