// SPDX-License-Identifier: MIT
// What a user of the installed library does: call it, read a result that is known in advance, catch
// its exception across the library's border, ask who would serve a problem. Prints "consumer ok".
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "msa/msa.h"

namespace {

constexpr std::int64_t kTokens = 300, kHeads = 2, kDim = 16;

int failures = 0;

void expect(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "consumer: %s\n", what);
  ++failures;
}

msa::Tensor view(const std::vector<float>& data, std::int64_t heads) {
  return msa::make_tensor(data.data(), msa::DType::F32, {kTokens, heads, kDim});
}

// With equal keys every visible value weighs the same: row i is the mean of values 0 .. i.
void attend() {
  std::vector<float> q(kTokens * kHeads * kDim, 0.5f), k(kTokens * kDim, 0.25f), v(kTokens * kDim);
  std::vector<float> out(q.size(), -1.0f);
  for (std::int64_t i = 0; i < kTokens; ++i) {
    for (std::int64_t d = 0; d < kDim; ++d) v[i * kDim + d] = static_cast<float>(i);
  }
  msa::dense_attention(
      {.q = view(q, kHeads), .k = view(k, 1), .v = view(v, 1), .out = view(out, kHeads)});
  for (std::int64_t i = 0; i < kTokens; ++i) {
    const float want = 0.5f * static_cast<float>(i);
    expect(std::fabs(out[i * kHeads * kDim] - want) <= 1e-3f + 1e-4f * want,
           "dense attention is off");
  }
}

void reject() {
  std::vector<float> q(kTokens * kHeads * kDim), out(q.size());
  try {
    msa::dense_attention({.q = view(q, kHeads), .out = view(out, kHeads)});
    expect(false, "a call without keys was accepted");
  } catch (const msa::Error& error) {
    expect(error.code() == msa::ErrorCode::InvalidArgument, "wrong code for missing keys");
    expect(!error.argument().empty(), "the error names no argument");
  }
}

void ask() {
  expect(std::string(msa::version()) == MSA_VERSION_STRING,
         "library and headers differ in version");
  const msa::BuildInfo info = msa::build_info();
  expect(info.backends.size() >= 2, "fewer backends than cpu and reference");
}

}  // namespace

int main() {
  attend();
  reject();
  ask();
  if (failures == 0) std::puts("consumer ok");
  return failures == 0 ? 0 : 1;
}
