// Tiles of maps, and filters, to the domain where a 3 x 3 convolution is 36 matrix products, and back.
//
// Each body works on one tile or on the filters of one output channel, a register of channels at a time.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/products.h"
#include "cpu/winograd_steps.h"

namespace maskray {

/// A map [images, height, width, channels] and how it is cut into tiles, numbered row by row.
struct Tiling {
  int64_t images, channels, height, width, tiles_y, tiles_x;

  explicit Tiling(const torch::stable::Tensor& map)
      : images(map.size(0)), channels(map.size(1)), height(map.size(2)), width(map.size(3)),
        tiles_y((height + kStep - 1) / kStep), tiles_x((width + kStep - 1) / kStep) {}

  int64_t tiles() const { return images * tiles_y * tiles_x; }

  /// Numbers before the image that a tile is of.
  int64_t image_of(int64_t tile) const { return tile / (tiles_y * tiles_x) * height * width * channels; }
};

/// One tile between a map and the transformed tiles of a block.
struct TileTask {
  const float* from;  ///< map's image, or block
  float* to;          ///< block, or map's image
  const float* bias;  ///< [channels], or null
  int64_t channels, height, width;
  int64_t y, x;         ///< the tile's first output
  int64_t tile, tiles;  ///< its number in the block, and how many are there
  int64_t plane;        ///< numbers between a tile's products
};

/// Call lanes(partial?, first channel, count if partial).
template <int64_t kLanes, typename F>
MASKRAY_INLINE void over_channels(int64_t channels, const F& lanes) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    lanes(std::false_type{}, c, int64_t{0});
  }
  if (c < channels) {
    lanes(std::true_type{}, c, channels - c);
  }
}

/// A tile of the map, zero outside, transformed along both axes; in the block as a row of channels, or packed for a product
/// over the tiles.
template <typename Step, bool kPacked>
struct Transform {
  template <Simd kSimd>
  static MASKRAY_INLINE void run(const TileTask* task) {
    using N = Numbers<float, kSimd>;
    using Lanes = typename N::Lanes;
    constexpr int kIn = Step::kIn;
    const int64_t y0 = task->y - Step::kBefore, x0 = task->x - Step::kBefore;
    over_channels<N::kLanes>(task->channels, [&](auto partial, int64_t c, int64_t some) MASKRAY_LAMBDA_INLINE {
      Lanes in[kIn * kIn], half[kSide * kIn], out[kProducts];
      for (int i = 0; i < kIn; ++i) {
        for (int j = 0; j < kIn; ++j) {
          const int64_t y = y0 + i, x = x0 + j;
          const bool inside = y >= 0 && y < task->height && x >= 0 && x < task->width;
          const float* at = task->from + (y * task->width + x) * task->channels + c;
          in[i * kIn + j] = inside ? load<partial(), N>(at, some) : Lanes{};
        }
      }
      for (int j = 0; j < kIn; ++j) {
        Step::apply(in + j, kIn, half + j, kIn);
      }
      for (int i = 0; i < kSide; ++i) {
        Step::apply(half + i * kIn, 1, out + i * kSide, 1);
      }
      float* const to = task->to + (kPacked ? packed_at<kSimd>(c, task->tiles) + task->tile * kPanel<kSimd>
                                            : task->tile * task->channels + c);
      for (int k = 0; k < kProducts; ++k) {
        store<partial(), N>(to + k * task->plane, out[k], some);
      }
    });
  }
};

