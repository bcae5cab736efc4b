// Attention of one layer over a packed step: every node attends to its chain and, causally, to
// itself. Scores and sums are fp32 whatever the factors are.
//
// Keys are taken in blocks that begin at fixed positions, so a row's bits depend on its position and
// its chain alone: neither on other nodes nor on where its own is cut (save into single tokens) nor
// on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <type_traits>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>

#include "products.h"
#include "vectors.h"

namespace scoring {

constexpr int64_t kBlockKeys = 256;  // Keys whose scores are held at once.
constexpr int64_t kBlockRows = 192;  // Queries of one product: a block of scores stays in L2.
constexpr int64_t kRowMultiple = 16; // Few shapes of products: each one is compiled once a thread.
constexpr int64_t kKeyMultiple = 64;
constexpr int64_t kWidest = 2048; // Numbers of a head's key or value.

struct Layer {
  float scaling;
  int64_t window; // 0: none
  float softcap;  // 0: none
  const float* sinks; // [heads], or null

  // What turns scores as they are held into exponents: `cap` has scaled them already.
  float unit() const {
    return softcap != 0.0f ? 1.0f : scaling;
  }
};

// One head-first tensor [heads, rows, width] whose last dimension is dense.
template <typename T>
struct Heads {
  const T* data = nullptr;
  int64_t head_stride = 0;
  int64_t row_stride = 0;

  Heads() = default;
  explicit Heads(const at::Tensor& tensor)
      : data(tensor.const_data_ptr<T>()),
        head_stride(tensor.stride(0)),
        row_stride(tensor.stride(1)) {}

  const T* row(int64_t head, int64_t index) const {
    return data + head * head_stride + index * row_stride;
  }
};

// Rows of the step, or slots of the pool, that hold consecutive positions of a chain.
struct Run {
  int64_t from_pool;
  int64_t start;
  int64_t position;
  int64_t length;
};

struct Node {
  int64_t row; // Of its first token in the step.
  int64_t tokens;
  int64_t first; // Absolute position of its first token.
  int64_t run_begin; // Its chain and itself, in the order of positions.
  int64_t run_end;
};

template <typename T>
struct Step {
  Heads<T> queries;
  Heads<T> keys;
  Heads<T> values;
  Heads<T> pool_keys;
  Heads<T> pool_values;
  int64_t group; // Query heads of a key head.
  int64_t width; // Of queries and keys.
  int64_t value_width;
  const Run* runs;
  T* output; // [rows, heads, value_width]
  int64_t heads;

  // Calls visit(key, value, place) for positions [begin, end) of a node's chain.
  template <typename Visit>
  void walk(const Node& node, int64_t head, int64_t begin, int64_t end, Visit visit) const {
    for (int64_t r = node.run_begin; r < node.run_end; ++r) {
      const Run& run = runs[r];
      const int64_t from = std::max(begin, run.position);
      const int64_t to = std::min(end, run.position + run.length);
      const Heads<T>& k = run.from_pool ? pool_keys : keys;
      const Heads<T>& v = run.from_pool ? pool_values : values;
      for (int64_t p = from; p < to; ++p) {
        const int64_t at = run.start + p - run.position;
        visit(k.row(head, at), v.row(head, at), p - begin);
      }
    }
  }

