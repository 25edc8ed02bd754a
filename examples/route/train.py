#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Introduces training: a small model learns to route, from scratch and from a dense one, and a page shows it.

usage: examples/route/train.py [--form small|large] [--seed N]... [--device cpu|cuda] [--out DIR] [--resume]
                               [--at-once N]

Filler, key-value pairs planted at random places, then questions: a key each, whose value is to be said. Far more pairs
are planted than a row's blocks can hold, so the index branch has to find the block of each question's pair. Full attends
to everything; PT trains from scratch with a warm-up; CPT adds an index branch to Full. Wants torch and msa.
Each seed is a run of its own: with --device cuda, as many at the same time as there are GPUs, in processes of their own.
Writes DIR/seed-N/checkpoint.pt and records.jsonl, and of all seeds DIR/records.jsonl and DIR/page.html; exits with 1 where
a model misses its marks, or a run broke off.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import queue
import subprocess
import sys
import time

import torch
from torch import nn

import msa.nn
import msa.torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import page  # noqa: E402
import task  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Form:
    task: task.Task
    width: int
    heads: int
    heads_kv: int
    dim: int
    block: int
    topk: int
    batch: int
    rate: float
    steps: dict  # of each phase
    evaluated: int  # sequences
    dtype: torch.dtype
    layers: int = 2


FORMS = {
    "small": Form(task.Task(tokens=256, pairs=24, keys=128, values=64, fillers=64), width=64, heads=4, heads_kv=2, dim=32,
                  block=16, topk=3, batch=8, rate=3e-3, evaluated=64, dtype=torch.float32,
                  steps={"full": 64, "pt.warm": 42, "pt": 28, "cpt.warm": 56, "cpt": 28}),
    "large": Form(task.Task(tokens=8192, pairs=128, keys=4096, values=256, fillers=512), width=256, heads=32, heads_kv=2,
                  dim=128, block=128, topk=4, batch=8, rate=1e-3, evaluated=64, dtype=torch.bfloat16,
                  steps={"full": 300, "pt.warm": 200, "pt": 200, "cpt.warm": 200, "cpt": 200}),
}
PHASES = ("full", "pt.warm", "pt", "cpt.warm", "cpt")  # cpt.warm goes on from full, the others from the one before
LISTS = ("dense", "own", "oracle", "random", "local")