/// The outputs of a tile, as far as they lie on the map, plus the bias.
struct Inverse {
  template <Simd kSimd>
  static MASKRAY_INLINE void run(const TileTask* task) {
    using N = Numbers<float, kSimd>;
    using Lanes = typename N::Lanes;
    const int64_t rows = std::min<int64_t>(kStep, task->height - task->y);
    const int64_t columns = std::min<int64_t>(kStep, task->width - task->x);
    over_channels<N::kLanes>(task->channels, [&](auto partial, int64_t c, int64_t some) MASKRAY_LAMBDA_INLINE {
      Lanes in[kProducts], half[kStep * kSide], out[kStep * kStep];
      for (int k = 0; k < kProducts; ++k) {
        in[k] = load<partial(), N>(task->from + k * task->plane + task->tile * task->channels + c, some);
      }
      for (int j = 0; j < kSide; ++j) {
        ToOutput::apply(in + j, kSide, half + j, kSide);
      }
      for (int i = 0; i < kStep; ++i) {
        ToOutput::apply(half + i * kSide, 1, out + i * kStep, 1);
      }
      const Lanes bias = task->bias == nullptr ? Lanes{} : load<partial(), N>(task->bias + c, some);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          float* at = task->to + ((task->y + i) * task->width + task->x + j) * task->channels + c;
          store<partial(), N>(at, out[i * kStep + j] + bias, some);
        }
      }
    });
  }
};

/// Filters of one input channel: taps [9, step] of some output channels beside factors [36], packed for a product over inputs.
struct FactorTask {
  const float* from;
  int64_t step;     ///< numbers between taps
  float* to;
  int64_t input, inputs;   ///< the input channel, and how many there are
  int64_t output, outputs; ///< the first output channel, and how many are done
  int64_t plane;    ///< numbers between factors
  bool is_turned;   ///< by half a turn, as the gradient of the inputs wants them
};

/// Taps to factors.
struct Factors {
  template <Simd kSimd>
  static MASKRAY_INLINE void run(const FactorTask* task) {
    using N = Numbers<float, kSimd>;
    using Lanes = typename N::Lanes;
    over_channels<N::kLanes>(task->outputs, [&](auto partial, int64_t c, int64_t some) MASKRAY_LAMBDA_INLINE {
      Lanes in[kTaps * kTaps], half[kSide * kTaps], out[kProducts];
      for (int k = 0; k < kTaps * kTaps; ++k) {
        const int tap = task->is_turned ? kTaps * kTaps - 1 - k : k;
        in[k] = load<partial(), N>(task->from + tap * task->step + c, some);
      }
      for (int j = 0; j < kTaps; ++j) {
        OfFilter::apply(in + j, kTaps, half + j, kTaps);
      }
      for (int i = 0; i < kSide; ++i) {
        OfFilter::apply(half + i * kTaps, 1, out + i * kSide, 1);
      }
      float* const to =
          task->to + packed_at<kSimd>(task->output + c, task->inputs) + task->input * kPanel<kSimd>;
      for (int k = 0; k < kProducts; ++k) {
        store<partial(), N>(to + k * task->plane, out[k], some);
      }
    });
  }
};

/// The filters of one output channel: gradients of factors [36][.., channels] beside those of taps [3, 3, channels].
struct FilterTask {
  const float* from;
  float* to;
  int64_t channels;
  int64_t plane;  ///< numbers between factors of a channel
};

/// Gradients of factors to those of taps.
struct Taps {
  template <Simd kSimd>
  static MASKRAY_INLINE void run(const FilterTask* task) {
    using N = Numbers<float, kSimd>;
    using Lanes = typename N::Lanes;
    over_channels<N::kLanes>(task->channels, [&](auto partial, int64_t c, int64_t some) MASKRAY_LAMBDA_INLINE {
      Lanes in[kProducts], half[kTaps * kSide], out[kTaps * kTaps];
      for (int k = 0; k < kProducts; ++k) {
        in[k] = load<partial(), N>(task->from + k * task->plane + c, some);
      }
      for (int j = 0; j < kSide; ++j) {
        ToFilter::apply(in + j, kSide, half + j, kSide);
      }
      for (int i = 0; i < kTaps; ++i) {
        ToFilter::apply(half + i * kSide, 1, out + i * kTaps, 1);
      }
      for (int k = 0; k < kTaps * kTaps; ++k) {
        store<partial(), N>(task->to + k * task->channels + c, out[k], some);
      }
    });
  }
};

}  // namespace maskray
