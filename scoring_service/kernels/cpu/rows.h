// Numbers of one row of logits: x = logit / temperature in fp32, read from fp32 or bf16 as it lies.
// A row's result depends on the row alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "vectors.h"

namespace scoring {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline int64_t lanes_that(const Vec& comparison) {
  return Vec::size() - std::popcount(static_cast<uint32_t>(comparison.zero_mask()));
}

template <typename T>
struct Row {
  const T* logits;
  int64_t size;
  float temperature;

  float at(int64_t id) const {
    const float logit = static_cast<float>(logits[id]);
    return temperature == 1.0f ? logit : logit / temperature;
  }

  // Calls body(place, a, b) over x of columns begin ... end - 1; behind the last one there is `fill`.
  template <typename Body>
  void each(int64_t begin, int64_t end, float fill, Body body) const {
    const Vec by(temperature), none(fill);
    const bool scaled = temperature != 1.0f;
    over(logits + begin, end - begin, [&](int64_t i, int64_t left, const Vec& p, const Vec& q) {
      Vec a = scaled ? p / by : p, b = scaled ? q / by : q;
      if (left < 2 * Vec::size()) {
        a = Vec::set(none, a, std::min<int64_t>(left, Vec::size()));
        b = Vec::set(none, b, std::max<int64_t>(left - Vec::size(), 0));
      }
      body(begin + i, a, b);
    });
  }

};

// Columns whose sum is kept in fp32 before it joins the double one: its error stays below an
// exponential's own.
constexpr int64_t kPartial = 2048;

// Of x that pass `among`, the sum of exp(x - shift).
template <typename T, typename Among>
double sum_of_exp(const Row<T>& row, int64_t begin, int64_t end, float shift, Among among) {
  const Vec by(shift);
  double total = 0.0;
  for (int64_t start = begin; start < end; start += kPartial) {
    Vec sum_a(0.0f), sum_b(0.0f);
    row.each(start, std::min(end, start + kPartial), -kInfinity,
             [&](int64_t, const Vec& a, const Vec& b) {
               sum_a = sum_a + exp_of(among(a) - by);
               sum_b = sum_b + exp_of(among(b) - by);
             });
    total += reduce_sum(sum_a + sum_b);
  }
  return total;
}

struct RowSums {
  float max;
  double logsumexp; // not finite for a row that is no distribution
  float entropy;
  int64_t possible; // tokens above -inf
};

template <typename T>
RowSums row_sums(const Row<T>& row) {
  const Vec none(-kInfinity);
  Vec largest_a = none, largest_b = none, smallest_a(kInfinity), smallest_b(kInfinity);
  const int64_t whole = row.size / (2 * Vec::size()) * (2 * Vec::size());
  row.each(0, whole, -kInfinity, [&](int64_t, const Vec& a, const Vec& b) {
    largest_a = larger(largest_a, a);
    largest_b = larger(largest_b, b);
    smallest_a = smaller(smallest_a, a);
    smallest_b = smaller(smallest_b, b);
  });
  float max = reduce_max(larger(largest_a, largest_b));
  float min = reduce_min(smaller(smallest_a, smallest_b));
  for (int64_t id = whole; id < row.size; ++id) {
    max = std::max(max, row.at(id));
    min = std::min(min, row.at(id));
  }
  int64_t possible = row.size;
  if (min == -kInfinity) {
    possible = 0;
    row.each(0, row.size, -kInfinity, [&](int64_t, const Vec& a, const Vec& b) {
      possible += lanes_that(a > none) + lanes_that(b > none);
    });
  }
  const Vec by(max), least(-1e30f); // a token at -inf has probability 0, and its term is 0
  double total = 0.0, weighted = 0.0;
  for (int64_t start = 0; start < row.size; start += kPartial) {
    Vec sum_a(0.0f), sum_b(0.0f), mean_a(0.0f), mean_b(0.0f);
    row.each(start, std::min(row.size, start + kPartial), -kInfinity,
             [&](int64_t, const Vec& x, const Vec& y) {
               const Vec a = x - by, b = y - by;
               const Vec p = exp_of(a), q = exp_of(b);
               sum_a = sum_a + p;
               sum_b = sum_b + q;
               mean_a = at::vec::fmadd(p, larger(a, least), mean_a);
               mean_b = at::vec::fmadd(q, larger(b, least), mean_b);
             });
    total += reduce_sum(sum_a + sum_b);
    weighted += reduce_sum(mean_a + mean_b);
  }
  const double log_total = std::log(total);
  return {max, static_cast<double>(max) + log_total, static_cast<float>(log_total - weighted / total),
          possible};
}

// 1 + ids below `limit` with larger x, or with equal x and a lower id; 0 at or above the limit.
template <typename T>
int64_t rank(const Row<T>& row, int64_t id, int64_t limit) {
  if (id >= limit) {
    return 0;
  }
  const Vec own(row.at(id));
  int64_t before = 0;
  row.each(0, id, -kInfinity, [&](int64_t i, const Vec& a, const Vec& b) {
    before += lanes_that(a >= own) + lanes_that(b >= own);
  });
  if (row.at(id) == -kInfinity) {
    // What fills the last vectors is as large.
    before = std::min(before, id);
  }
  row.each(id + 1, limit, -kInfinity, [&](int64_t, const Vec& a, const Vec& b) {
    before += lanes_that(a > own) + lanes_that(b > own);
  });
  return before + 1;
}

// A sum below it may have lost terms that fp32's normal numbers do not hold.
constexpr double kLeastSum = 1e-20;

// Log of the sum of exp(x) over the ids that a list of the largest x leaves out: x below the last
// listed, its equals with higher ids, and every id at or above `limit`.
template <typename T>
double log_rest(const Row<T>& row, int64_t last_id, int64_t limit) {
  const float kth = row.at(last_id);
  const Vec bound(kth), none(-kInfinity);
  const auto below = [&](const Vec& x) { return Vec::blendv(none, x, x < bound); };
  const auto not_above = [&](const Vec& x) { return Vec::blendv(none, x, x <= bound); };
  const auto all = [](const Vec& x) { return x; };
  const auto sum = [&](float shift) {
    return sum_of_exp(row, 0, last_id + 1, shift, below) +
        sum_of_exp(row, last_id + 1, limit, shift, not_above) +
        sum_of_exp(row, limit, row.size, shift, all);
  };
  Vec largest(-kInfinity);
  const auto widen = [&](const auto& among) {
    return [&](int64_t, const Vec& a, const Vec& b) {
      largest = larger(largest, larger(among(a), among(b)));
    };
  };
  // No term may be above 1: listed x are no smaller than the rest below the limit, but ids at or
  // above it may be larger by any amount.
  row.each(limit, row.size, -kInfinity, widen(all));
  const float most = std::max(kth, reduce_max(largest));
  if (const double total = sum(most); total > kLeastSum) {
    return most + std::log(total);
  }
  row.each(0, last_id + 1, -kInfinity, widen(below));
  row.each(last_id + 1, limit, -kInfinity, widen(not_above));
  const float shift = reduce_max(largest);
  return shift == -kInfinity ? -kInfinity : shift + std::log(sum(shift));
}

// int32 that orders as the float does; -0 and +0 are equal.
inline int32_t ordered(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x + 0.0f);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

inline float from_ordered(int32_t key) {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7FFFFFFF));
}

