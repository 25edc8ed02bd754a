// SPDX-License-Identifier: MIT
// Merges over ranks on the host: the ranks of a meeting run one after the other, so the words of
// those to come are there before them. What this does not show is the waiting: tests of GPUs do.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/common/decode/attend/ranks.cuh"
#include "cuda/common/merge_states/launch.h"
#include "cuda/common/peers/launch.h"
#include "cuda/launch.h"

namespace decode = msa::cuda::common::decode;
namespace peers = msa::cuda::common::peers;
namespace states = msa::cuda::common::merge_states;

namespace {

int faults = 0;

void expect(bool holds, const char* what, int a = 0, int b = 0) {
  if (holds) return;
  std::printf("peers: %s (%d, %d)\n", what, a, b);
  ++faults;
}

/// The pads of some ranks, and meetings on them.
class Pads {
 public:
  explicit Pads(int ranks) : pads_(ranks, std::vector<std::uint32_t>(2 * ranks + 2)) {}

  peers::Meeting meeting(int rank, peers::Kind kind) {
    peers::Meeting m{.rank = rank, .ranks = ranks(), .kind = kind, .timeout_ns = 1'000'000};
    for (int n = 0; n < ranks(); ++n) m.pads[n] = pads_[n].data();
    return m;
  }
  /// As if all other ranks had come to the meeting of this number.
  void others_come(int rank, peers::Kind kind, std::uint32_t number) {
    for (int n = 0; n < ranks(); ++n) {
      if (n != rank) pads_[rank][static_cast<int>(kind) * ranks() + n] = number;
    }
  }
  bool all_came(peers::Kind kind, std::uint32_t number) const {
    return std::all_of(pads_.begin(), pads_.end(), [&](const auto& pad) {
      const auto begin = pad.begin() + static_cast<int>(kind) * ranks();
      return std::all_of(begin, begin + ranks(), [&](std::uint32_t x) { return x == number; });
    });
  }

