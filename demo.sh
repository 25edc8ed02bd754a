#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Installs the build tools (Debian, Ubuntu), builds the tool and runs its demo, on an NVIDIA GPU where there are one and
# nvcc, else on the CPU. Arguments go to `msa demo`:
#   ./demo.sh --tokens 32768 --heads 16/1 --out page.html
set -euo pipefail

case "${1:-}" in
  -h | --help)
    cat <<'TEXT'
usage: ./demo.sh [--tokens N] [--heads Q/KV] [--backend cpu|cuda] [--out PAGE.html]

Installs the build tools where they are missing (apt-get, as root), builds, and runs the demo: a long context with
planted needles, dense attention against MSA, sampled rows against the oracle, and a page with pictures. Where nvcc (of
CUDA 13) and an NVIDIA GPU are there, the GPU computes (compute capability 9.0), else the CPU.

  --tokens N       context length (65536; on a GPU 1048576, where dense attention alone is 4.5 PFLOP: some 8 seconds
                   at 550 TFLOP/s, and the oracle's rows take longer than that)
  --heads Q/KV     query and KV heads (16/1)
  --backend NAME   cpu or cuda (the GPU where there is one)
  --out FILE       the page to write
TEXT
    exit 0
    ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# package:what it brings (a command, or a header of the system)
needed=(cmake:cmake g++:g++ ninja-build:ninja libcli11-dev:/usr/include/CLI/CLI.hpp
        nlohmann-json3-dev:/usr/include/nlohmann/json.hpp libfmt-dev:/usr/include/fmt/core.h)
missing=()
for entry in "${needed[@]}"; do
  brings=${entry#*:}
  case $brings in
    /*) [ -e "$brings" ] || missing+=("${entry%%:*}") ;;
    *) command -v "$brings" > /dev/null || missing+=("${entry%%:*}") ;;
  esac
done

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then
    echo "The demo needs these packages of Debian or Ubuntu, or what they bring: ${missing[*]}" >&2
    echo "Run as root, or install them first:  sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "Installing ${missing[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q > /dev/null
  apt-get install -q -y --no-install-recommends "${missing[@]}" > /dev/null
fi

# A toolkit is often not on the PATH. AUTO leaves the kernels out where it is too old for them.
command -v nvcc > /dev/null || [ ! -x /usr/local/cuda/bin/nvcc ] || PATH=$PATH:/usr/local/cuda/bin
cuda=OFF
if command -v nvcc > /dev/null && { [ -e /dev/nvidia0 ] || nvidia-smi -L > /dev/null 2>&1; }; then cuda=AUTO; fi

build=$root/build/demo
if [ $cuda = OFF ]; then
  echo "Building in $build" >&2
else
  echo "Building in $build, the GPU's kernels too: this takes some minutes the first time" >&2
fi
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DMSA_BUILD_TESTS=OFF -DMSA_CUDA=$cuda \
      --log-level=WARNING >&2
cmake --build "$build" --target msa_tool >&2
exec "$build/tools/msa/msa" demo "$@"
