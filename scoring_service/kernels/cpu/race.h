// One token of a row, distributed exactly as softmax of x: the exponential race of `reference.draw`.
#pragma once

#include <array>
#include <cstdint>

#include "rows.h"

namespace scoring {

// Philox4x32-10 of Salmon et al. (2011) for the blocks first ... first + kBlocks - 1: word j of a
// block belongs to token 4 * block + j.
constexpr int64_t kBlocks = 16;
constexpr int64_t kRaced = 4 * kBlocks;

struct Draw {
  uint64_t seed;
  uint32_t position;
  uint32_t sample_index;
};

inline void token_words(const Draw& draw, uint32_t first, uint32_t* words) {
  uint32_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
  for (int64_t i = 0; i < kBlocks; ++i) {
    c0[i] = first + static_cast<uint32_t>(i);
    c1[i] = draw.position;
    c2[i] = draw.sample_index;
    c3[i] = 0; // the domain of numbers that draw tokens
  }
  uint32_t k0 = static_cast<uint32_t>(draw.seed), k1 = static_cast<uint32_t>(draw.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int64_t i = 0; i < kBlocks; ++i) {
      const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c0[i];
      const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c2[i];
      c0[i] = static_cast<uint32_t>(b >> 32) ^ c1[i] ^ k0;
      c1[i] = static_cast<uint32_t>(b);
      c2[i] = static_cast<uint32_t>(a >> 32) ^ c3[i] ^ k1;
      c3[i] = static_cast<uint32_t>(a);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int64_t i = 0; i < kBlocks; ++i) {
    words[4 * i] = c0[i];
    words[4 * i + 1] = c1[i];
    words[4 * i + 2] = c2[i];
    words[4 * i + 3] = c3[i];
  }
}

// The token with the least E / p, E = -log1p(-u), u = (word + 1/2) / 2^32, p = exp(x - max), of those
// above a pivot and those at it whose id is at least `least_id`; equal keys go to the lower id.
//
// E >= u, so only a token with u <= best * p can win, which one comparison in fp32 tells for nearly
// all of them; the margin is for what fp32 rounds. The others' keys are made in double.
template <typename T>
int64_t race(const Row<T>& row, float max, float pivot, int64_t least_id, const Draw& draw) {
  constexpr float kMargin = 1.0f + 1e-4f, kLeast = 0x1p-33f;
  const Vec by(max), bound(pivot), zero(0.0f);
  double best_key = std::numeric_limits<double>::infinity();
  float best = kInfinity;
  int64_t winner = 0;
  alignas(64) float weights[kRaced];
  alignas(64) uint32_t words[kRaced];
  for (int64_t first = 0; first < row.size; first += kRaced) {
    const int64_t end = std::min(row.size, first + kRaced);
    std::fill(weights, weights + kRaced, 0.0f);
    Vec largest(0.0f);
    row.each(first, end, -kInfinity, [&](int64_t i, const Vec& a, const Vec& b) {
      const Vec p = Vec::blendv(zero, (a - by).exp_u20(), a >= bound);
      const Vec q = Vec::blendv(zero, (b - by).exp_u20(), b >= bound);
      p.store(weights + (i - first));
      q.store(weights + (i - first) + Vec::size());
      largest = larger(largest, larger(p, q));
    });
    const float most = reduce_max(largest);
    if (most == 0.0f || best * kMargin * most < kLeast) {
      continue; // nothing to draw, or no word is small enough
    }
    token_words(draw, static_cast<uint32_t>(first / 4), words);
    for (int64_t i = 0; i < end - first; ++i) {
      const float u = (static_cast<float>(words[i]) + 0.5f) * 0x1p-32f;
      if (weights[i] > 0.0f && u <= best * kMargin * weights[i]) {
        const float x = row.at(first + i);
        if (x == pivot && first + i < least_id) {
          continue;
        }
        const double exact = (static_cast<double>(words[i]) + 0.5) * 0x1p-32;
        const double below = static_cast<double>(x) - static_cast<double>(max);
        const double key = std::log(-std::log1p(-exact)) - below;
        if (key < best_key) {
          best_key = key;
          best = static_cast<float>(std::exp(key));
          winner = first + i;
        }
      }
    }
  }
  return winner;
}

} // namespace scoring
