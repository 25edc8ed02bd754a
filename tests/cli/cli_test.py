# SPDX-License-Identifier: MIT
"""Tests of the command-line tool: exit codes, files, hostile files. usage: cli_test.py MSA [unittest arguments]"""
import base64
import ctypes
import errno
import json
import math
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unittest

import safetensors_files as st

MSA = "msa"
GOOD, FAILED, USAGE, BAD_INPUT, NO_BACKEND = range(5)


def msa(*args, env=None, preexec=None):
    return subprocess.run([MSA, *map(str, args)], capture_output=True, text=True, timeout=120,
                          env={**os.environ, **(env or {})}, preexec_fn=preexec)


def refuse_tiles():
    """Has the kernel refuse arch_prctl(ARCH_REQ_XCOMP_PERM) from here on, as a sandbox may: a filter of system calls."""
    def instruction(code, yes, no, k): return struct.pack("HBBI", code, yes, no, k)
    load, equal, give = 0x20, 0x15, 0x06  # a word of the call's data; jump if it is k; the verdict
    arch_prctl, request, refused, allowed = 158, 0x1023, 0x00050000 | errno.EPERM, 0x7fff0000
    program = b"".join([instruction(load, 0, 0, 0), instruction(equal, 0, 3, arch_prctl), instruction(load, 0, 0, 16),
                        instruction(equal, 0, 1, request), instruction(give, 0, 0, refused), instruction(give, 0, 0, allowed)])
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
    libc, filtered = ctypes.CDLL(None, use_errno=True), Program(len(program) // 8, program)
    no_new_privileges, seccomp, by_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) != 0 or libc.prctl(seccomp, by_filter, ctypes.byref(filtered)) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


class CliTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def expect(self, code, result, *texts):
        self.assertEqual(result.returncode, code, f"{result.args}\n{result.stdout}\n{result.stderr}")
        for text in texts:
            self.assertIn(text, result.stderr)
        return result


def isas_of_cpu():
    backends = json.loads(msa("info", "--json").stdout)["backends"]
    return next(backend["isas"] for backend in backends if backend["name"] == "cpu")


def normal(count, seed):
    rng = random.Random(seed)
    return [rng.gauss(0, 1) for _ in range(count)]


def problem(rows=5, keys=70, heads=2, heads_kv=1, dim=16, dtype="F32", seed=1):
    return {
        "q": (dtype, [rows, heads, dim], normal(rows * heads * dim, seed)),
        "k": (dtype, [keys, heads_kv, dim], normal(keys * heads_kv * dim, seed + 1)),
        "v": (dtype, [keys, heads_kv, dim], normal(keys * heads_kv * dim, seed + 2)),
        "index_q": (dtype, [rows, heads_kv, dim], normal(rows * heads_kv * dim, seed + 3)),
        "index_k": (dtype, [keys, 1, dim], normal(keys * dim, seed + 4)),
    }


def attention(p, row, head, visible):
    """One row of attention in double precision over the given keys: (out, lse)."""
    dim = p["q"][1][2]
    heads, heads_kv = p["q"][1][1], p["k"][1][1]
    q = p["q"][2][(row * heads + head) * dim:][:dim]
    base = head // (heads // heads_kv)
    def vec(name, j): return p[name][2][(j * heads_kv + base) * dim:][:dim]
    scores = [sum(a * b for a, b in zip(q, vec("k", j))) / math.sqrt(dim) for j in visible]
    if not scores: return [0.0] * dim, -math.inf
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    total = sum(weights)
    out = [sum(w * vec("v", j)[d] for w, j in zip(weights, visible)) / total for d in range(dim)]
    return out, top + math.log(total)


