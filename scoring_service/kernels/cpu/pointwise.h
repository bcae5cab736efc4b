// What stands between a layer's matrix products, each in one pass. Roundings to bf16 are where
// transformers has them.
#pragma once

#include <cmath>

#include <ATen/core/Tensor.h>

#include "vectors.h"

namespace scoring {

inline Vec rounded(const Vec& a, const Vec& b, Vec& second) {
  const auto [x, y] = at::vec::convert_bfloat16_float(narrow(a, b));
  second = y;
  return x;
}

// Rounds two vectors to T and back.
template <typename T>
inline void round_to(Vec& a, Vec& b) {
  if constexpr (!std::is_same_v<T, float>) {
    a = rounded(a, b, b);
  }
}

// x / sqrt(mean(x^2) + eps), times weight; `offset`: times 1 + weight, with one rounding (Gemma).
// S is the type of x: where it is wider than the weight's, there is one rounding, too.
template <typename S, typename T>
void rms_norm_row(const S* source, const T* weight, int64_t n, float eps, bool offset, T* target) {
  Vec squares(0.0f);
  over(source, n, [&](int64_t, int64_t, const Vec& a, const Vec& b) {
    squares = at::vec::fmadd(a, a, squares);
    squares = at::vec::fmadd(b, b, squares);
  });
  const Vec factor(1.0f / std::sqrt(reduce_sum(squares) / static_cast<float>(n) + eps));
  over(source, n, [&](int64_t i, int64_t left, const Vec& a, const Vec& b) {
    Vec x = a * factor, y = b * factor;
    Vec u, w;
    over(weight + i, left, [&](int64_t, int64_t, const Vec& p, const Vec& q) {
      u = p;
      w = q;
    });
    if (offset) {
      u = u + Vec(1.0f);
      w = w + Vec(1.0f);
    } else {
      round_to<S>(x, y);
    }
    put(target + i, left, x * u, y * w);
  });
}

// sum = residual + x
template <typename T>
void add_to_residual(const float* residual, const T* x, int64_t n, float* sum) {
  over(x, n, [&](int64_t i, int64_t left, const Vec& a, const Vec& b) {
    over(residual + i, left, [&](int64_t, int64_t, const Vec& p, const Vec& q) {
      put(sum + i, left, p + a, q + b);
    });
  });
}

// silu(gate) * up
template <typename T>
void silu_times(const T* gate, const T* up, int64_t n, T* target) {
  over(gate, n, [&](int64_t i, int64_t left, const Vec& a, const Vec& b) {
    Vec p = a.neg(), q = b.neg();
    if constexpr (std::is_same_v<T, float>) {
      p = p.exp();
      q = q.exp();
    } else {
      // Within 20 units of fp32's last place: more than bf16 can tell.
      p = p.exp_u20();
      q = q.exp_u20();
    }
    Vec x = a / (Vec(1.0f) + p), y = b / (Vec(1.0f) + q);
    round_to<T>(x, y);
    over(up + i, left, [&](int64_t, int64_t, const Vec& p, const Vec& q) {
      put(target + i, left, x * p, y * q);
    });
  });
}

// u * p + v * q, rounded after each product and after the sum.
template <typename T>
inline void sum_of_products(const VecPair& u, const VecPair& p, const VecPair& v, const VecPair& q,
                            T* target) {
  Vec a = u.first * p.first, b = u.second * p.second;
  Vec c = v.first * q.first, d = v.second * q.second;
  round_to<T>(a, b);
  round_to<T>(c, d);
  put(target, 2 * Vec::size(), a + c, b + d);
}

// x * cos + rotate_half(x) * sin of one head of one token.
template <typename T>
void rotate_row(const T* source, const T* cos, const T* sin, int64_t width, T* target) {
  const int64_t half = width / 2;
  if (half % (2 * Vec::size()) == 0) {
    for (int64_t i = 0; i < half; i += 2 * Vec::size()) {
      const int64_t j = half + i;
      const VecPair low = load_pair(source + i), high = load_pair(source + j);
      const VecPair minus{high.first.neg(), high.second.neg()};
      sum_of_products(low, load_pair(cos + i), minus, load_pair(sin + i), target + i);
      sum_of_products(high, load_pair(cos + j), low, load_pair(sin + j), target + j);
    }
    return;
  }
  const auto part = [&](int64_t begin, int64_t other, float sign) {
    over(source + begin, half, [&](int64_t i, int64_t left, const Vec& a, const Vec& b) {
      Vec x, y;
      over(cos + begin + i, left, [&](int64_t, int64_t, const Vec& p, const Vec& q) {
        x = a * p;
        y = b * q;
      });
      round_to<T>(x, y);
      Vec u, w;
      over(source + other + i, left, [&](int64_t, int64_t, const Vec& p, const Vec& q) {
        u = p * Vec(sign);
        w = q * Vec(sign);
      });
      over(sin + begin + i, left, [&](int64_t, int64_t, const Vec& p, const Vec& q) {
        u = u * p;
        w = w * q;
      });
      round_to<T>(u, w);
      put(target + begin + i, left, x + u, y + w);
    });
  };
  part(0, half, -1.0f);
  part(half, 0, 1.0f);
}

} // namespace scoring
