// SPDX-License-Identifier: MIT
// The layout of the public C++ structs does not move within a minor version: the SONAME promises
// it. A number here changes together with the minor version, and in no other way.
#include <gtest/gtest.h>
#include <cstddef>

#include "msa/msa.h"

namespace msa {
namespace {

// Strings and vectors differ between standard libraries; these are what releases are built with.
#if defined(__x86_64__) && defined(_GLIBCXX_USE_CXX11_ABI) && _GLIBCXX_USE_CXX11_ABI
static_assert(sizeof(Tensor) == 88);
static_assert(offsetof(Tensor, shape) == 24 && offsetof(Tensor, stride) == 56);
static_assert(sizeof(Parts) == 104);
static_assert(sizeof(Batch) == 616);
static_assert(sizeof(Workspace) == 16);
static_assert(sizeof(Stream) == 8);
static_assert(sizeof(Fault) == 48);
static_assert(sizeof(Plan) == 16);
static_assert(sizeof(Error) == 56);

static_assert(sizeof(Format) == 24);
static_assert(sizeof(Bounds) == 48);
static_assert(sizeof(Attention) == 96);
static_assert(sizeof(Index) == 120);
static_assert(sizeof(Selection) == 40);
static_assert(sizeof(Outputs) == 5);
static_assert(sizeof(Options) == 72);
static_assert(sizeof(Gradients) == 2);
static_assert(sizeof(Problem) == 400);
static_assert(offsetof(Problem, gradients) == 325);
static_assert(offsetof(Problem, bounds) == 16 && offsetof(Problem, attention) == 64);
static_assert(offsetof(Problem, index) == 160 && offsetof(Problem, selection) == 280);
static_assert(offsetof(Problem, outputs) == 320 && offsetof(Problem, options) == 328);
static_assert(sizeof(Settings) == 152);
static_assert(offsetof(Settings, options) == 80);
static_assert(sizeof(Support) == 64);
static_assert(sizeof(BackendAnswer) == 72);
static_assert(sizeof(BuildInfo) == 216);
static_assert(sizeof(BackendInfo) == 120);

static_assert(sizeof(Operands) == 4904);
static_assert(sizeof(Field) == 72);
static_assert(sizeof(DenseAttentionArgs) == 1496);
static_assert(sizeof(BlockScoresArgs) == 1056);
static_assert(sizeof(SelectTopkArgs) == 880);
static_assert(sizeof(SelectBlocksArgs) == 1408);
static_assert(sizeof(SparseAttentionArgs) == 1496);
static_assert(sizeof(MsaAttentionArgs) == 2024);
static_assert(sizeof(MergeStatesArgs) == 384);
static_assert(sizeof(MergeSelectionsArgs) == 384);
static_assert(sizeof(InvertSelectionArgs) == 968);
static_assert(sizeof(QuantizeKvArgs) == 1496);
static_assert(sizeof(QuantizeIndexArgs) == 880);
static_assert(sizeof(SparseAttentionBackwardArgs) == 1584);
static_assert(sizeof(DenseAttentionBackwardArgs) == 1496);
static_assert(sizeof(IndexLossArgs) == 1496);
#endif

// Callers' binaries hold these numbers, too.
static_assert(static_cast<int>(DType::F32) == 0 && static_cast<int>(DType::E2M1) == 7);
static_assert(static_cast<int>(Op::DenseAttention) == 0);
static_assert(static_cast<int>(Op::InvertSelection) == 8 && static_cast<int>(Op::QuantizeKv) == 9);
static_assert(static_cast<int>(Op::QuantizeIndex) == 10);
static_assert(static_cast<int>(Op::SparseAttentionBackward) == 11);
static_assert(static_cast<int>(Op::DenseAttentionBackward) == 12);
static_assert(static_cast<int>(Op::IndexLoss) == 13);
static_assert(static_cast<int>(ErrorCode::InvalidArgument) == 0);
static_assert(static_cast<int>(ErrorCode::Internal) == 6);
static_assert(kMaxRank == 4 && kMaxParts == 64 && kMaxTopk == 256 && kWorkspaceAlignment == 256);

TEST(Abi, NodeAndSonameNameTheMinorVersion) {
  // Whoever bumps the minor version comes by the numbers above.
  EXPECT_EQ(std::string(version()).rfind("0.2.", 0), 0U) << version();
}

}  // namespace
}  // namespace msa
