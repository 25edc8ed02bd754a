// SPDX-License-Identifier: MIT
// One line on stderr that says what is going on and how far it is; nothing where stderr is no
// terminal.
#pragma once

#include <string>

namespace msa::cli {

class Progress {
 public:
  Progress();
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Shows the text alone.
  void say(const std::string& text);
  /// Shows the text behind a bar; `done` lies in 0 .. 1.
  void bar(double done, const std::string& text);
  /// Clears the line, so that other output can follow.
  void clear();

 private:
  bool terminal_;
  bool colour_;
  bool shown_ = false;
};

}  // namespace msa::cli
