// SPDX-License-Identifier: MIT
// All rows: 64/4 heads of 128, bf16, blocks of 128, 16 kept: the defaults of the case language.
#include "bench_rows.h"

namespace msa::cli {

std::vector<BenchRow> named_rows(bool host) {
  std::vector<BenchRow> rows{
      {.id = "dense.8k",
       .what = "dense causal prefill, 8K tokens",
       .line = "op=dense lens=8192:8192"},
      {.id = "dense.8k.avx2",
       .what = "dense causal prefill, 8K tokens, AVX2 forced",
       .line = "op=dense lens=8192:8192",
       .isa = "avx2"},
      {.id = "select.32k",
       .what = "selection for a prefill of 32K tokens",
       .line = "op=select lens=32768:32768 regime=drift"},
      {.id = "select8.32k",
       .what = "selection for a prefill of 32K tokens, pages of 128, with an 8-bit filter, against "
               "the same without",
       .line = "op=select lens=32768:32768 page=128 regime=drift filter=1",
       .peer_line = "op=select lens=32768:32768 page=128 regime=drift",
       .peer = "own bf16"},
      {.id = "decode.select8.1m",
       .what = "selection, decode of one token over 1M in pages of 128, with an 8-bit filter, "
               "against the same without",
       .line = "op=select lens=1:1048576 page=128 regime=drift filter=1",
       .peer_line = "op=select lens=1:1048576 page=128 regime=drift",
       .peer = "own bf16"},
      {.id = "select.e4m3.32k",
       .what = "selection for a prefill of 32K tokens, pages of 128, index keys in e4m3 with a "
               "scale for each page, against the same in bf16",
       .line = "op=select lens=32768:32768 page=128 regime=drift index_k=e4m3/page",
       .peer_line = "op=select lens=32768:32768 page=128 regime=drift",
       .peer = "own bf16"},
      {.id = "select.e4m3.32k.random",
       .what = "the same over independent vectors",
       .line = "op=select lens=32768:32768 page=128 index_k=e4m3/page",
       .peer_line = "op=select lens=32768:32768 page=128",
       .peer = "own bf16"},
      {.id = "decode.select.e4m3.1m",
       .what = "selection, decode of one token over 1M in pages of 128, index keys in e4m3 with a "
               "scale for each page, against the same in bf16",
       .line = "op=select lens=1:1048576 page=128 regime=drift index_k=e4m3/page",
       .peer_line = "op=select lens=1:1048576 page=128 regime=drift",
       .peer = "own bf16"},
      {.id = "select.q8kv4.32k",
       .what = "selection for a prefill of 32K tokens, pages of 128, index keys in q8kv4, against "
               "the same in bf16",
       .line = "op=select lens=32768:32768 page=128 regime=drift index_k=q8kv4",
       .peer_line = "op=select lens=32768:32768 page=128 regime=drift",
       .peer = "own bf16"},
      {.id = "decode.select.q8kv4.1m",
       .what = "selection, decode of one token over 1M in pages of 128, index keys in q8kv4, "
               "against the same in bf16",
       .line = "op=select lens=1:1048576 page=128 regime=drift index_k=q8kv4",
       .peer_line = "op=select lens=1:1048576 page=128 regime=drift",
       .peer = "own bf16"},
      {.id = "sparse.32k.drift",
       .what = "sparse attention, prefill of 32K tokens, lists that drift",
       .line = "op=sparse lens=32768:32768 regime=drift"},
      {.id = "sparse.32k.random",
       .what = "sparse attention, prefill of 32K tokens, independent lists",
       .line = "op=sparse lens=32768:32768"},
      {.id = "msa.32k.drift",
       .what = "selection and attention, prefill of 32K tokens, against own dense attention",
       .line = "op=msa lens=32768:32768 regime=drift",
       .peer_line = "op=dense lens=32768:32768"},
      {.id = "backward.8k",
       .what =
           "gradients of q, k and v of sparse attention, prefill of 8K tokens, lists that drift; "
           "the share is that of fp32 products",
       .line = "op=sparse_backward lens=8192:8192 regime=drift"},
      {.id = "nan.8k",
       .what = "sparse attention, prefill of 8K tokens, one NaN in a block that all rows list, "
               "against the same without it",
       .line = "op=sparse lens=8192:8192 regime=drift",
       .peer_line = "op=sparse lens=8192:8192 regime=drift",
       .peer = "own clean run",
       .poison = true},
      {.id = "decode.dense.128k",
       .what = "dense decode of one token over 128K",
       .line = "op=dense lens=1:131072"},
      {.id = "decode.e4m3",
       .what =
           "dense decode of one token over 128K, keys and values in e4m3, a scale for each head, "
           "against the same in bf16",
       .line = "op=dense lens=1:131072 kv=e4m3/head",
       .peer_line = "op=dense lens=1:131072",
       .peer = "own bf16"},
      {.id = "decode.q8kv4",
       .what = "dense decode of one token over 128K, keys and values in q8kv4, against the same in "
               "bf16",
       .line = "op=dense lens=1:131072 kv=q8kv4",
       .peer_line = "op=dense lens=1:131072",
       .peer = "own bf16"},
      {.id = "decode.msa.1m",
       .what = "selection and attention, decode of one token over 1M",
       .line = "op=msa lens=1:1048576 regime=drift"},
      {.id = "decode.q8kv4.1m",
       .what = "selection and attention, decode of one token over 1M in pages of 128, index keys, "
               "keys and values in q8kv4, against the same in bf16",
       .line = "op=msa lens=1:1048576 page=128 regime=drift kv=q8kv4 index_k=q8kv4",
       .peer_line = "op=msa lens=1:1048576 page=128 regime=drift",
       .peer = "own bf16"},
      {.id = "memory.128k",
       .what = "memory of a whole MSA prefill of 128K tokens beyond inputs and outputs: the larger "
               "of the "
               "plan's workspace and the growth of resident memory",
       .line = "op=msa lens=131072:131072 regime=drift",
       .measure_memory = true},
  };
  // What tiles are worth: the level with them against the one below it, in one run.
  const auto add_tiles = [&](const char* id, const char* what, const char* line) {
    rows.push_back({.id = std::string("amx.") + id,
                    .what = std::string(what) + ", tiles against registers",
                    .line = line,
                    .isa = "amx",
                    .peer_line = line,
                    .peer = "own avx512_bf16",
                    .peer_isa = "avx512_bf16"});
  };
  add_tiles("dense.8k", "dense causal prefill, 8K tokens", "op=dense lens=8192:8192");
  add_tiles("select.32k", "selection for a prefill of 32K tokens",
            "op=select lens=32768:32768 regime=drift");
  add_tiles("select8.32k",
            "selection for a prefill of 32K tokens, pages of 128, with an 8-bit filter",
            "op=select lens=32768:32768 page=128 regime=drift filter=1");
  add_tiles("sparse.32k.random", "sparse attention, prefill of 32K tokens, independent lists",
            "op=sparse lens=32768:32768");
  add_tiles("msa.32k.drift", "selection and attention, prefill of 32K tokens",
            "op=msa lens=32768:32768 regime=drift");
  for (BenchRow& row : rows) row.id = (host ? "cpu.host." : "cpu.") + row.id;
  return rows;
}

namespace {

struct Length {
  const char* name;
  std::int64_t tokens;
};

void add_prefill_rows(std::vector<BenchRow>& rows) {
  for (const auto& [name, tokens] :
       {Length{"8k", 8192}, {"32k", 32768}, {"128k", 131072}, {"1m", 1048576}}) {
    const std::string lens = "lens=" + std::to_string(tokens) + ":" + std::to_string(tokens);
    const std::string size = name;
    if (tokens < 1048576) {
      rows.push_back({.id = "hopper.dense." + size,
                      .what = "dense causal prefill, " + size + " tokens",
                      .line = "op=dense " + lens});
    }
    for (const std::string regime : {"drift", "random"}) {
      rows.push_back({.id = "hopper.msa." + size + "." + regime,
                      .what = "selection and attention, prefill of " + size +
                              " tokens, lists that " +
                              (regime == "drift" ? "drift" : "share nothing"),
                      .line = "op=msa " + lens + " regime=" + regime,
                      .stages = true});
    }
  }
  struct Heads {
    const char* name;
    const char* line;
  };
  for (const auto& [name, line] : {Heads{"32h", "32/2"}, {"16h", "16/1"}, {"8h", "8/1"}}) {
    rows.push_back({.id = std::string("hopper.msa.") + name + ".32k.drift",
                    .what = std::string("selection and attention, prefill of 32k tokens, ") + line +
                            " heads, lists that drift",
                    .line = std::string("op=msa lens=32768:32768 regime=drift heads=") + line,
                    .stages = true});
  }
}

/// Eight bits: keys and values in e4m3, index keys in e4m3, too, or with a filter. And four.
void add_low_bits_rows(std::vector<BenchRow>& rows) {
  struct Row {
    const char* name;
    const char* what;
    const char* lens;
  };
  for (const auto& [name, what, lens] :
       {Row{"1m.b1", "one token over 1M", "lens=1:1048576"},
        {"128k.b32", "32 requests, one token over 128K each", "lens=32x1:131072"},
        {"32k.b128", "128 requests, one token over 32K each", "lens=128x1:32768"}}) {
    rows.push_back({.id = std::string("hopper.decode.fp8.") + name,
                    .what = std::string("selection and attention in a CUDA graph, keys and values "
                                        "in e4m3 with a scale for each head, an 8-bit filter "
                                        "beside index keys in bf16, ") +
                            what,
                    .line = std::string("op=msa page=128 kv=e4m3/head filter=1 ") + lens,
                    .graph = true});
  }
  for (const auto& [name, what, lens] :
       {Row{"1m.b1", "one token over 1M", "lens=1:1048576"},
        {"128k.b1", "one token over 128K", "lens=1:131072"},
        {"128k.b32", "32 requests, one token over 128K each", "lens=32x1:131072"},
        {"32k.b128", "128 requests, one token over 32K each", "lens=128x1:32768"}}) {
    rows.push_back({.id = std::string("hopper.decode.fp8fast.") + name,
                    .what = std::string("selection and attention in a CUDA graph, keys, values and "
                                        "index keys in e4m3 with a scale for each head, blocks "
                                        "ranked by the index keys as they are stored, ") +
                            what,
                    .line = std::string("op=msa page=128 kv=e4m3/head index_k=e4m3/head ") + lens,
                    .graph = true});
  }
  for (const auto& [name, what, lens] :
       {Row{"1m.b1", "one token over 1M", "lens=1:1048576"},
        {"128k.b32", "32 requests, one token over 128K each", "lens=32x1:131072"}}) {
    rows.push_back({.id = std::string("hopper.decode.q8kv4.") + name,
                    .what = std::string("selection and attention in a CUDA graph, keys, values and "
                                        "index keys in q8kv4, blocks ranked by the index keys as "
                                        "they are stored, ") +
                            what,
                    .line = std::string("op=msa page=128 kv=q8kv4 index_k=q8kv4 ") + lens,
                    .graph = true});
  }
  for (const auto& [name, what, lens] :
       {Row{"1m.b1", "one token over 1M", "lens=1:1048576"},
        {"128k.b32", "32 requests, one token over 128K each", "lens=32x1:131072"},
        {"32k.b128", "128 requests, one token over 32K each", "lens=128x1:32768"}}) {
    rows.push_back({.id = std::string("hopper.decode8.") + name,
                    .what = std::string("selection and attention in a CUDA graph, keys and values "
                                        "in bf16, an 8-bit filter beside index keys in bf16, ") +
                            what,
                    .line = std::string("op=msa page=128 filter=1 ") + lens,
                    .graph = true});
  }
  for (const auto& [name, what, line] :
       {Row{"32k.drift", "32K tokens, lists that drift", "lens=32768:32768 regime=drift"},
        {"128k.drift", "128K tokens, lists that drift", "lens=131072:131072 regime=drift"},
        {"128k.random", "128K tokens, independent lists", "lens=131072:131072"}}) {
    rows.push_back({.id = std::string("hopper.attend.fp8.") + name,
                    .what = std::string("sparse attention, keys and values in e4m3 with a scale "
                                        "for each head, prefill of ") +
                            what,
                    .line = std::string("op=sparse kv=e4m3/head ") + line,
                    .peer_line = std::string("op=sparse ") + line,
                    .peer = "own bf16"});
  }
  rows.push_back({.id = "hopper.attend.q8kv4.128k.drift",
                  .what =
                      "sparse attention, keys and values in q8kv4, prefill of 128K tokens, lists "
                      "that drift",
                  .line = "op=sparse kv=q8kv4 lens=131072:131072 regime=drift",
                  .peer_line = "op=sparse lens=131072:131072 regime=drift",
                  .peer = "own bf16"});
}

/// Those of compute capability 8.0 and up, forced.
void add_mma_rows(std::vector<BenchRow>& rows) {
  for (const auto& [name, tokens] : {Length{"8k", 8192}, {"32k", 32768}, {"128k", 131072}}) {
    const std::string lens = " lens=" + std::to_string(tokens) + ":" + std::to_string(tokens);
    const std::string size = name;
    if (tokens < 131072) {
      rows.push_back({.id = "mma.dense." + size,
                      .what = "dense causal prefill, " + size + " tokens, isa mma forced",
                      .line = "op=dense" + lens,
                      .isa = "mma"});
    }
    rows.push_back({.id = "mma.msa." + size + ".drift",
                    .what = "selection and attention, prefill of " + size +
                            " tokens, lists that drift, isa mma forced",
                    .line = "op=msa regime=drift" + lens,
                    .isa = "mma",
                    .stages = true});
  }
  const auto add_beside_sm90 = [&](const std::string& id, const std::string& what,
                                   const std::string& line, bool graph) {
    rows.push_back({.id = "mma." + id,
                    .what = what + ", isa mma forced",
                    .line = line,
                    .isa = "mma",
                    .peer_line = line,
                    .peer = "own sm90",
                    .peer_isa = "sm90",
                    .graph = graph});
  };
  const std::string decode = "selection and attention in a CUDA graph, ";
  add_beside_sm90("decode.1m.b1", decode + "one token over 1M", "op=msa page=128 lens=1:1048576",
                  true);
  add_beside_sm90("decode.128k.b32", decode + "32 requests, one token over 128K each",
                  "op=msa page=128 lens=32x1:131072", true);
  add_beside_sm90("topk.random", "select_topk, 131072 rows of 1024 blocks, scores: random",
                  "op=topk lens=32768:131072 causal=0 regime=random", false);
}

/// Rows whose other side is our own: what an unusual batch costs beside a usual one.
void add_robust_rows(std::vector<BenchRow>& rows) {
  rows.push_back({.id = "hopper.decode.ragged.128k.b1",
                  .what = "selection and attention in a CUDA graph, one token over 128K of ragged "
                          "keys without cu_seqlens_k",
                  .line = "op=msa lens=1:131072",
                  .peer_line = "op=msa lens=1:131072 page=128",
                  .peer = "own, keys in pages",
                  .graph = true});
  rows.push_back({.id = "hopper.decode.padding",
                  .what = "selection and attention in a CUDA graph, 12 requests of one token over "
                          "128K each, 500 rows of padding",
                  .line = "op=msa page=128 lens=12x1:131072 pad_rows=500",
                  .peer_line = "op=msa page=128 lens=12x1:131072",
                  .peer = "own, without padding",
                  .graph = true});
  rows.push_back({.id = "hopper.sparse.64x512.random",
                  .what = "sparse attention, 64 requests of 512 new tokens over 64K, independent "
                          "lists",
                  .line = "op=sparse lens=64x512:65536",
                  .peer_line = "op=sparse lens=16x512:65536",
                  .peer = "own, four batches of 16 such requests",
                  .peer_runs = 4});
  rows.push_back({.id = "hopper.sparse.160x512.random",
                  .what = "sparse attention, 160 requests of 512 new tokens over 32K, independent "
                          "lists",
                  .line = "op=sparse lens=160x512:32768",
                  .peer_line = "op=sparse lens=16x512:32768",
                  .peer = "own, ten batches of 16 such requests",
                  .peer_runs = 10});
  rows.push_back({.id = "hopper.nan.32k",
                  .what = "sparse attention, prefill of 32K tokens, lists that drift, a NaN in a "
                          "value that every row lists",
                  .line = "op=sparse lens=32768:32768 regime=drift",
                  .peer_line = "op=sparse lens=32768:32768 regime=drift",
                  .peer = "own, finite values",
                  .poison = true});
}

void add_decode_rows(std::vector<BenchRow>& rows) {
  struct Decode {
    const char* name;
    const char* what;
    const char* line;
  };
  for (const auto& [name, what, line] :
       {Decode{"1m.b1", "one token over 1M", "lens=1:1048576"},
        {"128k.b1", "one token over 128K", "lens=1:131072"},
        {"128k.b32", "32 requests, one token over 128K each", "lens=32x1:131072"},
        {"32k.b128", "128 requests, one token over 32K each", "lens=128x1:32768"},
        {"8h.128k.b32", "32 requests, one token over 128K each, 8/1 heads",
         "heads=8/1 lens=32x1:131072"},
        {"16h.128k.b32", "32 requests, one token over 128K each, 16/1 heads",
         "heads=16/1 lens=32x1:131072"},
        {"32h.128k.b32", "32 requests, one token over 128K each, 32/2 heads",
         "heads=32/2 lens=32x1:131072"}}) {
    rows.push_back({.id = std::string("hopper.decode.") + name,
                    .what = std::string("selection and attention in a CUDA graph, ") + what,
                    .line = std::string("op=msa page=128 ") + line,
                    .graph = true});
  }
}

/// Speculative decode: eight new tokens a request beside one.
void add_speculative_rows(std::vector<BenchRow>& rows) {
  struct Heads {
    const char* name;
    const char* what;
    const char* line;
  };
  for (const auto& [name, what, line] : {Heads{"", "", ""},
                                         {"32h.", ", 32/2 heads", "heads=32/2 "},
                                         {"16h.", ", 16/1 heads", "heads=16/1 "},
                                         {"8h.", ", 8/1 heads", "heads=8/1 "}}) {
    const std::string shape = std::string("op=msa page=128 regime=drift ") + line;
    rows.push_back({.id = std::string("hopper.decode.8q.") + name + "128k.b32",
                    .what = std::string("selection and attention in a CUDA graph, 32 requests, "
                                        "eight tokens over 128K each, lists that drift") +
                            what,
                    .line = shape + "lens=32x8:131072",
                    .peer_line = shape + "lens=32x1:131072",
                    .peer = "own, one token a request",
                    .stages = *name == '\0',
                    .graph = true});
  }
}

}  // namespace

std::vector<BenchRow> named_gpu_rows() {
  // First of all: it wants a process in which nothing has run.
  std::vector<BenchRow> rows{{.id = "hopper.first_call",
                              .what = "planning and the first run of a process, from an existing "
                                      "CUDA context, prefill of 1K tokens",
                              .line = "op=msa lens=1024:1024",
                              .kind = BenchRow::Kind::FirstCall},
                             {.id = "hopper.workspace.max",
                              .what = "largest workspace of any row's plan, and of dense at 1M",
                              .line = "op=msa|dense|select page=0|128 "
                                      "lens=8192:8192|32768:32768|131072:131072|1048576:1048576|"
                                      "128:1048576|1:1048576|32x1:131072|128x1:32768",
                              .kind = BenchRow::Kind::Workspace}};
  add_prefill_rows(rows);
  rows.push_back({.id = "hopper.select.128k",
                  .what = "selection for a prefill of 128K tokens",
                  .line = "op=select lens=131072:131072 regime=drift"});
  rows.push_back({.id = "hopper.select.chunk128.1m",
                  .what = "selection for 128 new tokens over 1M",
                  .line = "op=select lens=128:1048576 regime=drift"});
  for (const auto& [name, tokens] : {Length{"128k", 131072}, {"1m", 1048576}}) {
    const std::string lens = std::to_string(tokens) + ":" + std::to_string(tokens);
    const std::string line = " page=128 regime=drift lens=" + lens;
    const std::string prefill = std::string("prefill of ") + name +
                                " tokens, pages of 128, an 8-bit filter beside index keys in bf16";
    rows.push_back({.id = std::string("hopper.select8.") + name,
                    .what = "selection for a " + prefill,
                    .line = "op=select filter=1" + line,
                    .peer_line = "op=select" + line,
                    .peer = "own, without the filter"});
    rows.push_back({.id = std::string("hopper.select8.fast.") + name,
                    .what = std::string("selection for a prefill of ") + name +
                            " tokens, pages of 128, by the codes of an 8-bit filter alone",
                    .line = "op=select filter=1 precision=fast" + line,
                    .peer_line = "op=select" + line,
                    .peer = "own, exact, without the filter"});
    rows.push_back({.id = std::string("hopper.msa8.") + name + ".drift",
                    .what = "selection and attention, " + prefill + ", lists that drift",
                    .line = "op=msa filter=1" + line,
                    .stages = true});
  }
  for (const std::string regime : {"random", "ties", "near"}) {
    rows.push_back({.id = "hopper.topk." + regime,
                    .what = "select_topk, 131072 rows of 1024 blocks, scores: " + regime,
                    .line = "op=topk lens=32768:131072 causal=0 regime=" + regime});
  }
  add_decode_rows(rows);
  add_speculative_rows(rows);
  add_low_bits_rows(rows);
  add_robust_rows(rows);
  add_mma_rows(rows);
  return rows;
}

}  // namespace msa::cli
