// SPDX-License-Identifier: MIT
#include "tests/testkit/rounded_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "testkit/number.h"
#include "testkit/random.h"
#include "testkit/requests.h"

namespace msa::testkit {

void attend_with_rounded_weights(const Data& data) {
  const Problem& p = data.problem();
  const Operands& o = data.operands();
  const Request request = requests_of(p, o.batch).front();
  const std::int64_t heads = p.attention.heads_q, dim = p.attention.head_dim;
  const double softmax_scale =
      p.attention.softmax_scale.value_or(1 / std::sqrt(static_cast<double>(dim)));
  const Stream64 random(7, 1);
  std::vector<float> query(static_cast<std::size_t>(dim)), row(query.size());
  std::vector<std::vector<float>> keys, values;
  std::vector<float> scales;  // of values
  for (std::int64_t key = 0; key < request.visible_keys(request.seqlen_q - 1); ++key) {
    load_key(key_rows(p, o), request, key, 0, dim, keys.emplace_back(row.size()).data());
    load_key(value_rows(p, o), request, key, 0, dim, values.emplace_back(row.size()).data());
    const std::byte* scale = scale_address(value_rows(p, o), request, key, 0);
    scales.push_back(1);
    if (scale != nullptr) std::memcpy(&scales.back(), scale, sizeof(float));
  }
  for (std::int64_t i = 0; i < request.seqlen_q; ++i) {
    for (std::int64_t h = 0; h < heads; ++h) {
      load(address(o.q, i, h), o.q.dtype, dim, query.data());
      std::vector<double> scores, sums(row.size());
      for (std::int64_t key = 0; key < request.visible_keys(i); ++key) {
        double dot = 0;
        for (std::size_t d = 0; d < row.size(); ++d) dot += double{query[d]} * keys[key][d];
        scores.push_back(dot * softmax_scale);
      }
      const double top = *std::max_element(scores.begin(), scores.end()) +
                         2 * random.uniform(static_cast<std::uint64_t>(i * heads + h));
      double sum = 0;
      for (std::size_t key = 0; key < scores.size(); ++key) {
        const double weight = std::exp(scores[key] - top);
        const double scale = scales[key];
        const double rounded = round_to(static_cast<float>(weight * scale), o.q.dtype) / scale;
        sum += weight;
        for (std::size_t d = 0; d < row.size(); ++d) sums[d] += rounded * values[key][d];
      }
      for (std::size_t d = 0; d < row.size(); ++d) row[d] = static_cast<float>(sums[d] / sum);
      store(row.data(), dim, DType::F32, address(o.out, i, h));
    }
  }
}

}  // namespace msa::testkit
