// Products of bf16 rows with a bf16 weight whose sums stay fp32, as a head's logits need them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>

namespace scoring {

constexpr int64_t kBlockColumns = 64; // Outputs of a block of the weight.
constexpr int64_t kProductRows = 64;  // Rows of one product.
constexpr int64_t kFewRows = 16;      // What is left is cut here: each height is compiled in each thread.
constexpr int64_t kProductDepth = 256; // Terms that are summed one after another: errors grow with them.

// Around a thread's products. On AMX the first one sets up tiles, which stay that of this thread until
// another kernel sets them up otherwise: the next product would not notice.
struct ProductScope {
  ProductScope() = default;
  ProductScope(const ProductScope&) = delete;
  ProductScope& operator=(const ProductScope&) = delete;
  ~ProductScope() {
    at::native::cpublas::brgemm_release(true);
  }
};

inline int64_t height_of(int64_t rows) {
  return rows < kFewRows ? rows : std::min(kProductRows, rows / kFewRows * kFewRows);
}

inline int64_t blocks_of(int64_t columns) {
  return (columns + kBlockColumns - 1) / kBlockColumns;
}

// weight [columns, width] as blocks [width / 2, 64] of pairs; the last one's missing columns are zero.
inline void pack_weight(
    const c10::BFloat16* weight, int64_t columns, int64_t width, c10::BFloat16* packed) {
  constexpr int64_t kTogether = 16; // Pairs that are read of a column at once: a line of the cache.
  const int64_t words = width / 2;
  at::parallel_for(0, blocks_of(columns), 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      auto* target = reinterpret_cast<uint32_t*>(packed) + block * words * kBlockColumns;
      const int64_t n = std::min(kBlockColumns, columns - block * kBlockColumns);
      if (n < kBlockColumns) {
        std::fill(target, target + words * kBlockColumns, 0);
      }
      const auto* source =
          reinterpret_cast<const uint32_t*>(weight) + block * kBlockColumns * words;
      for (int64_t word = 0; word < words; word += kTogether) {
        const int64_t end = std::min(words, word + kTogether);
        for (int64_t column = 0; column < n; ++column) {
          for (int64_t i = word; i < end; ++i) {
            target[i * kBlockColumns + column] = source[column * words + i];
          }
        }
      }
    }
  });
}

// rows [count, width] times a packed weight, [count, columns].
inline void multiply(
    const c10::BFloat16* rows, int64_t count, int64_t width, const c10::BFloat16* packed,
    int64_t columns, float* product) {
  at::parallel_for(0, blocks_of(columns), 1, [&](int64_t first, int64_t last) {
    const ProductScope scope;
    for (int64_t block = first; block < last; ++block) {
      const int64_t column = block * kBlockColumns;
      const int64_t n = std::min(kBlockColumns, columns - column);
      for (int64_t row = 0, height = 0; row < count; row += height) {
        height = height_of(count - row);
        for (int64_t term = 0; term < width; term += kProductDepth) {
          at::native::cpublas::brgemm(
              height, n, std::min(kProductDepth, width - term), width,
              kBlockColumns, columns, term > 0, rows + row * width + term,
              packed + column * width + term * kBlockColumns, product + row * columns + column, true);
        }
      }
    }
  });
}

} // namespace scoring
