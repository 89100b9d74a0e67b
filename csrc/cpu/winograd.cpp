// 3 x 3 convolution on the CPU by Winograd's minimal filtering: a quarter of the multiplications.
//
// The map is cut into tiles of 4 x 4 outputs, each made of 6 x 6 inputs that overlap by two. Tiles go through a linear
// transform, the filters are multiplied in as 36 matrix products over the channels (torch's own, which are the vendor's),
// and the inverse transform leads back. Tiles are worked on in blocks that stay in the cache. All sums are float32; the
// result lies about four times as far from the exact one as that of a direct sum. The gradients go the same way: that of
// the inputs is a convolution with the filters turned and inputs and outputs exchanged; that of the filters is a sum of
// products over the tiles.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "check.h"
#include "cpu/huge_pages.h"
#include "cpu/parallel.h"
#include "cpu/winograd_tiles.h"
#include "roi_types.h"

namespace maskray {
namespace {

using torch::stable::Tensor;

/// Tiles first..first + count of a map, each as task(image, y, x, number in the block).
template <typename F>
void over_tiles(const Tiling& tiling, int64_t first, int64_t count, const F& task) {
  constexpr int64_t kTilesAPiece = 8;
  share_work((count + kTilesAPiece - 1) / kTilesAPiece, [&](const auto& next) {
    for (int64_t piece; next(piece);) {
      const int64_t end = std::min((piece + 1) * kTilesAPiece, count);
      for (int64_t at = piece * kTilesAPiece; at < end; ++at) {
        const int64_t tile = first + at, row = tile / tiling.tiles_x;
        task(row / tiling.tiles_y, row % tiling.tiles_y * kStep, tile % tiling.tiles_x * kStep, at);
      }
    }
  });
}

template <typename Step>
void to_tiles(const float* map, const Tiling& tiling, int64_t first, int64_t count, float* tiles) {
  const int64_t image_size = tiling.height * tiling.width * tiling.channels;
  over_tiles(tiling, first, count, [&](int64_t image, int64_t y, int64_t x, int64_t at) {
    const TileTask task{map + image * image_size, tiles + at * tiling.channels, nullptr, tiling.channels,
                        tiling.height, tiling.width, y, x, count * tiling.channels};
    run_simd<Transform<Step>, const TileTask*>(&task);
  });
}

void from_tiles(const float* tiles, const Tiling& tiling, int64_t first, int64_t count, const float* bias, float* map) {
  const int64_t image_size = tiling.height * tiling.width * tiling.channels;
  over_tiles(tiling, first, count, [&](int64_t image, int64_t y, int64_t x, int64_t at) {
    const TileTask task{tiles + at * tiling.channels, map + image * image_size, bias, tiling.channels,
                        tiling.height, tiling.width, y, x, count * tiling.channels};
    run_simd<Inverse, const TileTask*>(&task);
  });
}

/// Scratch memory for a block of transformed tiles, seen as [36, tiles, channels].
class Block {
 public:
  Block(int64_t tiles, int64_t channels)
      : channels_(channels), memory_(torch::stable::empty({kProducts * tiles * channels}, ScalarType::Float)) {
    prefer_huge_pages(data(), static_cast<size_t>(memory_.numel()) * sizeof(float));
  }
  float* data() { return memory_.mutable_data_ptr<float>(); }
  Tensor of(int64_t tiles) {
    Tensor used = torch::stable::narrow(memory_, 0, 0, kProducts * tiles * channels_);
    return torch::stable::view(used, {kProducts, tiles, channels_});
  }

 private:
  int64_t channels_;
  Tensor memory_;
};

/// Tiles a block: what is transformed on the way in and out takes this much of the last cache.
int64_t tiles_a_block(int64_t inputs, int64_t outputs, int64_t all) {
  constexpr int64_t kBytes = int64_t{12} << 20;
  const int64_t fit = kBytes / (kProducts * (inputs + outputs) * static_cast<int64_t>(sizeof(float)));
  return std::min(all, std::max<int64_t>(64, fit / 16 * 16));
}

Tensor channels_last(const Tensor& map) {
  return torch::stable::contiguous(map, torch::headeronly::MemoryFormat::ChannelsLast);
}

Tensor empty_map(int64_t images, int64_t channels, int64_t height, int64_t width) {
  Tensor map = torch::stable::empty({images, channels, height, width}, ScalarType::Float, std::nullopt, std::nullopt,
                                    std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  prefer_huge_pages(map.mutable_data_ptr(), static_cast<size_t>(map.numel()) * sizeof(float));
  return map;
}

/// Filters [K, C, 3, 3] as factors [36, K, C], turned by half a turn for the gradient of the inputs.
Tensor factors_of(const Tensor& filters, bool is_turned) {
  const Tensor taps = channels_last(filters);
  const int64_t outputs = taps.size(0), inputs = taps.size(1);
  Tensor factors = torch::stable::empty({kProducts, outputs, inputs}, ScalarType::Float);
  const float* from = taps.const_data_ptr<float>();
  float* to = factors.mutable_data_ptr<float>();
  share_work(outputs, [&](const auto& next) {
    for (int64_t k; next(k);) {
      const FilterTask task{from + k * kTaps * kTaps * inputs, to + k * inputs, inputs, outputs * inputs, is_turned};
      run_simd<Factors, const FilterTask*>(&task);
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
  Tensor factors = factors_of(filters, transposed);
  if (!transposed) {
    factors = torch::stable::transpose(factors, 1, 2);  // [36, inputs, outputs] as a view
  }
  const int64_t most = tiles_a_block(in.channels, outputs, in.tiles());
  Block tiles(most, in.channels), products(most, outputs);
  for (int64_t first = 0; first < in.tiles(); first += most) {
    const int64_t count = std::min(most, in.tiles() - first);
    to_tiles<OfInput>(x.const_data_ptr<float>(), in, first, count, tiles.data());
    const Tensor given = tiles.of(count), made = products.of(count);
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_bmm_out(made.get(), given.get(), factors.get()));
    from_tiles(products.data(), to, first, count, offset, out.mutable_data_ptr<float>());
  }
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
  const int64_t most = tiles_a_block(in.channels, out.channels, std::max<int64_t>(in.tiles(), 1));
  Block tiles(most, in.channels), products(most, out.channels);
  for (int64_t first = 0; first < in.tiles(); first += most) {
    const int64_t count = std::min(most, in.tiles() - first);
    to_tiles<OfInput>(x.const_data_ptr<float>(), in, first, count, tiles.data());
    to_tiles<OfGradient>(grad.const_data_ptr<float>(), out, first, count, products.data());
    const Tensor given = tiles.of(count), made = torch::stable::transpose(products.of(count), 1, 2);
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_baddbmm_out(sum.get(), sum.get(), made.get(), given.get(), 1.0, 1.0));
  }
  Tensor filters = empty_map(out.channels, in.channels, kTaps, kTaps);
  const float* from = sum.const_data_ptr<float>();
  float* to = filters.mutable_data_ptr<float>();
  share_work(out.channels, [&](const auto& next) {
    for (int64_t k; next(k);) {
      const FilterTask task{from + k * in.channels, to + k * kTaps * kTaps * in.channels, in.channels,
                            out.channels * in.channels, false};
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
