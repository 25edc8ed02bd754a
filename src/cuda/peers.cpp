// SPDX-License-Identifier: MIT
#include "cuda/peers.h"

#include "cuda/batch.h"
#include "cuda/common/peers/launch.h"
#include "cuda/device.h"

namespace msa::cuda {
namespace {

namespace peers = common::peers;

static_assert(core::kMaxRanks == peers::kMaxRanks && peers::kMaxRanks < kMaxParts &&
                  kMaxTopk == peers::kMaxForced,
              "the ranks of any legal call fit the kernels' parameters");

using core::kStatePad;

peers::Meeting meeting_of(const core::Peers& from, peers::Kind kind) {
  peers::Meeting meeting{.rank = static_cast<int>(from.rank),
                         .ranks = static_cast<int>(from.ranks),
                         .kind = kind,
                         .timeout_ns = static_cast<std::uint64_t>(from.timeout_ms) * 1'000'000};
  for (std::size_t n = 0; n < from.pads.size(); ++n)
    meeting.pads[n] = static_cast<std::uint32_t*>(from.pads[n]);
  return meeting;
}

}  // namespace

void choose(const core::ChooseCall& call, cudaStream_t stream) {
  const DeviceGuard guard(call.block_ids.device.index);
  const auto& shape = call.block_ids.shape;
  peers::ChooseParams params{
      .meeting = meeting_of(call.peers, peers::Kind::Choose),
      .forced = static_cast<const int*>(call.forced.data),
      .num_forced = call.forced ? static_cast<int>(call.forced.shape[1]) : 0,
      .rows = static_cast<int>(shape[0] * shape[1]),
      .heads = static_cast<int>(shape[1]),
      .k = static_cast<int>(shape[2]),
      .dealt = call.dealt,
      .first_blocks = static_cast<int>(call.first_blocks),
      .ids = static_cast<int*>(call.block_ids.data),
      .own = static_cast<int*>(call.own_ids.data),
  };
  for (std::size_t n = 0; n < call.peers.boxes.size(); ++n)
    params.boxes[n] = static_cast<const int*>(call.peers.boxes[n]);
  peers::launch_choose(params, stream);
}

void join(const core::JoinCall& call, cudaStream_t stream) {
  const DeviceGuard guard(call.out.device.index);
  const auto& shape = call.out.shape;
  const std::int64_t width = shape[2] + kStatePad;
  peers::JoinParams params{.meeting = meeting_of(call.peers, peers::Kind::Join),
                           .states = {.num_parts = static_cast<int>(call.peers.ranks),
                                      .rows = shape[0] * shape[1],
                                      .heads = static_cast<int>(shape[1]),
                                      .dim = shape[2],
                                      .storage = Storage::F32,
                                      .out_storage = storage_of(call.out.dtype),
                                      .out = make_rows<void>(call.out),
                                      .lse = make_rows<float>(call.lse)}};
  for (std::size_t n = 0; n < call.peers.boxes.size(); ++n) {
    const auto* box = static_cast<const float*>(call.peers.boxes[n]);
    params.states.parts[n] = {.out = {box, shape[1] * width, width},
                              .lse = {box + shape[2], shape[1] * width, width}};
  }
  peers::launch_join(params, stream);
}

void deal(const core::DealCall& call, cudaStream_t stream) {
  const DeviceGuard guard(call.pages.device.index);
  peers::launch_deal({.rank = static_cast<int>(call.rank),
                      .ranks = static_cast<int>(call.ranks),
                      .rows = static_cast<int>(call.pages.shape[0]),
                      .columns = call.pages.shape[1],
                      .columns_per_block = call.columns_per_block,
                      .block_size = static_cast<int>(call.block_size),
                      .init_blocks = static_cast<int>(call.init_blocks),
                      .local_blocks = static_cast<int>(call.local_blocks),
                      .seqlens_k = static_cast<const int*>(call.seqlens_k.data),
                      .page_table = static_cast<const int*>(call.page_table.data),
                      .candidates = static_cast<int*>(call.candidates.data),
                      .last_keys = static_cast<int*>(call.last_keys.data),
                      .forced = static_cast<int*>(call.forced.data),
                      .pages = static_cast<int*>(call.pages.data)},
                     stream);
}

}  // namespace msa::cuda