// Scratch of one thread, kept from row to row.
struct TopScratch {
  std::vector<float> maxima;
  std::vector<float> x;
  std::vector<int32_t> ids;
  std::vector<uint64_t> keys;
  std::vector<uint64_t> sorted;
};

// Sorts keys by their upper halves, largest first; equal ones stay as they stand. A digit after the
// other: a comparing sort of a thousand keys takes as long as all else of their row.
inline void sort_by_upper_half(std::vector<uint64_t>& keys, std::vector<uint64_t>& spare) {
  constexpr int kDigits = 4, kValues = 256;
  uint32_t places[kDigits][kValues] = {};
  const auto value = [](uint64_t key, int digit) {
    return kValues - 1 - (key >> (32 + 8 * digit) & (kValues - 1));
  };
  for (const uint64_t key : keys) {
    for (int digit = 0; digit < kDigits; ++digit) {
      ++places[digit][value(key, digit)];
    }
  }
  spare.resize(keys.size());
  for (int digit = 0; digit < kDigits; ++digit) {
    bool all_equal = false;
    uint32_t before = 0;
    for (uint32_t& place : places[digit]) {
      const uint32_t count = place;
      all_equal |= count == keys.size();
      place = before;
      before += count;
    }
    if (all_equal) {
      continue;
    }
    for (const uint64_t key : keys) {
      spare[places[digit][value(key, digit)]++] = key;
    }
    keys.swap(spare);
  }
}