class Commands(CliTest):
    def test_help_and_version_are_good(self):
        self.assertIn("verify", self.expect(GOOD, msa("--help")).stdout)
        self.assertRegex(self.expect(GOOD, msa("--version")).stdout, r"^msa \d+\.\d+\.\d+\n$")

    def test_wrong_usage(self):
        for args in [(), ("nonsense",), ("info", "--nonsense"), ("run",), ("run", "dance", "a", "b"),
                     ("run", "dense", "a"), ("run", "dense", "a", "b", "--topk", "many"),
                     ("run", "dense", "a", "b", "--backend", "abacus"), ("run", "dense", "a", "b", "--isa", "mmx"),
                     ("run", "dense", "a", "b", "--threads", "0")]:
            with self.subTest(args=args):
                self.expect(USAGE, msa(*args))

    def test_info(self):
        info = json.loads(self.expect(GOOD, msa("info", "--json")).stdout)
        names = [b["name"] for b in info["backends"]]
        self.assertIn("reference", names)
        for b in info["backends"]:
            self.assertTrue(b["available"] or b["reason"], b)
        text = self.expect(GOOD, msa("info")).stdout
        self.assertIn(info["version"], text)
        for name in names:
            self.assertIn(f"backend\t{name}\t", text)

    def test_backend_not_available(self):
        info = json.loads(msa("info", "--json").stdout)
        there = {b["name"] for b in info["backends"] if b["available"]}
        st.write(self.path("in"), problem())
        if "cuda" not in there:
            self.expect(NO_BACKEND, msa("run", "dense", self.path("in"), self.path("out"), "--backend", "cuda"), "cuda")
        for isa in isas_of_cpu():
            result = msa("run", "dense", self.path("in"), self.path("out"), "--backend", "cpu", "--isa", isa["name"])
            self.expect(GOOD if isa["available"] else NO_BACKEND, result)
        for b in info["backends"]:
            for isa in b.get("isas", []):
                if not isa["available"]:
                    result = msa("run", "dense", self.path("in"), self.path("out"), "--isa", isa["name"])
                    self.expect(NO_BACKEND, result, isa["reason"])
        self.expect(USAGE, msa("run", "dense", self.path("in"), self.path("out"), "--backend", "cpu", "--isa", "mma"), "--isa")
        if "cuda" not in there:
            self.assertTrue(all("cuda" != b["name"] or not b["available"] for b in info["backends"]))

    def test_a_system_that_refuses_tiles_is_named(self):
        info = json.loads(msa("info", "--json").stdout)
        if "amx_tile" not in info["cpu_features"]:
            self.skipTest("the processor has no tiles")
        info = json.loads(self.expect(GOOD, msa("info", "--json", preexec=refuse_tiles)).stdout)
        isas = {isa["name"]: isa for b in info["backends"] for isa in b.get("isas", [])}
        self.assertFalse(isas["amx"]["available"])
        self.assertEqual(isas["amx"]["reason"], "needs the system's permission to use tiles, which it refuses (arch_prctl)")
        self.assertTrue(isas["avx512_bf16"]["available"])
        case = "op=dense heads=2/1 dim=16 lens=40:40"
        self.expect(NO_BACKEND, msa("verify", "--backend", "cpu", "--isa", "amx", "--case", case, preexec=refuse_tiles),
                    "permission to use tiles")
        self.expect(GOOD, msa("verify", "--backend", "cpu", "--case", case, preexec=refuse_tiles))

    def test_full_disk_for_stdout(self):
        with open("/dev/full", "w") as full:
            result = subprocess.run([MSA, "info"], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, FAILED, result.stderr)


class RunFiles(CliTest):
    def run_op(self, op, tensors, *options):
        st.write(self.path("in"), tensors)
        self.expect(GOOD, msa("run", op, self.path("in"), self.path("out"), *options))
        return st.read(self.path("out"))

    def test_dense_round_trip(self):
        p = problem()
        out, metadata = self.run_op("dense", p)
        self.assertEqual(set(out), {"out", "lse"})
        for row in range(5):
            for head in range(2):
                expected, lse = attention(p, row, head, range(70 - 5 + row + 1))
                got = out["out"][2][(row * 2 + head) * 16:][:16]
                for a, b in zip(got, expected):
                    self.assertAlmostEqual(a, b, places=4)
                self.assertAlmostEqual(out["lse"][2][row * 2 + head], lse, places=4)
        self.assertEqual(metadata["msa.op"], "dense")
        for key in ("msa.version", "msa.backend", "msa.isa", "msa.options"):
            self.assertTrue(metadata[key])

    def test_no_causal_and_scale(self):
        p = problem()
        out, _ = self.run_op("dense", p, "--no-causal", "--softmax-scale", "0.25")
        expected, lse = attention(p, 0, 0, range(70))
        for a, b in zip(out["out"][2], expected):
            self.assertAlmostEqual(a, b, places=4)
        self.assertAlmostEqual(out["lse"][2][0], lse, places=4)

    def test_scores_and_select(self):
        p = problem()
        options = ("--block-size", 16, "--topk", 2)
        scores, _ = self.run_op("scores", p, "--block-size", 16)
        self.assertEqual(scores["block_scores"][1], [5, 1, 5])
        dim = 16
        q = p["index_q"][2][:dim]
        keys = [p["index_k"][2][j * dim:][:dim] for j in range(66)]  # row 0 stands at position 65
        dots = [sum(a * b for a, b in zip(q, k)) for k in keys]
        expected = [max(dots[b * 16:(b + 1) * 16]) for b in range(5)]
        for a, b in zip(scores["block_scores"][2], expected):
            self.assertAlmostEqual(a, b, places=4)
        ids, _ = self.run_op("select", p, *options)
        self.assertEqual(ids["block_ids"][2][:2], sorted([expected[:4].index(max(expected[:4])), 4]))

    def test_msa_is_select_then_sparse(self):
        for dtype in ("F32", "F16", "BF16"):
            with self.subTest(dtype=dtype):
                p = problem(dtype=dtype)
                options = ("--block-size", 16, "--topk", 2)
                whole, _ = self.run_op("msa", p, *options)
                self.assertEqual(set(whole), {"out", "lse", "block_ids"})
                self.assertEqual(whole["out"][0], dtype)
                ids, _ = self.run_op("select", p, *options)
                self.assertEqual(ids["block_ids"], whole["block_ids"])
                sparse, _ = self.run_op("sparse", {**p, "block_ids": ids["block_ids"]}, "--block-size", 16)
                for a, b in zip(sparse["out"][2], whole["out"][2]):
                    self.assertAlmostEqual(a, b, delta=0.02)

    def test_paged_equals_ragged(self):
        p = problem(keys=64)
        page, heads, dim = 16, 1, 16
        order = [3, 0, 2, 1]
        paged = {"q": p["q"], "page_table": ("I32", [1, 6], order + [-7, 99]),
                 "cu_seqlens_q": ("I32", [2], [0, 5]), "seqlens_k": ("I32", [1], [64])}
        for name in ("k", "v"):
            values = [0.0] * (64 * heads * dim)
            for logical, physical in enumerate(order):
                values[physical * page * dim:(physical + 1) * page * dim] = \
                    p[name][2][logical * page * dim:(logical + 1) * page * dim]
            paged[name + "_cache"] = ("F32", [4, page, heads, dim], values)
        self.assertEqual(self.run_op("dense", paged)[0]["out"], self.run_op("dense", p)[0]["out"])

    def test_ragged_batch_and_offsets(self):
        p = problem()
        p["cu_seqlens_q"] = ("I32", [4], [0, 2, 2, 5])
        p["seqlens_k"] = ("I32", [3], [30, 0, 40])
        p["q_offsets"] = ("I32", [3], [-1, 0, 3])
        out, _ = self.run_op("dense", p)
        rows = [(0, range(0)), (1, range(1)), (2, range(30, 34)), (3, range(30, 35)), (4, range(30, 36))]
        for row, visible in rows:
            expected, lse = attention(p, row, 1, visible)
            got = out["out"][2][(row * 2 + 1) * 16:][:16]
            for a, b in zip(got, expected):
                self.assertAlmostEqual(a, b, places=4)
            if visible:
                self.assertAlmostEqual(out["lse"][2][row * 2 + 1], lse, places=4)
            else:
                self.assertEqual(out["lse"][2][row * 2 + 1], -math.inf)

    def test_known_but_unneeded_tensors_are_ignored(self):
        p = problem()
        self.assertEqual(self.run_op("dense", p)[0]["out"],
                         self.run_op("dense", {n: p[n] for n in ("q", "k", "v")})[0]["out"])

    def test_empty_problem(self):
        out, _ = self.run_op("dense", {"q": ("F32", [0, 2, 16], []), "k": ("F32", [0, 1, 16], []), "v": ("F32", [0, 1, 16], [])})
        self.assertEqual(out["out"][1], [0, 2, 16])

    def test_in_place_and_existing_output(self):
        st.write(self.path("in"), problem())
        self.expect(GOOD, msa("run", "dense", self.path("in"), self.path("in")))
        self.assertEqual(set(st.read(self.path("in"))[0]), {"out", "lse"})
        self.assertEqual(os.listdir(self.folder), ["in"])


