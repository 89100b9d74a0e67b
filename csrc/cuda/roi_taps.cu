// One warp for each axis of each RoI: merges the samples into lists of cells a bin, and turns those into lists of bins a
// cell for the backward pass. Integer work aside, the arithmetic is roi_geometry.h's, so weights are the CPU's bit for bit.
#include "cuda/roi_taps.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cassert>

#include "roi_geometry.h"

namespace maskray {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;               ///< warps of a block
constexpr int kCellsInShared = 1024;    ///< more cells of one RoI than this are counted in global memory
constexpr unsigned kAll = 0xffffffffU;  ///< every lane of a warp

/// Sum of `value` over the lanes up to and including this one.
__device__ int32_t sum_up_to(int32_t value, int lane) {
  for (int step = 1; step < kWarp; step *= 2) {
    const int32_t below = __shfl_up_sync(kAll, value, step);
    value += lane >= step ? below : 0;
  }
  return value;
}

struct CountingSink {
  int32_t count = 0;
  template <typename T>
  __device__ void append(int64_t, T) {
    ++count;
  }
  template <typename T>
  __device__ void add(int64_t, T) {}
};

template <typename T>
struct WritingSink {
  Tap<T>* end;
  __device__ void append(int64_t cell, T weight) { *end++ = {static_cast<int32_t>(cell), weight}; }
  __device__ void add(int64_t back, T weight) { end[-1 - back].weight += weight; }
};

/// Lists of one axis by bin; returns the number of taps. A lane does a bin.
template <typename T>
__device__ int32_t list_bins(const Axis<T>& axis, int bins, int64_t size, int32_t* first, Tap<T>* taps,
                             int64_t capacity, int lane) {
  int32_t total = 0;
  for (int start = 0; start < bins; start += kWarp) {
    const int b = start + lane;
    CountingSink counter;
    if (b < bins) {
      merge_samples(axis, b, size, counter);
    }
    const int32_t end = total + sum_up_to(counter.count, lane);
    const int32_t begin = end - counter.count;
    assert(end <= capacity && "more cells under a RoI than the table has room for");
    if (b < bins) {
      first[b] = begin;
      WritingSink<T> writer{taps + begin};
      merge_samples(axis, b, size, writer);
      for (int32_t i = begin; i < end; ++i) {
        taps[i].weight /= static_cast<T>(axis.samples);
      }
    }
    total = __shfl_sync(kAll, end, kWarp - 1);
  }
  if (lane == 0) {
    first[bins] = total;
  }
  __syncwarp();
  return total;
}

/// Half-open range of the cells in `count` taps; (0, 0) without taps.
template <typename T>
__device__ int2 cell_range(const Tap<T>* taps, int32_t count, int lane) {
  int32_t low = INT32_MAX, high = -1;
  for (int32_t i = lane; i < count; i += kWarp) {
    low = min(low, taps[i].at);
    high = max(high, taps[i].at);
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    low = min(low, __shfl_xor_sync(kAll, low, step));
    high = max(high, __shfl_xor_sync(kAll, high, step));
  }
  return high < 0 ? make_int2(0, 0) : make_int2(low, high + 1);
}

/// Turn lists of bins into lists of cells: a counting sort, one bin after the other, so that bins ascend in each list.
/// `counts` has room for one number more than there are cells.
template <typename T>
__device__ void sort_by_cell(const int32_t* first, const Tap<T>* taps, int bins, int2 cells, int32_t* counts,
                             Tap<T>* sorted, int lane) {
  const int32_t num_cells = cells.y - cells.x;
  for (int32_t i = lane; i <= num_cells; i += kWarp) {
    counts[i] = 0;
  }
  __syncwarp();
  // Within a bin a cell appears once, so no two lanes touch the same count.
  for (int b = 0; b < bins; ++b) {
    for (int32_t i = first[b] + lane; i < first[b + 1]; i += kWarp) {
      ++counts[taps[i].at - cells.x + 1];
    }
    __syncwarp();
  }
  // counts[i + 1] becomes the start of list i, and, moved on by each tap that is written, the start of list i + 1.
  int32_t before = 0;
  for (int32_t start = 0; start < num_cells; start += kWarp) {
    const int32_t i = start + lane;
    const int32_t own = i < num_cells ? counts[i + 1] : 0;
    const int32_t up_to = before + sum_up_to(own, lane);
    if (i < num_cells) {
      counts[i + 1] = up_to - own;
    }
    before = __shfl_sync(kAll, up_to, kWarp - 1);
  }
  __syncwarp();
  for (int b = 0; b < bins; ++b) {
    for (int32_t i = first[b] + lane; i < first[b + 1]; i += kWarp) {
      sorted[counts[taps[i].at - cells.x + 1]++] = {b, taps[i].weight};
    }
    __syncwarp();
  }
}

/// Everything the kernel reads and writes.
template <typename T>
struct Job {
  const T* rois;
  const int64_t* levels;
  int64_t count;
  Levels maps;
  Pooling pooling;
  Place* places;
  TapTable<T> bins[2], cells[2];  ///< y, x
  bool by_cell;
};

template <typename T>
__global__ void __launch_bounds__(kWarp* kWarps) list_taps(const __grid_constant__ Job<T> job) {
  __shared__ int32_t shared[kWarps][kCellsInShared + 1];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + warp; item < 2 * job.count; item += stride) {
    const int64_t roi = item / 2;
    const bool is_x = item % 2 == 1;
    const T* row = job.rois + 5 * roi;
    const int64_t level = job.levels[roi];
    assert(level >= 0 && level < job.maps.count && "RoI level out of 0..L-1: one level index for each feature map given");
    const MapSize& map = job.maps.size[level];
    assert(row[0] >= T(0) && row[0] < static_cast<T>(map.images) &&
           "RoI batch index out of 0..N-1: column 0 of rois is the image's index in the batch");
    const int bins = static_cast<int>(is_x ? job.pooling.width : job.pooling.height);
    const int64_t size = is_x ? map.width : map.height;
    const Axis<T> axis =
        make_axis(row[is_x ? 1 : 2], row[is_x ? 3 : 4], static_cast<T>(job.maps.scale[level]), static_cast<int64_t>(bins),
                  job.pooling.sampling, job.pooling.aligned);
    const TapTable<T>& table = job.bins[is_x];
    int32_t* first = table.first(roi);
    Tap<T>* taps = table.taps(roi);
    const int32_t total = list_bins(axis, bins, size, first, taps, table.capacity, lane);
    const int2 range = cell_range(taps, total, lane);
    Place& place = job.places[roi];
    if (lane == 0) {
      (is_x ? place.x_begin : place.y_begin) = range.x;
      (is_x ? place.x_end : place.y_end) = range.y;
      if (!is_x) {
        place.level = static_cast<int32_t>(level);
        place.image = static_cast<int32_t>(row[0]);
      }
    }
    if (job.by_cell) {
      const TapTable<T>& cells = job.cells[is_x];
      const int32_t num_cells = range.y - range.x;
      const bool fits = num_cells <= kCellsInShared;
      int32_t* counts = fits ? shared[warp] : cells.first(roi);
      sort_by_cell(first, taps, bins, range, counts, cells.taps(roi), lane);
      for (int32_t i = lane; fits && i <= num_cells; i += kWarp) {
        cells.first(roi)[i] = counts[i];
      }
      __syncwarp();  // before the next RoI takes the counts
    }
  }
}

