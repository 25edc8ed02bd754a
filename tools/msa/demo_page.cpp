// SPDX-License-Identifier: MIT
// The demo's sections; charts are inline SVG.
#include "demo_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "page_parts.h"

namespace msa::cli {
namespace {

std::string short_seconds(double seconds) {
  if (seconds >= 10) return fmt::format("{:.1f} s", seconds);
  if (seconds >= 1) return fmt::format("{:.2f} s", seconds);
  if (seconds < 0.01) return fmt::format("{:.1f} ms", 1e3 * seconds);
  return fmt::format("{:.0f} ms", 1e3 * seconds);
}

std::string cards(const DemoResults& r) {
  const LengthTimes& whole = r.whole();
  return "<div class=\"cards\">\n" +
         card(fmt::format("{:.1f}&times;", r.speedup()), "faster than dense attention") +
         card(short_seconds(whole.msa_seconds), "MSA, selection included") +
         card(short_seconds(whole.dense_seconds), "dense attention") +
         card(fmt::format("{:.0f} %", 100 * r.saved()), "of the multiply-adds saved") +
         card(fmt::format("{} of {}", r.needles_found(), r.needles.size()), "needles found") +
         card(fmt::format("{} rows", r.rows_compared),
              r.verified ? "verified against the oracle" : "compared: WRONG") +
         "</div>\n";
}

std::string map_section(const DemoResults& r) {
  std::string html = fmt::format(
      "<section><h2>Which blocks each query chose</h2>\n<p class=\"sub\">Each row is a bucket of "
      "{} neighbouring queries "
      "(down), each column a part of the context (across). A query attends to {} blocks of {} "
      "tokens, its own among "
      "them; 8 neighbours together touch {:.1f} different ones.</p>\n",
      r.tokens / r.map.rows, r.topk, r.block_size, r.blocks_per_8);
  html +=
      "<div class=\"legend\"><span>share of the bucket's queries that chose the block: none<span "
      "class=\"ramp\"></span>all</span>"
      "<span><span class=\"ring\"></span>a planted needle, found by the row that asks for it "
      "(dashed: missed)</span></div>\n";
  std::string marks;
  for (const NeedleResult& n : r.needles) {
    const auto percent = [&](std::int64_t position) {
      return 100.0 * static_cast<double>(position) / static_cast<double>(r.tokens);
    };
    marks += fmt::format(
        "<i{} style=\"left:{:.2f}%;top:{:.2f}%\" title=\"token {}, asked for by token {}\"></i>",
        n.found ? "" : " class=\"missed\"", percent(n.key), percent(n.asked_by), n.key, n.asked_by);
  }
  return html + map_figure(r.map, r.tokens, r.tokens, marks) + "</section>\n";
}

// ---- charts ----

constexpr double kWidth = 500, kHeight = 320, kLeft = 58, kRight = 74, kTop = 14, kBottom = 44;

std::string text_at(double x, double y, const char* anchor, const std::string& text,
                    const std::string& extra = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y,
                     anchor, extra, text);
}

std::string line_at(double x1, double y1, double x2, double y2) {
  return fmt::format(
      "<line class=\"grid\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", x1, y1,
      x2, y2);
}

/// Time against context length, both axes logarithmic.
class TimeChart {
 public:
  explicit TimeChart(const DemoResults& r) : times_(r.times) {
    double least = 1e30, most = 0;
    for (const LengthTimes& t : times_) {
      least = std::min({least, t.dense_seconds, t.msa_seconds});
      most = std::max({most, t.dense_seconds, t.msa_seconds});
    }
    low_ = std::floor(std::log10(least));
    high_ = std::ceil(std::log10(most));
  }

  std::string svg() const {
    std::string out = fmt::format(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"Time against context length\">\n",
        kWidth, kHeight);
    for (int decade = static_cast<int>(low_); decade <= static_cast<int>(high_); ++decade) {
      const double seconds = std::pow(10.0, decade);
      out += line_at(kLeft, y(seconds), kWidth - kRight, y(seconds));
      out += text_at(
          kLeft - 8, y(seconds) + 4, "end",
          decade < 0 ? fmt::format("{:.0f} ms", 1e3 * seconds) : fmt::format("{:.0f} s", seconds));
    }
    for (const LengthTimes& t : times_) {
      out += text_at(x(t.tokens), kHeight - kBottom + 18, "middle", short_count(t.tokens));
    }
    out += text_at((kLeft + kWidth - kRight) / 2, kHeight - 6, "middle", "tokens in the context");
    return out + series("--dense", "dense", &LengthTimes::dense_seconds) +
           series("--msa", "MSA", &LengthTimes::msa_seconds) + "</svg>\n";
  }

