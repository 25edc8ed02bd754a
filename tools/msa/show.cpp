// SPDX-License-Identifier: MIT
// `msa show IDS [OUT]`: which blocks a selection chose, in numbers and as the picture of the demo's
// page.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "cli.h"
#include "page_parts.h"
#include "pending_file.h"
#include "problem_file.h"
#include "testkit/block_lists.h"
#include "testkit/requests.h"

namespace msa::cli {
namespace {

using testkit::int_at;

struct ShowCommand {
  std::string in;
  std::string out;
  std::int64_t block_size = 128;
  std::int64_t head = -1;
  std::int64_t request = 0;
};

/// Rows and heads of the lists that are shown.
struct Shown {
  Tensor ids{};
  std::int64_t row = 0, rows = 0, head = 0, heads = 0;
  std::int64_t blocks = 0;

  template <class Visit>
  void for_each_list(const Visit& visit) const {
    for (std::int64_t i = row; i < row + rows; ++i) {
      for (std::int64_t h = head; h < head + heads; ++h) visit(i, h);
    }
  }
  std::vector<std::int32_t> list(std::int64_t i, std::int64_t h) const {
    std::vector<std::int32_t> list;
    for (std::int64_t s = 0; s < ids.shape[2]; ++s) {
      const std::int32_t id = int_at(ids, i, h, s);
      if (id < 0) break;
      list.push_back(id);
    }
    return list;
  }
};

void choose_rows(TensorFiles& files, const ShowCommand& command, Shown& shown) {
  const Tensor starts = files.optional("cu_seqlens_q");
  files.check_rank("cu_seqlens_q", starts, 1);
  files.check_int32("cu_seqlens_q", starts);
  const std::int64_t requests = starts ? starts.shape[0] - 1 : 1;
  if (command.request >= requests) {
    throw Failure(kUsage,
                  fmt::format("--request: expected below {}, got {}", requests, command.request));
  }
  shown.rows = shown.ids.shape[0];
  if (!starts) return;
  shown.row = int_at(starts, command.request);
  shown.rows = int_at(starts, command.request + 1) - shown.row;
  if (shown.row < 0 || shown.rows < 0 || shown.row + shown.rows > shown.ids.shape[0]) {
    bad_input(fmt::format(
        "{}: tensor 'cu_seqlens_q': expected ascending rows of 'block_ids', 0 "
        "to {}, got {} to {} for request {}",
        files.paths(), shown.ids.shape[0], shown.row, shown.row + shown.rows, command.request));
  }
}

void choose_heads(const ShowCommand& command, Shown& shown) {
  shown.heads = shown.ids.shape[1];
  if (command.head < 0) return;
  if (command.head >= shown.heads) {
    throw Failure(kUsage,
                  fmt::format("--head: expected below {}, got {}", shown.heads, command.head));
  }
  shown.head = command.head;
  shown.heads = 1;
}

/// Blocks of the picture: up to the last id that any list holds.
void count_blocks(const TensorFiles& files, Shown& shown) {
  shown.for_each_list([&](std::int64_t i, std::int64_t h) {
    for (std::int64_t s = 0; s < shown.ids.shape[2]; ++s) {
      const std::int32_t id = int_at(shown.ids, i, h, s);
      if (id == -1) break;
      if (id < 0) {
        bad_input(
            fmt::format("{}: tensor 'block_ids': expected ids from 0 or -1, got {} at "
                        "[{}, {}, {}]",
                        files.paths(), id, i, h, s));
      }
      shown.blocks = std::max<std::int64_t>(shown.blocks, std::int64_t{id} + 1);
    }
  });
  if (shown.blocks == 0) bad_input(files.paths() + ": tensor 'block_ids': no list holds an id");
}

/// What the lists have in common.
struct Habits {
  double listed = 0;      // ids of a list, mean
  double first = 0;       // share of lists that hold block 0
  double kept = 0;        // share of a list's ids that the query before listed too
  double neighbours = 0;  // distinct blocks of 8 neighbouring queries
};

Habits habits_of(const Shown& shown) {
  Habits habits;
  double lists = 0, ids = 0, with_before = 0, again = 0;
  shown.for_each_list([&](std::int64_t i, std::int64_t h) {
    const std::vector<std::int32_t> list = shown.list(i, h);
    lists += 1;
    ids += static_cast<double>(list.size());
    habits.first += std::count(list.begin(), list.end(), 0) > 0 ? 1 : 0;
    if (i == shown.row) return;
    const std::vector<std::int32_t> before = shown.list(i - 1, h);
    with_before += static_cast<double>(list.size());
    for (const std::int32_t id : list) again += std::count(before.begin(), before.end(), id) > 0;
  });
  habits.listed = ids / lists;
  habits.first /= lists;
  habits.kept = with_before > 0 ? again / with_before : 0;
  const std::array<std::int32_t, 2> starts{static_cast<std::int32_t>(shown.row),
                                           static_cast<std::int32_t>(shown.row + shown.rows)};
  Tensor ids_of_heads = shown.ids;
  ids_of_heads.data = testkit::address(shown.ids, 0, shown.head);
  ids_of_heads.shape[1] = shown.heads;
  Batch batch;
  batch.cu_seqlens_q = make_tensor(const_cast<std::int32_t*>(starts.data()), DType::I32, {2});
  habits.neighbours = testkit::blocks_per_8(ids_of_heads, batch);
  return habits;
}

std::string page(const ShowCommand& command, const Shown& shown, const Habits& habits) {
  const std::int64_t tokens = shown.blocks * command.block_size;
  const SelectionMap map =
      selection_map(shown.ids, shown.row, shown.rows, shown.head, shown.heads, shown.blocks);
  std::string html = page_head("Chosen blocks");
  html += fmt::format(
      "<h1>{} queries, up to {} blocks each</h1>\n<p>{} of <code>{}</code>, "
      "request {}.</p>\n",
      short_count(shown.rows), shown.ids.shape[2],
      command.head < 0 ? fmt::format("All {} heads", shown.heads)
                       : fmt::format("Head {}", command.head),
      escaped(command.in), command.request);
  html += "<div class=\"cards\">\n" + card(fmt::format("{:.1f}", habits.listed), "blocks a query") +
          card(fmt::format("{:.0f} %", 100 * habits.kept), "listed by the query before too") +
          card(fmt::format("{:.1f}", habits.neighbours), "different ones over 8 neighbours") +
          card(fmt::format("{:.0f} %", 100 * habits.first), "of the lists hold block 0") +
          "</div>\n";
  html += fmt::format(
      "<section><h2>Which blocks each query chose</h2>\n<p class=\"sub\">Queries "
      "down, {} a row of the picture; the context across, in blocks of {} "
      "tokens.</p>\n<div class=\"legend\"><span>share of the row's lists that "
      "hold the block: none<span class=\"ramp\"></span>all</span></div>\n",
      testkit::ceil_div(shown.rows, map.rows), command.block_size);
  return html + map_figure(map, shown.rows, tokens, "") + "</section>\n" + page_end();
}

int show(const ShowCommand& command) {
  TensorFiles files({command.in}, true);
  Shown shown;
  shown.ids = files.required("block_ids", "show", 3);
  files.check_int32("block_ids", shown.ids);
  choose_rows(files, command, shown);
  choose_heads(command, shown);
  count_blocks(files, shown);
  const Habits habits = habits_of(shown);
  fmt::print(
      "queries\t{}\nheads\t{}\nslots\t{}\nblocks\t{}\nlisted\t{:.2f}\n"
      "listed_before_too\t{:.3f}\nblocks_per_8\t{:.2f}\nholds_block_0\t{:.3f}\n",
      shown.rows, shown.heads, shown.ids.shape[2], shown.blocks, habits.listed, habits.kept,
      habits.neighbours, habits.first);
  PendingFile file(command.out);
  file.append(page(command, shown, habits));
  file.publish();
  fmt::print("page\t{}\n", command.out);
  return kGood;
}

}  // namespace

void add_show(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("show", "Which blocks the block_ids of a file choose, as a page");
  auto options = std::make_shared<ShowCommand>();
  options->out = "selection.html";
  command->add_option("ids", options->in, "File with block_ids, as run select and run msa write")
      ->required();
  command->add_option("out", options->out, "The page; appears whole or not at all")
      ->capture_default_str();
  command->add_option("--block-size", options->block_size, "Tokens in a block, for the axis")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20));
  command->add_option("--head", options->head, "One head; default: all of them")
      ->check(CLI::Range(0, 1 << 20));
  command->add_option("--request", options->request, "Which request, where cu_seqlens_q is given")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 30));
  command->callback([&action, options] { action = [options] { return show(*options); }; });
}

}  // namespace msa::cli
