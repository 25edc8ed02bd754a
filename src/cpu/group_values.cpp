// SPDX-License-Identifier: MIT
#include "cpu/group_values.h"

#include <cstddef>

#include "cpu/convert.h"

namespace msa::cpu {
namespace {

constexpr GroupTable make_table(bool rounded) {
  GroupTable table{};
  for (std::size_t scale = 0; scale < table.size(); ++scale) {
    GroupValues& values = table[scale];
    for (std::size_t code = 0; code < 16; ++code) {
      // A scale that is NaN stands as it is: clang computes no NaN in a constant.
      const float factor = e4m3_to_float(static_cast<std::uint8_t>(scale));
      const float product =
          factor != factor ? factor : e2m1_to_float(static_cast<std::uint8_t>(code)) * factor;
      const float value = rounded ? e4m3_to_float(float_to_e4m3(product)) : product;
      if (code < 8) values.magnitudes[code] = value;
      values.halves[code] = float_to_bf16(value);
    }
  }
  return table;
}

}  // namespace

constinit const GroupTable kProducts = make_table(false);
constinit const GroupTable kRoundedProducts = make_table(true);

}  // namespace msa::cpu
