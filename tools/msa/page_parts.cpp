// SPDX-License-Identifier: MIT
// Static parts are raw strings; a few lines of script paint the map on a canvas. Every colour is a
// variable of the style sheet.
#include "page_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "testkit/requests.h"

namespace msa::cli {
namespace {

constexpr std::string_view kHead = R"html(<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>)html";

constexpr std::string_view kStyle = R"html(</title>
<style>
:root { color-scheme: light dark;
  --surface: #fcfcfb; --panel: #ffffff; --ink: #1a1a19; --muted: #5f5e5a; --line: #e3e2dd;
  --msa: #2a78d6; --dense: #c9541f; --needle: #b3146b; }
@media (prefers-color-scheme: dark) { :root {
  --surface: #1a1a19; --panel: #232321; --ink: #f2f1ec; --muted: #aeada6; --line: #3a3a37;
  --msa: #5a9df0; --dense: #ee7d45; --needle: #f277b6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--surface); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; } h2 { font-size: 18px; margin: 0 0 2px; }
p { margin: 0; color: var(--muted); } .sub { font-size: 14px; margin-bottom: 14px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 24px 0; }
.card, section { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 12px 16px; } .card b { display: block; font-size: 26px; line-height: 1.25; font-weight: 650; }
.card span { color: var(--muted); font-size: 13px; }
section { padding: 20px 22px; margin-bottom: 16px; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; } .two section { margin: 0; }
@media (max-width: 800px) { .two { grid-template-columns: 1fr; } }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--muted); font-size: 12px; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .label { font-weight: 600; font-size: 13px; }
.map { display: grid; grid-template-columns: auto 1fr; grid-template-rows: 440px auto; column-gap: 8px; }
.map .plot { position: relative; border: 1px solid var(--line); }
.map canvas { width: 100%; height: 100%; display: block; image-rendering: pixelated; }
.map i { position: absolute; width: 13px; height: 13px; margin: -6.5px 0 0 -6.5px; border-radius: 50%;
  border: 2px solid var(--needle); }
.map i.missed { border-style: dashed; }
.axis { color: var(--muted); font-size: 12px; display: flex; justify-content: space-between; }
.axis.y { flex-direction: column; text-align: right; } .axis.x { grid-column: 2; padding-top: 4px; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 22px; align-items: center; font-size: 13px; color: var(--muted);
  margin: 10px 0 12px; }
.legend .ramp { display: inline-block; width: 90px; height: 10px; margin: 0 6px; border: 1px solid var(--line);
  background: linear-gradient(90deg, var(--panel), var(--msa)); }
.legend .ring { display: inline-block; width: 12px; height: 12px; border-radius: 50%; vertical-align: -1px;
  border: 2px solid var(--needle); margin-right: 6px; }
.legend .box { display: inline-block; width: 12px; height: 12px; border-radius: 3px; vertical-align: -1px; margin-right: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; } details summary { cursor: pointer; color: var(--muted); font-size: 14px; }
.scroll { overflow-x: auto; } footer { color: var(--muted); font-size: 13px; margin-top: 20px; }
</style></head><body><main>
)html";

constexpr std::string_view kScript = R"html(<script>
(() => {
  const canvas = document.getElementById("map"), bytes = atob(canvas.dataset.cells);
  const rgb = name => {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const parts = getComputedStyle(probe).color.match(/\d+/g).map(Number);
    probe.remove();
    return parts;
  };
  const paint = () => {
    const from = rgb("--panel"), to = rgb("--msa"), context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    for (let i = 0; i < bytes.length; ++i) {
      const t = bytes.charCodeAt(i) / 255;
      for (let c = 0; c < 3; ++c) image.data[4 * i + c] = from[c] + (to[c] - from[c]) * t;
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  };
  paint();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
})();
</script>
)html";

std::string base64(const std::vector<std::uint8_t>& bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t left = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t word = 0;
    for (std::size_t j = 0; j < 3; ++j) word = word << 8 | (j < left ? bytes[i + j] : 0u);
    for (std::size_t j = 0; j < 4; ++j)
      text += j <= left ? kDigits[word >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

std::string axis(const char* kind, std::int64_t tokens) {
  std::string text = fmt::format("<div class=\"axis {}\">", kind);
  for (int i = 0; i <= 4; ++i) text += fmt::format("<span>{}</span>", short_count(tokens * i / 4));
  return text + "</div>";
}

}  // namespace

SelectionMap selection_map(const Tensor& ids, std::int64_t row, std::int64_t rows,
                           std::int64_t head, std::int64_t heads, std::int64_t blocks) {
  constexpr std::int64_t kMost = 256;
  SelectionMap map{.rows = std::min(kMost, rows), .blocks = std::min(kMost, blocks), .cells = {}};
  std::vector<double> counts(static_cast<std::size_t>(map.rows * map.blocks), 0);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t h = head; h < head + heads; ++h) {
      for (std::int64_t slot = 0; slot < ids.shape[2]; ++slot) {
        const std::int32_t id = testkit::int_at(ids, row + i, h, slot);
        if (id < 0) break;
        const std::int64_t y = i * map.rows / rows;
        counts[static_cast<std::size_t>(y * map.blocks + id * map.blocks / blocks)] += 1;
      }
    }
  }
  const double full =
      static_cast<double>(rows * heads * blocks) / static_cast<double>(map.rows * map.blocks);
  for (const double count : counts) {
    // The square root keeps what few queries chose visible.
    map.cells.push_back(
        static_cast<std::uint8_t>(std::lround(255 * std::sqrt(std::min(1.0, count / full)))));
  }
  return map;
}

std::string page_head(std::string_view title) {
  return std::string(kHead).append(escaped(title)).append(kStyle);
}

std::string page_end() { return std::string(kScript).append("</main></body></html>\n"); }

std::string card(const std::string& value, const std::string& label) {
  return fmt::format("<div class=\"card\"><b>{}</b><span>{}</span></div>\n", value, label);
}

std::string map_figure(const SelectionMap& map, std::int64_t queries, std::int64_t tokens,
                       const std::string& marks) {
  return "<div class=\"map\">" + axis("y", queries) + "<div class=\"plot\">" +
         fmt::format(
             "<canvas id=\"map\" width=\"{}\" height=\"{}\" role=\"img\" "
             "aria-label=\"Heat map of chosen blocks\" data-cells=\"{}\"></canvas>",
             map.blocks, map.rows, base64(map.cells)) +
         marks + "</div>" + axis("x", tokens) + "</div>";
}

std::string escaped(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    if (c == '<') {
      safe += "&lt;";
    } else if (c == '&') {
      safe += "&amp;";
    } else {
      safe += c;
    }
  }
  return safe;
}

std::string short_count(std::int64_t value) {
  if (value >= 1 << 20 && value % (1 << 20) == 0) return fmt::format("{}M", value >> 20);
  if (value >= 1024 && value % 1024 == 0) return fmt::format("{}K", value >> 10);
  return fmt::format("{}", value);
}

}  // namespace msa::cli