/// Room for the taps of one axis. With s samples a bin takes at most 2 s cells. Whatever the sampling, neighbouring bins
/// share a few cells at most; only where a RoI is so large that positions are rounded to many cells can they share
/// more, and then no more than three bins reach the map.
int64_t tap_capacity(int64_t bins, int64_t sampling, int64_t size) {
  const int64_t by_cells = 3 * size + 4 * bins;
  return sampling > 0 && sampling < by_cells ? std::min(2 * sampling * bins, by_cells) : by_cells;
}

Tensor scratch(int64_t bytes, const Tensor& like) {
  return torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, like.device());
}

template <typename T>
TapTable<T> make_table(int64_t rois, int64_t lists, int64_t capacity, const Tensor& like, std::vector<Tensor>& memory) {
  memory.push_back(scratch(rois * (lists + 1) * static_cast<int64_t>(sizeof(int32_t)), like));
  int32_t* firsts = static_cast<int32_t*>(memory.back().mutable_data_ptr());
  memory.push_back(scratch(rois * capacity * static_cast<int64_t>(sizeof(Tap<T>)), like));
  return {firsts, static_cast<Tap<T>*>(memory.back().mutable_data_ptr()), lists, capacity};
}

template <typename T>
RoiTables<T> make_tables(const Tensor& rois, const Tensor& levels, const Levels& maps, const Pooling& pooling,
                         const OnDeviceOf& device, bool by_cell) {
  const Tensor rois_dense = torch::stable::contiguous(rois);
  const Tensor levels_dense = torch::stable::contiguous(levels);
  const int64_t count = rois.size(0);
  int64_t height = 0, width = 0;
  for (int i = 0; i < maps.count; ++i) {
    height = std::max(height, maps.size[i].height);
    width = std::max(width, maps.size[i].width);
  }
  const int64_t room_y = tap_capacity(pooling.height, pooling.sampling, height);
  const int64_t room_x = tap_capacity(pooling.width, pooling.sampling, width);
  check(std::max({room_y, room_x, pooling.height * pooling.width}) < INT32_MAX, "RoIAlign of ", pooling.height, " x ",
        pooling.width, " bins over a map of ", height, " x ", width, " is too large for CUDA: use fewer bins");
  RoiTables<T> tables;
  std::vector<Tensor>& memory = tables.memory;
  memory.push_back(scratch(count * static_cast<int64_t>(sizeof(Place)), rois));
  tables.places = static_cast<Place*>(memory.back().mutable_data_ptr());
  tables.y = make_table<T>(count, pooling.height, room_y, rois, memory);
  tables.x = make_table<T>(count, pooling.width, room_x, rois, memory);
  Job<T> job{rois_dense.const_data_ptr<T>(), levels_dense.const_data_ptr<int64_t>(), count, maps, pooling,
             tables.places, {tables.y, tables.x}, {}, by_cell};
  if (by_cell) {
    job.cells[0] = tables.y = make_table<T>(count, height, room_y, rois, memory);
    job.cells[1] = tables.x = make_table<T>(count, width, room_x, rois, memory);
  }
  device.launch(list_taps<T>, blocks_for(2 * count, kWarps), kWarp * kWarps, job);
  return tables;
}

}  // namespace

