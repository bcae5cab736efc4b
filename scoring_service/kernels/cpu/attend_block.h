// Attention of several tokens of a node: products of blocks of queries and keys.
//
// Keys are taken in blocks that begin at fixed positions, so a row's bits depend on its position and
// its chain alone, and not on where its node is cut.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include <ATen/native/CPUBlas.h>

#include "chains.h"
#include "products.h"
#include "vectors.h"

namespace scoring {

constexpr int64_t kBlockKeys = 256;  // Keys whose scores are held at once.
constexpr int64_t kBlockRows = 192;  // Queries of one product: a block of scores stays in L2.
constexpr int64_t kRowMultiple = 16; // Few shapes of products: each one is compiled once a thread.
constexpr int64_t kWidest = 2048; // Numbers of a head's key or value.

// Memory of one thread.
template <typename T>
struct BlockMemory {
  std::vector<T> queries, keys, values, weights;
  std::vector<float> scores, sums, largest, total;
};

// Keys as the second factor of a product: [width, n], pairs of bf16 side by side.
template <typename T>
void pack_keys(const T* const* rows, int64_t n, int64_t padded, int64_t width, T* packed) {
  constexpr int64_t kTogether = 16;
  const int64_t words = width * sizeof(T) / sizeof(uint32_t);
  auto* target = reinterpret_cast<uint32_t*>(packed);
  static const uint32_t zeros[kWidest] = {0}; // as many words as a row of fp32 may have
  for (int64_t first = 0; first < padded; first += kTogether) {
    const uint32_t* sources[kTogether];
    for (int64_t j = 0; j < kTogether; ++j) {
      sources[j] = first + j < n ? reinterpret_cast<const uint32_t*>(rows[first + j]) : zeros;
    }
    for (int64_t word = 0; word < words; ++word) {
      uint32_t* line = target + word * padded + first;
      for (int64_t j = 0; j < kTogether; ++j) {
        line[j] = sources[j][word];
      }
    }
  }
}

// Values as the second factor of a product: [n, width], pairs of bf16 rows interleaved.
template <typename T>
void pack_values(const T* const* rows, int64_t n, int64_t padded, int64_t width, T* packed) {
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t j = 0; j < n; ++j) {
      std::memcpy(packed + j * width, rows[j], width * sizeof(T));
    }
    std::fill(packed + n * width, packed + padded * width, T(0));
  } else {
    static const T zeros[kWidest] = {};
    for (int64_t j = 0; j < padded; j += 2) {
      const auto* even = reinterpret_cast<const uint16_t*>(j < n ? rows[j] : zeros);
      const auto* odd = reinterpret_cast<const uint16_t*>(j + 1 < n ? rows[j + 1] : zeros);
      auto* line = reinterpret_cast<uint32_t*>(packed + j * width);
      for (int64_t d = 0; d < width; ++d) {
        line[d] = static_cast<uint32_t>(even[d]) | static_cast<uint32_t>(odd[d]) << 16;
      }
    }
  }
}

// Tokens [begin, end) of a node, all query heads of one key head.
template <typename T>
void attend_block(
    const Step<T>& step,
    const Layer& layer,
    const Node& node,
    int64_t head,
    int64_t begin,
    int64_t end,
    BlockMemory<T>& work) {
  const int64_t tokens = end - begin;
  const int64_t rows = tokens * step.group;
  const int64_t padded_rows = round_up(rows, kRowMultiple);
  const int64_t width = step.width, value_width = step.value_width;
  work.queries.resize(padded_rows * width);
  work.keys.resize(kBlockKeys * width);
  work.values.resize(kBlockKeys * value_width);
  work.weights.resize(padded_rows * kBlockKeys);
  work.scores.resize(padded_rows * kBlockKeys);
  work.sums.resize(padded_rows * value_width);
  work.largest.assign(rows, -std::numeric_limits<float>::infinity());
  work.total.assign(rows, 0.0f);
  std::fill(work.queries.data() + rows * width, work.queries.data() + padded_rows * width, T(0));
  for (int64_t g = 0; g < step.group; ++g) {
    for (int64_t t = 0; t < tokens; ++t) {
      std::memcpy(
          work.queries.data() + (g * tokens + t) * width,
          step.queries.row(head * step.group + g, node.row + begin + t),
          width * sizeof(T));
    }
  }
  const int64_t first = node.first + begin; // Position of the first query.
  const int64_t stop = node.first + end; // Positions that any query sees end here …
  const int64_t oldest = layer.window
      ? std::max<int64_t>(0, first - layer.window + 1) / kKeyMultiple * kKeyMultiple
      : 0;
  const float unit = layer.unit();
  const T* key_rows[kBlockKeys];
  const T* value_rows[kBlockKeys];
  int64_t next = oldest;
  for (int64_t block = oldest; block < stop; block = next) {
    next = (block / kBlockKeys + 1) * kBlockKeys;
    const int64_t n = std::min(next, stop) - block;
    const int64_t padded = round_up(n, kKeyMultiple);
    step.walk(node, head, block, block + n, [&](const T* key, const T* value, int64_t place) {
      key_rows[place] = key;
      value_rows[place] = value;
    });
    pack_keys(key_rows, n, padded, width, work.keys.data());
    pack_values(value_rows, n, padded, value_width, work.values.data());
    at::native::cpublas::brgemm(
        padded_rows, padded, width, width, padded, padded, false,
        work.queries.data(), work.keys.data(), work.scores.data(), !std::is_same_v<T, float>);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t position = first + row % tokens;
      const int64_t visible = std::min(n, position + 1 - block);
      float* scores = work.scores.data() + row * padded;
      T* weights = work.weights.data() + row * padded;
      const int64_t hidden = layer.window ? position - layer.window + 1 - block : 0;
      if (visible <= 0 || hidden >= visible) {
        std::fill(weights, weights + padded, T(0));
        continue;
      }
      if (layer.softcap != 0.0f) {
        cap(scores, padded, layer);
      }
      hide(scores, visible, padded);
      if (hidden > 0) {
        hide(scores, 0, hidden);
      }
      const float before = work.largest[row];
      const float now = std::max(before, largest_of(scores, padded));
      const float kept = std::exp((before - now) * unit);
      work.largest[row] = now;
      work.total[row] = work.total[row] * kept + exp_into(scores, padded, now, unit, weights);
      if (block > oldest && kept != 1.0f) {
        scale(work.sums.data() + row * value_width, value_width, kept);
      }
    }
    std::fill(
        work.weights.data() + rows * padded, work.weights.data() + padded_rows * padded, T(0));
    at::native::cpublas::brgemm(
        padded_rows, value_width, padded, padded, value_width, value_width, block > oldest,
        work.weights.data(), work.values.data(), work.sums.data(), !std::is_same_v<T, float>);
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t g = row / tokens, t = row % tokens;
    const int64_t query_head = head * step.group + g;
    float factor = 1.0f, total = work.total[row];
    if (layer.sinks != nullptr) {
      const float largest = work.largest[row] * unit;
      const float now = std::max(largest, layer.sinks[query_head]);
      factor = std::exp(largest - now);
      total = total * factor + std::exp(layer.sinks[query_head] - now);
    }
    store_scaled(
        work.sums.data() + row * value_width, value_width, factor / total,
        step.out(node.row + begin + t, query_head));
  }
}

} // namespace scoring
