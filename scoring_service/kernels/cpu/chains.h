// A packed step as attention sees it: nodes, the chains that they continue, and where their keys and
// values lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include <ATen/core/Tensor.h>

#include "vectors.h"

namespace scoring {

constexpr int64_t kKeyMultiple = 64; // Scores are held in as many, the last ones hidden.

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

// The first position that a node of one token sees.
inline int64_t oldest_key(const Layer& layer, const Node& node) {
  return layer.window ? std::max<int64_t>(0, node.first + 1 - layer.window) : 0;
}

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

} // namespace scoring
