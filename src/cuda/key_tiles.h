// SPDX-License-Identifier: MIT
// Tiles of keys and the tokens that attend to them, as a part of the stages that walk keys
// outermost: the requests, for lists their inverse, and the work items of a launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/call.h"
#include "cuda/common/backward/launch.h"
#include "cuda/common/prologue/launch.h"
#include "cuda/layout.h"

namespace msa::cuda {

class KeyTiles {
 public:
  /// What follows from a problem and the keys of a tile.
  struct Shape {
    Shape(const Problem& problem, bool listed, int keys);

    bool listed;
    int keys;                // of a tile
    std::int64_t block;      // of lists, or keys of a tile
    std::int64_t tiles;      // of the longest request
    std::int64_t all_tiles;  // of all requests
    std::int64_t places;     // of a token and KV head: tiles of its list, or of the longest request
    std::int64_t heads;      // of keys
  };
  /// Of work items.
  struct Limits {
    std::int64_t item_tokens;
    std::int64_t max_items;
    std::int64_t max_parts;
  };
  /// How items are cut.
  struct Cut {
    std::int64_t group = 1;      // query heads of a token
    std::int64_t ctas = 1;       // that each get some items
    std::int64_t max_parts = 0;  // there is room for; items are longer where they would need more
    std::int64_t heads = 0;      // of keys of a launch; 0: all
    // Heads of a launch that add to one tile: any of its items may be one of several.
    bool shared_tiles = false;
    // (Token, query head) pairs of an item; 0: as many as suit the CTAs.
    std::int64_t item_rows = 0;
  };
  /// CTAs of 2 threads a key of a tile that an SM holds at once, where one may take
  /// `shared_memory`.
  static int ctas_per_sm(std::size_t cta_bytes, int keys, std::size_t shared_memory);
  /// Of a launch of so many rows of q.
  static Limits limits(const Shape& shape, std::int64_t rows, const Cut& cut);
  /// Room for launches of up to so many.
  static Limits most(const Shape& shape, std::int64_t rows, const Cut& cut);
  /// Room for either.
  static Limits larger(const Limits& a, const Limits& b);
  /// Items of a launch, if none was cut for its length.
  static std::int64_t whole_items(const Shape& shape, std::int64_t rows, const Cut& cut);
  /// Why there is no shape; empty: there is.
  static std::string rejects_blocks(const Problem& problem, bool listed);
  /// Why there are too many of something; empty: there are not.
  static std::string rejects(const Problem& problem, const Shape& shape);

  /// `most`: of any launch.
  KeyTiles(const Problem& problem, const Shape& shape, const Limits& most, Layout& layout);
  /// What only making the inverse needs: done with before there are sums.
  void plan_inverse(const Problem& problem, Layout& layout);

  /// What the run wants of the prologue; tiles[1] and counters are for others.
  common::prologue::Params front(const Problem& problem, const core::Call& call,
                                 void* workspace) const;
  /// Clears the status word, reads the batch and inverts its lists.
  common::backward::Pairs run(const Problem& problem, const core::Call& call,
                              const common::prologue::Params& front, void* workspace,
                              cudaStream_t stream) const;
  common::backward::Work work(const Limits& limits, void* workspace) const;

 private:
  std::int64_t num_lists(const Problem& problem) const;

  Shape shape_;
  int invert_tokens_ = 1;
  Piece<RequestRecord> requests_{};
  Piece<std::int64_t> first_blocks_{};
  Piece<common::prologue::TileRecord> tiles_{};  // those of the inverse
  Piece<int> num_tiles_{};
  Piece<int> first_tiles_{};
  Piece<int> counts_{};
  Piece<int> row_ptr_{};    // [Hkv, blocks + 1]
  Piece<int> q_indices_{};  // [Hkv, T * k]
  Piece<int> q_slots_{};
  Piece<common::backward::Counters> counters_{};
  Piece<common::backward::WorkItem> items_{};
  Piece<int> order_{};  // of items, where they are few
  Piece<common::backward::SplitTile> splits_{};
};

}  // namespace msa::cuda
