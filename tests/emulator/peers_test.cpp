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

#include "cuda/common/merge_states/launch.h"
#include "cuda/common/peers/launch.h"

namespace peers = msa::cuda::common::peers;
namespace states = msa::cuda::common::merge_states;

namespace {

int faults = 0;

void expect(bool holds, const char* what, int a = 0, int b = 0) {
  if (holds) return;
  std::printf("peers_test: %s (%d, %d)\n", what, a, b);
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
    }
  }
  if (faults == 0) std::puts("peers_test: passed");
  return faults == 0 ? 0 : 1;
}