class BadFiles(CliTest):
    def refuse(self, tensors, *texts, op="msa", options=(), code=BAD_INPUT):
        st.write(self.path("in"), tensors)
        result = msa("run", op, self.path("in"), self.path("out"), *options)
        self.expect(code, result, *texts)
        self.assertEqual(len(result.stderr.strip().splitlines()), 1, result.stderr)
        self.assertEqual(os.listdir(self.folder), ["in"])

    def test_missing_input(self):
        self.expect(BAD_INPUT, msa("run", "dense", self.path("none"), self.path("out")), "none")
        self.expect(BAD_INPUT, msa("run", "dense", self.folder, self.path("out")), "not a regular file")

    def test_a_link_in_the_place_of_the_output_is_replaced(self):
        st.write(self.path("in"), problem())
        st.write(self.path("other"), problem())
        before = pathlib.Path(self.path("other")).read_bytes()
        os.symlink(self.path("other"), self.path("out"))
        self.expect(GOOD, msa("run", "dense", self.path("in"), self.path("out")))
        self.assertFalse(os.path.islink(self.path("out")))
        self.assertEqual(pathlib.Path(self.path("other")).read_bytes(), before)

    def test_unknown_tensor_lists_known_ones(self):
        self.refuse({**problem(), "query": ("F32", [1], [0])}, "'query' is not known", "index_k_cache", "block_ids")

    def test_missing_tensors(self):
        for op, needed in [("dense", "qkv"), ("scores", ("index_q", "index_k")), ("select", ("index_q", "index_k")),
                           ("sparse", ("q", "k", "v", "block_ids")), ("msa", ("q", "k", "v", "index_q", "index_k"))]:
            full = {**problem(), "block_ids": ("I32", [5, 1, 1], [0] * 5)}
            for name in needed:
                with self.subTest(op=op, missing=name):
                    self.refuse({n: t for n, t in full.items() if n != name}, f"needs the tensor '{name}'", op=op)

    def test_conflicts(self):
        p = problem()
        cache = ("F32", [1, 16, 1, 16], normal(256, 9))
        self.refuse({**p, "k_cache": cache}, "either 'k' or 'k_cache'")
        self.refuse({**{n: t for n, t in p.items() if n != "k"}, "k_cache": cache}, "all in caches")
        self.refuse({**p, "seqlens_k": ("I32", [1], [70])}, "needs the tensor 'cu_seqlens_q'")
        self.refuse({**p, "cu_seqlens_q": ("I32", [2], [0, 5])}, "needs the tensor 'seqlens_k'")

    def test_shapes_and_dtypes(self):
        p = problem()
        lengths = {"cu_seqlens_q": ("I32", [2], [0, 5]), "seqlens_k": ("I32", [1], [70])}
        self.refuse({**p, "q": ("F32", [80, 2], normal(160, 1))}, "'q'", "rank of 3")
        self.refuse({**p, "v": ("F32", [69, 1, 16], normal(69 * 16, 1))}, "v")
        self.refuse({**p, "k": ("BF16", *p["k"][1:])}, "k")
        self.refuse({**p, **lengths, "seqlens_k": ("I64", [1], [70])}, "seqlens_k", "i32")
        self.refuse({**p, **lengths, "seqlens_k": ("I32", [1], [71])}, "seqlens_k", "71")
        self.refuse({**p, **lengths, "seqlens_k": ("I32", [1], [-1])}, "seqlens_k", "-1")
        self.refuse({**p, **lengths, "cu_seqlens_q": ("I32", [2], [0, 6])}, "cu_seqlens_q")
        self.refuse({**p, **lengths, "cu_seqlens_q": ("I32", [3], [0, 3, 5])}, "seqlens_k")

    def test_bad_contents(self):
        p = problem()
        for ids in ([7], [-2], [2**31 - 1]):
            with self.subTest(ids=ids):
                self.refuse({**p, "block_ids": ("I32", [5, 1, 1], ids * 5)}, "block_ids", op="sparse")
        self.refuse({**p, "block_ids": ("I32", [5, 1, 2], [0] * 10)}, "block_ids", op="sparse")

    def test_sparse_topk_must_equal_the_width(self):
        p = {**problem(), "block_ids": ("I32", [5, 1, 1], [0] * 5)}
        self.refuse(p, "--topk: expected 1", op="sparse", options=("--topk", 2), code=USAGE)
        st.write(self.path("in"), p)
        self.expect(GOOD, msa("run", "sparse", self.path("in"), self.path("out"), "--topk", 1))

    def test_bad_options_are_usage(self):
        for options in [("--block-size", 17), ("--topk", 2, "--local-blocks", 3), ("--init-blocks", -1)]:
            with self.subTest(options=options):
                self.refuse(problem(), options=options, code=USAGE)

    def test_hostile_files(self):
        for name, text, header, data, length in st.hostile():
            with self.subTest(name=name):
                st.raw(self.path("in"), header, data, length)
                result = msa("run", "dense", self.path("in"), self.path("out"))
                self.expect(BAD_INPUT, result, text)
                self.assertNotIn("\x1b", result.stderr)
                self.assertEqual(os.listdir(self.folder), ["in"])

    def test_truncated_anywhere(self):
        st.write(self.path("whole"), {n: t for n, t in problem(rows=1, keys=2).items() if n in "qkv"})
        with open(self.path("whole"), "rb") as f:
            blob = f.read()
        self.expect(GOOD, msa("run", "dense", self.path("whole"), self.path("out")))
        os.unlink(self.path("out"))
        for size in list(range(0, 16)) + list(range(16, len(blob), 29)) + [len(blob) - 1]:
            with open(self.path("in"), "wb") as f:
                f.write(blob[:size])
            self.expect(BAD_INPUT, msa("run", "dense", self.path("in"), self.path("out")))
            self.assertFalse(os.path.exists(self.path("out")))


