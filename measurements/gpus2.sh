#!/bin/bash
# Two GPUs (nvidia-h100-x2), in a checkout of main with build/ built; <= 400 s in all. Results: $OUT/h100x2-*.json, $OUT/ranks-h100x2.svg
# The order is that of use: smoke (an early fault shows in 30 s), rows, tests over NCCL, example with its picture.
# Keeps the machine's NCCL_NVLS_ENABLE=0 and TORCH_SYMM_MEM_DISABLE_MULTICAST=1.
set -u
N=${GPUS:-2}; B=${BUILD:-build}; OUT=${OUT:-/tmp}; T0=$SECONDS
export PATH=$PATH:/usr/local/cuda/bin NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1 OMP_NUM_THREADS=4
at() { echo "== $* (at $((SECONDS - T0)) s)"; }
at "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | uniq -c) $(nproc) cores"
nvidia-smi topo -m | head -$((N + 2)) | cut -c1-60
if ! ls "$B"/python/_core*.so >/dev/null 2>&1; then
  if ! { cmake -B "$B" -DMSA_BUILD_PYTHON=ON && ninja -C "$B" msa_core; } >"$OUT/module.log" 2>&1; then tail -20 "$OUT/module.log"; exit 1; fi
fi
rm -rf build/site-gpu && mkdir -p build/site-gpu && cp -r python/msa build/site-gpu/ && rm -f build/site-gpu/msa/_core*.so && cp "$B"/python/_core*.so build/site-gpu/msa/
export PYTHONPATH=$PWD/build/site-gpu
COMMIT=$(git rev-parse HEAD 2>/dev/null || echo "${COMMIT:-unknown}")
show() { tail -n "$2" "$1" | cut -c1-400; }

at smoke
timeout -k 5 "${SMOKE_S:-70}" python3 -W ignore benchmarks/hopper_ranks.py --gpus "$N" --tokens 16384 --commit "$COMMIT" --out "$OUT/smoke.json" --only "hopper$N.decode.1m.b1" --only "hopper$N.prefill.128k" >"$OUT/smoke.log" 2>&1
smoke=$?
echo "exit $smoke"; show "$OUT/smoke.log" 25

# Where the smoke failed, the tests say more: no rows, no example.
if [ $smoke = 0 ]; then
at rows
timeout -k 5 "${ROWS_S:-130}" python3 -W ignore benchmarks/hopper_ranks.py --gpus "$N" --commit "$COMMIT" --out "$OUT/h100x$N-$(nvidia-smi --query-gpu=driver_version --format=csv,noheader --id=0).json" >"$OUT/rows.log" 2>&1
echo "exit $?"; show "$OUT/rows.log" 25
fi

at "tests over NCCL"
timeout -k 5 "${TESTS_S:-125}" python3 -m pytest -q -rs --no-skips -p no:cacheprovider tests/python/distributed/gpus_test.py >"$OUT/tests.log" 2>&1
echo "exit $?"; grep -E "^(FAILED|ERROR|E  )|passed|failed" "$OUT/tests.log" | cut -c1-300 | tail -40

if [ $smoke = 0 ] && [ "${EXAMPLE:-yes}" = yes ]; then
  at example
  timeout -k 5 75 python3 -W ignore -m torch.distributed.run --nproc-per-node "$N" --master-addr 127.0.0.1 --master-port 29533 examples/context_parallel.py --tokens 1048576 --steps 4 --picture "$OUT/ranks-h100x$N.svg" >"$OUT/example.log" 2>&1
  echo "exit $?"; show "$OUT/example.log" 14
fi
at end; ls -la "$OUT"
