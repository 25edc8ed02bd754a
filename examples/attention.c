/* SPDX-License-Identifier: MIT */
/* The C interface, C99: tensors into msa_args, a problem read off them, a plan, a run in memory of
   the caller's own, and a refusal. With equal index keys the choice goes to the first blocks and
   the last one, and with equal keys every visible value weighs the same: the right answer is a
   mean, which is computed here from the ids that come back. */
#include <stdio.h>
#include <stdlib.h>

#include "msa/c.h"

enum { kTokens = 1000, kHeads = 4, kDim = 64, kBlock = 64, kTopk = 4 };

static msa_tensor rows_of(void* data, msa_dtype dtype, int64_t heads, int64_t width) {
  msa_tensor tensor = MSA_TENSOR_NONE;
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.rank = 3;
  tensor.shape[0] = kTokens;
  tensor.shape[1] = heads;
  tensor.shape[2] = width;
  tensor.stride[0] = heads * width; /* strides count elements */
  tensor.stride[1] = width;
  tensor.stride[2] = 1;
  return tensor;
}

static float* filled(int64_t count, float value) {
  float* data = malloc((size_t)count * sizeof(float));
  int64_t i;
  if (data == NULL) exit(1);
  for (i = 0; i < count; ++i) data[i] = value;
  return data;
}

/* How many rows are off the mean of the values in their visible, chosen blocks. */
static int64_t wrong_rows(const float* out, const int32_t* ids) {
  int64_t wrong = 0, i, slot, key;
  for (i = 0; i < kTokens; ++i) {
    double sum = 0, count = 0, off;
    for (slot = 0; slot < kTopk && ids[i * kTopk + slot] >= 0; ++slot) {
      const int64_t first = (int64_t)ids[i * kTopk + slot] * kBlock;
      for (key = first; key < first + kBlock && key <= i; ++key) {
        sum += (double)key / kTokens;
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

static int run_it(const msa_args* args, const int32_t* ids) {
  msa_settings settings = MSA_SETTINGS_INIT;
  msa_problem problem = MSA_PROBLEM_INIT;
  msa_plan* plan = NULL;
  msa_error error;
  msa_args spoilt = *args;
  char* memory;
  size_t bytes, start;
  int64_t wrong;
  settings.block_size = kBlock;
  settings.topk = kTopk;
  if (msa_problem_of(MSA_OP_MSA_ATTENTION, args, &settings, &problem, &error) != MSA_OK) {
    return failed("msa_problem_of", &error);
  }
  if (msa_plan_make(&problem, &plan, &error) != MSA_OK) return failed("msa_plan_make", &error);
  bytes = msa_plan_workspace_bytes(plan);
  memory = malloc(bytes + 256);
  if (memory == NULL) return 1;
  start = (256 - (size_t)((uintptr_t)memory % 256)) % 256; /* workspaces are aligned to 256 */
  if (msa_run(plan, args, memory + start, bytes, NULL, &error) != MSA_OK) {
    return failed("msa_run", &error);
  }
  wrong = wrong_rows(args->out.data, ids);
  printf("msa %s, backend %s: %d of %d rows are off\n", msa_version(), msa_plan_backend(plan),
         (int)wrong, kTokens);

  /* A call that cannot be right is refused, and nothing is written. */
  spoilt.q.dtype = MSA_I32;
  if (msa_run(plan, &spoilt, memory + start, bytes, NULL, &error) != MSA_INVALID_ARGUMENT) {
    return failed("the refusal", &error);
  }
  printf("refused as it should be, argument %s: %s\n", error.argument, error.message);
  free(memory);
  msa_plan_free(plan);
  return wrong == 0 ? 0 : 1;
}

int main(void) {
  float* q = filled(kTokens * kHeads * kDim, 0.5f);
  float* k = filled(kTokens * kDim, 0.25f);
  float* v = filled(kTokens * kDim, 0.0f);
  float* index_q = filled(kTokens * kDim, 1.0f);
  float* index_k = filled(kTokens * kDim, 1.0f);
  float* out = filled(kTokens * kHeads * kDim, -1.0f);
  int32_t* ids = malloc(sizeof(int32_t) * kTokens * kTopk);
  msa_args args = MSA_ARGS_INIT;
  int64_t i;
  int status;
  if (ids == NULL) return 1;
  for (i = 0; i < kTokens * kDim; ++i) v[i] = (float)(i / kDim) / kTokens;
  args.q = rows_of(q, MSA_F32, kHeads, kDim);
  args.k = rows_of(k, MSA_F32, 1, kDim);
  args.v = rows_of(v, MSA_F32, 1, kDim);
  args.index_q = rows_of(index_q, MSA_F32, 1, kDim);
  args.index_k = rows_of(index_k, MSA_F32, 1, kDim);
  args.out = rows_of(out, MSA_F32, kHeads, kDim);
  args.block_ids = rows_of(ids, MSA_I32, 1, kTopk);
  status = run_it(&args, ids);
  puts(status == 0 ? "ok" : "FAILED");
  free(q);
  free(k);
  free(v);
  free(index_q);
  free(index_k);
  free(out);
  free(ids);
  return status;
}