 private:
  int ranks() const { return static_cast<int>(pads_.size()); }
  std::vector<std::vector<std::uint32_t>> pads_;
};

struct Shape {
  int ranks, tokens, heads, k, forced, first, dim;
};

/// Lists of k of the best blocks: forced ones, then by score, then by id.
std::vector<int> chosen(std::vector<std::pair<float, int>> all, int k) {
  std::sort(all.begin(), all.end(), [](auto a, auto b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  std::vector<int> ids;
  for (int i = 0; i < k && i < static_cast<int>(all.size()); ++i) ids.push_back(all[i].second);
  std::sort(ids.begin(), ids.end());
  ids.resize(k, -1);
  return ids;
}

void check_choose(const Shape& s, Pads& pads, std::uint32_t number, bool dealt,
                  std::mt19937& draw) {
  const int rows = s.tokens * s.heads;
  const int plane = rows * s.k;
  const int last = 1000;  // the forced block, behind all others
  std::vector<std::vector<int>> boxes(s.ranks, std::vector<int>(2 * plane, -1));
  std::vector<std::vector<std::pair<float, int>>> all(rows);
  std::vector<int> forced(s.tokens * s.forced, -1);
  for (int t = 0; t < s.tokens; ++t) {
    for (int f = 0; f < s.forced && f < 1 + t % s.forced; ++f) {
      forced[t * s.forced + f] = last + f;
      for (int h = 0; h < s.heads; ++h) all[t * s.heads + h].push_back({INFINITY, last + f});
    }
  }
  for (int n = 0; n < s.ranks; ++n) {
    const int skipped = s.first > n ? (s.first - n + s.ranks - 1) / s.ranks : 0;
    for (int row = 0; row < rows; ++row) {
      const int count = static_cast<int>(draw() % (s.k + 1));
      std::vector<int> local(s.k);
      for (int i = 0, next = 0; i < count; ++i) local[i] = next += 1 + static_cast<int>(draw() % 3);
      for (int i = 0; i < count; ++i) {
        const int global = ((dealt ? skipped : 0) + local[i]) * s.ranks + n;
        const float score = static_cast<float>(static_cast<int>(draw() % 7) - 3);  // ties
        boxes[n][row * s.k + i] = dealt ? local[i] : global;
        std::memcpy(&boxes[n][plane + row * s.k + i], &score, 4);
        all[row].push_back({score, global});
      }
    }
  }
  for (int rank = 0; rank < s.ranks; ++rank) {
    std::vector<int> ids(plane, 77), own(plane, 77);
    pads.others_come(rank, peers::Kind::Choose, number);
    peers::ChooseParams p{.meeting = pads.meeting(rank, peers::Kind::Choose),
                          .forced = s.forced > 0 ? forced.data() : nullptr,
                          .num_forced = s.forced,
                          .rows = rows,
                          .heads = s.heads,
                          .k = s.k,
                          .dealt = dealt,
                          .first_blocks = dealt ? s.first : 0,
                          .ids = ids.data(),
                          .own = dealt ? own.data() : nullptr};
    for (int n = 0; n < s.ranks; ++n) p.boxes[n] = boxes[n].data();
    peers::launch_choose(p, nullptr);
    for (int row = 0; row < rows; ++row) {
      const std::vector<int> wanted = chosen(all[row], s.k);
      std::vector<int> here;
      for (int id : wanted) {
        if (id >= 0 && id % s.ranks == rank) here.push_back(id / s.ranks);
      }
      here.resize(s.k, dealt ? -1 : 77);
      if (!dealt) here.assign(s.k, 77);
      expect(std::equal(wanted.begin(), wanted.end(), ids.begin() + row * s.k), "ids", rank, row);
      expect(std::equal(here.begin(), here.end(), own.begin() + row * s.k), "own ids", rank, row);
    }
  }
  expect(pads.all_came(peers::Kind::Choose, number), "nobody said that it chooses", number);
}

// A CTA of attention from its selection to what it attends to.
__global__ void among_kernel(decode::SelectStorage* selection, decode::RanksParams p,
                             decode::RankRow row, int topk, std::uint32_t number, void* scratch) {
  decode::choose_among_ranks(*selection, p, row, topk, number, scratch,
                             static_cast<int>(threadIdx.x), false);
}

/// Candidates that attention exchanges: `here` of them lie on this rank, the others have sent
/// theirs.
void check_among(const Shape& s, std::uint32_t number, std::mt19937& draw) {
  const int rows = s.tokens * s.heads;
  const std::size_t plane = static_cast<std::size_t>(rows) * s.k;
  constexpr int kBlocks = 1000;  // of a rank
  std::vector<std::vector<peers::Candidate>> inboxes(
      s.ranks, std::vector<peers::Candidate>(plane * s.ranks, {7, number - 1, 7.0f, number - 1}));
  std::vector<std::vector<peers::Candidate>> told(s.ranks);
  std::vector<std::vector<std::pair<float, int>>> all(rows);
  std::vector<int> forced(s.tokens * s.forced, -1);
  for (int t = 0; t < s.tokens; ++t) {
    for (int f = 0; f < s.forced && f < 1 + t % s.forced; ++f) {
      forced[t * s.forced + f] = kBlocks * s.ranks - s.forced + f;
      for (int h = 0; h < s.heads; ++h)
        all[t * s.heads + h].push_back({INFINITY, forced[t * s.forced + f]});
    }
  }
  for (int n = 0; n < s.ranks; ++n) {
    for (int row = 0; row < rows; ++row) {
      const int count = static_cast<int>(draw() % (s.k + 1));
      for (int i = 0, local = -1; i < s.k; ++i) {
        local += 1 + static_cast<int>(draw() % 3);
        const float score = static_cast<float>(static_cast<int>(draw() % 7) - 3);  // ties
        const int id = i < count ? local * s.ranks + n : -1;
        told[n].push_back({id, number, id < 0 ? 0.0f : score, number});
        if (id >= 0) all[row].push_back({score, id});
      }
    }
  }
  for (int rank = 0; rank < s.ranks; ++rank) {
    for (int n = 0; n < s.ranks; ++n) {
      if (n != rank) std::copy(told[n].begin(), told[n].end(), &inboxes[rank][n * plane]);
    }
    decode::RanksParams p{.rank = rank,
                          .ranks = s.ranks,
                          .timeout_ns = 1'000'000,
                          .forced = s.forced > 0 ? forced.data() : nullptr,
                          .num_forced = s.forced};
    for (int n = 0; n < s.ranks; ++n) p.inboxes[n] = inboxes[n].data();
    for (int row = 0; row < rows; ++row) {
      for (const bool tells : {true, false}) {
        decode::SelectStorage selection{};
        std::memset(static_cast<void*>(&selection), 0x55, sizeof selection);
        selection.num_ids = 0;
        for (int i = 0; i < s.k; ++i) {
          const peers::Candidate& mine = told[rank][static_cast<std::size_t>(row) * s.k + i];
          if (mine.id < 0) break;
          selection.ids[i] = mine.id / s.ranks;
          selection.chosen[i] = decode::select_key(decode::order_of(mine.score), selection.ids[i]);
          selection.num_ids = i + 1;
        }
        std::vector<int> list(2 * s.k, 77);
        std::vector<unsigned long long> scratch(s.ranks * s.k + s.forced + 1, 77);
        msa::cuda::launch_kernel(among_kernel, {.block = dim3(160)}, &selection, p,
                                 decode::RankRow{.row = row,
                                                 .rows = rows,
                                                 .token = row / s.heads,
                                                 .blocks = kBlocks,
                                                 .tells = tells,
                                                 .list = list.data(),
                                                 .stride = 2},
                                 s.k, number, scratch.data());
        const std::vector<int> wanted = chosen(all[row], s.k);
        std::vector<int> here;
        for (int i = 0; i < s.k; ++i) {
          if (wanted[i] >= 0 && wanted[i] % s.ranks == rank) here.push_back(wanted[i] / s.ranks);
          expect(list[2 * i] == (tells ? wanted[i] : 77) && list[2 * i + 1] == 77, "list", rank,
                 row);
        }
        expect(selection.num_ids == static_cast<int>(here.size()) &&
                   std::equal(here.begin(), here.end(), selection.ids),
               "blocks here", rank, row);
        expect(scratch.back() == 77, "scratch", rank, row);
      }
    }
    for (int n = 0; n < s.ranks; ++n) {
      if (n == rank) continue;
      expect(std::memcmp(&inboxes[n][rank * plane], told[rank].data(),
                         plane * sizeof(told[0][0])) == 0,
             "told", rank, n);
    }
  }
}

/// What a step's layers share, by counting blocks one by one.
void check_deal(int ranks, int blocks, int init, int local, int columns_per_block,
                std::mt19937& draw) {
  const int size = 128;
  const int rows = 9;
  const int columns = blocks * columns_per_block;
  std::vector<int> lengths(rows), table(rows * columns);
  for (int& length : lengths) length = static_cast<int>(draw() % (blocks * ranks * size + 1));
  lengths[0] = 0;
  lengths[1] = 1;
  for (int& page : table) page = static_cast<int>(draw() % 1000) - 3;
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<int> candidates(rows, 77), last(rows, 77), forced(rows * (init + local) + 1, 77),
        pages(rows * columns, 77);
    peers::launch_deal({.rank = rank,
                        .ranks = ranks,
                        .rows = rows,
                        .columns = columns,
                        .columns_per_block = columns_per_block,
                        .block_size = size,
                        .init_blocks = init,
                        .local_blocks = local,
                        .seqlens_k = lengths.data(),
                        .page_table = table.data(),
                        .candidates = candidates.data(),
                        .last_keys = last.data(),
                        .forced = forced.data(),
                        .pages = pages.data()},
                       nullptr);
    for (int row = 0; row < rows; ++row) {
      const int seen = (lengths[row] + size - 1) / size;  // blocks of the sequence
      int visible = 0, unforced = 0;
      std::vector<int> wanted;
      for (int id = 0; id < seen; ++id) {
        const int keys = std::min(size, lengths[row] - id * size);
        const bool is_forced = id < init || id >= seen - local;
        if (is_forced) wanted.push_back(id);
        if (id % ranks != rank || id / ranks >= blocks) continue;
        visible += keys;
        if (!is_forced) unforced += keys;
      }
      wanted.resize(init + local, -1);
      expect(candidates[row] == unforced && last[row] == visible - 1, "keys", rank, row);
      expect(std::equal(wanted.begin(), wanted.end(), &forced[row * (init + local)]), "forced",
             rank, row);
      for (int c = 0; c < columns; ++c) {
        const bool there = c * (size / columns_per_block) < visible;
        expect(pages[row * columns + c] == (there ? table[row * columns + c] : 0), "pages", row, c);
      }
    }
    expect(forced.back() == 77, "behind what is forced", rank);
  }
}

void check_join(const Shape& s, Pads& pads, std::uint32_t number, std::mt19937& draw) {
  const int rows = s.tokens * s.heads;
  const int width = s.dim + 4;
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> boxes(s.ranks, std::vector<float>(rows * width));
  for (auto& box : boxes) {
    for (float& x : box) x = normal(draw);
    for (int row = 0; row < rows; ++row) {
      if (draw() % 3 != 0) continue;
      box[row * width] = NAN;  // of a part that counts for nothing
      box[row * width + s.dim] = -INFINITY;
    }
  }
  states::Params merged{.num_parts = s.ranks,
                        .rows = rows,
                        .heads = s.heads,
                        .dim = s.dim,
                        .storage = msa::cuda::Storage::F32,
                        .out_storage = msa::cuda::Storage::F32};
  for (int n = 0; n < s.ranks; ++n) {
    merged.parts[n] = {.out = {boxes[n].data(), s.heads * width, width},
                       .lse = {boxes[n].data() + s.dim, s.heads * width, width}};
  }
  std::vector<float> wanted(rows * s.dim), wanted_lse(rows);
  merged.out = {wanted.data(), s.heads * s.dim, s.dim};
  merged.lse = {wanted_lse.data(), s.heads, 1};
  states::launch(merged, nullptr);
  for (int rank = 0; rank < s.ranks; ++rank) {
    std::vector<float> out(rows * s.dim, 77), lse(rows, 77);
    pads.others_come(rank, peers::Kind::Join, number);
    peers::JoinParams p{.meeting = pads.meeting(rank, peers::Kind::Join), .states = merged};
    p.states.out.data = out.data();
    p.states.lse.data = lse.data();
    peers::launch_join(p, nullptr);
    expect(std::memcmp(out.data(), wanted.data(), out.size() * 4) == 0, "outputs", rank);
    expect(std::memcmp(lse.data(), wanted_lse.data(), lse.size() * 4) == 0, "lse", rank);
    std::vector<std::uint16_t> narrow(rows * s.dim);
    p.states.out.data = narrow.data();
    p.states.out_storage = msa::cuda::Storage::Bf16;
    p.states.lse = {};
    pads.others_come(rank, peers::Kind::Join, number + 1);  // or the same again: no rank is late
    peers::launch_join(p, nullptr);
    for (std::size_t i = 0; i < narrow.size(); ++i) {
      std::uint32_t bits;
      std::memcpy(&bits, &wanted[i], 4);
      const auto even = static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
      expect(narrow[i] == even, "bf16", rank, static_cast<int>(i));
    }
    pads.others_come(rank, peers::Kind::Join, number);
  }
  expect(pads.all_came(peers::Kind::Join, number), "nobody said that it joins", number);
}

}  // namespace

int main() {
  std::mt19937 draw(1);
  for (const Shape& s : {Shape{1, 3, 2, 4, 1, 0, 64}, Shape{2, 5, 4, 16, 1, 0, 128},
                         Shape{3, 4, 2, 5, 2, 2, 48}, Shape{4, 9, 4, 16, 1, 1, 136},
                         Shape{7, 2, 1, 64, 0, 9, 30}, Shape{63, 1, 2, 16, 3, 0, 128}}) {
    Pads pads(s.ranks);
    for (std::uint32_t number = 1; number < 4; ++number) {
      check_choose(s, pads, number, number % 3 != 2, draw);
      check_join(s, pads, number, draw);
      check_among(s, number, draw);
    }
  }
  for (const int ranks : {1, 2, 5}) {
    check_deal(ranks, 7, 0, 1, 1, draw);
    check_deal(ranks, 3, 2, 2, 4, draw);
    check_deal(ranks, 4, 0, 0, 2, draw);
  }
  if (faults == 0) std::puts("peers: passed");
  return faults == 0 ? 0 : 1;
}
