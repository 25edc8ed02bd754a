# SPDX-License-Identifier: MIT
"""The benchmark tool with upstream's command line, small and on the CPU."""
import importlib.util
import sys

import pytest

COLUMNS = (
    "q_len kv_len dtype batch_size q_head kv_head head_dim latency_ms std_ms tflops gbs mfu_mbu_pct "
    "predicted_split_speedup_pct"
).split()
QUICK = ["--gpu", "cpu", "--dry-run-ms", "0", "--repeat-ms", "0"]


@pytest.fixture(scope="module")
def bench(pytestconfig):
    path = pytestconfig.rootpath / "benchmarks" / "bench_sparse_attention_ops.py"
    spec = importlib.util.spec_from_file_location("bench_sparse_attention_ops", path)
    module = sys.modules["bench_sparse_attention_ops"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def its_rows_are_no_noise(capfd):
    """The tool prints a line for each row, which the package itself never does."""
    yield
    capfd.readouterr()


def rows_of(bench, tmp_path, *words):
    path = tmp_path / "rows.tsv"
    assert bench.main([*QUICK, "-o", str(path), *words]) == 0
    head, *lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert head[: len(COLUMNS)] == COLUMNS
    return [dict(zip(head, line)) for line in lines]


def test_all_sections(bench, tmp_path):
    rows = rows_of(
        bench, tmp_path, "--sections", "all", "--seqs", "256", "--tp", "1,4", "--decode-k", "640", "--decode-b", "2",
        "--topk", "4",
    )
    assert [row["section_call"] for row in rows] == [
        "prefill:dense", "prefill:dense", "paged_prefill:dense", "sparse_prefill:sparse", "decode:dense",
        "paged_decode:dense", "sparse_decode:dense", "sparse_decode:sparse",
    ]
    assert [row["q_head"] for row in rows] == ["64", "16", *["64"] * 6]
    assert [row["q_len"] for row in rows] == ["256"] * 4 + ["4", "4", "8", "8"]
    assert all(float(row["latency_ms"]) > 0 and row["mfu_mbu_pct"] == "" for row in rows)  # no peak of a CPU is known


@pytest.mark.parametrize("mode", ["full", "maxscore"])
def test_scores_and_planning_inside(bench, tmp_path, mode):
    words = ["--sections", "paged_decode", "--decode-k", "300", "--decode-b", "3", "--output_mode", mode, "--dtype", "f16"]
    (row,) = rows_of(bench, tmp_path, *words, "--include-plan", "--peak-gbs", "100")
    assert float(row["mfu_mbu_pct"]) > 0


@pytest.mark.parametrize("pattern", ["first", "random"])
def test_lists_are_legal(bench, pattern):
    options = bench.parse_arguments([*QUICK, "--pattern", pattern, "--topk", "8"])
    ids = bench.Inputs(bench.Case("sparse_decode", 8, 2900, 2, (16, 2)), options, paged=True).lists()
    assert ids.shape == (16, 2, 8) and (ids.diff(dim=-1) > 0).all() and (ids >= 0).all() and (ids <= 2899 // 128).all()


def test_failures_are_named_and_counted(bench, capfd, monkeypatch):
    assert bench.main(["--gpu", "cpu", "--dtype", "fp8"]) == 1
    assert "fp8" in capfd.readouterr().err

    def fail(*args, **given):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(bench.fmha, "fmha_sm100", fail)
    assert bench.main([*QUICK, "--sections", "decode", "--decode-k", "256", "--decode-b", "2"]) == 1
    assert "decode q=4 k=256 b=2 heads=64/4: RuntimeError: no such kernel" in capfd.readouterr().err


@pytest.mark.parametrize("words", [["--sections", "other"], ["--tp", "3"], ["--topk", "5"], ["--blk-kv", "64"]])
def test_wrong_usage(bench, words):
    with pytest.raises(SystemExit) as caught:
        bench.main([*QUICK, *words])
    assert caught.value.code == 2
