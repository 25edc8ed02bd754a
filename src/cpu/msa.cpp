// SPDX-License-Identifier: MIT
// msa_attention: selects the blocks of a chunk of query rows, then attends to them, so that block
// ids of one chunk are all that lies between the two. Each stage has the whole workspace behind the
// ids for itself.
#include <algorithm>

#include "core/contents.h"
#include "core/host_tensor.h"
#include "cpu/scratch.h"
#include "cpu/select.h"
#include "cpu/stage.h"

namespace msa::cpu {
namespace {

// Of block ids: 16K rows of 4 heads and 16 blocks.
constexpr std::int64_t kChunkBytes = std::int64_t{4} << 20;

class MsaStage final : public Stage {
 public:
  MsaStage(const Problem& problem, const Machine& machine)
      : p_(problem),
        selection_(plan_selection(problem, machine)),
        attention_(plan_attention(problem, machine)) {
    const std::int64_t row_bytes = 4 * p_.attention.heads_kv * p_.selection.topk;
    const std::int64_t rows = std::min(p_.bounds.total_q, kChunkBytes / row_bytes);
    chunk_rows_ = std::max(kRowCut, core::ceil_div(rows, kRowCut) * kRowCut);
  }

  std::size_t workspace_bytes() const override {
    Scratch count(nullptr);
    take_mended(count);
    take_ids(count);
    return count.used() + std::max(selection_->workspace_bytes(), attention_->workspace_bytes());
  }
  std::string decisions() const override {
    return "chunk_rows " + std::to_string(chunk_rows_) + "\n" + selection_->decisions() +
           attention_->decisions();
  }

  void run(const core::Call& call, Rows rows, std::byte* workspace) const override {
    Scratch scratch(workspace);
    std::int64_t* mended = take_mended(scratch);
    std::int32_t* ids = take_ids(scratch);
    std::byte* rest = workspace + scratch.used();
    *mended = 0;
    for (Rows chunk{rows.begin, 0}; chunk.begin < rows.end; chunk.begin = chunk.end) {
      chunk.end = cut(call, chunk.begin, std::min(chunk.begin + chunk_rows_, rows.end), rows.end);
      core::Call part = call;
      part.block_ids = call.block_ids
                           ? tail(call.block_ids, chunk.begin)
                           : make_tensor(ids, DType::I32,
                                         {chunk_rows_, p_.attention.heads_kv, p_.selection.topk});
      selection_->run(part, chunk, rest);
      part.block_ids_in = part.block_ids;
      attention_->run(part, chunk, rest);
      *mended += mended_tokens(rest);
    }
  }

 private:
  /// See mended_tokens; as long as an alignment, so that what follows is aligned too.
  static std::int64_t* take_mended(Scratch& scratch) {
    return scratch.take<std::int64_t>(kWorkspaceAlignment / sizeof(std::int64_t));
  }

  std::int32_t* take_ids(Scratch& scratch) const {
    static_assert(kWorkspaceAlignment % sizeof(std::int32_t) == 0);
    const std::int64_t count = chunk_rows_ * p_.attention.heads_kv * p_.selection.topk,
                       unit = kWorkspaceAlignment / 4;
    return scratch.take<std::int32_t>(core::ceil_div(count, unit) * unit);
  }

  /// The tensor from row `first` on.
  static Tensor tail(Tensor t, std::int64_t first) {
    t.data = static_cast<std::int32_t*>(t.data) + first * t.stride[0];
    t.shape[0] -= first;
    return t;
  }

  /// The last legal cut (see Rows) at or before `end`: the request that it falls into is cut at a
  /// multiple of kRowCut.
  std::int64_t cut(const core::Call& call, std::int64_t begin, std::int64_t end,
                   std::int64_t last) const {
    if (end == last) return end;
    std::int64_t first = 0;
    if (const Tensor& starts = call.batch.cu_seqlens_q; starts) {
      std::int64_t low = 0, high = starts.shape[0] - 1;  // the last entry at or before `end`
      while (low < high) {
        const std::int64_t middle = (low + high + 1) / 2;
        if (core::read_i32(starts, middle) <= end) {
          low = middle;
        } else {
          high = middle - 1;
        }
      }
      first = core::read_i32(starts, low);
    }
    const std::int64_t at = first + (end - first) / kRowCut * kRowCut;
    return at > begin ? at : end;
  }

  Problem p_;
  StagePtr selection_, attention_;
  std::int64_t chunk_rows_ = 0;
};

}  // namespace

StagePtr plan_msa(const Problem& problem, const Machine& machine) {
  return std::make_unique<MsaStage>(problem, machine);
}

}  // namespace msa::cpu
