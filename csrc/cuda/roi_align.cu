// RoIAlign forward on CUDA: a warp makes a bin, its lanes take neighbouring channels in packs of 16 bytes.
//
// A bin is the sum over its rows of (row weight) x (sum over its columns of column weight x feature), in the CPU's order
// and without fused multiply-adds, so the bits are the CPU's.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "cuda/numbers.h"
#include "cuda/roi_taps.h"

namespace maskray {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;  ///< warps of a block: neighbouring bins, which share cells in the cache

template <typename Stored>
struct Job {
  using T = Computed<Stored>;
  const Stored* maps[kMostLevels];
  Levels levels;
  const Place* places;
  TapTable<T> y, x;
  Stored* out;
  int64_t rois, channels;
  int bins_y, bins_x;
};

/// out[channel .. channel + kCount) of one bin from the taps of its rows and columns. `image` starts at the channel.
template <int kCount, typename Stored, typename T = Computed<Stored>>
__device__ __forceinline__ void make_bin(const Stored* image, int64_t row_size, int64_t channels, const Tap<T>* y_taps,
                                         int y_count, const Tap<T>* x_taps, int x_count, Stored* to) {
  T total[kCount] = {};
  for (int i = 0; i < y_count; ++i) {
    const Tap<T> y = y_taps[i];
    const Stored* row = image + y.at * row_size;
    T sum[kCount] = {};
#pragma unroll 4
    for (int j = 0; j < x_count; ++j) {
      const Tap<T> x = x_taps[j];
      const Pack<Stored, kCount> pack = load<kCount>(row + x.at * channels);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        sum[k] += widen(pack.values[k]) * x.weight;
      }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      total[k] += sum[k] * y.weight;
    }
  }
  store<kCount>(to, total);
}

template <typename Stored, int kCount>
__global__ void __launch_bounds__(kWarp* kWarps) pool(const __grid_constant__ Job<Stored> job) {
  using T = Computed<Stored>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int bins = job.bins_y * job.bins_x;
  const int64_t items = job.rois * bins, stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + warp; item < items; item += stride) {
    const int64_t roi = item / bins;
    const int bin = static_cast<int>(item - roi * bins);
    const int by = bin / job.bins_x, bx = bin % job.bins_x;
    const Place place = job.places[roi];
    const MapSize& map = job.levels.size[place.level];
    const int32_t* y_first = job.y.first(roi) + by;
    const int32_t* x_first = job.x.first(roi) + bx;
    const Tap<T>* y_taps = job.y.taps(roi) + y_first[0];
    const Tap<T>* x_taps = job.x.taps(roi) + x_first[0];
    const int y_count = y_first[1] - y_first[0], x_count = x_first[1] - x_first[0];
    const int64_t row_size = map.width * job.channels;
    const Stored* image = job.maps[place.level] + place.image * map.height * row_size;
    Stored* to = job.out + item * job.channels;
    for (int64_t c = lane * kCount; c < job.channels; c += kWarp * kCount) {
      make_bin<kCount>(image + c, row_size, job.channels, y_taps, y_count, x_taps, x_count, to + c);
    }
  }
}

template <typename Stored>
void forward(const std::vector<Tensor>& features, const Tensor& rois, const Tensor& levels, const Levels& maps,
             const Pooling& pooling, const OnDeviceOf& device, Tensor& out) {
  using T = Computed<Stored>;
  const RoiTables<T> tables = taps_by_bin<T>(rois, levels, maps, pooling, device);
  const int64_t channels = maps.size[0].channels;
  Job<Stored> job{};
  job.levels = maps;
  job.places = tables.places;
  job.y = tables.y;
  job.x = tables.x;
  job.out = static_cast<Stored*>(out.mutable_data_ptr());
  job.rois = channels > 0 ? rois.size(0) : 0;
  job.channels = channels;
  job.bins_y = static_cast<int>(pooling.height);
  job.bins_x = static_cast<int>(pooling.width);
  bool wide = channels % kWidest<Stored> == 0 && is_aligned(job.out);
  for (size_t i = 0; i < features.size(); ++i) {
    job.maps[i] = static_cast<const Stored*>(features[i].const_data_ptr());
    wide = wide && is_aligned(job.maps[i]);
  }
  const unsigned blocks = blocks_for(job.rois * pooling.height * pooling.width, kWarps);
  device.launch(wide ? pool<Stored, kWidest<Stored>> : pool<Stored, 1>, blocks, kWarp * kWarps, job);
}

/// Features [N, C, H, W] per level, RoIs [R, 5], levels [R] -> [R, C, height, width], channels last in memory.
Tensor roi_align(std::vector<Tensor> features, Tensor rois, Tensor levels, int64_t height, int64_t width,
                 std::vector<double> scales, int64_t sampling_ratio, bool aligned) {
  const OnDeviceOf device(features[0]);
  std::vector<MapSize> maps;
  for (Tensor& map : features) {
    map = torch::stable::contiguous(map, torch::headeronly::MemoryFormat::ChannelsLast);
    maps.push_back({map.size(0), map.size(1), map.size(2), map.size(3)});
  }
  const ScalarType type = features[0].scalar_type();
  Tensor out = torch::stable::empty({rois.size(0), maps[0].channels, height, width}, type, std::nullopt,
                                    features[0].device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  with_storage(type, [&](auto stored) {
    forward<decltype(stored)>(features, rois, levels, make_levels(maps, scales),
                              {height, width, sampling_ratio, aligned}, device, out);
  });
  return out;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CUDA, m) { m.impl("roi_align", TORCH_BOX(&maskray::roi_align)); }
