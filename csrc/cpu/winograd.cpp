// 3 x 3 convolution on the CPU by Winograd's minimal filtering: a quarter of the multiplications.
//
// The map is cut into tiles of 4 x 4 outputs, each made of 6 x 6 inputs that overlap by two. Tiles go through a linear
// transform, the filters are multiplied in as 36 matrix products over the channels, and the inverse transform leads back.
// A thread takes a block of tiles that stays in the cache through all three. All sums are float32; the
// result lies about four times as far from the exact one as that of a direct sum. The gradients go the same way: that of
// the inputs is a convolution with the filters turned and inputs and outputs exchanged; that of the filters is a sum of
// products over the tiles.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "check.h"
#include "cpu/maps.h"
#include "cpu/parallel.h"
#include "cpu/products.h"
#include "cpu/winograd_tiles.h"
#include "roi_types.h"

namespace maskray {
namespace {

using torch::stable::Tensor;

/// At least `numbers`, and no multiple of 4 KiB: planes that far apart would lie in one set of the cache.
int64_t apart(int64_t numbers) { return (numbers + 1023) / 1024 * 1024 + 16; }

/// Scratch memory [36, plane] for a block of transformed tiles [36, tiles, channels].
class Block {
 public:
  Block(int64_t tiles, int64_t channels)
      : plane_(apart(tiles * channels)),
        memory_(torch::stable::empty({kProducts * plane_}, ScalarType::Float)) {}
  float* data() { return memory_.mutable_data_ptr<float>(); }
  int64_t plane() const { return plane_; }

