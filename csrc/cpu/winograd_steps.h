// The linear maps of Winograd's F(4 x 4, 3 x 3), along one axis (Lavin and Gray 2016, points 0, 1, -1, 2, -2).
//
// Y = A^T [(G g G^T) * (B^T d B)] A for a tile d of 6 x 6 inputs, a filter g of 3 x 3 taps and 4 x 4 outputs Y.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace maskray {

constexpr int kSide = 6;                  ///< side of a transformed tile
constexpr int kProducts = kSide * kSide;  ///< matrix products a convolution
constexpr int kStep = 4;                  ///< outputs along a tile's side
constexpr int kTaps = 3;                  ///< side of a filter

/// B^T: six inputs to six transformed ones.
struct OfInput {
  static constexpr int kIn = 6, kOut = 6;
  static constexpr int64_t kBefore = 1;  ///< cells before the tile's first output that its inputs begin at
  template <typename Lanes>
  static MASKRAY_INLINE void apply(const Lanes* d, int64_t stride, Lanes* out, int64_t out_stride) {
    const Lanes d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride],
                d5 = d[5 * stride];
    const Lanes a = d4 - d2 * 4.0f, b = d3 - d1 * 4.0f;
    const Lanes c = d4 - d2, e = (d3 - d1) * 2.0f;
    out[0] = d0 * 4.0f - d2 * 5.0f + d4;
    out[out_stride] = a + b;
    out[2 * out_stride] = a - b;
    out[3 * out_stride] = c + e;
    out[4 * out_stride] = c - e;
    out[5 * out_stride] = d1 * 4.0f - d3 * 5.0f + d5;
  }
};

/// A^T: six products to four outputs.
struct ToOutput {
  static constexpr int kIn = 6, kOut = 4;
  template <typename Lanes>
  static MASKRAY_INLINE void apply(const Lanes* m, int64_t stride, Lanes* out, int64_t out_stride) {
    const Lanes m1 = m[stride], m2 = m[2 * stride], m3 = m[3 * stride], m4 = m[4 * stride];
    const Lanes s = m1 + m2, t = m3 + m4, d = m1 - m2, e = m3 - m4;
    out[0] = m[0] + s + t;
    out[out_stride] = d + e * 2.0f;
    out[2 * out_stride] = s + t * 4.0f;
    out[3 * out_stride] = d + e * 8.0f + m[5 * stride];
  }
};

/// A: four gradients of outputs to six of products.
struct OfGradient {
  static constexpr int kIn = 4, kOut = 6;
  static constexpr int64_t kBefore = 0;
  template <typename Lanes>
  static MASKRAY_INLINE void apply(const Lanes* y, int64_t stride, Lanes* out, int64_t out_stride) {
    const Lanes y0 = y[0], y1 = y[stride], y2 = y[2 * stride], y3 = y[3 * stride];
    const Lanes a = y0 + y2, b = y1 + y3;
    const Lanes c = y0 + y2 * 4.0f, d = y1 * 2.0f + y3 * 8.0f;
    out[0] = y0;
    out[out_stride] = a + b;
    out[2 * out_stride] = a - b;
    out[3 * out_stride] = c + d;
    out[4 * out_stride] = c - d;
    out[5 * out_stride] = y3;
  }
};

/// G: three taps of a filter to six factors.
struct OfFilter {
  template <typename Lanes>
  static MASKRAY_INLINE void apply(const Lanes* g, int64_t stride, Lanes* out, int64_t out_stride) {
    const Lanes g0 = g[0], g1 = g[stride], g2 = g[2 * stride];
    const Lanes a = (g0 + g2) * (-1.0f / 6.0f), b = g1 * (1.0f / 6.0f);
    const Lanes c = g0 * (1.0f / 24.0f) + g2 * (1.0f / 6.0f), d = g1 * (1.0f / 12.0f);
    out[0] = g0 * 0.25f;
    out[out_stride] = a - b;
    out[2 * out_stride] = a + b;
    out[3 * out_stride] = c + d;
    out[4 * out_stride] = c - d;
    out[5 * out_stride] = g2;
  }
};

/// G^T: gradients of six factors to those of three taps.
struct ToFilter {
  template <typename Lanes>
  static MASKRAY_INLINE void apply(const Lanes* u, int64_t stride, Lanes* out, int64_t out_stride) {
    const Lanes u1 = u[stride], u2 = u[2 * stride], u3 = u[3 * stride], u4 = u[4 * stride];
    const Lanes s = (u1 + u2) * (-1.0f / 6.0f), t = u3 + u4;
    out[0] = u[0] * 0.25f + s + t * (1.0f / 24.0f);
    out[out_stride] = (u2 - u1) * (1.0f / 6.0f) + (u3 - u4) * (1.0f / 12.0f);
    out[2 * out_stride] = s + t * (1.0f / 6.0f) + u[5 * stride];
  }
};

}  // namespace maskray