 private:
  double x(std::int64_t tokens) const {
    const double first = std::log2(static_cast<double>(times_.front().tokens));
    const double span = std::max(1.0, std::log2(static_cast<double>(times_.back().tokens)) - first);
    const double part = (std::log2(static_cast<double>(tokens)) - first) / span;
    return kLeft + 14 + part * (kWidth - kRight - kLeft - 28);
  }
  double y(double seconds) const {
    return kHeight - kBottom -
           (std::log10(seconds) - low_) / (high_ - low_) * (kHeight - kBottom - kTop);
  }

  std::string series(const char* colour, const char* name, double LengthTimes::*seconds) const {
    std::string points, dots;
    for (const LengthTimes& t : times_) {
      points += fmt::format("{:.1f},{:.1f} ", x(t.tokens), y(t.*seconds));
      dots += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"var({})\"><title>{}, {} tokens: "
          "{}</title></circle>\n",
          x(t.tokens), y(t.*seconds), colour, name, short_count(t.tokens),
          short_seconds(t.*seconds));
    }
    const LengthTimes& last = times_.back();
    const std::string style = fmt::format(" class=\"label\" style=\"fill:var({})\"", colour);
    return fmt::format(
               "<polyline points=\"{}\" fill=\"none\" stroke=\"var({})\" stroke-width=\"2\"/>\n",
               points, colour) +
           dots + text_at(x(last.tokens) + 10, y(last.*seconds) - 2, "start", name, style) +
           text_at(x(last.tokens) + 10, y(last.*seconds) + 12, "start",
                   short_seconds(last.*seconds));
  }

  const std::vector<LengthTimes>& times_;
  double low_ = 0, high_ = 0;
};

// Bins of |error|: exactly 0, then half decades.
constexpr int kBins = 13;
constexpr double kFirstExponent = -7;

std::array<double, kBins> histogram(const std::vector<double>& errors) {
  std::array<double, kBins> share{};
  for (const double error : errors) {
    int bin = 0;
    if (error > 0) {
      bin = std::clamp(1 + static_cast<int>(std::floor(2 * (std::log10(error) - kFirstExponent))),
                       1, kBins - 1);
    }
    share[static_cast<std::size_t>(bin)] += 1.0 / static_cast<double>(errors.size());
  }
  return share;
}

std::string error_svg(const DemoResults& r) {
  const auto dense = histogram(r.dense_errors), sparse = histogram(r.msa_errors);
  const double most = std::max(*std::max_element(dense.begin(), dense.end()),
                               *std::max_element(sparse.begin(), sparse.end()));
  const double top = std::ceil(most * 10) / 10;
  const double right = kWidth - 12, slot = (right - kLeft) / kBins, bar = slot * 0.38;
  const auto y = [&](double share) {
    return kHeight - kBottom - share / top * (kHeight - kBottom - kTop);
  };
  std::string out =
      fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"Histogram of errors\">\n",
                  kWidth, kHeight);
  const int steps = top > 0.45 ? 2 : 1;
  for (int tenth = 0; tenth <= static_cast<int>(std::lround(10 * top)); tenth += steps) {
    out += line_at(kLeft, y(tenth / 10.0), right, y(tenth / 10.0));
    out += text_at(kLeft - 8, y(tenth / 10.0) + 4, "end", fmt::format("{} %", 10 * tenth));
  }
  const auto bars = [&](const std::array<double, kBins>& shares, const char* colour, double shift) {
    for (int i = 0; i < kBins; ++i) {
      const double share = shares[static_cast<std::size_t>(i)];
      if (share <= 0) continue;
      const double x = kLeft + i * slot + slot / 2 + shift;
      out += fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"1.5\" "
          "fill=\"var({})\"/>\n",
          x, y(share), bar, kHeight - kBottom - y(share), colour);
    }
  };
  bars(dense, "--dense", -bar - 0.5);
  bars(sparse, "--msa", 0.5);
  out += text_at(kLeft + slot / 2, kHeight - kBottom + 18, "middle", "0");
  for (int i = 3; i < kBins; i += 2) {
    const int exponent = static_cast<int>(kFirstExponent) + (i - 1) / 2;
    out += text_at(kLeft + i * slot, kHeight - kBottom + 18, "middle",
                   fmt::format("10<tspan dy=\"-5\" font-size=\"9\">&#8722;{}</tspan>", -exponent));
  }
  return out + text_at((kLeft + right) / 2, kHeight - 6, "middle", "|output &#8722; oracle|") +
         "</svg>\n";
}

