# SPDX-License-Identifier: MIT
"""Every public function against everything that callers get wrong: the class, the argument's name, the words, and that
outputs stay as they were.
"""
from __future__ import annotations

import pickle
import threading

import arrays
import numpy as np
import pytest

import msa
from msa import _core

T, N, HQ, HKV, DIM, K = 3, 64, 4, 2, 16, 2


def good(op):
    """Inputs and outputs of a small legal call."""
    floats = {"q": (T, HQ, DIM), "k": (N, HKV, DIM), "v": (N, HKV, DIM), "index_q": (T, HKV, DIM),
              "index_k": (N, 1, DIM), "scores": (T, HKV, 4), "out": (T, HQ, DIM), "lse": (T, HQ),
              "block_max": (T, HQ, 4), "k_rows": (T, HKV, DIM), "v_rows": (T, HKV, DIM), "k_cache": (T, HKV, DIM),
              "v_cache": (T, HKV, DIM), "index_k8_bounds": (N // 16, 1, 3),
              "chosen_scores": (T, HKV, K), "dout": (T, HQ, DIM), "dlse": (T, HQ), "dq": (T, HQ, DIM),
              "dk": (N, HKV, DIM), "dv": (N, HKV, DIM), "row_weight": (T,), "loss": (T, HKV),
              "d_index_q": (T, HKV, DIM), "d_index_k": (N, 1, DIM)}
    ints = {"block_ids": (T, HKV, K), "candidates": (T, HKV), "row_ptr": (HKV, 5), "q_indices": (HKV, T * K),
            "q_slots": (HKV, T * K)}
    given = {}
    for name, role, parts, _, _ in _core.fields()[op]:
        if parts:
            kind = {"outs": (np.float32, (T, HQ, DIM)), "lses": (np.float32, (T, HQ)),
                    "block_ids_parts": (np.int32, (T, HKV, K)), "chosen_scores_parts": (np.float32, (T, HKV, K))}[name]
            given[name] = [np.zeros(kind[1], kind[0]), np.zeros(kind[1], kind[0])]
            if name == "block_ids_parts":
                given[name][0][:] = [0, 1]
                given[name][1][:] = [2, 3]
        elif name == "index_k8":
            given[name] = np.zeros((N, 1, DIM), np.int8)
        elif name in floats:
            given[name] = np.zeros(floats[name], np.float32)
        elif name in ints:
            given[name] = np.zeros(ints[name], np.int32)
            given[name][...] = np.arange(ints[name][-1]) if name == "block_ids" and role < 2 else 5
    # Rows that are stored one by one have no batch.
    if "seqlens_k" in [row[0] for row in _core.fields()[op]] and op != "quantize_kv":
        given["seqlens_k"] = np.array([N], np.int32)
        more = {"block_size": 16, "max_seqlen_q": T, "max_seqlen_k": N}
        given |= {name: value for name, value in more.items() if name in _core.settings()[op]}
    if "topk" in _core.settings()[op]:
        given["topk"] = K
    return given


OPS = list(_core.fields())
INPUTS = [(op, row[0]) for op in OPS for row in _core.fields()[op]
          if row[1] < 2 and row[0] in good(op) and row[0] != "seqlens_k" and not row[2]]
OUTPUTS = [(op, row[0]) for op in OPS for row in _core.fields()[op] if row[1] >= 2 and row[0] in good(op)]
TENSORS = INPUTS + OUTPUTS


def call(op, given):
    return getattr(msa, op)(**given)


def refused(op, given, error, argument, words):
    """The call fails in this way and writes nothing."""
    outputs = {row[0]: given[row[0]] for row in _core.fields()[op]
               if row[1] >= 2 and isinstance(given.get(row[0]), np.ndarray)}
    before = {name: array.copy() for name, array in outputs.items()}
    with pytest.raises(error) as caught:
        call(op, given)
    if argument is not None:
        assert caught.value.argument == argument
    assert words in str(caught.value)
    for name, array in outputs.items():
        assert np.array_equal(array, before[name])


@pytest.mark.parametrize("op", OPS)
def test_the_good_call_is_good(op):
    call(op, good(op))


@pytest.mark.parametrize("op,name", TENSORS)
@pytest.mark.parametrize("wrong", ["text", 3.5, object(), {}, b"bytes", len], ids=lambda x: type(x).__name__)
def test_wrong_object(op, name, wrong):
    given = good(op) | {name: wrong}
    with pytest.raises(TypeError, match=f"^{name}: expected an array, got"):
        call(op, given)


def floats(pairs):
    return [(op, name) for op, name in pairs if good(op)[name].dtype == np.float32]


DTYPES = [(op, name, dtype) for op, name in TENSORS
          for dtype in (np.float64, np.int64, np.int16, np.complex64, np.bool_, np.uint16)]


@pytest.mark.parametrize("op,name,dtype", [*DTYPES, *((op, name, ">f4") for op, name in floats(TENSORS))])
def test_wrong_dtype(op, name, dtype):
    given = good(op)
    given[name] = given[name].astype(dtype)
    # Where the tensor tells the problem a format, the format is at fault.
    told = {"out": "out_dtype", "dq": "gradients.dtype", "d_index_q": "gradients.dtype"}
    expected = told.get(name, name) if dtype == np.int64 else name
    refused(op, given, msa.InvalidArgument, expected, expected)


@pytest.mark.parametrize("op,name", TENSORS)
def test_wrong_rank_and_shape(op, name):
    given = good(op)
    array = given[name]
    for wrong in (np.asarray(array[0]), array.reshape(1, 1, 1, *array.shape), np.zeros((), array.dtype)):
        refused(op, given | {name: wrong}, msa.InvalidArgument, None, "expected")
    if name not in ("k", "v", "index_k", "scores", "block_max", "row_ptr", "q_indices", "q_slots"):
        wider = np.zeros((array.shape[0] + 1, *array.shape[1:]), array.dtype)
        if (op, name) not in INPUTS or len([r for r in INPUTS if r[0] == op]) > 1:
            refused(op, given | {name: wider}, msa.Error, None, "expected")


@pytest.mark.parametrize("op,name", OUTPUTS)
def test_read_only_output(op, name):
    given = good(op)
    given[name].flags.writeable = False
    refused(op, given, msa.InvalidArgument, name, "read-only")


@pytest.mark.parametrize("op,name", INPUTS)
def test_read_only_input_is_fine(op, name):
    given = good(op)
    given[name].flags.writeable = False
    call(op, given)


@pytest.mark.parametrize("op,name", TENSORS)
def test_negative_strides(op, name):
    given = good(op)
    given[name] = given[name][::-1]
    refused(op, given, msa.InvalidArgument, name, "stride")


def source_of(op, name):
    """An input that the output can lie over."""
    given = good(op)
    return next((row[0] for row in _core.fields()[op] if (op, row[0]) in INPUTS
                 and given[row[0]].dtype == given[name].dtype and given[row[0]].nbytes >= given[name].nbytes), None)


@pytest.mark.parametrize("op,name", [(op, name) for op, name in OUTPUTS if source_of(op, name)])
def test_output_that_overlaps_an_input(op, name):
    given = good(op)
    source = source_of(op, name)
    given[name] = given[source].reshape(-1)[:given[name].size].reshape(given[name].shape)
    refused(op, given, msa.InvalidArgument, None, "overlap")


@pytest.mark.parametrize("op,name", TENSORS)
def test_broken_producers(op, name):
    given = good(op)

    class Used:
        """Hands out the same capsule, renamed as a consumer would."""

        def __dlpack__(self, **keywords):
            return np.zeros(1).__dlpack_device__  # no capsule at all

        def __dlpack_device__(self):
            return (1, 0)

    refused(op, given | {name: Used()}, msa.InvalidArgument, name, "capsule")

    class Fails(Used):
        def __dlpack__(self, **keywords):
            raise BufferError("it is gone")

    refused(op, given | {name: Fails()}, msa.InvalidArgument, name, "it is gone")

    class Interrupts(Used):
        def __dlpack__(self, **keywords):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(op, given | {name: Interrupts()})


@pytest.mark.parametrize("op,name", TENSORS)
def test_dead_capsule(op, name):
    torch = pytest.importorskip("torch")
    given = good(op)

    class Dead:
        """Its capsule was consumed before."""

        def __init__(self, array):
            self.capsule = torch.from_numpy(array).__dlpack__()
            torch.from_dlpack(self.capsule)

        def __dlpack__(self, **keywords):
            return self.capsule

        def __dlpack_device__(self):
            return (1, 0)

    refused(op, given | {name: Dead(given[name].copy())}, msa.InvalidArgument, name, "used before")


@pytest.mark.parametrize("op,name", floats(INPUTS))
def test_gradients_are_refused_where_they_would_be_lost(op, name):
    torch = pytest.importorskip("torch")
    given = good(op)
    given[name] = torch.zeros(given[name].shape, requires_grad=True)
    refused(op, given, msa.InvalidArgument, name, "gradient")
    with torch.no_grad():
        call(op, given)


@pytest.mark.parametrize("kind", ["meta", "fake", "sparse", "functional"])
def test_tensors_without_memory(kind):
    torch = pytest.importorskip("torch")
    given = good("dense_attention")
    q = torch.zeros(given["q"].shape)
    if kind == "meta":
        q = q.to("meta")
    elif kind == "fake":
        from torch._subclasses.fake_tensor import FakeTensorMode
        q = FakeTensorMode().from_tensor(q)
    elif kind == "sparse":
        q = q.to_sparse()
    else:
        q = torch._to_functional_tensor(q)
    refused("dense_attention", given | {"q": q}, msa.InvalidArgument, "q", "q: ")


def test_negated_views_are_not_read_as_they_lie():
    """The imaginary part of a conjugate is a view whose sign is a flag."""
    torch = pytest.importorskip("torch")
    scores = torch.complex(torch.zeros(1, 1, 4), torch.tensor([[[4.0, 3.0, 2.0, 1.0]]])).conj().imag
    assert scores.is_neg()
    given = {"scores": scores, "seqlens_k": torch.tensor([64], dtype=torch.int32), "topk": 1, "local_blocks": 0,
             "block_size": 16, "max_seqlen_q": 1, "max_seqlen_k": 64}
    try:
        ids = call("select_topk", given)
    except msa.InvalidArgument as error:
        assert error.argument == "scores"
    else:
        assert ids.tolist() == [[[3]]]


NUMBERS = [("block_size", 17), ("block_size", 0), ("topk", 0), ("topk", 257), ("local_blocks", -1), ("local_blocks", 9),
           ("init_blocks", 9), ("softmax_scale", float("nan")), ("max_seqlen_k", -7), ("max_seqlen_q", 1 << 40),
           ("backend", "gpu3"), ("isa", "sse9"), ("threads", -1), ("threads", 1 << 40), ("block_size", 1 << 80),
           ("out_dtype", "i32"), ("out_dtype", "nothing")]
WRONG_NUMBERS = [("block_size", "128"), ("block_size", 128.0), ("block_size", True), ("causal", 1), ("causal", "yes"),
                 ("softmax_scale", "1"), ("backend", 3), ("threads", None), ("batch_invariant", 0)]


def takers(rows):
    return [(op, name, value) for op in OPS for name, value in rows
            if name in _core.settings()[op] or (name == "out_dtype" and (op, "out") in OUTPUTS)]


@pytest.mark.parametrize("op,name,value", takers(NUMBERS))
def test_numbers_out_of_range(op, name, value):
    given = good(op)
    given[name] = value
    if name == "topk":
        del given["block_ids"]  # whose width would tell
    refused(op, given, msa.Error, None, "")


@pytest.mark.parametrize("op,name,value", takers(WRONG_NUMBERS))
def test_numbers_of_the_wrong_type(op, name, value):
    if value is None:
        call(op, good(op) | {name: value})  # the same as left out
        return
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        call(op, good(op) | {name: value})


@pytest.mark.parametrize("op", OPS)
def test_calls_of_the_wrong_form(op):
    given, function = good(op), getattr(_core, op)
    first = next(iter(given))
    with pytest.raises(TypeError, match="takes no argument 'colour'"):
        function(**given, colour=1)
    with pytest.raises(TypeError, match="takes at most"):
        function(*[None] * 60)
    with pytest.raises(TypeError, match=f"two values for '{first}'"):
        function(given[first], **given)
    rest = {name: value for name, value in given.items() if name != first}
    with pytest.raises(TypeError, match=f"needs '{first}'"):
        function(**rest)


@pytest.mark.parametrize("name,values", [
    ("seqlens_k", [N + 1]), ("seqlens_k", [-1]), ("cu_seqlens_q", [0, T + 1]), ("cu_seqlens_q", [1, T]),
    ("q_offsets", [-(1 << 31)]), ("key_offsets", [3])])
def test_contents_of_index_tensors(name, values):
    given = good("sparse_attention") | {name: np.array(values, np.int32)}
    del given["max_seqlen_q"], given["max_seqlen_k"]
    try:
        call("sparse_attention", given)
    except msa.Error as error:
        assert error.argument.startswith(name) and not str(error).startswith("batch.")
        refused("sparse_attention", given, msa.Error, None, name)
    else:
        assert name == "q_offsets"  # everything is hidden, which is legal


@pytest.mark.parametrize("ids", [[4, 5], [-2, 0], [0, 0]])
def test_block_ids_out_of_range(ids):
    given = good("sparse_attention")
    given["block_ids"][0, 0] = ids
    refused("sparse_attention", given, msa.InvalidContent, "block_ids", "block")


def test_parts():
    given = good("merge_states")
    for wrong in ([], given["outs"] * 33, given["outs"][:1]):
        refused("merge_states", given | {"outs": wrong}, msa.InvalidArgument, None, "parts")
    with pytest.raises(TypeError, match=r"^outs\[1\]: expected an array, got NoneType"):
        call("merge_states", given | {"outs": [given["outs"][0], None]})

    class Shrinks:
        """Empties the list that it lies in while it is read."""

        def __init__(self, parts):
            self.parts, self.array = parts, np.ones((T, HQ, DIM), np.float32)

        def __dlpack__(self, **keywords):
            self.parts.clear()
            return self.array.__dlpack__(**keywords)

        def __dlpack_device__(self):
            return (1, 0)

    parts = []
    parts += [Shrinks(parts), np.ones((T, HQ, DIM), np.float32)]
    np.testing.assert_array_equal(call("merge_states", given | {"outs": parts}).out, 1)


def test_foreign_plan_and_workspace():
    given = good("dense_attention")
    plan = msa.make_plan("dense_attention", **{name: given[name] for name in ("q", "k", "v", "block_size")})
    q, k, v = given["q"], given["k"], given["v"]
    with pytest.raises(TypeError, match="run.. takes no argument 'block_ids'"):
        plan.run(q, k, v, block_ids=k)
    with pytest.raises(msa.InvalidArgument):
        plan.run(q[..., :8], k, v)
    with pytest.raises(msa.InvalidArgument, match="lse"):
        plan.run(q, k, v, lse=np.zeros((T, HQ), np.float32))
    if plan.workspace_bytes:
        with pytest.raises(msa.WorkspaceError):
            plan.run(q, k, v, workspace=np.zeros(8, np.uint8))
        with pytest.raises(msa.InvalidArgument, match="contiguous"):
            plan.run(q, k, v, workspace=np.zeros((plan.workspace_bytes, 2), np.uint8)[:, 0])
        frozen = np.zeros(plan.workspace_bytes + 256, np.uint8)
        frozen.flags.writeable = False
        with pytest.raises(msa.InvalidArgument, match="read-only"):
            plan.run(q, k, v, workspace=frozen)
    with pytest.raises(TypeError, match="workspace: expected an array"):
        plan.run(q, k, v, workspace=17)
    with pytest.raises(TypeError, match="^plan: expected a Plan"):
        msa.check(17, None)
    with pytest.raises(TypeError, match="process"):
        pickle.dumps(plan)
    with pytest.raises(TypeError):
        msa.Plan()
    for wrong in ("attention", 3):
        with pytest.raises((msa.InvalidArgument, TypeError), match="^op: expected"):
            msa.make_plan(wrong)
    with pytest.raises(TypeError, match="takes no argument 'colour'"):
        msa.make_plan("dense_attention", colour=1)
    with pytest.raises(msa.InvalidArgument, match="^device: expected"):
        msa.make_plan("dense_attention", device="tpu")


def test_streams_that_are_none():
    given = good("dense_attention")
    with pytest.raises(TypeError, match="^stream: expected"):
        call("dense_attention", given | {"stream": "first"})
    call("dense_attention", given | {"stream": 0})


def test_errors_are_of_two_families_and_travel():
    families = {msa.InvalidArgument: ValueError, msa.InvalidContent: ValueError, msa.WorkspaceError: ValueError,
                msa.Unsupported: RuntimeError, msa.DeviceError: RuntimeError, msa.InternalError: RuntimeError,
                msa.OutOfMemory: MemoryError}
    for kind, family in families.items():
        error = pickle.loads(pickle.dumps(kind("words", "k")))
        assert isinstance(error, family) and isinstance(error, msa.Error)
        assert (str(error), error.argument, error.code) == ("words", "k", kind.code)


def test_unknown_libraries_need_outputs():
    q = arrays.Capsule(np.zeros((1, 1, 16), np.float32))
    with pytest.raises(msa.InvalidArgument, match="does not allocate"):
        msa.dense_attention(q, q, q)


@pytest.mark.seconds(20)
def test_a_hundred_threads():
    """Each has its own data; plans are shared, results are its own."""
    failures = []

    def work(seed):
        try:
            rng = np.random.default_rng(seed)
            kv = rng.standard_normal((20 + seed % 7, 1, 16)).astype(np.float32)
            q = rng.standard_normal((2, 1, 16)).astype(np.float32)
            first = msa.dense_attention(q, kv, kv, threads=1)
            for _ in range(20):
                assert np.array_equal(msa.dense_attention(q, kv, kv, threads=1), first)
                with pytest.raises(msa.InvalidArgument):
                    msa.dense_attention(q, kv, kv[:-1], threads=1)
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
