# SPDX-License-Identifier: MIT
"""Training under "msa": the backbone's gradients are those of eager, and each index branch has a loss of its own."""
import pytest
import torch

from msa.integrations import transformers as integration

from .conftest import build

LENGTH = 150  # 5 blocks of 32, of which 2 are chosen


@pytest.fixture(scope="module")
def trained(patched):
    model = build(topk=2)
    model.set_attn_implementation("msa")
    return model.train()


@pytest.fixture(autouse=True)
def with_grad(trained):
    trained.set_attn_implementation("msa")
    trained.zero_grad()
    with torch.enable_grad():
        yield
    integration.warm_up(trained, False)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 512, (2, LENGTH), generator=torch.Generator().manual_seed(4))


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def loss_of(model, ids, **more):
    return model(ids, labels=ids, **more).loss


def expect_close(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item() + 1e-9,
                                   msg=lambda text, name=name: f"{name}: {text}")


def of_index(name):
    return ".indexer." in name


def test_the_backbone_learns_as_under_eager(trained, ids):
    loss_of(trained, ids).backward()
    found = gradients(trained)
    trained.set_attn_implementation("eager")
    loss_of(trained, ids).backward()
    expect_close(found, gradients(trained))
    assert not any(map(of_index, found))


def test_index_branches_learn_from_their_losses_alone(trained, ids):
    trained(ids)
    losses = integration.index_losses(trained)
    assert len(losses) == 2 and all(loss.shape == () and loss.item() > 0 for loss in losses)
    losses[1].backward()
    found = gradients(trained)
    assert found and all(name.startswith("model.layers.2.self_attn.indexer.") for name in found)
    with pytest.raises(RuntimeError, match="found none since"):
        integration.index_losses(trained)


@pytest.mark.parametrize("warm", [False, True])
def test_the_loss_is_a_mean_of_divergences(trained, ids, warm, monkeypatch):
    """Of attention, worked out from the layer's own scores, and the index branch, over what the layer attended to."""
    from msa.integrations.transformers import training

    seen = []
    whole = training.index_loss

    def watched(q, k, lse, index_q, index_k, ids, weight, **settings):
        seen.append((q, k, index_q, index_k, ids))
        return whole(q, k, lse, index_q, index_k, ids, weight, **settings)

    monkeypatch.setattr(training, "index_loss", watched)
    integration.warm_up(trained, warm)
    trained(ids)
    for loss, (q, k, index_q, index_k, listed) in zip(integration.index_losses(trained), seen, strict=True):
        assert (listed is None) == warm
        total = 0.0
        for b in range(2):
            rows = slice(b * LENGTH, (b + 1) * LENGTH)
            visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
            for head in range(2):
                mask = visible
                if listed is not None:
                    chosen = torch.zeros(LENGTH, 6, dtype=torch.bool)
                    chosen.scatter_(1, torch.where(listed[rows, head] < 0, 5, listed[rows, head]).long(), True)
                    mask = visible & chosen[:, :5].repeat_interleave(32, 1)[:, :LENGTH]
                scores = torch.einsum("qhd,kd->hqk", q[rows, 4 * head:4 * head + 4].double(), k[rows, head].double()) / 8
                p = scores.masked_fill(~mask, -torch.inf).softmax(-1).mean(0)
                z = (index_q[rows, head].double() @ index_k[rows, 0].double().T) / 8
                z = z.masked_fill(~mask, -torch.inf).log_softmax(-1)
                total += torch.where(mask, p * (p.log() - z), 0.0).sum()
        assert loss.item() == pytest.approx((total / (4 * LENGTH)).item(), rel=1e-4)


def test_padding_teaches_nothing(trained, ids):
    short = ids[:1, :LENGTH - 30]
    loss_of(trained, short).backward()
    alone, expected = gradients(trained), [loss.item() for loss in integration.index_losses(trained)]
    padded = torch.cat((torch.zeros(1, 30, dtype=torch.long), short), 1)
    mask = (padded != 0).long()
    labels = padded.masked_fill(mask == 0, -100)
    labels[0, 30] = -100  # which the padding in front of it would have to tell
    trained(padded, attention_mask=mask, labels=labels).loss.backward()
    expect_close(gradients(trained), alone)
    assert [loss.item() for loss in integration.index_losses(trained)] == pytest.approx(expected, rel=1e-4)


def test_checkpointing_changes_nothing(trained, ids):
    def step():
        (loss_of(trained, ids, use_cache=False) + sum(integration.index_losses(trained))).backward()
        return gradients(trained)

    expected = step()
    assert any(map(of_index, expected))
    trained.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        expect_close(step(), expected)
        with pytest.raises(RuntimeError, match="found none since"):  # of what was worked out again
            integration.index_losses(trained)
    finally:
        trained.gradient_checkpointing_disable()


def test_frozen_index_branches_have_no_loss(trained, ids):
    frozen = [p for name, p in trained.named_parameters() if of_index(name)]
    for p in frozen:
        p.requires_grad_(False)
    try:
        loss_of(trained, ids).backward()
        with pytest.raises(RuntimeError, match="index_losses: expected"):
            integration.index_losses(trained)
    finally:
        for p in frozen:
            p.requires_grad_(True)


def test_index_branches_learn(patched, ids):
    model = build(seed=3, topk=2)
    model.set_attn_implementation("msa")
    for name, p in model.named_parameters():
        p.requires_grad_(of_index(name))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    integration.warm_up(model)
    values = []
    for _ in range(12):
        model(ids)
        loss = sum(integration.index_losses(model))
        values.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert values[-1] < 0.7 * values[0], values
