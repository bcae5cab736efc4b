// The support of a row under top-k, top-p and min-p, as a prefix of one order: everything above a
// pivot, and at the pivot its higher ids. The rules are those of `reference.support`.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "rows.h"

namespace scoring {

struct Rule {
  int64_t top_k; // 0 = off
  double top_p; // 1 = off
  double log_min_p; // -inf = off
};

struct Support {
  float pivot;
  int64_t least_id; // of those at the pivot, the least that stays
  int64_t size;
  double log_kept; // log of its probability before truncation
};

struct SupportScratch {
  TopScratch top;
  std::vector<float> x;
  std::vector<int32_t> keys;
  std::vector<int64_t> masses;
};

// The x that reach a bound, in `found`, which grows and never shrinks.
template <typename T>
std::span<float> gather_from(const Row<T>& row, float bound, std::vector<float>& found) {
  found.resize(std::max<size_t>(found.size(), row.size + 2 * Vec::size()));
  const Vec least(bound);
  int64_t n = 0;
  row.each(0, row.size, -kInfinity, [&](int64_t, const Vec& a, const Vec& b) {
    if (lanes_that(larger(a, b) >= least) != 0) {
      n += put_reaching(a, least, found.data() + n);
      n += put_reaching(b, least, found.data() + n);
    }
  });
  return {found.data(), static_cast<size_t>(n)};
}

// The least float x with x - max >= log_min_p, compared in double.
inline float least_of_min_p(float max, double log_min_p) {
  const auto stays = [&](float x) {
    return static_cast<double>(x) - static_cast<double>(max) >= log_min_p;
  };
  float least = static_cast<float>(static_cast<double>(max) + log_min_p);
  while (stays(least)) {
    least = std::nextafter(least, -kInfinity);
  }
  while (!stays(least)) {
    least = std::nextafter(least, kInfinity);
  }
  return least;
}

constexpr double kMassUnit = 1099511627776.0; // 2^40

// Fills keys and masses of x, int64(exp(x - max) * 2^40); returns the sum of masses.
inline int64_t weigh(std::span<const float> x, float max, SupportScratch& scratch) {
  using Doubles = at::vec::Vectorized<double>;
  const auto n = static_cast<int64_t>(x.size());
  scratch.keys.resize(n);
  scratch.masses.resize(n);
  int64_t total = 0;
  for (int64_t start = 0; start < n; start += Doubles::size()) {
    const int64_t count = std::min<int64_t>(Doubles::size(), n - start);
    double lanes[Doubles::size()] = {};
    for (int64_t i = 0; i < count; ++i) {
      lanes[i] = static_cast<double>(x[start + i]) - static_cast<double>(max);
    }
    (Doubles::loadu(lanes).exp() * Doubles(kMassUnit)).store(lanes);
    for (int64_t i = 0; i < count; ++i) {
      scratch.keys[start + i] = ordered(x[start + i]);
      scratch.masses[start + i] = static_cast<int64_t>(lanes[i]);
      total += scratch.masses[start + i];
    }
  }
  return total;
}

struct Edge {
  float x;
  int64_t dropped; // of its equals, the lowest ids
};

// The edge of the nucleus: in ascending order of x, and of ids among equals, tokens are dropped as
// long as their masses add up to no more than `bound`.
inline Edge edge_of_nucleus(SupportScratch& scratch, int64_t bound) {
  auto& keys = scratch.keys;
  auto& masses = scratch.masses;
  int32_t low = *std::min_element(keys.begin(), keys.end());
  int32_t high = *std::max_element(keys.begin(), keys.end());
  int64_t below = 0; // of keys under `low`
  auto n = static_cast<int64_t>(keys.size());
  // The least key with more than `bound` at and under it lies in [low, high], and so do the n keys.
  while (low < high) {
    const auto middle = static_cast<int32_t>(low + (static_cast<int64_t>(high) - low) / 2);
    int64_t reached = below;
    for (int64_t i = 0; i < n; ++i) {
      reached += keys[i] <= middle ? masses[i] : 0;
    }
    const bool down = reached > bound;
    int64_t left = 0;
    for (int64_t i = 0; i < n; ++i) {
      keys[left] = keys[i];
      masses[left] = masses[i];
      left += (keys[i] <= middle) == down;
    }
    n = left;
    if (down) {
      high = middle;
    } else {
      low = middle + 1;
      below = reached;
    }
  }
  // What is left has this one key. The last of it stays, whatever the bound.
  const int64_t dropped = masses[0] > 0 ? (bound - below) / masses[0] : n;
  return {from_ordered(low), std::min(dropped, n - 1)};
}

// The id of the token number `skipped` among those whose x is `equal`.
template <typename T>
int64_t id_after(const Row<T>& row, float equal, int64_t skipped) {
  const Vec wanted(equal);
  int64_t found = row.size - 1;
  const auto look = [&](int64_t place, const Vec& x) {
    if (skipped < 0) {
      return;
    }
    const Vec comparison = x == wanted;
    uint32_t lanes = ~static_cast<uint32_t>(comparison.zero_mask()) & ((1u << Vec::size()) - 1);
    for (; lanes != 0 && skipped >= 0; lanes &= lanes - 1) {
      if (skipped-- == 0) {
        found = place + std::countr_zero(lanes);
      }
    }
  };
  row.each(0, row.size, -kInfinity, [&](int64_t i, const Vec& a, const Vec& b) {
    look(i, a);
    look(i + Vec::size(), b);
  });
  return found;
}

// The tokens of a row whose x equal a number, from an id on.
template <typename T>
int64_t count_equal(const Row<T>& row, float x, int64_t least_id) {
  const Vec wanted(x);
  int64_t count = 0;
  row.each(least_id, row.size, -kInfinity, [&](int64_t, const Vec& a, const Vec& b) {
    count += lanes_that(a == wanted) + lanes_that(b == wanted);
  });
  return count;
}

// The support with `ties` at the pivot. `among` has all x above it: the row itself, or what was
// gathered of it.
template <typename T>
Support measured(
    const Row<T>& among, const RowSums& sums, float pivot, int64_t least_id, int64_t ties) {
  const Vec bound(pivot), none(-kInfinity);
  const auto above = [&](const Vec& x) { return Vec::blendv(none, x, x > bound); };
  int64_t size = 0;
  among.each(0, among.size, -kInfinity, [&](int64_t, const Vec& a, const Vec& b) {
    size += lanes_that(a > bound) + lanes_that(b > bound);
  });
  const auto max = static_cast<double>(sums.max);
  double mass = size == 0 ? 0.0 : sum_of_exp(among, 0, among.size, sums.max, above);
  mass += static_cast<double>(ties) * std::exp(static_cast<double>(pivot) - max);
  const double log_kept = max + std::log(mass) - sums.logsumexp;
  return {pivot, least_id, size + ties, std::min(log_kept, 0.0)};
}

// A row that is no distribution has some support that means nothing.
template <typename T>
Support support_of(
    const Row<T>& row, const RowSums& sums, const Rule& rule, SupportScratch& scratch) {
  const float max = sums.max;
  float pivot = std::numeric_limits<float>::lowest(); // a token at -inf never stays
  int64_t least_id = 0;
  const bool ranked = 0 < rule.top_k && rule.top_k < row.size;
  const bool truncates = ranked || rule.top_p < 1.0 || rule.log_min_p > -kInfinity;
  if (!truncates || !std::isfinite(max)) {
    return {pivot, least_id, sums.possible, 0.0};
  }
  std::span<float> x;
  if (ranked) {
    const float bound = lower_bound_of_top(row, rule.top_k, row.size, scratch.top);
    x = gather_from(row, bound, scratch.x);
    const auto kth = x.begin() + std::min<int64_t>(rule.top_k, x.size()) - 1;
    std::nth_element(x.begin(), kth, x.end(), std::greater<>());
    pivot = std::max(pivot, *kth);
  }
  if (rule.top_p < 1.0) {
    x = gather_from(row, pivot, scratch.x);
    const int64_t total = weigh(x, max, scratch);
    const auto bound = static_cast<int64_t>(std::floor((1.0 - rule.top_p) * static_cast<double>(total)));
    const Edge edge = edge_of_nucleus(scratch, bound);
    pivot = edge.x;
    least_id = edge.dropped == 0 ? 0 : id_after(row, edge.x, edge.dropped);
  }
  if (rule.log_min_p > -kInfinity) {
    const float least = least_of_min_p(max, rule.log_min_p);
    if (least > pivot) {
      pivot = least;
      least_id = 0;
    }
  }
  const int64_t ties = count_equal(row, pivot, least_id);
  if (x.empty()) {
    return measured(row, sums, pivot, least_id, ties);
  }
  const Row<float> gathered{x.data(), static_cast<int64_t>(x.size()), 1.0f};
  return measured(gathered, sums, pivot, least_id, ties);
}

} // namespace scoring
