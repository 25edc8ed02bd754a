#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The wheel as strangers get it: what is in it, its tag, its size, and that it works where nothing else is installed.
#
# usage: wheel_test.sh WHEEL [--cuda]
set -eu
wheel=$(realpath "$1")
limit=1048576
[ "${2:-}" != --cuda ] || limit=8388608
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0
failed=0

check() { # NAME COMMAND...
  local name=$1
  shift
  if "$@" >"$work/log" 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED $name"
    sed 's/^/       /' "$work/log"
  fi
}

python3 -m zipfile -e "$wheel" "$work/files"
files=$work/files/msa
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-index --no-deps "$wheel"

alone() { # CODE: in an environment with neither numpy nor torch, without a compiler in reach
  env -i HOME="$work" PATH=/nowhere "$work/venv/bin/python" -I -c "$1"
}

one_size_fits() {
  # The tool is worth its bytes to who built it in; the limit is for the package itself.
  local size tool=0
  size=$(stat -c %s "$wheel")
  if [ -e "$files/bin/msa" ]; then
    tool=$(gzip -9 <"$files/bin/msa" | wc -c)
  fi
  echo "wheel of $size bytes, of which the tool $tool"
  [ $((size - tool)) -le "$limit" ]
}

hidden() {
  local names
  names=$(nm -D --defined-only "$files/_core.abi3.so" | awk '{print $3}')
  echo "$names"
  [ "$names" = PyInit__core ]
}

# Nothing newer than glibc 2.34 (manylinux_2_34), and libstdc++ of GCC 11.
tag() {
  local newest
  newest=$(objdump -T "$files"/*.so* | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
  echo "newest symbol $newest"
  [ "$(printf '%s\nGLIBC_2.34\n' "$newest" | sort -V | tail -n 1)" = GLIBC_2.34 ]
}

openmp() {
  readelf -d "$files/_core.abi3.so" | grep -Eq "(RPATH|RUNPATH).*\\\$ORIGIN" && [ -e "$files/libgomp.so.1" ] &&
    [ "$(readelf -d "$files/libgomp.so.1" | grep -c 'SONAME.*\[libgomp.so.1\]')" = 1 ]
}

stripped() {
  ! readelf -S "$files/_core.abi3.so" | grep -q '\.symtab\|\.debug'
}

own_openmp() {
  alone 'import msa; print({line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line})' |
    grep -q 'site-packages/msa/libgomp.so.1'
}

import_time() {
  alone 'import time; t = time.perf_counter(); import msa; t = time.perf_counter() - t; print(t); assert t < 0.5'
}

without_arrays() {
  alone '
import msa
assert msa.info()["version"] == msa.__version__
assert msa.make_plan("dense_attention", dtype="f32", total_q=1, max_seqlen_k=8, heads_q=1, heads_kv=1, head_dim=16,
                     value_dim=16).backend == "cpu"
try:
    msa.dense_attention([1], [2], [3])
except TypeError as error:
    assert "q: expected an array, got list" in str(error)
else:
    raise SystemExit("accepted")
try:
    import msa.torch
except ModuleNotFoundError as error:
    assert error.name == "torch"
else:
    raise SystemExit("torch out of nowhere")'
}

check "size" one_size_fits
check "exports nothing but its entry point" hidden
check "tag manylinux_2_34" tag
check "OpenMP beside the module" openmp
check "stripped" stripped
check "one abi3 module" test "$(find "$files" -name '*.so' | wc -l)" = 1
check "typed" test -e "$files/py.typed"
check "imports alone" without_arrays
check "brings its OpenMP" own_openmp
check "imports fast" import_time
check "loads without a driver" alone 'import msa; [b for b in msa.info()["backends"]]'
if [ -e "$files/bin/msa" ]; then
  check "python -m msa" env -i HOME="$work" "$work/venv/bin/python" -I -m msa info
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
