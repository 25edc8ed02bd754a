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


def test_formats_of_8_and_4_bits(bench, tmp_path):
    sections = "sparse_prefill,decode,sparse_decode"
    words = ["--sections", sections, "--seqs", "160", "--decode-k", "300", "--decode-b", "1"]
    rows = rows_of(bench, tmp_path, *words, "--dtype", "fp8", "--topk", "4", "--peak-gbs", "100", "--peak-tflops", "1")
    assert [row["section_call"] for row in rows] == ["sparse_prefill:sparse", "decode:dense", "sparse_decode:dense",
                                                     "sparse_decode:sparse"]
    assert {row["dtype"] for row in rows} == {"fp8"} and all(float(row["mfu_mbu_pct"]) > 0 for row in rows)
    words = ["--sections", "sparse_prefill", "--seqs", "160", "--dtype", "nvfp4", "--topk", "4"]
    assert [row["dtype"] for row in rows_of(bench, tmp_path, *words)] == ["nvfp4"]
    (row,) = rows_of(bench, tmp_path, *words, "--q-dtype", "bf16", "--scale-layout", "linear")
    assert row["dtype"] == "nvfp4 q=bf16"


def test_bytes_and_peaks_are_those_of_the_formats(bench):
    case = bench.Case("sparse_prefill", 256, 256, 1, (64, 4))
    elements = 256 * 64 * 128, 2 * 256 * 4 * 128
    nvfp4 = ["--dtype", "nvfp4", "--q-dtype", "bf16"]
    for words, q, kv in (([], 2, 2), (["--dtype", "fp8"], 1, 1), (nvfp4, 2, 9 / 16)):
        options = bench.parse_arguments([*QUICK, "--sections", "sparse_prefill", *words])
        assert bench.bytes_moved(case, True, options) == elements[0] * (q + 2) + elements[1] * kv
        assert (bench.peaks_of(options, "NVIDIA H100 80GB HBM3")[0] == 989.0) is (q == 2)


@pytest.mark.parametrize("pattern", ["first", "random"])
def test_lists_are_legal(bench, pattern):
    options = bench.parse_arguments([*QUICK, "--pattern", pattern, "--topk", "8"])
    ids = bench.Inputs(bench.Case("sparse_decode", 8, 2900, 2, (16, 2)), options, paged=True).lists()
    assert ids.shape == (16, 2, 8) and (ids.diff(dim=-1) > 0).all() and (ids >= 0).all() and (ids <= 2899 // 128).all()


def test_failures_are_named_and_counted(bench, capfd, monkeypatch):
    def fail(*args, **given):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(bench.fmha, "fmha_sm100", fail)
    assert bench.main([*QUICK, "--sections", "decode", "--decode-k", "256", "--decode-b", "2"]) == 1
    assert "decode q=4 k=256 b=2 heads=64/4: RuntimeError: no such kernel" in capfd.readouterr().err


@pytest.mark.parametrize("words", [
    ["--sections", "other"], ["--tp", "3"], ["--topk", "5"], ["--blk-kv", "64"], ["--dtype", "nvfp4"],
    ["--dtype", "nvfp4", "--sections", "decode"], ["--q-dtype", "fp8"], ["--dtype", "f16", "--q-dtype", "bf16"],
])
def test_wrong_usage(bench, words):
    with pytest.raises(SystemExit) as caught:
        bench.main([*QUICK, *words])
    assert caught.value.code == 2