  T* out(int64_t row, int64_t head) const {
    return output + (row * heads + head) * value_width;
  }
};

// Memory of one thread.
template <typename T>
struct Workspace {
  std::vector<T> queries, keys, values, weights;
  std::vector<float> scores, sums, largest, total, query;
};

// Scales and soft-caps scores; n is a multiple of the vector's size.
inline void cap(float* scores, int64_t n, const Layer& layer) {
  const Vec inside(layer.scaling / layer.softcap), outside(layer.softcap);
  for (int64_t i = 0; i < n; i += Vec::size()) {
    ((Vec::loadu(scores + i) * inside).tanh() * outside).store(scores + i);
  }
}

inline void hide(float* scores, int64_t begin, int64_t end) {
  std::fill(scores + begin, scores + std::max(begin, end), -std::numeric_limits<float>::infinity());
}

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
    Workspace<T>& work) {
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

// Products of `group` queries with each key of a chain; kPairs pairs of vectors are a row.
template <typename T, int kPairs>
void dot_keys(
    const Step<T>& step, const Node& node, int64_t head, int64_t oldest, int64_t padded,
    const float* queries, float* scores) {
  constexpr int64_t kVectors = 2 * kPairs;
  step.walk(node, head, oldest, node.first + 1, [&](const T* key, const T*, int64_t place) {
    Vec row[kVectors];
    load_row<T, kPairs>(key, row);
    for (int64_t g = 0; g < step.group; ++g) {
      const float* query = queries + g * kVectors * Vec::size();
      Vec sum = row[0] * Vec::loadu(query);
      for (int64_t i = 1; i < kVectors; ++i) {
        sum = at::vec::fmadd(row[i], Vec::loadu(query + i * Vec::size()), sum);
      }
      scores[g * padded + place] = reduce_sum(sum);
    }
  });
}

// Sums of a chain's values, weighted, for kGroup queries.
template <typename T, int kPairs, int kGroup>
void add_values(
    const Step<T>& step, const Node& node, int64_t head, int64_t oldest, int64_t padded,
    const float* weights, float* sums) {
  constexpr int64_t kVectors = 2 * kPairs;
  Vec total[kGroup][kVectors];
  for (int64_t g = 0; g < kGroup; ++g) {
    for (int64_t i = 0; i < kVectors; ++i) {
      total[g][i] = Vec(0.0f);
    }
  }
  step.walk(node, head, oldest, node.first + 1, [&](const T*, const T* value, int64_t place) {
    Vec row[kVectors];
    load_row<T, kPairs>(value, row);
    for (int64_t g = 0; g < kGroup; ++g) {
      const Vec weight(weights[g * padded + place]);
      for (int64_t i = 0; i < kVectors; ++i) {
        total[g][i] = at::vec::fmadd(row[i], weight, total[g][i]);
      }
    }
  });
  for (int64_t g = 0; g < kGroup; ++g) {
    for (int64_t i = 0; i < kVectors; ++i) {
      total[g][i].store(sums + (g * kVectors + i) * Vec::size());
    }
  }
}

// A node of one token whose rows are kPairs pairs of vectors: reads keys and values in place.
template <typename T, int kPairs>
void attend_token(
    const Step<T>& step, const Layer& layer, const Node& node, int64_t head, Workspace<T>& work) {
  const int64_t group = step.group, width = step.width;
  const int64_t stop = node.first + 1;
  const int64_t oldest = layer.window ? std::max<int64_t>(0, stop - layer.window) : 0;
  const int64_t length = stop - oldest;
  const int64_t padded = round_up(length, kKeyMultiple);
  work.query.resize(group * width);
  for (int64_t g = 0; g < group; ++g) {
    widen(step.queries.row(head * group + g, node.row), width, work.query.data() + g * width);
  }
  work.scores.resize(group * padded);
  dot_keys<T, kPairs>(
      step, node, head, oldest, padded, work.query.data(), work.scores.data());
  const float unit = layer.unit();
  work.total.resize(group);
  for (int64_t g = 0; g < group; ++g) {
    float* scores = work.scores.data() + g * padded;
    if (layer.softcap != 0.0f) {
      std::fill(scores + length, scores + padded, 0.0f);
      cap(scores, padded, layer);
    }
    hide(scores, length, padded);
    float now = largest_of(scores, padded);
    float sink = 0.0f;
    if (layer.sinks != nullptr) {
      now = std::max(now, layer.sinks[head * group + g] / unit);
      sink = std::exp(layer.sinks[head * group + g] - now * unit);
    }
    work.total[g] = exp_into(scores, padded, now, unit, scores) + sink;
  }
  work.sums.resize(group * width);
  int64_t g = 0;
  for (; g + 4 <= group; g += 4) {
    add_values<T, kPairs, 4>(step, node, head, oldest, padded, work.scores.data() + g * padded,
                             work.sums.data() + g * width);
  }
  for (; g < group; ++g) {
    add_values<T, kPairs, 1>(step, node, head, oldest, padded, work.scores.data() + g * padded,
                             work.sums.data() + g * width);
  }
  for (g = 0; g < group; ++g) {
    store_scaled(
        work.sums.data() + g * width, width, 1.0f / work.total[g],
        step.out(node.row, head * group + g));
  }
}

// One key head of a node, or of a part of its tokens.
template <typename T>
void attend_part(
    const Step<T>& step, const Layer& layer, const Node& node, int64_t head, int64_t begin,
    int64_t end, Workspace<T>& work) {
  if (node.tokens == 1 && step.width == step.value_width) {
    constexpr int64_t kPair = 2 * Vec::size();
    switch (step.width % kPair == 0 ? step.width / kPair : 0) {
      case 1:
        return attend_token<T, 1>(step, layer, node, head, work);
      case 2:
        return attend_token<T, 2>(step, layer, node, head, work);
      case 3:
        return attend_token<T, 3>(step, layer, node, head, work);
      case 4:
        return attend_token<T, 4>(step, layer, node, head, work);
      case 6:
        return attend_token<T, 6>(step, layer, node, head, work);
      case 8:
        return attend_token<T, 8>(step, layer, node, head, work);
      case 16:
        return attend_token<T, 16>(step, layer, node, head, work);
    }
  }
  attend_block(step, layer, node, head, begin, end, work);
}

template <typename T>
void attend_nodes(
    const Step<T>& step, const Layer& layer, const Node* nodes, int64_t count, int64_t kv_heads) {
  struct Task {
    int64_t node, head, begin, end;
  };
  std::vector<Task> tasks;
  const int64_t tokens = std::max<int64_t>(1, kBlockRows / step.group);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t begin = 0; begin < nodes[i].tokens; begin += tokens) {
      const int64_t end = std::min(begin + tokens, nodes[i].tokens);
      for (int64_t head = 0; head < kv_heads; ++head) {
        tasks.push_back({i, head, begin, end});
      }
    }
  }
  const auto total = static_cast<int64_t>(tasks.size());
  std::exception_ptr failure; // Out of memory, or of what a product is compiled in.
#pragma omp parallel if (total > 1)
  {
    static thread_local Workspace<T> work;
    const ProductScope scope;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < total; ++i) {
      const Task& task = tasks[i];
      try {
        attend_part(step, layer, nodes[task.node], task.head, task.begin, task.end, work);
      } catch (...) {
#pragma omp critical
        failure = std::current_exception();
      }
    }
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
}

} // namespace scoring
