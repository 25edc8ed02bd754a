// SPDX-License-Identifier: MIT
#include "progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace msa::cli {
namespace {

constexpr int kBarWidth = 24;

std::size_t terminal_width() {
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

}  // namespace

Progress::Progress() {
  const char* term = std::getenv("TERM");
  const char* no_colour = std::getenv("NO_COLOR");
  terminal_ = ::isatty(STDERR_FILENO) == 1 && term != nullptr && std::string(term) != "dumb";
  colour_ = no_colour == nullptr || *no_colour == '\0';
}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (shown_) fmt::print(stderr, "\r\x1b[K");
  shown_ = false;
}

void Progress::say(const std::string& text) {
  if (!terminal_) return;
  clear();
  fmt::print(stderr, "{}", text.substr(0, terminal_width() - 1));
  std::fflush(stderr);
  shown_ = true;
}

void Progress::bar(double done, const std::string& text) {
  if (!terminal_) return;
  clear();
  const double part = std::clamp(done, 0.0, 1.0);
  const auto full = static_cast<std::size_t>(std::lround(part * kBarWidth));
  std::string filled(full, '#');
  const std::string rest(kBarWidth - full, '.');
  if (colour_) filled = "\x1b[36m" + filled + "\x1b[0m";
  const std::size_t room =
      terminal_width() - std::min<std::size_t>(terminal_width(), kBarWidth + 9);
  fmt::print(stderr, "[{}{}] {:3.0f}% {}", filled, rest, 100 * part, text.substr(0, room));
  std::fflush(stderr);
  shown_ = true;
}

}  // namespace msa::cli
