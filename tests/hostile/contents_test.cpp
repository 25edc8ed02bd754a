// SPDX-License-Identifier: MIT
// Addresses, boundaries, emptiness, poison, corruption, strides, exact sets: cases that other
// libraries have got wrong, on every instruction set. Red zones, gaps between rows, inputs and
// sentinels are watched in each of them.
#include "targets.h"

namespace msa::testkit {
namespace {

/// What a backend must get right before it computes anything: addresses, emptiness, rejections.
class Hostile : public OnBackend {};
/// Numbers. The oracle would only be compared with itself.
class HostileNumbers : public OnBackend {};

// Offsets of more than 2^31 elements: through strides, through page ids and through row numbers.
TEST_P(Hostile, AddressesPast2To31) {
  expect_all({
      "op=dense heads=2/1 dim=32 lens=9:40,1:20 strides=huge page=0|16 lse=1",
      "op=dense heads=2/1 dim=32 lens=5:40 strides=huge layout=head_major block_max=1 block=16",
      "op=dense heads=2/1 dim=32 lens=9:40,1:20 page=16 pool=4194310 lse=1",
      "op=dense heads=2/2 dim=32 lens=9:40,1:20 pool=40000000 lse=1",
      "op=select heads=2/2 dim=32 block=16 topk=2 lens=9:60,1:90 page=0|16 strides=huge chosen=1",
      "op=select heads=2/2 dim=32 block=16 topk=2 lens=9:60,1:90 page=16 pool=4194310",
      "op=scores heads=2/2 dim=32 block=16 lens=9:60 strides=huge",
      "op=topk heads=2/2 block=16 topk=2 lens=9:60 strides=huge chosen=1",
      "op=sparse heads=2/1 dim=32 block=16 topk=2 lens=9:60,1:90 page=0|16 strides=huge lse=1",
      "op=sparse heads=4/2 dim=32 block=16 topk=2 lens=9:60,1:90 page=0|16 strides=huge "
      "kv=e4m3/token",
      "op=dense heads=4/2 dim=32 lens=9:60,1:90 page=16 strides=huge kv=e4m3/page",
      "op=sparse heads=2/1 dim=32 block=16 topk=2 lens=9:60,1:90 page=16 pool=4194310 lse=1",
      "op=msa heads=2/1 dim=32 block=16 topk=2 lens=9:60 page=16 pool=4194310 layout=packed",
      "op=merge_states heads=2/2 dim=32 lens=5:0 strides=huge lse=1",
      "op=merge_selections heads=2/2 topk=4 lens=5:0 strides=huge chosen=1",
      "op=invert heads=2/2 block=16 topk=2 lens=9:60 strides=huge",
  });
}

// 2^16, 2^17 and 2^20 keys, 2^16 sequences, rows and numbers of heads.
TEST_P(HostileNumbers, Boundaries) {
  expect_all({
      "op=dense heads=1/1 dim=16 lens=1:65535|1:65536|1:65537|1:131071 lse=1",
      "op=select heads=1/1 dim=16 block=16 topk=4 lens=1:65535|1:65536|1:65537|1:131071 page=0|16",
      "op=topk heads=1/1 block=16 topk=1 lens=65537x1:2",
      "op=topk heads=1/1 block=16 topk=4 lens=1:1048577 chosen=1",
      "op=merge_states heads=1/1 dim=16 lens=65537:0 parts=2 lse=1",
      "op=dense heads=1/1|2/2|3/3|4/4|5/5|6/6|7/7|8/8|9/9|11/1|13/1|17/17|31/1|33/33|64/64 dim=16 "
      "lens=2:20",
  });
}

// More rows than 16 bits count, in the operations that take minutes for them under sanitizers.
TEST_P(HostileNumbers, BoundariesOfManyRows) {
  expect_all({
      "op=sparse heads=1/1 dim=16 block=16 topk=1 lens=65537:65537 lse=1",
      "op=dense heads=1/1 dim=16 lens=65537x1:2 lse=1",
      "op=topk heads=1/1 block=128 topk=4 lens=65537:65537 chosen=1",
      "op=invert heads=1/1 block=16 topk=1 lens=65537:65537",
  });
}

TEST_P(Hostile, EmptyAndRagged) {
  const std::string lens =
      " lens=none|0:0|0:9|5:0|0:0,0:0,0:0|0:3,5:9,0:0|5:9,0:0,0:4|3:3,0:0,4:2|40:20|300:3|"
      "2:9:-9|4:40:-2,0:0 pad_rows=0|3";
  expect_all({
      "op=dense heads=2/1 dim=32 lse=1 causal=0|1 page=0|16 hostile=none|nan" + lens,
      "op=dense heads=2/1 dim=32 block=16 block_max=1 output=0|1" + lens,
      "op=scores heads=2/2 dim=32 block=16 causal=0|1" + lens,
      "op=select heads=2/2 dim=32 block=16 topk=2 chosen=1 hostile=none|nan" + lens,
      "op=topk heads=2/2 block=16 topk=2 chosen=1 hostile=none|nan" + lens,
      "op=sparse heads=2/1 dim=32 block=16 topk=2 lse=1 page=0|16 hostile=none|nan" + lens,
      "op=msa heads=2/1 dim=32 block=16 topk=2 lse=1 page=0|16 hostile=none|nan" + lens,
      "op=invert heads=2/2 block=16 topk=2" + lens,
      "op=merge_states heads=2/2 dim=32 lse=1 lens=none|0:0|5:0",
      "op=merge_selections heads=2/2 topk=2 chosen=1 lens=none|0:0|5:0",
  });
}

// NaN wherever no query both lists and sees; then in keys that a neighbour of the same tile lists
// or may see.
TEST_P(HostileNumbers, Poison) {
  expect_all({
      "op=dense dtype=f32|f16|bf16 heads=4/1 dim=64 lens=70:130,3:33,0:9 page=0|32 "
      "hostile=nan|nan_v|nan_k|nan_q lse=1 seed=1..3",
      "op=dense heads=4/1 dim=64 lens=17:130 causal=0 hostile=nan_v|nan_k lse=1 seed=1..3",
      "op=sparse dtype=f32|f16|bf16 heads=4/1 dim=64 block=16 topk=3 lens=70:230,3:33 page=0|32 "
      "hostile=nan|nan_v|nan_k|nan_q regime=random|drift lse=1 seed=1..2",
      "op=msa dtype=f32|f16|bf16 heads=4/1 dim=64 block=16 topk=3 lens=70:130,3:33 page=0|32 "
      "regime=integers hostile=nan|nan_v|nan_k|nan_index lse=1 seed=1..2",
      "op=select dtype=f32|f16|bf16 heads=2/2 dim=64 block=16 topk=3 lens=70:130,3:33 page=0|32 "
      "regime=integers hostile=nan|nan_index chosen=1 seed=1..2",
      "op=merge_states dtype=f32|f16|bf16 heads=2/2 dim=32 lens=30:0 parts=3 "
      "hostile=nan|nan_v|nan_q lse=1",
  });
}

TEST_P(Hostile, CorruptedContents) {
  const std::string ids =
      " corrupt=block_negative|block_min|block_max|block_end|block_twice order=ascending|shuffled";
  const std::string pages = " page=16 corrupt=page_negative|page_min|page_max|page_end";
  const std::string lengths =
      " corrupt=length_negative|length_above|queries_above|start_decreasing|start_not_zero|"
      "start_past_end";
  const std::string shape =
      " heads=2/2 dim=32 block=16 topk=3 lens=3:3,20:150,3:33 strides=dense|padded";
  expect_all({
      "op=dense" + shape + pages,
      "op=sparse" + shape + pages,
      "op=msa" + shape + pages,
      "op=scores" + shape + pages,
      "op=select" + shape + pages,
      "op=sparse" + shape + ids,
      "op=invert" + shape + ids,
      "op=dense" + shape + lengths,
      "op=scores" + shape + lengths,
      "op=topk" + shape + lengths,
      "op=select" + shape + lengths,
      "op=sparse" + shape + lengths,
      "op=msa" + shape + lengths,
      "op=invert" + shape + lengths,
      "op=dense|sparse|msa|scores|select heads=2/2 dim=32 block=16 topk=3 lens=20:150 "
      "corrupt=keys_past_end",
      "op=dense|sparse|msa|scores|select heads=2/2 dim=32 block=16 topk=3 lens=3:3,20:150 pool=190 "
      "corrupt=key_start_past_end",
  });
}

TEST_P(Hostile, StridesAndLayouts) {
  const std::string how =
      " page=0|16 layout=separate|packed|head_major strides=dense|padded|transposed|broadcast"
      " ids_head_major=0|1 lens=20:90,3:33";
  expect_all({
      "op=dense heads=4/2 dim=48 lse=1" + how,
      "op=select heads=2/2 dim=48 block=16 topk=3 chosen=1" + how,
      "op=sparse heads=4/2 dim=48 block=16 topk=3 lse=1" + how,
      "op=msa heads=4/2 dim=48 block=16 topk=3 lse=1" + how,
      "op=dense|sparse|msa heads=4/2 dim=48 block=16 topk=3 page=16 layout=slot_major lens=20:90",
  });
}

TEST_P(HostileNumbers, LogSumExpFarBelowZero) {
  expect_all({
      "op=dense dtype=f32|f16|bf16 heads=2/1 dim=64 lens=20:200,3:3 regime=low scale=0.125 lse=1",
      "op=dense heads=2/1 dim=64 lens=9:50 scale=0|-1|30 lse=1",
      "op=sparse dtype=f32|f16|bf16 heads=2/1 dim=64 block=16 topk=3 lens=20:200 regime=low "
      "scale=0.125 lse=1",
      "op=merge_states dtype=f32|f16|bf16 heads=2/2 dim=32 lens=40:0 parts=1|2|7 regime=random|low "
      "hostile=none|nan|nan_q lse=1 in_place=0|1",
  });
}

TEST_P(HostileNumbers, TopkIsExact) {
  expect_all({
      "op=topk heads=2/2 block=16 topk=1|4|16|256 lens=3:40000,5:70 "
      "regime=random|integers|ties|near|low hostile=none|nan_index chosen=1",
      "op=topk heads=2/2 block=16 topk=7 local=0..3 init=0..3 lens=9:900,40:40 hostile=nan_index "
      "chosen=1",
      "op=select heads=2/2 dim=32 block=16 topk=4|16 lens=3:3000,9:40 "
      "regime=integers|ties|near|low "
      "chosen=1",
      "op=merge_selections heads=2/2 topk=8 lens=30:0 parts=1|5 regime=integers|ties|near "
      "hostile=none|nan_index init=0|1 chosen=1",
  });
}

INSTANTIATE_TEST_SUITE_P(Backend, Hostile, testing::Values("reference", "cpu"), backend_name);
INSTANTIATE_TEST_SUITE_P(Backend, HostileNumbers, testing::Values("cpu"), backend_name);

}  // namespace
}  // namespace msa::testkit
