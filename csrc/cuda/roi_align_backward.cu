// RoIAlign backward on CUDA: each cell of the gradient is gathered by one warp, from every RoI that touches it, in order.
//
// A block owns a tile of kTile x kTile cells of one image; it lists the RoIs over the tile in ascending order, a warp takes
// one row of the tile, its lanes neighbouring channels. No atomics and one order of additions (the CPU's), so the bits
// are the same each time, and the CPU's. Each cell is written once; there is no fill of zeros before.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "cuda/numbers.h"
#include "cuda/roi_taps.h"

namespace maskray {
namespace {

constexpr int kWarp = 32;
constexpr int kTile = 8;  ///< cells along each side of a tile; also the warps of a block
constexpr int kThreads = kWarp * kTile;
constexpr unsigned kAll = 0xffffffffU;

/// The tiles of one level: numbers first .. first + images x rows x columns.
struct Tiles {
  int64_t first;
  int rows, columns;
};

template <typename Stored>
struct Job {
  using T = Computed<Stored>;
  Stored* maps[kMostLevels];
  Levels levels;
  Tiles tiles[kMostLevels];
  const Place* places;
  TapTable<T> y, x;
  const Stored* grad;  ///< [rois, bins, channels]
  int64_t rois, channels;
  int bins_y, bins_x;
};

/// A block's tile: its level and image, and its first cell.
struct Tile {
  int level, image, row, column;
};

__device__ Tile find_tile(const Tiles* tiles, int levels, int64_t number) {
  int level = 0;
  while (level + 1 < levels && number >= tiles[level + 1].first) {
    ++level;
  }
  const Tiles& of = tiles[level];
  const int64_t within = number - of.first;
  const int column = static_cast<int>(within % of.columns);
  const int row = static_cast<int>(within / of.columns % of.rows);
  const int image = static_cast<int>(within / of.columns / of.rows);
  return {level, image, row * kTile, column * kTile};
}

/// One RoI's gradient as one lane of one warp sees it: the taps of the warp's row, the lane's channels.
template <typename Stored>
struct RowShare {
  using T = Computed<Stored>;
  const Stored* grad;
  const Tap<T>* taps;
  int count, bins_x;
  int64_t channels;

  /// sum[..] = sum over the row's taps of weight x gradient of bin column bx.
  template <int kCount>
  __device__ __forceinline__ void add_up(int bx, T (&sum)[kCount]) const {
    for (int i = 0; i < count; ++i) {
      const Tap<T> tap = taps[i];
      const int64_t bin = static_cast<int64_t>(tap.at) * bins_x + bx;
      const Pack<Stored, kCount> pack = load<kCount>(grad + bin * channels);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const T share = widen(pack.values[k]) * tap.weight;
        sum[k] = i == 0 ? share : sum[k] + share;
      }
    }
  }
};

/// Add one RoI's share to the cells of a row of the tile: cells[i] belongs to column `column` + i. The same for all lanes of
/// the warp but for the channels.
template <int kCount, typename Stored, typename T = Computed<Stored>>
__device__ __forceinline__ void add_roi(const Job<Stored>& job, int64_t roi, int row, int column, int64_t channel,
                                        T (&cells)[kTile][kCount]) {
  const Place place = job.places[roi];
  if (row < place.y_begin || row >= place.y_end) {
    return;
  }
  const int32_t* y_first = job.y.first(roi) + (row - place.y_begin);
  const int count = y_first[1] - y_first[0];
  if (count == 0) {
    return;
  }
  const int64_t bins = static_cast<int64_t>(job.bins_y) * job.bins_x;
  const RowShare<Stored> share{job.grad + roi * bins * job.channels + channel, job.y.taps(roi) + y_first[0], count,
                               job.bins_x, job.channels};
  const int32_t* x_first = job.x.first(roi);
  const Tap<T>* x_taps = job.x.taps(roi);
  int held = -1;  // the bin column whose sum is at hand: neighbouring cells mostly want the same
  T sum[kCount] = {};
#pragma unroll
  for (int i = 0; i < kTile; ++i) {
    const int at = column + i - place.x_begin;
    if (at < 0 || column + i >= place.x_end || x_first[at] == x_first[at + 1]) {
      continue;
    }
    T cell[kCount] = {};
    for (int32_t j = x_first[at]; j < x_first[at + 1]; ++j) {
      const Tap<T> tap = x_taps[j];
      if (tap.at != held) {
        share.template add_up<kCount>(tap.at, sum);
        held = tap.at;
      }
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        cell[k] = j == x_first[at] ? sum[k] * tap.weight : cell[k] + sum[k] * tap.weight;
      }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      cells[i][k] += cell[k];
    }
  }
}

