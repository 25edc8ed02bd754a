# SPDX-License-Identifier: MIT
"""Multi-query recall: pairs planted in filler, and questions whose answers stand in the blocks that hold them."""
from __future__ import annotations

import dataclasses
import hashlib
from typing import NamedTuple

import torch


@dataclasses.dataclass(frozen=True)
class Task:
    tokens: int  # of a sequence; the last 2 pairs of them are the questions
    pairs: int  # planted, and asked for
    keys: int  # of the vocabulary, in this order
    values: int
    fillers: int

    @property
    def vocabulary(self):
        return self.keys + self.values + self.fillers


class Answers(NamedTuple):
    rows: torch.Tensor  # i64 [pairs]: of a question's key, whose next token is asked for
    values: torch.Tensor  # i64 [B, pairs]: that token
    places: torch.Tensor  # i64 [B, pairs]: where the planted value stands


def make(task, batch, name, device):
    """Sequences, i64 [B, tokens], and their answers; the same ones for a name, wherever they are made."""
    draw = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"))

    def choose(count, of):
        return torch.rand(batch, of, generator=draw).argsort(1)[:, :count]

    front = task.tokens - 2 * task.pairs
    tokens = task.keys + task.values + torch.randint(task.fillers, (batch, task.tokens), generator=draw)
    keys = choose(task.pairs, task.keys)
    values = task.keys + torch.randint(task.values, (batch, task.pairs), generator=draw)
    # Pairs apart: pair n of the sorted places is moved by the n tokens that pairs before it take more.
    places = choose(task.pairs, front - task.pairs).sort(1).values + torch.arange(task.pairs)
    tokens.scatter_(1, places, keys)
    tokens.scatter_(1, places + 1, values)
    asked = choose(task.pairs, task.pairs)
    rows = front + 2 * torch.arange(task.pairs)
    tokens[:, rows] = keys.gather(1, asked)
    tokens[:, rows + 1] = values.gather(1, asked)
    answers = Answers(rows, values.gather(1, asked), places.gather(1, asked) + 1)
    return tokens.to(device), Answers(*(x.to(device) for x in answers))


def score(logits, answers):
    """Loss and accuracy of the answers alone."""
    asked = logits[:, answers.rows].float()  # [B, pairs, vocabulary]
    loss = torch.nn.functional.cross_entropy(asked.flatten(0, 1), answers.values.flatten())
    return loss, (asked.argmax(-1) == answers.values).float().mean()


def of_questions(form, answers, ids):
    """Of lists of all rows, i32 [B tokens, Hkv, topk], those of the questions, [B, pairs, Hkv, topk]."""
    return ids.view(answers.values.shape[0], form.task.tokens, *ids.shape[1:])[:, answers.rows]


def planted(form, answers, ids):
    """Share of the questions whose lists hold the pair's block. Heads of KV need not all look there: one is enough."""
    block = (answers.places // form.block)[:, :, None, None]
    return (of_questions(form, answers, ids) == block).any(-1).any(-1).float().mean().item()


def recall(form, answers, ids, oracle):
    """Share of the oracle's blocks that the questions' lists hold."""
    ids, oracle = (of_questions(form, answers, x) for x in (ids, oracle))
    return (oracle[..., :, None] == ids[..., None, :]).any(-1).float().mean().item()
