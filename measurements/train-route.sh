#!/usr/bin/env bash
# Large form of examples/route on a GPU, a tenth of its steps (whole form: leave out --steps, < 10 min). Only once CUDA serves
# sparse/dense_attention_backward and index_loss (branch train-cuda); else it prints the refusal. <= 60 s of GPU after the build.
set -u
cmake -B build/cuda-python -G Ninja -DMSA_CUDA=ON -DMSA_UNITY=ON -DMSA_CUDA_ARCHITECTURES=90 -DMSA_BUILD_PYTHON=ON -DBUILD_SHARED_LIBS=OFF \
  -DMSA_BUILD_TESTS=OFF -DMSA_BUILD_TOOLS=OFF -DMSA_INSTALL=OFF >/dev/null && ninja -C build/cuda-python msa_core >/dev/null || exit 1
rm -rf build/site-gpu && mkdir -p build/site-gpu && cp -r python/msa build/site-gpu && cp build/cuda-python/python/_core*.so build/site-gpu/msa
export PYTHONPATH=$PWD/build/site-gpu
python3 -m pytest -q -p no:cacheprovider tests/python/nn/nn_test.py 2>&1 | tail -2
timeout 60 python3 examples/route/train.py --form large --device cuda --steps 0.1 --out /tmp/route-large 2>&1 | tail -25
