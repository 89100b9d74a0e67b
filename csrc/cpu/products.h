// Matrix products of float32 for small, many-times-used right sides, packed by whoever makes them.
//
// Sums run over the depth in order, each term by a fused multiply-add, in every SIMD variant: the bits depend neither on
// the variant nor on how the work is divided. (Without the instruction, on x86-64 before AVX2, fmaf is called for each
// term: right, and slow, so model/ops/conv.py does not come here then.)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/lanes.h"
#ifdef __aarch64__
#include <arm_neon.h>
#endif

namespace maskray {

/// a * b + c, rounded once.
template <typename Lanes>
MASKRAY_INLINE Lanes fused(const Lanes& a, const Lanes& b, Lanes c) {
#if defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
#if defined(MASKRAY_X86)
  if constexpr (sizeof(Lanes) > 16) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
  }
#endif
  for (size_t lane = 0; lane < sizeof(Lanes) / sizeof(float); ++lane) {
    c[lane] = std::fmaf(a[lane], b[lane], c[lane]);
  }
  return c;
#endif
}

/// Columns of a panel: a packed right side is [panels][depth][kPanel], its last panel filled up with anything.
template <Simd kSimd>
constexpr int64_t kPanel = 2 * Numbers<float, kSimd>::kLanes;

/// Numbers that a packed right side of `columns` has a step of depth, at most.
inline int64_t packed_columns(int64_t columns) {
  return (columns + kPanel<Simd::kAvx512> - 1) / kPanel<Simd::kAvx512> * kPanel<Simd::kAvx512>;
}

/// Where a packed right side of a product over `depth` has the first number of a column.
template <Simd kSimd>
MASKRAY_INLINE int64_t packed_at(int64_t column, int64_t depth) {
  return column / kPanel<kSimd> * kPanel<kSimd> * depth + column % kPanel<kSimd>;
}

/// out[row, column] (+)= sum over d of left[row, d] x right[d, column].
struct ProductTask {
  const float* left;   ///< element (row, d) at row x row_step + d x depth_step
  int64_t row_step, depth_step;
  const float* right;  ///< packed
  float* out;          ///< [rows, columns], rows `out_step` numbers apart
  int64_t out_step;
  int64_t rows, depth, columns;
  bool adds;           ///< to what `out` holds
};

struct Product {
  static constexpr int64_t kDepth = 256;  ///< taken at a time: a panel of it stays in the first cache

  /// Rows and registers of columns summed at once: what leaves a register for each operand.
  template <Simd kSimd>
  static constexpr int kRows = kSimd == Simd::kAvx512 ? 12 : 6;

  template <Simd kSimd>
  static MASKRAY_INLINE void run(const ProductTask* task) {
    for (int64_t d = 0; d < task->depth; d += kDepth) {
      const int64_t depth = std::min(kDepth, task->depth - d);
      for (int64_t column = 0; column < task->columns; column += kPanel<kSimd>) {
        const float* right = task->right + column * task->depth + d * kPanel<kSimd>;
        for (int64_t row = 0; row < task->rows; row += kRows<kSimd>) {
          piece<kSimd>(*task, row, column, d, depth, right);
        }
      }
    }
  }

  /// kRows rows by two registers of columns.
  template <Simd kSimd>
  static MASKRAY_INLINE void piece(const ProductTask& task, int64_t row, int64_t column, int64_t first, int64_t depth,
                                   const float* right) {
    using N = Numbers<float, kSimd>;
    using Lanes = typename N::Lanes;
    constexpr int kHeight = kRows<kSimd>;
    constexpr int64_t kLanes = N::kLanes;
    const int64_t rows = std::min<int64_t>(kHeight, task.rows - row);
    const int64_t columns = std::min(2 * kLanes, task.columns - column);
    const float* left[kHeight];
    Lanes sums[kHeight][2];
    float* const out = task.out + row * task.out_step + column;
    const bool is_whole = rows == kHeight && columns == 2 * kLanes;
#pragma GCC unroll 16
    for (int r = 0; r < kHeight; ++r) {  // rows past the last are the last one again, and not stored
      left[r] = task.left + std::min<int64_t>(row + r, task.rows - 1) * task.row_step + first * task.depth_step;
      sums[r][0] = sums[r][1] = Lanes{};
    }
    if (task.adds || first > 0) {
#pragma GCC unroll 16
      for (int r = 0; r < kHeight; ++r) {
        if (is_whole) {
          sums[r][0] = N::load(out + r * task.out_step);
          sums[r][1] = N::load(out + r * task.out_step + kLanes);
        } else if (r < rows) {
          sums[r][0] = N::load_some(out + r * task.out_step, std::min(columns, kLanes));
          sums[r][1] = N::load_some(out + r * task.out_step + kLanes, std::max<int64_t>(columns - kLanes, 0));
        }
      }
    }
    for (int64_t d = 0; d < depth; ++d) {
      const Lanes low = N::load(right + d * 2 * kLanes), high = N::load(right + d * 2 * kLanes + kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kHeight; ++r) {
        const Lanes value = left[r][d * task.depth_step] - Lanes{};
        sums[r][0] = fused(value, low, sums[r][0]);
        sums[r][1] = fused(value, high, sums[r][1]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kHeight; ++r) {
      if (is_whole) {
        N::store(out + r * task.out_step, sums[r][0]);
        N::store(out + r * task.out_step + kLanes, sums[r][1]);
      } else if (r < rows) {
        N::store_some(out + r * task.out_step, sums[r][0], std::min(columns, kLanes));
        N::store_some(out + r * task.out_step + kLanes, sums[r][1], std::max<int64_t>(columns - kLanes, 0));
      }
    }
  }
};

}  // namespace maskray