class Attention(msa.nn.SparseAttention):
    """Keys are made of the token before, at first, so that a key's value answers for it: the run is about routing alone,
    and not about how long a model waits for such a head. `lists` says whose blocks are attended to.
    """

    def __init__(self, config):
        super().__init__(config)
        self.now = nn.Parameter(torch.zeros(config.width))
        self.before = nn.Parameter(torch.ones(config.width))
        self.lists = "own"
        with torch.no_grad():
            shared = self.k_proj.weight.view(config.heads_kv, 1, config.head_dim, config.width)
            self.q_proj.weight.copy_(shared.expand(-1, config.heads // config.heads_kv, -1, -1).reshape_as(self.q_proj.weight))

    def key_input(self, x, positions):
        before = torch.roll(x, 1, 0) * (positions > 0)[:, None]
        return x * self.now + before * self.before

    def choose(self, q, k, index_q, index_k, **batch):
        c = self.config
        if self.lists == "own":
            return super().choose(q, k, index_q, index_k, **batch)
        blocks = -(-batch["max_seqlen_k"] // c.block_size)
        if self.lists == "local":  # the last topk blocks are forced
            return msa.torch.select_blocks(index_q, index_k, topk=c.topk, local_blocks=c.topk, **batch)
        if self.lists == "random":
            draw = torch.Generator(index_q.device).manual_seed(blocks)
            scores = torch.rand(index_q.shape[0], c.heads_kv, blocks, generator=draw, device=index_q.device)
        else:  # where attention's largest weights are
            found = msa.torch.dense_attention(q, k, k, return_lse=True, return_block_max=True, **batch)
            weights = (found.block_max / math.sqrt(c.head_dim) - found.lse[..., None]).exp()
            scores = weights.unflatten(1, (c.heads_kv, -1)).mean(2)
        if "seqlens_k" not in batch:
            batch["seqlens_k"] = torch.tensor([q.shape[0]], dtype=torch.int32, device=q.device)
        return msa.torch.select_topk(scores.float(), topk=c.topk, local_blocks=c.local_blocks, **batch)


class Layer(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(form.width) for _ in range(2))
        self.attention = Attention(msa.nn.SparseAttentionConfig(
            form.width, form.heads, form.heads_kv, form.dim, form.dim, block_size=form.block, topk=form.topk,
            rotary_dims=form.dim // 4, rotary_base=1e4))
        self.mlp = nn.Sequential(nn.Linear(form.width, 4 * form.width), nn.GELU(), nn.Linear(4 * form.width, form.width))

    def forward(self, x):
        attended = self.attention(self.norms[0](x))
        x = x + attended.out
        return x + self.mlp(self.norms[1](x)), attended


class Model(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.embedding = nn.Embedding(form.task.vocabulary, form.width)
        nn.init.normal_(self.embedding.weight, std=form.width ** -0.5)
        self.layers = nn.ModuleList(Layer(form) for _ in range(form.layers))
        self.norm = nn.RMSNorm(form.width)

    def forward(self, tokens):
        x = self.embedding(tokens)
        found = []
        for layer in self.layers:
            x, attended = layer(x)
            found.append(attended)
        return self.norm(x) @ self.embedding.weight.T, found  # [B, S, vocabulary]

    def attend(self, lists):
        for layer in self.layers:
            layer.attention.warm_up = lists == "dense"
            layer.attention.lists = lists

    def index_parameters(self):
        return [x for name, x in self.named_parameters() if "index_" in name]


class Run:
    """Phases in turn, and what is known of them; a checkpoint every so many steps."""

    every = 50  # steps from checkpoint to checkpoint
    looked = 8  # steps from look to look at what the index branch would choose in the warm-up

    def __init__(self, form, seed, device, out):
        self.form, self.seed, self.device, self.out = form, seed, torch.device(device), out
        self.records, self.models, self.begin = [], {}, time.perf_counter()

    # ---- one phase

    def start(self, phase):
        """A model and its optimiser as the phase finds them."""
        torch.manual_seed(self.seed)
        model = Model(self.form).to(self.device)
        before = {"pt": "pt.warm", "cpt.warm": "full", "cpt": "cpt.warm"}.get(phase)
        if before:
            model.load_state_dict(self.models[before])
        backbone = [x for name, x in model.named_parameters() if "index_" not in name]
        slower = 3 if phase.startswith("cpt") else 1  # what has learnt already moves less
        groups = [{"params": backbone, "lr": self.form.rate / slower},
                  {"params": model.index_parameters(), "lr": self.form.rate}]
        return model, torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)

    def rate(self, step, steps):
        """Up over the first third, at most 50 steps, then down to a tenth."""
        up = min(50, steps // 3)
        if step < up:
            return (step + 1) / up
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up)))

    def train(self, phase, state=None):
        """Trains a phase to its end, from `state` of a checkpoint where there is one."""
        model, optimiser = self.start(phase)
        first = 0
        if state:
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            first = state["step"]
        base = [group["lr"] for group in optimiser.param_groups]
        if state:
            base = state["rates"]
        steps, taught = self.form.steps[phase], phase != "full"
        for parameter in model.index_parameters():
            parameter.requires_grad_(taught)
        for step in range(first, steps):
            model.attend("own" if phase in ("pt", "cpt") else "dense")
            for group, rate in zip(optimiser.param_groups, base):
                group["lr"] = rate * self.rate(step, steps)
            tokens, answers = task.make(self.form.task, self.form.batch, f"{self.seed}.{phase}.{step}", self.device)
            with torch.autocast(self.device.type, self.form.dtype, enabled=self.form.dtype != torch.float32):
                logits, found = model(tokens)
            loss, right = task.score(logits, answers)
            kl = torch.stack([one.index_loss for one in found])
            optimiser.zero_grad()
            (loss + kl.sum() if taught else loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            numbers = {"loss": loss.item(), "accuracy": right.item(), "kl": kl.tolist()}
            if found[0].block_ids is not None:
                numbers["planted"] = [task.planted(self.form, answers, one.block_ids) for one in found]
            elif taught and step % self.looked == 0:
                numbers["planted"] = self.look(model, tokens[:1], task.Answers(answers.rows, *(x[:1] for x in answers[1:])))
            self.say(phase, step, steps, **numbers)
            if step + 1 < steps and (step + 1) % self.every == 0:
                self.save(phase, step + 1, model, optimiser, base)
        self.models[phase] = model.state_dict()
        return model

    @torch.no_grad()
    def look(self, model, tokens, answers):
        """What the index branch of each layer would find, were it asked."""
        model.attend("own")
        with torch.autocast(self.device.type, self.form.dtype, enabled=self.form.dtype != torch.float32):
            return [task.planted(self.form, answers, one.block_ids) for one in model(tokens)[1]]

    # ---- what is said and kept

    def say(self, phase, step, steps, **numbers):
        self.records.append({"seed": self.seed, "phase": phase, "step": step, **numbers})
        done = step + 1 == steps
        if not sys.stderr.isatty() and not (done or step % 50 == 0):
            return
        words = " ".join(f"{name} {[round(x, 3) for x in value] if isinstance(value, list) else round(value, 3)}"
                         for name, value in numbers.items())
        seconds = time.perf_counter() - self.begin
        print(f"seed {self.seed}, {phase} {step + 1}/{steps}: {words}, {seconds:.0f} s", end="\n" if done or not sys.stderr.isatty() else
              " \r", file=sys.stderr, flush=True)

    def save(self, phase, step, model=None, optimiser=None, rates=None):
        """Whole or not at all."""
        state = {"phase": phase, "step": step, "models": self.models, "records": self.records, "seed": self.seed}
        if model is not None:
            state |= {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "rates": rates}
        part = self.out / "checkpoint.part"
        torch.save(state, part)
        os.replace(part, self.out / "checkpoint.pt")
        write_records(self.out, self.records)

    # ---- evaluation

    @torch.no_grad()
    def evaluate(self, phase, model):
        form, sums = self.form, {}
        model.eval()
        for start in range(0, form.evaluated, form.batch):
            tokens, answers = task.make(form.task, form.batch, f"{self.seed}.test.{start}", self.device)
            lists = {}
            for kind in LISTS:
                model.attend(kind)
                with torch.autocast(self.device.type, form.dtype, enabled=form.dtype != torch.float32):
                    logits, found = model(tokens)
                lists[kind] = [one.block_ids for one in found]
                sums.setdefault(f"accuracy.{kind}", []).append(task.score(logits, answers)[1].item())
            for n, ids in enumerate(lists["own"]):
                sums.setdefault(f"planted.{n}", []).append(task.planted(form, answers, ids))
                sums.setdefault(f"blocks.{n}", []).append(task.recall(form, answers, ids, lists["oracle"][n]))
        model.train()
        found = {name: sum(values) / len(values) for name, values in sums.items()}
        self.records.append({"seed": self.seed, "phase": phase, "evaluation": found})
        print(f"seed {self.seed}, {phase}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), file=sys.stderr)

    def run(self, stored=None):
        first = 0
        if stored:
            self.models, self.records = stored["models"], stored["records"]
            first = PHASES.index(stored["phase"])
        for phase in PHASES[first:]:
            state = stored if stored and "model" in stored and stored["phase"] == phase else None
            if phase in self.models:
                continue
            model = self.train(phase, state)
            if phase in ("full", "pt", "cpt"):
                self.evaluate(phase, model)
            self.save(phase, self.form.steps[phase])
        return self.records


def write_records(folder, records):
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def read_records(folder):
    """Of a run, up to its last checkpoint."""
    file = folder / "records.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def train_one(form, seed, device, folder, resume):
    """A run to its end, from its last checkpoint where it is to be resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:  # what an earlier run left is not this one's
        (folder / "records.jsonl").unlink(missing_ok=True)
    elif any("evaluation" in one and one["phase"] == PHASES[-1] for one in read_records(folder)):
        return
    kept = folder / "checkpoint.pt"
    Run(form, seed, device, folder).run(torch.load(kept, weights_only=True) if resume and kept.exists() else None)


def train_at_once(given, seeds):
    """A process for each seed, on a GPU of its own where there are GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = visible.split(",") if given.device == "cuda" else [""]
    places = queue.SimpleQueue()
    for n in range(given.at_once):
        places.put(gpus[n % len(gpus)])

    def train(seed):
        gpu = places.get()
        words = ["--form", given.form, "--seed", str(seed), "--device", given.device, "--out", str(given.out),
                 "--steps", str(given.steps), "--at-once", "1", "--part", *(["--resume"] if given.resume else [])]
        try:
            subprocess.run([sys.executable, __file__, *words], check=False,
                           env=os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}))
        finally:
            places.put(gpu)

    with concurrent.futures.ThreadPoolExecutor(given.at_once) as pool:
        list(pool.map(train, seeds))


def marks(form, records, seeds):
    """What each model of each seed has to reach: (words, reached)."""
    found = {(one["seed"], one["phase"]): one["evaluation"] for one in records if "evaluation" in one}
    blocks = form.task.tokens // form.block
    chance = 1 - (1 - (form.topk - 1) / (blocks - 1)) ** form.heads_kv + 0.05
    lines = []
    for seed in seeds:
        missing = [phase for phase in ("full", "pt", "cpt") if (seed, phase) not in found]
        if missing:
            lines.append((f"seed {seed}: the run came to its end, but for {', '.join(missing)}", False))
            continue
        full = found[seed, "full"]
        lines.append((f"seed {seed}, full: accuracy {full['accuracy.dense']:.3f}, at least 0.95",
                      full["accuracy.dense"] >= 0.95))
        for phase in ("pt", "cpt"):
            own = found[seed, phase]
            recall = max(value for name, value in own.items() if name.startswith("planted."))
            lines += [(f"seed {seed}, {phase}: accuracy {own['accuracy.own']:.3f}, of Full {full['accuracy.dense']:.3f} - 0.01",
                       own["accuracy.own"] >= full["accuracy.dense"] - 0.01),
                      (f"seed {seed}, {phase}: planted recall {recall:.3f}, at least 0.98", recall >= 0.98),
                      (f"seed {seed}, {phase}: random lists {own['accuracy.random']:.3f}, at most {chance:.3f}",
                       own["accuracy.random"] <= chance),
                      (f"seed {seed}, {phase}: local lists {own['accuracy.local']:.3f}, at most 0.15",
                       own["accuracy.local"] <= 0.15)]
        lines.append((f"seed {seed}: an index branch that nobody taught {full['accuracy.own']:.3f}, random lists "
                      f"{full['accuracy.random']:.3f} + 0.05", full["accuracy.own"] <= full["accuracy.random"] + 0.05))
    return lines


def main(words=None):
    options = argparse.ArgumentParser(description="A model learns to route.")
    options.add_argument("--form", choices=FORMS, default="small")
    options.add_argument("--seed", type=int, action="append", help="several: one run each (1)")
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=pathlib.Path, default=pathlib.Path("route"))
    options.add_argument("--resume", action="store_true", help="goes on from the checkpoint in DIR")
    options.add_argument("--steps", type=float, default=1.0, help="times the steps of each phase, for a trial")
    options.add_argument("--at-once", type=int, help="seeds at the same time (as many as GPUs; 1 on the CPU)")
    options.add_argument("--part", action="store_true", help=argparse.SUPPRESS)  # of train_at_once: no page, no marks
    given = options.parse_args(words)
    seeds = given.seed or [1]
    if given.at_once is None:
        given.at_once = min(len(seeds), torch.cuda.device_count()) if given.device == "cuda" else 1
    form = FORMS[given.form]
    if given.steps != 1:
        form = dataclasses.replace(form, steps={name: max(2, round(n * given.steps)) for name, n in form.steps.items()})
    if given.at_once > 1:
        train_at_once(given, seeds)
    else:
        for seed in seeds:
            train_one(form, seed, given.device, given.out / f"seed-{seed}", given.resume)
    if given.part:
        return 0
    records = [one for seed in seeds for one in read_records(given.out / f"seed-{seed}")]
    lines = marks(form, records, seeds)
    write_records(given.out, records)
    (given.out / "page.html").write_text(page.draw(records, lines, given.form))
    for words, reached in lines:
        print(f"{'ok    ' if reached else 'MISSED'} {words}")
    return 0 if lines and all(reached for _, reached in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
