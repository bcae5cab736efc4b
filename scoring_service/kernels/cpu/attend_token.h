// Attention of a node of one token, as in decoding: keys and values are read where they lie.
//
// A long chain is taken in parts that begin at fixed positions and can be read side by side; a row's
// bits depend on its position and its chain alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "chains.h"
#include "vectors.h"

namespace scoring {

constexpr int64_t kPartKeys = 512; // Their values stay in L2 until they are added up.
constexpr int64_t kMostQueries = 8; // Query heads whose products with a key are held at once.

// Memory of one thread.
struct TokenMemory {
  std::vector<float> queries, scores;
};

// What some of a chain's keys give one query: exponents are taken from the largest score.
struct Partial {
  float largest; // Of the scores as they are held.
  float total; // Of the weights.
  float* sums; // [width]: values by their weights.
};

// Products of `group` queries with each key of positions [begin, end); kPairs pairs of vectors are
// a row. Values are fetched meanwhile.
template <typename T, int kPairs>
void dot_keys(
    const Step<T>& step, const Node& node, int64_t head, int64_t begin, int64_t end,
    int64_t padded, const float* queries, float* scores) {
  constexpr int64_t kVectors = 2 * kPairs, kTogether = Vec::size(), kLine = 64;
  float products[kMostQueries][kTogether * Vec::size()];
  for (int64_t first = 0; first < step.group; first += kMostQueries) {
    const int64_t count = std::min(kMostQueries, step.group - first);
    const float* own = queries + first * kVectors * Vec::size();
    float* found = scores + first * padded;
    const auto add_up = [&](int64_t place) {
      for (int64_t g = 0; g < count; ++g) {
        sums_of(products[g]).store(found + g * padded + place);
      }
    };
    step.walk(node, head, begin, end, [&](const T* key, const T* value, int64_t place) {
      for (int64_t byte = 0; byte < kVectors * Vec::size() * sizeof(T); byte += kLine) {
        __builtin_prefetch(reinterpret_cast<const char*>(value) + byte);
      }
      Vec row[kVectors];
      load_row<T, kPairs>(key, row);
      const int64_t lane = place % kTogether;
      for (int64_t g = 0; g < count; ++g) {
        const float* query = own + g * kVectors * Vec::size();
        Vec sum = row[0] * Vec::loadu(query);
        for (int64_t i = 1; i < kVectors; ++i) {
          sum = at::vec::fmadd(row[i], Vec::loadu(query + i * Vec::size()), sum);
        }
        sum.store(products[g] + lane * Vec::size());
      }
      if (lane + 1 == kTogether) {
        add_up(place + 1 - kTogether);
      }
    });
    if ((end - begin) % kTogether) {
      add_up((end - begin) / kTogether * kTogether); // Scores behind the last are hidden.
    }
  }
}

// Sums of the values of positions [begin, end), weighted, for kGroup queries: kPairs pairs of
// vectors of each row.
template <typename T, int kPairs, int kGroup>
void add_values(
    const Step<T>& step, const Node& node, int64_t head, int64_t begin, int64_t end,
    int64_t offset, const float* weights, int64_t padded, const Partial* partials) {
  constexpr int64_t kVectors = 2 * kPairs;
  Vec total[kGroup][kVectors];
  for (int64_t g = 0; g < kGroup; ++g) {
    for (int64_t i = 0; i < kVectors; ++i) {
      total[g][i] = Vec(0.0f);
    }
  }
  step.walk(node, head, begin, end, [&](const T*, const T* value, int64_t place) {
    Vec row[kVectors];
    load_row<T, kPairs>(value + offset, row);
    for (int64_t g = 0; g < kGroup; ++g) {
      const Vec weight(weights[g * padded + place]);
      for (int64_t i = 0; i < kVectors; ++i) {
        total[g][i] = at::vec::fmadd(row[i], weight, total[g][i]);
      }
    }
  });
  for (int64_t g = 0; g < kGroup; ++g) {
    for (int64_t i = 0; i < kVectors; ++i) {
      total[g][i].store(partials[g].sums + offset + i * Vec::size());
    }
  }
}

// All of a row's vectors, as many at a time as have registers.
template <typename T, int kPairs, int kGroup>
void add_rows(
    const Step<T>& step, const Node& node, int64_t head, int64_t begin, int64_t end,
    const float* weights, int64_t padded, const Partial* partials) {
  // Sums of four queries stay in registers.
  constexpr int kTogether = Vec::size() < 16 ? 1 : kPairs % 2 == 0 ? 2 : kPairs;
  for (int64_t pair = 0; pair < kPairs; pair += kTogether) {
    add_values<T, kTogether, kGroup>(
        step, node, head, begin, end, pair * 2 * Vec::size(), weights, padded, partials);
  }
}

// Keys of positions [begin, end) for a node of one token whose rows are kPairs pairs of vectors:
// keys and values are read in place. Fills a partial for each query head of `head`.
template <typename T, int kPairs>
void attend_keys(
    const Step<T>& step, const Layer& layer, const Node& node, int64_t head, int64_t begin,
    int64_t end, TokenMemory& work, Partial* partials) {
  const int64_t group = step.group, width = step.width;
  const int64_t length = end - begin;
  const int64_t padded = round_up(length, kKeyMultiple);
  work.queries.resize(group * width);
  for (int64_t g = 0; g < group; ++g) {
    widen(step.queries.row(head * group + g, node.row), width, work.queries.data() + g * width);
  }
  work.scores.resize(group * padded);
  dot_keys<T, kPairs>(
      step, node, head, begin, end, padded, work.queries.data(), work.scores.data());
  for (int64_t g = 0; g < group; ++g) {
    float* scores = work.scores.data() + g * padded;
    hide(scores, length, padded);
    if (layer.softcap != 0.0f) {
      cap(scores, round_up(length, Vec::size()), layer);
      hide(scores, length, padded);
    }
    partials[g].largest = largest_of(scores, padded);
    partials[g].total = exp_into(scores, padded, partials[g].largest, layer.unit(), scores);
  }
  int64_t g = 0;
  for (; g + 4 <= group; g += 4) {
    add_rows<T, kPairs, 4>(
        step, node, head, begin, end, work.scores.data() + g * padded, padded, partials + g);
  }
  const float* weights = work.scores.data() + g * padded;
  switch (group - g) {
    case 3:
      return add_rows<T, kPairs, 3>(step, node, head, begin, end, weights, padded, partials + g);
    case 2:
      return add_rows<T, kPairs, 2>(step, node, head, begin, end, weights, padded, partials + g);
    case 1:
      return add_rows<T, kPairs, 1>(step, node, head, begin, end, weights, padded, partials + g);
  }
}

// The answer of one query head from `count` partials, `stride` apart, in the order of positions.
template <typename T>
void put_together(
    const Step<T>& step, const Layer& layer, const Node& node, int64_t query_head,
    Partial* partials, int64_t count, int64_t stride) {
  const float unit = layer.unit();
  float now = partials[0].largest;
  for (int64_t i = 1; i < count; ++i) {
    now = std::max(now, partials[i * stride].largest);
  }
  float total = 0.0f;
  if (layer.sinks != nullptr) {
    now = std::max(now, layer.sinks[query_head] / unit);
    total = std::exp(layer.sinks[query_head] - now * unit);
  }
  float* sums = partials[0].sums;
  for (int64_t i = 0; i < count; ++i) {
    const Partial& partial = partials[i * stride];
    const float kept = std::exp((partial.largest - now) * unit);
    total += partial.total * kept;
    if (i == 0) {
      scale(sums, step.width, kept);
    } else {
      add_scaled(sums, partial.sums, step.width, kept);
    }
  }
  store_scaled(sums, step.width, 1.0f / total, step.out(node.row, query_head));
}

template <typename T>
using AttendKeys = void (*)(
    const Step<T>&, const Layer&, const Node&, int64_t head, int64_t begin, int64_t end,
    TokenMemory&, Partial*);

// `attend_keys` for rows of the step's width, or null where keys and values differ in width or are
// no whole pairs of vectors.
template <typename T>
AttendKeys<T> attend_keys_of(const Step<T>& step) {
  constexpr int64_t kPair = 2 * Vec::size();
  if (step.width != step.value_width || step.width % kPair) {
    return nullptr;
  }
  switch (step.width / kPair) {
    case 1:
      return attend_keys<T, 1>;
    case 2:
      return attend_keys<T, 2>;
    case 3:
      return attend_keys<T, 3>;
    case 4:
      return attend_keys<T, 4>;
    case 6:
      return attend_keys<T, 6>;
    case 8:
      return attend_keys<T, 8>;
    case 16:
      return attend_keys<T, 16>;
  }
  return nullptr;
}

} // namespace scoring