class FailedWrites(CliTest):
    def test_output_appears_whole_or_not_at_all(self):
        st.write(self.path("in"), problem())
        for out in [self.path("no/such/folder/out"), self.folder, "/dev/full", "/dev/null"]:
            with self.subTest(out=out):
                self.expect(FAILED, msa("run", "dense", self.path("in"), out))
        self.assertTrue(os.path.exists("/dev/null"))
        self.assertEqual(os.listdir(self.folder), ["in"])

    def test_size_limit(self):
        import resource
        st.write(self.path("in"), problem(rows=100))
        # Less than the output, more than the shared memory that clang's OpenMP runtime asks for.
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        self.expect(FAILED, msa("run", "dense", self.path("in"), self.path("out"), preexec=limit), "write failed")
        self.assertEqual(os.listdir(self.folder), ["in"])


SMALL = "heads=4/2 dim=32 block=16 topk=4 lens=8:200"


class Verify(CliTest):
    def test_totals(self):
        result = self.expect(GOOD, msa("verify", "--case", f"op=dense|select|sparse|msa {SMALL}"))
        totals = dict(line.split("\t") for line in result.stdout.splitlines())
        self.assertEqual((totals["run"], totals["passed"]), ("4", "4"), result.stdout)

    def test_usage_and_files(self):
        self.expect(USAGE, msa("verify"))
        self.expect(USAGE, msa("verify", "--case", "op=dance"), "dance")
        self.expect(BAD_INPUT, msa("verify", self.path("none.txt")), "none.txt")
        with open(self.path("bad.txt"), "w") as f:
            f.write("op=dense heads=4/2\nheads=3\n")
        self.expect(BAD_INPUT, msa("verify", self.path("bad.txt")), "bad.txt", "heads")
        with open(self.path("good.txt"), "w") as f:
            f.write(f"# one case\n\nop=dense {SMALL}\n")
        self.expect(GOOD, msa("verify", self.path("good.txt")))

    def test_every_instruction_set(self):
        available = sum(isa["available"] for isa in isas_of_cpu())
        result = self.expect(GOOD, msa("verify", "--backend", "cpu", "--every-isa", "--case", f"op=dense|select|msa {SMALL}"))
        totals = dict(line.split("\t") for line in result.stdout.splitlines())
        self.assertEqual((totals["run"], totals["passed"]), (str(3 * available),) * 2, result.stdout)
        self.expect(USAGE, msa("verify", "--every-isa", "--case", f"op=dense {SMALL}"), "--every-isa")

    def test_tables_of_instruction_sets(self):
        """A table that lists what no backend takes fails the instruction set that it names, and no other."""
        everything, nothing = self.path("everything.txt"), self.path("nothing.txt")
        with open(everything, "w") as f:
            f.write("op=dense\n")
        with open(nothing, "w") as f:
            f.write("op=topk\n")
        refused = ["--case", "op=dense heads=4/2 dim=24 block=16 lens=8:200"]
        if "rejected\t1" not in msa("verify", "--backend", "cpu", "--isa", "scalar", *refused).stdout:
            self.fail("this case is served: take another one")
        run = ["verify", "--backend", "cpu", "--isa", "scalar", *refused]
        self.expect(GOOD, msa(*run, "--support", nothing, "--support", f"avx2={everything}"))
        self.expect(FAILED, msa(*run, "--support", nothing, "--support", f"scalar={everything}"))
        self.expect(FAILED, msa(*run, "--support", everything, "--support", f"avx2={nothing}"))
        self.expect(USAGE, msa(*run, "--support", everything, "--support", nothing), "--support")
        self.expect(BAD_INPUT, msa(*run, "--support", "scalar="))
        cases = self.path("cases.txt")
        with open(cases, "w") as f:
            f.write(f"op=dense {SMALL}\n")
        self.expect(GOOD, msa("verify", "--support", nothing, cases))  # one file is the table's, the other one has cases
        self.expect(USAGE, msa("verify", "--backend", "cpu", "--isa", "scalar", "--every-isa", "--case", f"op=dense {SMALL}"))

    def test_parts_share_the_cases(self):
        runs = []
        for part in ("1/3", "2/3", "3/3", "5/5"):
            result = self.expect(GOOD, msa("verify", "--part", part, "--case", f"op=dense|select|sparse|msa {SMALL}"))
            runs.append(int(dict(line.split("\t") for line in result.stdout.splitlines())["passed"]))
        self.assertEqual(runs, [2, 1, 1, 0])
        for part in ("0/3", "4/3", "1", "1/", "/2", "a/b", "1/2x", "-1/2"):
            self.expect(USAGE, msa("verify", f"--part={part}", "--case", f"op=dense {SMALL}"), "--part", part)

    def test_drawn_cases(self):
        table = self.path("table.txt")
        with open(table, "w") as f:
            f.write("op=topk|merge_selections topk=1..4\n")
        result = self.expect(GOOD, msa("verify", "--draw", 12, "--seed", 3, "--inside", table))
        self.assertEqual(dict(line.split("\t") for line in result.stdout.splitlines())["passed"], "12")
        one = self.expect(GOOD, msa("verify", "--draw", 12, "--seed", 3, "--part", "2/6"))
        self.assertTrue(one.stdout.startswith("run\t2\n"), one.stdout)
        self.expect(USAGE, msa("verify", "--inside", table, "--case", f"op=dense {SMALL}"), "--inside")
        self.expect(USAGE, msa("verify", "--draw", 0), "--draw")
        self.expect(BAD_INPUT, msa("verify", "--draw", 1, "--inside", self.path("none.txt")), "none.txt")

    def test_every_isa(self):
        for isa in isas_of_cpu():
            result = msa("verify", "--backend", "cpu", "--isa", isa["name"], "--case", f"op=dense {SMALL}")
            self.expect(GOOD if isa["available"] else NO_BACKEND, result)


