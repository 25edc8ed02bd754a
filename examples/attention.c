/* SPDX-License-Identifier: MIT */
/* The C interface, C99: tensors into msa_args, a problem read off them, a plan, a run in memory of
   the caller's own, and a refusal. With equal index keys the choice goes to the first blocks and
   the last one, and with equal keys every visible value weighs the same: the right answer is a
   mean, which is computed here from the ids that come back. With --device cuda the tensors and the
   workspace lie on the first GPU, and the call is the same. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "msa/c.h"

#ifdef EXAMPLE_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

enum { kTokens = 1000, kHeads = 4, kDim = 64, kBlock = 64, kTopk = 4 };

static int on_gpu; /* where the tensors lie */

static void* taken[16];
static int num_taken;

/* Memory for tensors and workspaces, aligned to 256 as those must be. */
static void* take(size_t bytes) {
  void** memory = &taken[num_taken++];
#ifdef EXAMPLE_WITH_CUDA
  if (on_gpu) {
    if (cudaMalloc(memory, bytes + 1) != cudaSuccess) exit(1);
    return *memory;
  }
#endif
  *memory = malloc(bytes + 256);
  if (*memory == NULL) exit(1);
  return (char*)*memory + (256 - (size_t)((uintptr_t)*memory % 256)) % 256;
}

static void give_back(void) {
  while (num_taken > 0) {
    void* memory = taken[--num_taken];
#ifdef EXAMPLE_WITH_CUDA
    if (on_gpu) {
      cudaFree(memory);
      continue;
    }
#endif
    free(memory);
  }
}

static void copy(void* to, const void* from, size_t bytes) {
#ifdef EXAMPLE_WITH_CUDA
  if (on_gpu) {
    if (cudaMemcpy(to, from, bytes, cudaMemcpyDefault) != cudaSuccess) exit(1);
    return;
  }
#endif
  memcpy(to, from, bytes);
}

static size_t bytes_of(msa_dtype dtype) { return dtype == MSA_BF16 ? 2 : 4; }

/* A tensor of kTokens rows that holds `data`, or whatever is there. */
static msa_tensor rows_of(const void* data, msa_dtype dtype, int64_t heads, int64_t width) {
  const size_t bytes = (size_t)(kTokens * heads * width) * bytes_of(dtype);
  msa_tensor tensor = MSA_TENSOR_NONE;
  tensor.data = take(bytes);
  if (data != NULL) copy(tensor.data, data, bytes);
  tensor.dtype = dtype;
  tensor.rank = 3;
  tensor.shape[0] = kTokens;
  tensor.shape[1] = heads;
  tensor.shape[2] = width;
  tensor.stride[0] = heads * width; /* strides count elements */
  tensor.stride[1] = width;
  tensor.stride[2] = 1;
  if (on_gpu) tensor.device_type = MSA_CUDA;
  return tensor;
}

static double value_of_key(int64_t key) { return (double)(key % 128) / 128; }

/* bf16 is the upper half of a float; the values here need no rounding. */
static uint16_t bf16(double value) {
  const float single = (float)value;
  uint32_t bits;
  memcpy(&bits, &single, sizeof bits);
  return (uint16_t)(bits >> 16);
}

static msa_tensor filled(int64_t heads, double value) {
  static uint16_t data[kTokens * kHeads * kDim];
  int64_t i;
  for (i = 0; i < kTokens * heads * kDim; ++i) data[i] = bf16(value);
  return rows_of(data, MSA_BF16, heads, kDim);
}

static msa_tensor values(void) {
  static uint16_t data[kTokens * kDim];
  int64_t i;
  for (i = 0; i < kTokens * kDim; ++i) data[i] = bf16(value_of_key(i / kDim));
  return rows_of(data, MSA_BF16, 1, kDim);
}

/* How many rows are off the mean of the values in their visible, chosen blocks. */
static int64_t wrong_rows(const msa_args* args) {
  static float out[kTokens * kHeads * kDim];
  static int32_t ids[kTokens * kTopk];
  int64_t wrong = 0, i, slot, key;
  copy(out, args->out.data, sizeof out); /* on a GPU behind the run, as both use the same stream */
  copy(ids, args->block_ids.data, sizeof ids);
  for (i = 0; i < kTokens; ++i) {
    double sum = 0, count = 0, off;
    for (slot = 0; slot < kTopk && ids[i * kTopk + slot] >= 0; ++slot) {
      const int64_t first = (int64_t)ids[i * kTopk + slot] * kBlock;
      for (key = first; key < first + kBlock && key <= i; ++key) {
        sum += value_of_key(key);
        count += 1;
      }
    }
    off = out[i * kHeads * kDim] - sum / count;
    wrong += !(off > -1e-5 && off < 1e-5); /* counts NaN, too */
  }
  return wrong;
}

static int failed(const char* what, const msa_error* error) {
  fprintf(stderr, "%s failed, status %d, argument '%s': %s\n", what, error->status, error->argument,
          error->message);
  return 1;
}

static int run_it(const msa_args* args) {
  msa_settings settings = MSA_SETTINGS_INIT;
  msa_problem problem = MSA_PROBLEM_INIT;
  msa_plan* plan = NULL;
  msa_error error;
  msa_args spoilt = *args;
  void* workspace;
  size_t bytes;
  int64_t wrong;
  settings.block_size = kBlock;
  settings.topk = kTopk;
  if (msa_problem_of(MSA_OP_MSA_ATTENTION, args, &settings, &problem, &error) != MSA_OK) {
    return failed("msa_problem_of", &error);
  }
  if (msa_plan_make(&problem, &plan, &error) != MSA_OK) return failed("msa_plan_make", &error);
  bytes = msa_plan_workspace_bytes(plan);
  workspace = take(bytes);
  if (msa_run(plan, args, workspace, bytes, NULL, &error) != MSA_OK) {
    return failed("msa_run", &error);
  }
  wrong = wrong_rows(args);
  printf("msa %s, backend %s: %d of %d rows are off\n", msa_version(), msa_plan_backend(plan),
         (int)wrong, kTokens);

  /* A call that cannot be right is refused, and nothing is written. */
  spoilt.q.dtype = MSA_I32;
  if (msa_run(plan, &spoilt, workspace, bytes, NULL, &error) != MSA_INVALID_ARGUMENT) {
    return failed("the refusal", &error);
  }
  printf("refused as it should be, argument %s: %s\n", error.argument, error.message);
  msa_plan_free(plan);
  return wrong == 0 ? 0 : 1;
}

int main(int argc, char** argv) {
  msa_args args = MSA_ARGS_INIT;
  int status;
  on_gpu = argc == 3 && strcmp(argv[1], "--device") == 0 && strcmp(argv[2], "cuda") == 0;
  if (argc > 1 && !on_gpu) return fputs("usage: attention [--device cuda]\n", stderr), 2;
#ifndef EXAMPLE_WITH_CUDA
  if (on_gpu) return fputs("attention: built without CUDA\n", stderr), 2;
#endif
  args.q = filled(kHeads, 0.5);
  args.k = filled(1, 0.25);
  args.v = values();
  args.index_q = filled(1, 1.0);
  args.index_k = filled(1, 1.0);
  args.out = rows_of(NULL, MSA_F32, kHeads, kDim);
  args.block_ids = rows_of(NULL, MSA_I32, 1, kTopk);
  status = run_it(&args);
  give_back();
  puts(status == 0 ? "ok" : "FAILED");
  return status;
}