// The largest bound that at least k of n numbers reach: the k-th largest. n is a multiple of the
// vector's size.
inline float kth_largest(const float* numbers, int64_t n, int64_t k) {
  int32_t low = ordered(-kInfinity), high = ordered(kInfinity);
  while (low < high) {
    // Rounded up, without overflow.
    const int32_t middle = static_cast<int32_t>(
        low + (static_cast<int64_t>(high) - low + 1) / 2);
    const Vec bound(from_ordered(middle));
    int64_t reached = 0;
    for (int64_t i = 0; i < n; i += Vec::size()) {
      reached += lanes_that(Vec::loadu(numbers + i) >= bound);
    }
    if (reached >= k) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return from_ordered(low);
}

constexpr int64_t kLargestGroup = 16;

// A number that at least k x of the first `limit` reach: the k-th largest maximum of groups of
// columns. Group g holds the columns g, g + groups, g + 2 * groups ...
template <typename T>
float lower_bound_of_top(const Row<T>& row, int64_t k, int64_t limit, TopScratch& scratch) {
  int64_t size = kLargestGroup;
  while (size > 1 && limit / size < 2 * k) {
    size /= 2;
  }
  const int64_t together = 2 * Vec::size();
  const int64_t groups = limit / size / together * together;
  if (size == 1 || groups < k) {
    return -kInfinity;
  }
  scratch.maxima.assign(groups, -kInfinity);
  float* maxima = scratch.maxima.data();
  for (int64_t first = 0; first + groups <= limit; first += groups) {
    row.each(first, first + groups, -kInfinity, [&](int64_t i, const Vec& a, const Vec& b) {
      float* to = maxima + (i - first);
      larger(Vec::loadu(to), a).store(to);
      larger(Vec::loadu(to + Vec::size()), b).store(to + Vec::size());
    });
  }
  return kth_largest(maxima, groups, k);
}

// Ids of the k largest x among the first `limit`, largest first, equal x to the lower id.
template <typename T>
void top_ids(const Row<T>& row, int64_t k, int64_t limit, TopScratch& scratch, int64_t* ids) {
  const Vec bound(lower_bound_of_top(row, k, limit, scratch));
  const size_t room = std::max<size_t>(scratch.x.size(), limit + 2 * Vec::size());
  scratch.x.resize(room);
  scratch.ids.resize(room);
  float* x = scratch.x.data();
  int32_t* places = scratch.ids.data();
  int64_t n = 0;
  row.each(0, limit, -kInfinity, [&](int64_t i, const Vec& a, const Vec& b) {
    if (lanes_that(larger(a, b) >= bound) == 0) {
      return;
    }
    n += put_reaching(a, bound, static_cast<int32_t>(i), x + n, places + n);
    n += put_reaching(b, bound, static_cast<int32_t>(i + Vec::size()), x + n, places + n);
  });
  while (n > 0 && places[n - 1] >= limit) {
    --n; // what fills the last vectors, where all reach the bound
  }
  auto& keys = scratch.keys;
  keys.resize(n);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t order = static_cast<uint32_t>(ordered(x[i])) ^ 0x80000000u;
    keys[i] = static_cast<uint64_t>(order) << 32 | static_cast<uint32_t>(places[i]);
  }
  // A row with NaN has too few; such a row is refused, but its ids must be some token's.
  const int64_t found = std::min<int64_t>(k, keys.size());
  sort_by_upper_half(keys, scratch.sorted);
  for (int64_t i = 0; i < k; ++i) {
    ids[i] = i < found ? static_cast<int64_t>(static_cast<uint32_t>(keys[i])) : 0;
  }
}

} // namespace scoring