class Files(CliTest):
    """make, run, verify OP, show: one after the other on files."""

    def make(self, case, name="in"):
        return self.expect(GOOD, msa("make", case, self.path(name))).stdout.split()

    def run_made(self, command):
        self.assertEqual(command[0], "msa")
        return self.expect(GOOD, msa(*[self.path("out") if w == "result.safetensors" else w for w in command[1:]]))

    def settings(self, command):
        return command[command.index("result.safetensors") + 1:]

    def test_made_problems_run_and_verify(self):
        for case in ("op=dense heads=4/2 dim=32 lens=9:40,3:33 causal=0 scale=0.25 strides=padded",
                     "op=scores heads=2/2 dim=32 block=16 lens=9:40 page=16 layout=head_major",
                     "op=select heads=2/2 dim=32 block=16 topk=2 init=1 lens=9:90,0:7 pool=200 strides=transposed",
                     "op=sparse heads=4/2 dim=32 block=16 topk=6 lens=9:96:380@288/384,9:96:380@192/384",
                     "op=dense heads=4/2 dim=32 lens=9:40,3:33 kv=e4m3/head",
                     "op=sparse heads=4/2 dim=32 block=16 topk=3 lens=9:90,4:40 kv=e4m3/token hostile=nan",
                     "op=msa heads=4/2 dim=32 block=16 topk=2 lens=9:90 page=16 kv=e4m3/page strides=broadcast",
                     "op=select heads=2/2 dim=32 block=16 topk=2 lens=9:90,0:7 page=16 index_k=e4m3/page strides=padded",
                     "op=select filter=1 rotated=1 heads=2/2 dim=32 block=16 topk=2 lens=9:90 page=16",
                     "op=msa dtype=f16 heads=4/2 dim=32 block=16 topk=2 lens=9:90:70 page=16 layout=packed hostile=nan"):
            with self.subTest(case=case):
                command = self.make(case)
                tensors, metadata = st.read(self.path("in"))
                self.assertEqual(metadata["msa.case"].split()[0], case.split()[0])
                self.assertIn("seqlens_k", tensors)
                self.run_made(command)
                result = self.expect(GOOD, msa("verify", command[2], self.path("in"), self.path("out"),
                                               *self.settings(command)))
                found = dict(line.split("\t") for line in result.stdout.splitlines())
                self.assertEqual(found["rows"], found["compared"])
                self.assertLessEqual(float(found["share_of_tolerance"]), 1)

    def test_a_scale_is_never_ignored(self):
        command = self.make("op=dense heads=4/2 dim=32 lens=9:40 kv=e4m3/head")
        self.run_made(command)
        tensors, metadata = st.read(self.path("in"))
        self.assertEqual([tensors[name][0] for name in ("k", "v", "k_scale")], ["F8_E4M3", "F8_E4M3", "F32"])
        for name in ("k_scale", "v_scale"):
            changed = {**tensors, name: ("F32", [2], [2 * x for x in tensors[name][2]])}
            st.write(self.path("changed"), changed, metadata)
            self.expect(FAILED, msa("verify", command[2], self.path("changed"), self.path("out"),
                                    *self.settings(command)), "FAILED")
            del changed[name]
            st.write(self.path("changed"), changed, metadata)
            self.expect(BAD_INPUT, msa("run", "dense", self.path("changed"), self.path("new")), "v_scale")

    def test_made_tensors_are_those_of_the_case(self):
        self.make("op=dense heads=2/1 dim=16 lens=3:20 regime=integers dtype=f32", "plain")
        self.make("op=dense heads=2/1 dim=16 lens=3:20 regime=integers dtype=f32 strides=padded layout=packed", "other")
        plain, other = st.read(self.path("plain"))[0], st.read(self.path("other"))[0]
        self.assertEqual(plain, other)
        self.assertEqual(plain["q"][:2], ("F32", [3, 2, 16]))
        self.assertTrue(all(x == int(x) and abs(x) <= 2 for x in plain["q"][2]))

    def test_make_refuses(self):
        for case, text in [("op=dance", "dance"), ("op=topk", "expected dense"), ("op=dense|sparse", "one case"),
                           ("op=dense corrupt=page_end page=16", "corrupt"), ("op=dense pool=3", "pool")]:
            self.expect(USAGE, msa("make", case, self.path("in")), text)
        self.expect(FAILED, msa("make", "op=dense heads=1/1 dim=16 lens=1:1", self.path("no/folder")))
        self.assertEqual(os.listdir(self.folder), [])

    def spoil(self, name, change):
        tensors, metadata = st.read(self.path("out"))
        dtype, shape, values = tensors[name]
        tensors[name] = (dtype, shape, change(values))
        st.write(self.path("spoilt"), tensors, metadata)

    def test_verify_sees_what_is_wrong(self):
        command = self.make("op=msa heads=4/2 dim=32 block=16 topk=2 lens=9:90")
        self.run_made(command)
        settings = self.settings(command)
        verify = lambda: msa("verify", "msa", self.path("in"), self.path("spoilt"), *settings)
        self.spoil("out", lambda v: v)
        self.expect(GOOD, verify())
        self.spoil("out", lambda v: v[:77] + [v[77] + 0.1] + v[78:])
        self.expect(FAILED, verify(), "FAILED: out[0, 2, 13]")
        self.spoil("lse", lambda v: v[:5] + [v[5] + 1e-3] + v[6:])
        self.expect(FAILED, verify(), "FAILED: lse[1, 1]")
        self.spoil("block_ids", lambda v: v[:4] + v[5:6] + v[4:5] + v[6:])
        self.expect(FAILED, verify(), "block_ids[1, 0")
        self.spoil("block_ids", lambda v: [2**31 - 1] + v[1:])
        self.expect(FAILED, verify(), "block_ids[0, 0")

    def test_verify_refuses(self):
        st.write(self.path("in"), problem())
        inputs = self.path("in")
        self.expect(USAGE, msa("verify", "dense"), "expected files")
        self.expect(BAD_INPUT, msa("verify", "dense", inputs), "dense needs the tensor 'out'")
        self.expect(BAD_INPUT, msa("verify", "select", inputs), "select needs the tensor 'block_ids'")
        self.expect(GOOD, msa("run", "dense", inputs, self.path("out")))
        out = self.path("out")
        self.expect(GOOD, msa("verify", "dense", inputs, out))
        self.expect(BAD_INPUT, msa("verify", "dense", inputs, out, out), "stands in")
        self.expect(USAGE, msa("verify", "dense", inputs, out, "--repeats", 3), "--repeats")
        self.expect(USAGE, msa("verify", "--case", "op=dense", "--topk", 3), "--topk")
        self.expect(USAGE, msa("verify", "dense", inputs, out, "--block-size", 17), "block_size")
        tensors, _ = st.read(out)
        st.write(self.path("bad"), {**tensors, "out": ("F32", [5, 1, 16], [0.0] * 80)})
        self.expect(BAD_INPUT, msa("verify", "dense", inputs, self.path("bad")), "out")
        st.write(self.path("bad"), {**tensors, "outs": ("F32", [1], [0.0])})
        self.expect(BAD_INPUT, msa("verify", "dense", inputs, self.path("bad")), "'outs' is not known", "block_scores")
        lengths = {"cu_seqlens_q": ("I32", [2], [0, 6]), "seqlens_k": ("I32", [1], [70])}
        st.write(self.path("in"), {**problem(), **lengths})
        self.expect(BAD_INPUT, msa("verify", "dense", inputs, out), "cu_seqlens_q")

    def test_show(self):
        ids = [0, 1, -1] * 2 + [0, 2, 3] + [0, 1, 2]  # [T=2, H=2, k=3]
        st.write(self.path("in"), {"block_ids": ("I32", [2, 2, 3], ids)})
        page = self.path("page.html")
        result = self.expect(GOOD, msa("show", self.path("in"), page, "--block-size", 16))
        found = dict(line.split("\t") for line in result.stdout.splitlines())
        self.assertEqual(found, {"queries": "2", "heads": "2", "slots": "3", "blocks": "4", "listed": "2.50",
                                 "listed_before_too": "0.500", "blocks_per_8": "0.00", "holds_block_0": "1.000",
                                 "page": page})
        with open(page) as f:
            html = f.read()
        for word in ("<canvas id=\"map\" width=\"4\" height=\"2\"", "prefers-color-scheme", "All 2 heads"):
            self.assertIn(word, html)
        for outside in ("http://", "https://", "src=", "<link", "@import"):
            self.assertNotIn(outside, html)
        one = self.expect(GOOD, msa("show", self.path("in"), page, "--head", 1)).stdout
        self.assertIn("listed_before_too\t0.667\n", one)

    def test_show_cells(self):
        """Two queries, two blocks: each cell of the picture is its query's choice."""
        st.write(self.path("in"), {"block_ids": ("I32", [2, 1, 2], [0, -1, 1, -1])})
        self.expect(GOOD, msa("show", self.path("in"), self.path("page.html")))
        with open(self.path("page.html")) as f:
            cells = f.read().split('data-cells="')[1].split('"')[0]
        self.assertEqual(base64.b64decode(cells), bytes([255, 0, 0, 255]))

    def test_show_refuses(self):
        def refuse(tensors, text, *options, code=BAD_INPUT):
            st.write(self.path("in"), tensors)
            self.expect(code, msa("show", self.path("in"), self.path("page.html"), *options), text)
            self.assertFalse(os.path.exists(self.path("page.html")))
        good = ("I32", [2, 1, 2], [0, -1, 1, -1])
        refuse({}, "block_ids")
        refuse({"block_ids": ("I64", [2, 1, 2], [0, -1, 1, -1])}, "i32")
        refuse({"block_ids": ("I32", [4], [0, -1, 1, -1])}, "rank of 3")
        refuse({"block_ids": ("I32", [1, 1, 2], [-1, 0])}, "no list holds an id")
        refuse({"block_ids": ("I32", [1, 1, 2], [0, -5])}, "-5")
        refuse({"block_ids": good}, "--head", "--head", 1, code=USAGE)
        refuse({"block_ids": good}, "--request", "--request", 1, code=USAGE)
        refuse({"block_ids": good, "cu_seqlens_q": ("I32", [2], [0, 3])}, "cu_seqlens_q")
        refuse({"block_ids": good, "cu_seqlens_q": ("I32", [2], [2, 0])}, "cu_seqlens_q")