 private:
  int64_t plane_;
  Tensor memory_;
};

/// The task of tile `at` of a block that begins with tile `first` of a map.
TileTask tile_task(const Tiling& tiling, int64_t first, int64_t at, int64_t count, int64_t plane) {
  const int64_t row = (first + at) / tiling.tiles_x;
  return {nullptr, nullptr, nullptr, tiling.channels, tiling.height, tiling.width, row % tiling.tiles_y * kStep,
          (first + at) % tiling.tiles_x * kStep, at, count, plane};
}

/// Tile `at` of a block from the map.
template <typename Step, bool kPacked>
void to_block(const float* map, const Tiling& tiling, int64_t first, int64_t at, int64_t count, Block& block) {
  TileTask task = tile_task(tiling, first, at, count, block.plane());
  task.from = map + tiling.image_of(first + at);
  task.to = block.data();
  run_simd<Transform<Step, kPacked>, const TileTask*>(&task);
}

/// The outputs of tile `at` of a block to the map.
void from_block(Block& block, const Tiling& tiling, int64_t first, int64_t at, int64_t count, const float* bias,
                float* map) {
  TileTask task = tile_task(tiling, first, at, count, block.plane());
  task.from = block.data();
  task.to = map + tiling.image_of(first + at);
  task.bias = bias;
  run_simd<Inverse, const TileTask*>(&task);
}

/// Rows of the filters' gradient that a thread sums at a time.
constexpr int64_t kGradientRows = 48;

/// Tiles a block for the filters' gradient, which all threads work on: they fit the last cache.
int64_t tiles_a_block(int64_t inputs, int64_t outputs, int64_t all) {
  constexpr int64_t kBytes = int64_t{12} << 20;
  const int64_t fit = kBytes / (kProducts * (inputs + outputs) * static_cast<int64_t>(sizeof(float)));
  return std::min(all, std::max<int64_t>(64, fit / 16 * 16));
}

/// Tiles that a thread takes through all three steps at a time: few enough for the cache, and an equal share for all
/// threads. How the tiles are divided does not show in the bits.
int64_t tiles_a_piece(int64_t all) {
  constexpr int64_t kMost = 96, kRows = 12;  // rows of a product
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rounds = (all + kMost * threads - 1) / (kMost * threads);
  const int64_t share = (all + rounds * threads - 1) / (rounds * threads);
  return std::min(kMost, (share + kRows - 1) / kRows * kRows);
}

/// Factors [36] of filters [K, C, 3, 3], each packed for a product over C with K columns.
Tensor factors_of(const Tensor& filters) {
  constexpr int64_t kOutputs = 32, kInputs = 16, kAll = kTaps * kTaps;
  const int64_t outputs = filters.size(0), inputs = filters.size(1), plane = apart(inputs * packed_columns(outputs));
  const int64_t of_output = filters.stride(0), of_input = filters.stride(1);
  int64_t of_tap[kAll];
  for (int64_t tap = 0; tap < kAll; ++tap) {
    of_tap[tap] = tap / kTaps * filters.stride(2) + tap % kTaps * filters.stride(3);
  }
  Tensor factors = torch::stable::empty({kProducts * plane}, ScalarType::Float);
  const float* from = filters.const_data_ptr<float>();
  float* to = factors.mutable_data_ptr<float>();
  share_work((outputs + kOutputs - 1) / kOutputs, [&](const auto& next) {
    float taps[kInputs][kAll][kOutputs];  // registers hold outputs, which need not lie side by side in the filters
    for (int64_t piece; next(piece);) {
      const int64_t first = piece * kOutputs, count = std::min(kOutputs, outputs - first);
      for (int64_t input = 0; input < inputs; input += kInputs) {
        const int64_t some = std::min(kInputs, inputs - input);
        for (int64_t tap = 0; tap < kAll; ++tap) {
          for (int64_t k = 0; k < count; ++k) {
            const float* row = from + (first + k) * of_output + input * of_input + of_tap[tap];
            for (int64_t c = 0; c < some; ++c) {
              taps[c][tap][k] = row[c * of_input];
            }
          }
        }
        for (int64_t c = 0; c < some; ++c) {
          const FactorTask task{taps[c][0], kOutputs, to, input + c, inputs, first, count, plane, false};
          run_simd<Factors, const FactorTask*>(&task);
        }
      }
    }
  });
  return factors;
}

/// The same of the transposed convolution: a product over K with C columns, the filters turned by half a turn.
Tensor transposed_factors_of(const Tensor& filters) {
  const Tensor taps = channels_last(filters);
  const int64_t inputs = taps.size(0), outputs = taps.size(1), plane = apart(inputs * packed_columns(outputs));
  Tensor factors = torch::stable::empty({kProducts * plane}, ScalarType::Float);
  const float* from = taps.const_data_ptr<float>();
  float* to = factors.mutable_data_ptr<float>();
  share_work(inputs, [&](const auto& next) {
    for (int64_t k; next(k);) {
      const FactorTask task{from + k * kTaps * kTaps * outputs, outputs, to, k, inputs, 0, outputs, plane, true};
      run_simd<Factors, const FactorTask*>(&task);
    }
  });
  return factors;
}

/// x [N, C, H, W] convolved with filters [K, C, 3, 3], padded by one, plus bias [K]: [N, K, H, W], channels last.
///
/// @param transposed the convolution's transpose instead: x [N, K, H, W] gives [N, C, H, W].
Tensor winograd_conv(Tensor x, Tensor filters, std::optional<Tensor> bias, bool transposed) {
  x = channels_last(x);
  const Tiling in(x);
  const int64_t wanted = filters.size(transposed ? 0 : 1), outputs = filters.size(transposed ? 1 : 0);
  check(in.channels == wanted, "the map has ", in.channels, " channels, the filters are for ", wanted,
        ": give maps of that width");
  Tensor out = empty_map(in.images, outputs, in.height, in.width);
  if (in.tiles() == 0 || outputs == 0) {
    return out;
  }
  const Tiling to(out);
  std::optional<Tensor> offsets;
  if (bias.has_value()) {
    offsets = torch::stable::contiguous(*bias);
  }
  const float* offset = offsets.has_value() ? offsets->const_data_ptr<float>() : nullptr;
  const Tensor factors = transposed ? transposed_factors_of(filters) : factors_of(filters);
  const float* right = factors.const_data_ptr<float>();
  const int64_t plane = factors.numel() / kProducts;
  const float* from = x.const_data_ptr<float>();
  float* made = out.mutable_data_ptr<float>();
  const int64_t most = tiles_a_piece(in.tiles());
  share_work((in.tiles() + most - 1) / most, [&](const auto& next) {
    Block tiles(most, in.channels), products(most, outputs);
    for (int64_t piece; next(piece);) {
      const int64_t first = piece * most, count = std::min(most, in.tiles() - first);
      for (int64_t at = 0; at < count; ++at) {
        to_block<OfInput, false>(from, in, first, at, count, tiles);
      }
      for (int64_t k = 0; k < kProducts; ++k) {
        const ProductTask task{tiles.data() + k * tiles.plane(), in.channels, 1, right + k * plane,
                               products.data() + k * products.plane(), outputs, count, in.channels, outputs, false};
        run_simd<Product, const ProductTask*>(&task);
      }
      for (int64_t at = 0; at < count; ++at) {
        from_block(products, to, first, at, count, offset, made);
      }
    }
  });
  return out;
}

/// Gradient [K, C, 3, 3] of the filters, channels last, from inputs [N, C, H, W] and outputs' gradient [N, K, H, W].
Tensor winograd_filter_grad(Tensor x, Tensor grad) {
  x = channels_last(x);
  grad = channels_last(grad);
  const Tiling in(x), out(grad);
  check(in.images == out.images && in.height == out.height && in.width == out.width, "the gradient is of ", out.images,
        " maps of ", out.height, " x ", out.width, ", the input of ", in.images, " of ", in.height, " x ", in.width,
        ": wanted the same");
  Tensor sum = torch::stable::empty({kProducts, out.channels, in.channels}, ScalarType::Float);
  sum = torch::stable::zero_(sum);
  float* sums = sum.mutable_data_ptr<float>();
  const int64_t most = tiles_a_block(in.channels, out.channels, std::max<int64_t>(in.tiles(), 1));
  Block tiles(most, packed_columns(in.channels)), gradients(most, out.channels);
  const float *maps = x.const_data_ptr<float>(), *ends = grad.const_data_ptr<float>();
  const int64_t pieces = (out.channels + kGradientRows - 1) / kGradientRows;
  for (int64_t first = 0; first < in.tiles(); first += most) {
    const int64_t count = std::min(most, in.tiles() - first);
    share_work(count, [&](const auto& next) {
      for (int64_t at; next(at);) {
        to_block<OfInput, true>(maps, in, first, at, count, tiles);
        to_block<OfGradient, false>(ends, out, first, at, count, gradients);
      }
    });
    share_work(kProducts * pieces, [&](const auto& next) {
      for (int64_t piece; next(piece);) {
        const int64_t k = piece / pieces, row = piece % pieces * kGradientRows;
        const ProductTask task{gradients.data() + k * gradients.plane() + row, 1, out.channels,
                               tiles.data() + k * tiles.plane(), sums + (k * out.channels + row) * in.channels,
                               in.channels, std::min(kGradientRows, out.channels - row), count, in.channels, true};
        run_simd<Product, const ProductTask*>(&task);
      }
    });
  }
  Tensor filters = empty_map(out.channels, in.channels, kTaps, kTaps);
  const float* from = sum.const_data_ptr<float>();
  float* to = filters.mutable_data_ptr<float>();
  share_work(out.channels, [&](const auto& next) {
    for (int64_t k; next(k);) {
      const FilterTask task{from + k * in.channels, to + k * kTaps * kTaps * in.channels, in.channels,
                            out.channels * in.channels};
      run_simd<Taps, const FilterTask*>(&task);
    }
  });
  return filters;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CPU, m) {
  m.impl("winograd_conv", TORCH_BOX(&maskray::winograd_conv));
  m.impl("winograd_filter_grad", TORCH_BOX(&maskray::winograd_filter_grad));
}
