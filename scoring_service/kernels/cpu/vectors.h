// Vectors of fp32 over rows of fp32 or bf16.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
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

// The larger of each two numbers, in one instruction: a NaN in `a` is lost, unlike in torch's
// `maximum`. Whoever sums exp(x - max) afterwards still meets it.
inline Vec larger(const Vec& a, const Vec& b) {
  return at::vec::clamp_min(b, a);
}

inline Vec smaller(const Vec& a, const Vec& b) {
  return at::vec::clamp_max(b, a);
}

inline float reduce_max(const Vec& vector) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return larger(a, b); }, vector);
}

inline float reduce_min(const Vec& vector) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return smaller(a, b); }, vector);
}

// Two vectors rounded to bf16, to nearest and ties to even.
inline HalfVec narrow(const Vec& a, const Vec& b) {
#ifdef __AVX512BF16__
  return HalfVec(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
#else
  return at::vec::convert_float_bfloat16(a, b);
#endif
}

// Writes the numbers of x that reach a bound to `found`, one behind the other; returns how many. All
// that is there may be written to up to a whole vector. Without a branch for each number: which
// ones reach it cannot be foreseen.
inline int64_t put_reaching(const Vec& x, const Vec& bound, float* found) {
#ifdef __AVX512F__
  const __mmask16 reaching = _mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ);
  _mm512_storeu_ps(found, _mm512_maskz_compress_ps(reaching, x));
  return std::popcount(static_cast<uint32_t>(reaching));
#else
  float lanes[Vec::size()];
  x.store(lanes);
  const uint32_t below = static_cast<uint32_t>((x >= bound).zero_mask());
  int64_t count = 0;
  for (int64_t lane = 0; lane < Vec::size(); ++lane) {
    found[count] = lanes[lane];
    count += ~below >> lane & 1;
  }
  return count;
#endif
}

// The same, and the places of those numbers: that of the first one of x is `place`.
inline int64_t put_reaching(
    const Vec& x, const Vec& bound, int32_t place, float* found, int32_t* places) {
#ifdef __AVX512F__
  const __mmask16 reaching = _mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ);
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i here = _mm512_add_epi32(_mm512_set1_epi32(place), lanes);
  _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(reaching, here));
#else
  const uint32_t below = static_cast<uint32_t>((x >= bound).zero_mask());
  int64_t count = 0;
  for (int32_t lane = 0; lane < Vec::size(); ++lane) {
    places[count] = place + lane;
    count += ~below >> lane & 1;
  }
#endif
  return put_reaching(x, bound, found);
}

inline float reduce_sum(const Vec& vector) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, vector);
}

// Of as many vectors as one has numbers, one behind the other: the sum of each.
inline Vec sums_of(const float* vectors) {
#ifdef __AVX512F__
  __m512 part[16];
  for (int i = 0; i < 16; ++i) {
    part[i] = _mm512_loadu_ps(vectors + 16 * i);
  }
  for (int i = 0; i < 8; ++i) { // In each quarter: a0 + a2, b0 + b2, a1 + a3, b1 + b3.
    const __m512 a = part[2 * i], b = part[2 * i + 1];
    part[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  for (int i = 0; i < 4; ++i) { // In each quarter: its sum for four vectors.
    const __m512d a = _mm512_castps_pd(part[2 * i]), b = _mm512_castps_pd(part[2 * i + 1]);
    part[i] = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto add_quarters = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return add_quarters(add_quarters(part[0], part[1]), add_quarters(part[2], part[3]));
#else
  float sums[Vec::size()];
  for (int64_t i = 0; i < Vec::size(); ++i) {
    sums[i] = reduce_sum(Vec::loadu(vectors + i * Vec::size()));
  }
  return Vec::loadu(sums);
#endif
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
    narrow(a, b).store(target, left);
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

inline void add_scaled(float* target, const float* source, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) {
    target[i] += source[i] * factor;
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
  constexpr int64_t kChains = 4; // One would wait for each comparison's result.
  Vec largest[kChains];
  std::fill(largest, largest + kChains, Vec(-std::numeric_limits<float>::infinity()));
  int64_t i = 0;
  for (; i + kChains * Vec::size() <= n; i += kChains * Vec::size()) {
    for (int64_t chain = 0; chain < kChains; ++chain) {
      largest[chain] = larger(largest[chain], Vec::loadu(source + i + chain * Vec::size()));
    }
  }
  for (; i < n; i += Vec::size()) {
    largest[0] = larger(largest[0], Vec::loadu(source + i));
  }
  return reduce_max(larger(larger(largest[0], largest[1]), larger(largest[2], largest[3])));
}

// exp(x) for x up to 88, within two units of fp32's last place; 0 below the normal numbers, NaN for
// NaN. torch's own calls a library for each vector, which costs more than the exponential.
// The polynomial is that of Cephes' expf (Moshier): exp(x) = 2^n * exp(r), |r| <= log(2) / 2.
inline Vec exp_of(const Vec& x) {
  constexpr float kCoefficients[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                                     1.6666665459e-1f, 5.0000001201e-1f};
  const Vec least(-87.3365447f), zero(0.0f), one(1.0f);
  const Vec inside = at::vec::clamp_min(x, least);
  const Vec n = (inside * Vec(1.44269504f)).round();
  Vec r = at::vec::fmadd(n, Vec(-0.693359375f), inside); // log(2) in two parts
  r = at::vec::fmadd(n, Vec(2.12194440e-4f), r);
  Vec sum(1.9875691500e-4f);
  for (const float coefficient : kCoefficients) {
    sum = at::vec::fmadd(sum, r, Vec(coefficient));
  }
  const Vec power = at::vec::fmadd(sum, r * r, r) + one;
  const auto exponent = at::vec::convert_to_int_of_same_size(n) + at::vec::Vectorized<int32_t>(127);
  const Vec scale = at::vec::cast<float>(exponent << at::vec::Vectorized<int32_t>(23));
  return Vec::blendv(power * scale, zero, x < least);
}

// exp((source - shift) * unit) into target, rounded to T; returns the sum before rounding.
template <typename T>
inline float exp_into(const float* source, int64_t n, float shift, float unit, T* target) {
  Vec sum_a(0.0f), sum_b(0.0f);
  const Vec by(shift), times(unit);
  over(source, n, [&](int64_t i, int64_t left, const Vec& a, const Vec& b) {
    Vec x = (a - by) * times, y = (b - by) * times;
    if constexpr (std::is_same_v<T, float>) {
      x = exp_of(x);
      y = exp_of(y);
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