std::string chart_section(const char* title, const std::string& subtitle, const std::string& svg) {
  return fmt::format(
      "<section><h2>{}</h2>\n<p class=\"sub\">{}</p>\n<div class=\"legend\"><span><span "
      "class=\"box\" "
      "style=\"background:var(--dense)\"></span>dense</span><span><span class=\"box\" "
      "style=\"background:var(--msa)\"></span>MSA</span></div>\n{}</section>",
      title, subtitle, svg);
}

/// 4.5e15 -> "4.5 P".
std::string short_operations(double count) {
  constexpr std::array<const char*, 3> kPrefixes{"G", "T", "P"};
  double scaled = count / 1e9;
  std::size_t prefix = 0;
  for (; scaled >= 1000 && prefix + 1 < kPrefixes.size(); ++prefix) scaled /= 1000;
  return fmt::format("{:.{}f} {}", scaled, scaled < 10 ? 1 : 0, kPrefixes[prefix]);
}

/// What dense attention had to do, and how fast it was: a speedup over a slow rival says little.
std::string cost_of_dense(const DemoResults& r) {
  return fmt::format("Dense attention of all {} tokens is {}FLOP, here at {}FLOP/s.",
                     short_count(r.tokens), short_operations(r.dense_ops),
                     short_operations(r.dense_ops / r.whole().dense_seconds));
}

std::string charts(const DemoResults& r) {
  return "<div class=\"two\">" +
         chart_section(
             "Time against context length",
             "Prefill of the whole context; both axes are logarithmic. " + cost_of_dense(r),
             TimeChart(r).svg()) +
         chart_section("Errors against the oracle",
                       "Share of sampled outputs by distance from double precision.",
                       error_svg(r)) +
         "</div>\n";
}

std::string tables(const DemoResults& r) {
  std::string html =
      "<section style=\"margin-top:16px\"><details><summary>The numbers behind the "
      "pictures</summary><div class=\"scroll\">\n"
      "<table><tr><th>tokens</th><th>dense</th><th>MSA</th><th>speedup</th></tr>\n";
  for (const LengthTimes& t : r.times) {
    html += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.2f}&times;</td></tr>\n",
                        t.tokens, short_seconds(t.dense_seconds), short_seconds(t.msa_seconds),
                        t.dense_seconds / t.msa_seconds);
  }
  html +=
      "</table><br><table><tr><th>needle at</th><th>asked for at</th><th>block chosen</th><th>in a "
      "window of as many "
      "keys</th><th>value read, dense (cosine)</th><th>value read, MSA (cosine)</th></tr>\n";
  for (const NeedleResult& n : r.needles) {
    html += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.4f}</td><td>{:.4f}</td></tr>\n",
        n.key, n.asked_by, n.found ? "yes" : "no", n.in_window ? "yes" : "no", n.dense_cosine,
        n.msa_cosine);
  }
  return html + "</table></div></details></section>\n";
}

}  // namespace

std::int64_t DemoResults::needles_found() const {
  return std::count_if(needles.begin(), needles.end(),
                       [](const NeedleResult& n) { return n.found; });
}

std::int64_t DemoResults::needles_in_window() const {
  return std::count_if(needles.begin(), needles.end(),
                       [](const NeedleResult& n) { return n.in_window; });
}

std::string DemoResults::machine() const {
  if (!gpu.empty()) return fmt::format("{}, {}", gpu, isa);
  return fmt::format("{} with {} threads, {}", cpu, threads, isa);
}

std::string demo_page(const DemoResults& r) {
  std::string html = page_head("MiniMax Sparse Attention on this machine");
  html += fmt::format(
      "<h1>{} tokens, {} blocks each</h1>\n<p>MiniMax Sparse Attention on {}: "
      "{} query heads, {} key "
      "head{}, dim {}, bf16. The context is noise that drifts as text does, with {} needles "
      "planted far from the rows that "
      "ask for them; a window of as many keys finds {}.</p>\n",
      short_count(r.tokens), r.topk, escaped(r.machine()), r.heads_q, r.heads_kv,
      r.heads_kv == 1 ? "" : "s", r.head_dim, r.needles.size(), r.needles_in_window());
  html += cards(r) + map_section(r) + charts(r) + tables(r);
  html += fmt::format(
      "<footer>msa {} ({}). Computed on {}. Made by <code>msa demo --backend {} --tokens {} "
      "--heads "
      "{}/{}</code>.</footer>\n",
      r.version, escaped(r.commit), escaped(r.machine()), escaped(r.backend), r.tokens, r.heads_q,
      r.heads_kv);
  return html + page_end();
}

}  // namespace msa::cli
