# SPDX-License-Identifier: MIT
"""Makes and reads safetensors files for the tests, standard library only; also files that lie in every way we know."""
import json
import struct

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1, "I32": 4, "I64": 8}
CODES = {"F32": "f", "I32": "i", "I64": "q", "F16": "e", "F8_E4M3": "B", "I8": "b"}  # F8_E4M3: its codes


def bf16(value):
    """The upper half of the float, rounded to nearest even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def pack(dtype, values):
    if dtype == "BF16":
        return struct.pack(f"<{len(values)}H", *(bf16(v) for v in values))
    return struct.pack(f"<{len(values)}{CODES[dtype]}", *values)


def unpack(dtype, data):
    if dtype == "BF16":
        bits = struct.unpack(f"<{len(data) // 2}H", data)
        return [struct.unpack("<f", struct.pack("<I", b << 16))[0] for b in bits]
    return list(struct.unpack(f"<{len(data) // SIZES[dtype]}{CODES[dtype]}", data))


def product(shape):
    n = 1
    for extent in shape:
        n *= extent
    return n


def write(path, tensors, metadata=None):
    """tensors: {name: (dtype, shape, values)}"""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, values) in tensors.items():
        assert product(shape) == len(values), name
        packed = pack(dtype, values)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    raw(path, json.dumps(header), data)


def raw(path, header, data=b"", length=None):
    """Writes whatever it is told to: a header text, bytes behind it, and a length that may lie."""
    text = header if isinstance(header, bytes) else header.encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text) if length is None else length) + text + data)


def read(path):
    """{name: (dtype, shape, values)}, metadata"""
    with open(path, "rb") as f:
        blob = f.read()
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8:8 + length])
    metadata = header.pop("__metadata__", {})
    data = blob[8 + length:]
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        out[name] = (entry["dtype"], entry["shape"], unpack(entry["dtype"], data[begin:end]))
    return out, metadata


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)})


def hostile():
    """(name, text that the message must hold, header, data, length): files that must be refused."""
    d8 = b"\0" * 8
    big = 2**63
    return [
        ("length_past_end", "header of 1000 bytes", "{}", b"", 1000),
        ("length_huge", "at most 104857600", "{}", b"", 2**63),
        ("length_above_cap", "at most 104857600", "{}", b"", 104857601),
        ("length_all_ones", "at most 104857600", "{}", b"", 2**64 - 1),
        ("empty_header", "begin with '{'", "", b"", None),
        ("array_header", "begin with '{'", "[]", b"", None),
        ("leading_space", "begin with '{'", " {}", b"", None),
        ("not_json", "not JSON", "{\"q\": ", b"", None),
        ("trailing_garbage", "not JSON", "{} x", b"", None),
        ("two_values", "not JSON", "{}{}", b"", None),
        ("bad_utf8", "not JSON", b"{\"\xff\xfe\": 1}", b"", None),
        ("deep", "expected an object", "{\"q\": " + "[" * 100000 + "]" * 100000 + "}", b"", None),
        ("deep_objects", "expected the fields", "{\"q\": " + "{\"a\":" * 100000 + "1" + "}" * 100000 + "}", b"", None),
        ("nested_shape", "unsigned integer", '{"q": {"dtype": "F32", "shape": [[2]], "data_offsets": [0, 8]}}', d8, None),
        ("tensor_is_number", "'q': expected an object", '{"q": 3}', b"", None),
        ("tensor_is_null", "'q': expected an object", '{"q": null}', b"", None),
        ("no_dtype", "'q': has no dtype", '{"q": {"shape": [2], "data_offsets": [0, 8]}}', d8, None),
        ("no_shape", "'q': has no shape", '{"q": {"dtype": "F32", "data_offsets": [0, 8]}}', d8, None),
        ("no_offsets", "'q': has no data_offsets", '{"q": {"dtype": "F32", "shape": [2]}}', d8, None),
        ("other_field", "got 'strides'", '{"q": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "strides": [1]}}', d8, None),
        ("dtype_unknown", "got 'F64'", f'{{"q": {entry("F64", (1,))}}}', d8, None),
        ("dtype_number", "dtype to be a string", '{"q": {"dtype": 7, "shape": [2], "data_offsets": [0, 8]}}', d8, None),
        ("shape_negative", "negative number -2", f'{{"q": {entry(shape=(-2,))}}}', d8, None),
        ("shape_float", "2.0", f'{{"q": {entry(shape=(2.0,))}}}', d8, None),
        ("shape_exponent", "1e0", '{"q": {"dtype": "F32", "shape": [1e0], "data_offsets": [0, 4]}}', d8[:4], None),
        ("shape_string", "unsigned integer", '{"q": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}', d8, None),
        ("shape_above_int64", "2^63 - 1", f'{{"q": {entry(shape=(2**63,))}}}', d8, None),
        ("shape_above_uint64", "unsigned integer", f'{{"q": {entry(shape=(2**64,))}}}', d8, None),
        ("shape_rank", "rank of at most 8", f'{{"q": {entry(shape=(1,) * 9, offsets=(0, 4))}}}', d8[:4], None),
        # 2^32 * 2^32 wraps to 0, 2^62 * 4 bytes too: both would pass a check of end - begin alone.
        ("shape_wraps_to_zero", "fits in memory", f'{{"q": {entry(shape=(2**32, 2**32), offsets=(0, 0))}}}', b"", None),
        ("bytes_wrap_to_zero", "fits in memory", f'{{"q": {entry(shape=(2**62,), offsets=(0, 0))}}}', b"", None),
        ("shape_wraps_to_8", "fits in memory", f'{{"q": {entry(shape=(2**63 - 1, 2**62 + 1), offsets=(0, 8))}}}', d8, None),
        ("zero_hides_overflow", "fits in memory", f'{{"q": {entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}}}', b"", None),
        ("offsets_one", "expected 2 data_offsets, got 1", '{"q": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}', d8, None),
        ("offsets_three", "expected 2 data_offsets, got more", f'{{"q": {entry(offsets=(0, 8, 8))}}}', d8, None),
        ("offsets_negative", "negative number", f'{{"q": {entry(offsets=(-8, 0))}}}', d8, None),
        ("offsets_past_end", "inside the 8 bytes", f'{{"q": {entry(shape=(3,), offsets=(0, 12))}}}', d8, None),
        ("offsets_far", "inside the 8 bytes", f'{{"q": {entry(offsets=(big, big + 8))}}}', d8, None),
        ("offsets_reversed", "inside the 8 bytes", f'{{"q": {entry(offsets=(8, 0))}}}', d8, None),
        ("offsets_wrap", "inside the 8 bytes", f'{{"q": {entry(offsets=(2**64 - 8, 0))}}}', d8, None),
        ("too_few_bytes", "expected 12 bytes for F32[3]", f'{{"q": {entry(shape=(3,))}}}', d8, None),
        ("too_many_bytes", "expected 4 bytes for F32[1]", f'{{"q": {entry(shape=(1,))}}}', d8, None),
        ("overlap", "'k': overlaps tensor 'q'", f'{{"q": {entry()}, "k": {entry(offsets=(4, 12))}}}', b"\0" * 12, None),
        ("same_range", "overlaps", f'{{"q": {entry()}, "k": {entry()}}}', d8, None),
        ("gap", "'k': leaves a gap behind tensor 'q'", f'{{"q": {entry()}, "k": {entry(offsets=(12, 20))}}}', b"\0" * 20, None),
        ("gap_at_start", "'q': leaves a gap behind the start", f'{{"q": {entry(offsets=(4, 12))}}}', b"\0" * 12, None),
        ("data_behind_last", "got 12 bytes of data", f'{{"q": {entry()}}}', b"\0" * 12, None),
        ("data_without_tensors", "got 8 bytes of data", "{}", d8, None),
        ("duplicate_name", "'q' stands twice", f'{{"q": {entry()}, "q": {entry(offsets=(8, 16))}}}', b"\0" * 16, None),
        ("duplicate_escaped", "'q' stands twice", f'{{"q": {entry()}, "\\u0071": {entry(offsets=(8, 16))}}}', b"\0" * 16, None),
        ("duplicate_field", "'dtype' stands twice", '{"q": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}', d8, None),
        ("duplicate_metadata", "'a' stands twice", '{"__metadata__": {"a": "1", "a": "2"}}', b"", None),
        ("duplicate_metadata_object", "stands twice", '{"__metadata__": {}, "__metadata__": {}}', b"", None),
        ("metadata_number", "metadata 'a' to be a string", '{"__metadata__": {"a": 1}}', b"", None),
        ("metadata_list", "__metadata__ to be an object", '{"__metadata__": []}', b"", None),
        ("control_bytes_in_name", "\\x1b[2J", '{"\\u001b[2J": 3}', b"", None),
    ]