template <typename Stored, int kCount>
__global__ void __launch_bounds__(kThreads) gather(const __grid_constant__ Job<Stored> job) {
  using T = Computed<Stored>;
  __shared__ int32_t found[kThreads];  // RoIs over the tile, of the kThreads looked at, ascending
  __shared__ int32_t found_by[kTile];  // how many of them each warp found
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Tile tile = find_tile(job.tiles, job.levels.count, blockIdx.x);
  const MapSize& map = job.levels.size[tile.level];
  const int row = tile.row + warp;
  const int64_t own_channel = (static_cast<int64_t>(blockIdx.y) * kWarp + lane) * kCount;
  // A lane without channels works on the first ones, and writes nothing.
  const int64_t channel = own_channel < job.channels ? own_channel : 0;
  T cells[kTile][kCount] = {};
  for (int64_t start = 0; start < job.rois; start += kThreads) {
    const int64_t roi = start + threadIdx.x;
    bool over = false;
    if (roi < job.rois) {
      const Place place = job.places[roi];
      over = place.level == tile.level && place.image == tile.image && place.y_begin < tile.row + kTile &&
             place.y_end > tile.row && place.x_begin < tile.column + kTile && place.x_end > tile.column;
    }
    const unsigned votes = __ballot_sync(kAll, over);
    if (lane == 0) {
      found_by[warp] = __popc(votes);
    }
    __syncthreads();  // also: nobody reads the list of the round before any more
    int before = 0, total = 0;
    for (int w = 0; w < kTile; ++w) {
      before += w < warp ? found_by[w] : 0;
      total += found_by[w];
    }
    if (over) {
      found[before + __popc(votes & ((1U << lane) - 1U))] = static_cast<int32_t>(roi);
    }
    __syncthreads();  // the list is whole, and the counts are read
    for (int i = 0; i < total; ++i) {
      add_roi<kCount>(job, found[i], row, tile.column, channel, cells);
    }
  }
  if (row >= map.height || own_channel >= job.channels) {
    return;
  }
  Stored* to = job.maps[tile.level] + ((tile.image * map.height + row) * map.width + tile.column) * job.channels;
#pragma unroll
  for (int i = 0; i < kTile; ++i) {
    if (tile.column + i < map.width) {
      store<kCount>(to + i * job.channels + own_channel, cells[i]);
    }
  }
}

template <typename Stored, int kCount>
void launch(const OnDeviceOf& device, const Job<Stored>& job, int64_t tiles) {
  const int64_t chunks = (job.channels + kWarp * kCount - 1) / (kWarp * kCount);
  check(tiles <= INT32_MAX && chunks <= 65535, "RoIAlign's gradient of ", tiles, " tiles of 8 x 8 cells and ",
        job.channels, " channels is too large for CUDA: use fewer images at once");
  const dim3 blocks(static_cast<unsigned>(tiles), static_cast<unsigned>(chunks));
  device.launch(gather<Stored, kCount>, blocks, kThreads, job);
}

template <typename Stored>
void backward(const Tensor& grad, const Tensor& rois, const Tensor& levels, const Levels& maps, const Pooling& pooling,
              const OnDeviceOf& device, std::vector<Tensor>& out) {
  using T = Computed<Stored>;
  const RoiTables<T> tables = taps_by_cell<T>(rois, levels, maps, pooling, device);
  Job<Stored> job{};
  job.levels = maps;
  job.places = tables.places;
  job.y = tables.y;
  job.x = tables.x;
  job.grad = static_cast<const Stored*>(grad.const_data_ptr());
  job.rois = rois.size(0);
  job.channels = maps.size[0].channels;
  job.bins_y = static_cast<int>(pooling.height);
  job.bins_x = static_cast<int>(pooling.width);
  bool wide = job.channels % kWidest<Stored> == 0 && is_aligned(job.grad);
  int64_t tiles = 0;
  for (int i = 0; i < maps.count; ++i) {
    const MapSize& map = maps.size[i];
    job.maps[i] = static_cast<Stored*>(out[static_cast<size_t>(i)].mutable_data_ptr());
    wide = wide && is_aligned(job.maps[i]);
    const int64_t rows = (map.height + kTile - 1) / kTile, columns = (map.width + kTile - 1) / kTile;
    job.tiles[i] = {tiles, static_cast<int>(rows), static_cast<int>(columns)};
    tiles += map.images * rows * columns;
  }
  if (wide) {
    launch<Stored, kWidest<Stored>>(device, job, tiles);
  } else {
    launch<Stored, 1>(device, job, tiles);
  }
}

/// Gradient [R, C, h, w] -> gradients of the feature maps. `sizes` holds N, C, H, W of each level in turn.
std::vector<Tensor> roi_align_backward(Tensor grad, Tensor rois, Tensor levels, std::vector<int64_t> sizes,
                                       std::vector<double> scales, int64_t sampling_ratio, bool aligned) {
  const OnDeviceOf device(grad);
  grad = torch::stable::contiguous(grad, torch::headeronly::MemoryFormat::ChannelsLast);
  check(grad.size(0) <= INT32_MAX, "RoIAlign of ", grad.size(0), " RoIs is too large for CUDA: wanted below 2^31");
  std::vector<MapSize> maps;
  std::vector<Tensor> out;
  for (size_t i = 0; i + 3 < sizes.size(); i += 4) {
    maps.push_back({sizes[i], sizes[i + 1], sizes[i + 2], sizes[i + 3]});
    out.push_back(torch::stable::empty({sizes[i], sizes[i + 1], sizes[i + 2], sizes[i + 3]}, grad.scalar_type(),
                                       std::nullopt, grad.device(), std::nullopt,
                                       torch::headeronly::MemoryFormat::ChannelsLast));
  }
  const Pooling pooling{grad.size(2), grad.size(3), sampling_ratio, aligned};
  with_storage(grad.scalar_type(), [&](auto stored) {
    backward<decltype(stored)>(grad, rois, levels, make_levels(maps, scales), pooling, device, out);
  });
  return out;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CUDA, m) { m.impl("roi_align_backward", TORCH_BOX(&maskray::roi_align_backward)); }
