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

/// How far `value` is from a whole multiple of `unit`, in units.
constexpr double off_by(double value, double unit) {
  const double steps = value / unit;
  const double rest = steps - static_cast<double>(static_cast<int>(steps + 0.5));
  return rest < 0 ? -rest : rest;
}

/// The unit of which all magnitudes are nearest to multiples up to 127, in bf16.
constexpr double best_unit(const GroupValues& values, double& error) {
  double best = 0;
  error = 1;
  for (int most = 127; most >= 64; --most) {
    const double unit =
        bf16_to_float(float_to_bf16(values.magnitudes[7] / static_cast<float>(most)));
    if (values.magnitudes[7] / unit > 127.49) continue;
    double worst = 0;
    for (const float value : values.magnitudes) {
      const double off = off_by(value, unit);
      worst = off > worst ? off : worst;
    }
    if (worst < error) {
      error = worst;
      best = unit;
    }
  }
  return best;
}

constexpr GroupBytes make_bytes(const GroupTable& table) {
  constexpr std::size_t kOne = 0x38;  // the scale 1
  GroupBytes made{};
  std::array<double, 8> units{};
  for (std::size_t mantissa = 0; mantissa < 8; ++mantissa) {
    const GroupValues& values = table[kOne + mantissa];
    double error = 0;
    units[mantissa] = best_unit(values, error);
    made.error = error > made.error ? static_cast<float>(error) : made.error;
    for (std::size_t code = 0; code < 8; ++code) {
      const int byte = static_cast<int>(values.magnitudes[code] / units[mantissa] + 0.5);
      made.bytes[mantissa * 16 + code] = static_cast<std::uint8_t>(128 + byte);
      made.bytes[mantissa * 16 + code + 8] = static_cast<std::uint8_t>(128 - byte);
    }
  }
  made.error += 0x1p-10f;  // rounded outwards
  for (std::size_t scale = 0; scale < 128; ++scale) {
    double unit = units[scale % 8];
    for (std::size_t exponent = scale / 8; exponent < kOne / 8; ++exponent) unit /= 2;
    for (std::size_t exponent = kOne / 8; exponent < scale / 8; ++exponent) unit *= 2;
    bool near = scale != 0x7f;  // NaN, of which clang computes nothing in a constant
    for (std::size_t code = 0; near && code < 8; ++code) {
      const double byte = made.bytes[scale % 8 * 16 + code] - 128;
      const double off = table[scale].magnitudes[code] / unit - byte;
      near = off <= made.error && -off <= made.error;
    }
    std::uint16_t bits = near ? float_to_bf16(static_cast<float>(unit)) : 0x7fc0;
    if (scale == 0) bits = 0;  // everything is 0
    made.high[scale] = static_cast<std::uint8_t>(bits >> 8);
    made.low[scale] = static_cast<std::uint8_t>(bits & 0xff);
  }
  return made;
}

}  // namespace

constinit const GroupTable kProducts = make_table(false);
constinit const GroupTable kRoundedProducts = make_table(true);
constinit const GroupBytes kProductBytes = make_bytes(make_table(false));
constinit const GroupBytes kRoundedProductBytes = make_bytes(make_table(true));

}  // namespace msa::cpu
