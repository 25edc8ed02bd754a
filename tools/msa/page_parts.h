// SPDX-License-Identifier: MIT
// Parts of the tool's pages: one HTML file each, without anything external, in the colours of the
// reader's theme.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "msa/tensor.h"

namespace msa::cli {

/// Share of the queries of each bucket of rows that chose the blocks of a bucket, 0 to 255, row by
/// row.
struct SelectionMap {
  std::int64_t rows = 0, blocks = 0;
  std::vector<std::uint8_t> cells;
};

/// Of query rows and heads [begin, begin + count) of block ids below `blocks`.
SelectionMap selection_map(const Tensor& ids, std::int64_t row, std::int64_t rows,
                           std::int64_t head, std::int64_t heads, std::int64_t blocks);

std::string page_head(std::string_view title);
/// The end of a page, with the script that paints its map.
std::string page_end();
std::string card(const std::string& value, const std::string& label);
/// The map between axes of `queries` down and `tokens` across; `marks` lie on it.
std::string map_figure(const SelectionMap& map, std::int64_t queries, std::int64_t tokens,
                       const std::string& marks);
std::string escaped(std::string_view text);
/// 65536 -> "64K".
std::string short_count(std::int64_t value);

}  // namespace msa::cli