class Bench(CliTest):
    def bench(self, *options, code=GOOD, case=f"op=dense {SMALL}"):
        return self.expect(code, msa("bench", "--case", case, "--repeat", 2, "--min-time", 0, *options))

    def test_rows(self):
        lines = self.expect(GOOD, msa("bench", "--list")).stdout.splitlines()
        ids = {line.split("\t")[0].replace("cpu.host.", "cpu.") for line in lines[1:]}
        for row in ("cpu.dense.8k", "cpu.select.32k", "cpu.sparse.32k.drift", "cpu.sparse.32k.random", "cpu.msa.32k.drift",
                    "cpu.decode.dense.128k", "cpu.decode.msa.1m", "cpu.decode.e4m3", "cpu.select.e4m3.32k",
                    "cpu.decode.q8kv4.1m", "cpu.dense.8k.avx2", "cpu.memory.128k", "cpu.nan.8k", "cpu.backward.8k"):
            self.assertIn(row, ids)
        self.expect(USAGE, msa("bench", "--filter", "no.such.row"))
        several = self.bench("--case", f"op=sparse {SMALL}")
        self.assertIn("2 rows: at least 0 s", several.stderr)
        self.assertEqual(len(several.stdout.splitlines()), 3)
        self.assertNotIn("rows:", self.bench().stderr)
        self.expect(USAGE, msa("bench", "--case", "op=dance"))

    def test_tsv_and_json(self):
        header, line = self.bench("--json", self.path("out.json"), "--roofline").stdout.splitlines()
        row = dict(zip(header.split("\t"), line.split("\t")))
        self.assertEqual((row["op"], row["backend"], row["verified"]), ("dense", "cpu", "yes"))
        with open(self.path("out.json")) as f:
            doc = json.load(f)
        self.assertEqual(set(doc), {"machine", "peaks", "commit", "version", "command", "date", "rows"})
        self.assertGreater(doc["peaks"]["read_bytes_per_s"], 0)
        (found,) = doc["rows"]
        self.assertTrue(found["verified"])
        self.assertLessEqual(found["spread"][0], found["seconds"])
        self.assertLessEqual(found["seconds"], found["spread"][1])
        for absent in ("ratio", "peer", "bytes", "blocks_per_8", "recall"):
            self.assertNotIn(absent, found)

    def test_baseline(self):
        self.bench("--json", self.path("now.json"))
        with open(self.path("now.json")) as f:
            doc = json.load(f)
        def against(seconds, **machine):
            changed = {**doc, "machine": {**doc["machine"], **machine}, "rows": [{**doc["rows"][0], "seconds": seconds}]}
            with open(self.path("base.json"), "w") as f:
                json.dump(changed, f)
            return "--baseline", self.path("base.json")
        self.bench(*against(1e6))
        self.expect(FAILED, self.bench(*against(1e-9), code=FAILED), "regression")
        self.expect(BAD_INPUT, self.bench(*against(1, cpu="abacus"), code=BAD_INPUT), "abacus")
        with open(self.path("base.json"), "w") as f:
            f.write("[]")
        self.bench("--baseline", self.path("base.json"), code=BAD_INPUT)
        self.bench("--baseline", self.path("none.json"), code=BAD_INPUT)

    def test_json_that_cannot_be_written(self):
        self.bench("--json", self.path("no/such/folder.json"), code=FAILED)

    def test_on_demand(self):
        result = subprocess.run([MSA, "bench", "--case", f"op=dense {SMALL}", "--on-demand"], input="run\nrun\n",
                                capture_output=True, text=True, timeout=120)
        self.expect(GOOD, result)
        ready, *seconds = result.stdout.splitlines()
        self.assertTrue(ready.startswith("ready\tcpu\t"))
        self.assertEqual(len(seconds), 2)
        self.assertTrue(all(float(s) > 0 for s in seconds))