Levels make_levels(const std::vector<MapSize>& maps, const std::vector<double>& scales) {
  check(maps.size() <= kMostLevels, "RoIAlign got ", maps.size(), " feature maps, CUDA takes at most ", kMostLevels);
  Levels levels{};
  levels.count = static_cast<int>(maps.size());
  for (size_t i = 0; i < maps.size(); ++i) {
    check(std::max({maps[i].images, maps[i].height, maps[i].width}) < (int64_t{1} << 30), "feature map ", i, " of ",
          maps[i].images, " x ", maps[i].height, " x ", maps[i].width, " is too large for CUDA: wanted sides below 2^30");
    levels.size[i] = maps[i];
    levels.scale[i] = scales[i];
  }
  return levels;
}

template <typename T>
RoiTables<T> taps_by_bin(const Tensor& rois, const Tensor& levels, const Levels& maps, const Pooling& pooling,
                         const OnDeviceOf& device) {
  return make_tables<T>(rois, levels, maps, pooling, device, false);
}

template <typename T>
RoiTables<T> taps_by_cell(const Tensor& rois, const Tensor& levels, const Levels& maps, const Pooling& pooling,
                          const OnDeviceOf& device) {
  return make_tables<T>(rois, levels, maps, pooling, device, true);
}

template RoiTables<float> taps_by_bin(const Tensor&, const Tensor&, const Levels&, const Pooling&, const OnDeviceOf&);
template RoiTables<double> taps_by_bin(const Tensor&, const Tensor&, const Levels&, const Pooling&, const OnDeviceOf&);
template RoiTables<float> taps_by_cell(const Tensor&, const Tensor&, const Levels&, const Pooling&, const OnDeviceOf&);
template RoiTables<double> taps_by_cell(const Tensor&, const Tensor&, const Levels&, const Pooling&, const OnDeviceOf&);

}  // namespace maskray
