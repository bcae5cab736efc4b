// Vectors of fp32 over rows of fp32 or bf16.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>

namespace scoring {

using Vec = at::vec::Vectorized<float>;
using HalfVec = at::vec::Vectorized<c10::BFloat16>;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

inline float reduce_max(const Vec& vector) {
  return at::vec::vec_reduce_all<float>(
      [](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, vector);
}

inline float reduce_sum(const Vec& vector) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, vector);
}

// Calls body(place, a, b) over n numbers of `source`, two fp32 vectors at a time; behind the last
// number there are zeros.
template <typename T, typename Body>
inline void over(const T* source, int64_t n, Body body) {
  constexpr int64_t kTogether = 2 * Vec::size();
  for (int64_t i = 0; i < n; i += kTogether) {
    const int64_t left = std::min(kTogether, n - i);
    if constexpr (std::is_same_v<T, float>) {
      const int64_t low = std::min<int64_t>(left, Vec::size());
      body(i, left, Vec::loadu(source + i, low),
           left > low ? Vec::loadu(source + i + low, left - low) : Vec(0.0f));
    } else {
      const auto [a, b] = at::vec::convert_bfloat16_float(HalfVec::loadu(source + i, left));
      body(i, left, a, b);
    }
  }
}

// Stores the first `left` numbers of two vectors.
template <typename T>
inline void put(T* target, int64_t left, const Vec& a, const Vec& b) {
  if constexpr (std::is_same_v<T, float>) {
    const int64_t low = std::min<int64_t>(left, Vec::size());
    a.store(target, low);
    if (left > low) {
      b.store(target + low, left - low);
    }
  } else {
    at::vec::convert_float_bfloat16(a, b).store(target, left);
  }
}

template <typename T>
inline void widen(const T* source, int64_t n, float* target) {
  over(source, n, [&](int64_t i, int64_t left, const Vec& a, const Vec& b) {
    put(target + i, left, a, b);
  });
}

using VecPair = std::pair<Vec, Vec>;

// Two fp32 vectors of as many numbers.
template <typename T>
inline VecPair load_pair(const T* source) {
  if constexpr (std::is_same_v<T, float>) {
    return {Vec::loadu(source), Vec::loadu(source + Vec::size())};
  } else {
    const auto [a, b] = at::vec::convert_bfloat16_float(HalfVec::loadu(source));
    return {a, b};
  }
}

// A row of 2 * kPairs vectors.
template <typename T, int kPairs>
inline void load_row(const T* source, Vec* row) {
  for (int64_t i = 0; i < kPairs; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      row[2 * i] = Vec::loadu(source + 2 * i * Vec::size());
      row[2 * i + 1] = Vec::loadu(source + (2 * i + 1) * Vec::size());
    } else {
      std::tie(row[2 * i], row[2 * i + 1]) =
          at::vec::convert_bfloat16_float(HalfVec::loadu(source + i * HalfVec::size()));
    }
  }
}

inline void scale(float* target, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) {
    target[i] *= factor;
  }
}

// source * factor, rounded to T.
template <typename T>
inline void store_scaled(const float* source, int64_t n, float factor, T* target) {
  over(source, n, [&](int64_t i, int64_t left, const Vec& a, const Vec& b) {
    put(target + i, left, a * Vec(factor), b * Vec(factor));
  });
}

// n is a multiple of the vector's size, here and below.
inline float largest_of(const float* source, int64_t n) {
  Vec largest(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < n; i += Vec::size()) {
    largest = at::vec::maximum(largest, Vec::loadu(source + i));
  }
  return reduce_max(largest);
}

// exp((source - shift) * unit) into target, rounded to T; returns the sum before rounding.
template <typename T>
inline float exp_into(const float* source, int64_t n, float shift, float unit, T* target) {
  Vec sum_a(0.0f), sum_b(0.0f);
  const Vec by(shift), times(unit);
  over(source, n, [&](int64_t i, int64_t left, const Vec& a, const Vec& b) {
    Vec x = (a - by) * times, y = (b - by) * times;
    if constexpr (std::is_same_v<T, float>) {
      x = x.exp();
      y = y.exp();
    } else {
      // Within 20 units of fp32's last place: more than bf16 can tell.
      x = x.exp_u20();
      y = y.exp_u20();
    }
    sum_a = sum_a + x;
    sum_b = sum_b + y;
    put(target + i, left, x, y);
  });
  return reduce_sum(sum_a + sum_b);
}

} // namespace scoring
