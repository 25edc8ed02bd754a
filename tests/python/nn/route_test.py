# SPDX-License-Identifier: MIT
"""examples/route: the small form reaches its marks and draws its page, and a run that broke off goes on as if it had not."""
from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import sys
import xml.etree.ElementTree

import pytest

torch = pytest.importorskip("torch")

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "examples" / "route"


@pytest.fixture(scope="module")
def train():
    spec = importlib.util.spec_from_file_location("route_train", FOLDER / "train.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.mark.seconds(60)
def test_the_small_form_learns_to_route(train, tmp_path, capfd):
    assert train.main(["--out", str(tmp_path)]) == 0, capfd.readouterr()
    said = capfd.readouterr().out
    assert said.count("ok    ") == 10 and "MISSED" not in said
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    steps = train.FORMS["small"].steps
    assert len(records) == sum(steps.values()) + 3
    page = (tmp_path / "page.html").read_text()
    drawings = page.split("<svg")[1:]
    assert len(drawings) == 7 and "MISSED" not in page and "What it does not show" in page
    for one in drawings:
        tree = xml.etree.ElementTree.fromstring("<svg" + one.split("</svg>")[0] + "</svg>")
        lines = [line.get("points").split() for line in tree.iter("polyline")]
        looks = {recipe: -(-steps[f"{recipe}.warm"] // train.Run.looked) + steps[recipe] for recipe in ("pt", "cpt")}
        assert lines and all(len(line) in (steps["full"], steps["pt.warm"] + steps["pt"], looks["pt"],
                                           steps["cpt.warm"] + steps["cpt"], looks["cpt"]) for line in lines)


def test_a_model_that_misses_its_marks_fails(train):
    form = train.FORMS["small"]
    evaluation = {"accuracy.own": 1.0, "accuracy.dense": 1.0, "accuracy.random": 0.26, "accuracy.local": 0.1,
                  "planted.0": 1.0, "planted.1": 0.2}
    good = [{"seed": 1, "phase": phase, "evaluation": dict(evaluation)} for phase in ("full", "pt", "cpt")]
    good[0]["evaluation"]["accuracy.own"] = 0.3
    assert all(reached for _, reached in train.marks(form, good, [1]))
    assert [reached for _, reached in train.marks(form, good, [1, 2])].count(False) == 1
    assert [reached for _, reached in train.marks(form, good[:2], [1])] == [False]
    for phase, name, value in ((1, "accuracy.own", 0.98), (2, "planted.0", 0.97), (1, "accuracy.random", 0.4),
                               (2, "accuracy.local", 0.2), (0, "accuracy.own", 0.5), (0, "accuracy.dense", 0.9)):
        bad = json.loads(json.dumps(good))
        bad[phase]["evaluation"][name] = value
        assert [reached for _, reached in train.marks(form, bad, [1])].count(False) == 1, name


def test_seeds_at_once_share_one_page(train, tmp_path, monkeypatch, capfd):
    form = dataclasses.replace(train.FORMS["small"], steps=dict.fromkeys(train.PHASES, 2), evaluated=2, batch=2)
    monkeypatch.setitem(train.FORMS, "small", form)
    started = []

    def start(words, check, env):  # in place of a process: one behind the other, and seed 3 breaks off
        started.append(env.get("CUDA_VISIBLE_DEVICES"))
        if words[words.index("--seed") + 1] != "3":
            assert train.main(words[2:]) == 0

    monkeypatch.setattr(train.subprocess, "run", start)
    monkeypatch.setattr(train.concurrent.futures.ThreadPoolExecutor, "map", lambda self, call, seeds: map(call, seeds))
    seeds = ["--seed", "1", "--seed", "2", "--seed", "3"]
    assert train.main([*seeds, "--at-once", "2", "--out", str(tmp_path)]) == 1
    assert len(started) == 3
    said = capfd.readouterr().out
    assert "MISSED seed 3: the run came to its end, but for full, pt, cpt" in said and "seed 2, cpt" in said
    page = (tmp_path / "page.html").read_text()
    assert "layer 1, seed 2" in page and "layer 0, seed 1" in page and page.count("<svg") == 7
    assert not list(tmp_path.glob("seed-*/page.html"))
    whole = (tmp_path / "records.jsonl").read_text()
    assert whole == "".join((tmp_path / f"seed-{n}" / "records.jsonl").read_text() for n in (1, 2))
    train.main(["--seed", "2", "--resume", "--out", str(tmp_path)])  # which has nothing left to do
    assert (tmp_path / "records.jsonl").read_text() == (tmp_path / "seed-2" / "records.jsonl").read_text()
    capfd.readouterr()


def test_a_run_that_broke_off_goes_on(train, tmp_path, monkeypatch, capfd):
    form = dataclasses.replace(train.FORMS["small"], steps=dict.fromkeys(train.PHASES, 4), evaluated=8, batch=2)
    monkeypatch.setattr(train.Run, "every", 2)
    whole = train.Run(form, 3, "cpu", tmp_path)
    whole.run()

    class Broken(train.Run):
        def say(self, phase, step, steps, **numbers):
            if (phase, step) == ("pt", 3):
                raise KeyboardInterrupt
            super().say(phase, step, steps, **numbers)

    with pytest.raises(KeyboardInterrupt):
        Broken(form, 3, "cpu", tmp_path).run()
    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (stored["phase"], stored["step"]) == ("pt", 2)
    rest = train.Run(form, 3, "cpu", tmp_path)
    rest.run(stored)
    assert rest.records == whole.records
    for name, value in whole.models["cpt"].items():
        assert torch.equal(rest.models["cpt"][name], value), name
    capfd.readouterr()