class Demo(CliTest):
    def test_page(self):
        page = self.path("folder/page.html")
        result = self.expect(GOOD, msa("demo", "--backend", "cpu", "--tokens", 4096, "--heads", "2/1", "--out", page))
        self.assertIn("needles found\t24 of 24", result.stdout)
        with open(page) as f:
            html = f.read()
        for word in ("<canvas", "<svg", "prefers-color-scheme", "verified"):
            self.assertIn(word, html)
        for outside in ("http://", "https://", "src=", "<link", "@import"):
            self.assertNotIn(outside, html)

    def test_usage(self):
        for options in [("--heads", "3/2"), ("--heads", "two"), ("--tokens", 100), ("--backend", "abacus")]:
            self.expect(USAGE, msa("demo", *options, "--out", self.path("page.html")))

    def test_backend(self):
        small = ("--tokens", 4096, "--heads", "1/1", "--out", self.path("page.html"))
        result = self.expect(GOOD, msa("demo", "--backend", "cpu", *small))
        self.assertIn("backend\tcpu\n", result.stdout)
        there = {b["name"] for b in json.loads(msa("info", "--json").stdout)["backends"] if b["available"]}
        if "cuda" in there:
            return
        self.expect(NO_BACKEND, msa("demo", "--backend", "cuda", *small), "cuda")
        self.assertIn("backend\tcpu\n", self.expect(GOOD, msa("demo", *small, env={"MSA_BACKEND": ""})).stdout)


if __name__ == "__main__":
    MSA = os.path.abspath(sys.argv.pop(1))
    unittest.main()
