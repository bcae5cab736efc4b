// The next token of a row, as its own sample is drawn: what stays under its rule, and one of that.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "race.h"
#include "rows.h"
#include "support.h"

namespace scoring {

struct DrawnToken {
  int64_t id;
  float logprob; // in the support
  bool drawable; // whether the row is a distribution
};

struct DrawScratch {
  SupportScratch support;
  std::vector<float> allowed;
};

// Of a greedy row the best token, the lowest id among equals.
template <typename T>
DrawnToken drawn(const Row<T>& row, const RowSums& sums, bool greedy, const Rule& rule, const Draw& draw,
                 DrawScratch& scratch) {
  const bool drawable = std::isfinite(sums.logsumexp);
  if (greedy) {
    return {std::min(id_after(row, sums.max, 0), row.size - 1), 0.0f, drawable};
  }
  const Support found = support_of(row, sums, rule, scratch.support);
  const int64_t id = race(row, sums.max, found.pivot, found.least_id, draw);
  const double logprob = static_cast<double>(row.at(id)) - sums.logsumexp - found.log_kept;
  return {id, static_cast<float>(logprob), drawable};
}

// Calls body(row, sums) with x of a row whose banned ids are at -inf, or with the row itself.
template <typename T, typename Body>
auto with_allowed(const Row<T>& row, const RowSums& sums, std::span<const int64_t> banned,
                  DrawScratch& scratch, Body body) {
  if (banned.empty()) {
    return body(row, sums);
  }
  scratch.allowed.resize(row.size);
  for (int64_t id = 0; id < row.size; ++id) {
    scratch.allowed[id] = row.at(id);
  }
  for (const int64_t id : banned) {
    scratch.allowed[id] = -kInfinity;
  }
  const Row<float> allowed{scratch.allowed.data(), row.size, 1.0f};
  return body(allowed, row_sums(allowed));
}

} // namespace scoring
