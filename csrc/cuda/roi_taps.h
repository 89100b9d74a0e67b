// The samples of every RoI merged into weights of cells, as tables in device memory that the RoIAlign kernels read.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "cuda/launch.h"
#include "roi_types.h"

namespace maskray {

constexpr int kMostLevels = 16;

/// The levels of a pyramid, passed to kernels by value.
struct Levels {
  int count;
  MapSize size[kMostLevels];
  double scale[kMostLevels];
};

Levels make_levels(const std::vector<MapSize>& maps, const std::vector<double>& scales);

/// `weight` of cell `at` (in a list of a bin), or of bin `at` (in a list of a cell).
template <typename T>
struct Tap {
  int32_t at;
  T weight;
};

/// Lists of one axis of every RoI: list i of RoI r is taps(r)[first(r)[i] .. first(r)[i + 1]).
template <typename T>
struct TapTable {
  int32_t* firsts;
  Tap<T>* all;
  int64_t lists;     ///< most lists of a RoI
  int64_t capacity;  ///< most taps of a RoI

  __device__ int32_t* first(int64_t roi) const { return firsts + roi * (lists + 1); }
  __device__ Tap<T>* taps(int64_t roi) const { return all + roi * capacity; }
};

/// Where a RoI lies: its map, and the cells it touches (half open; none: all zero).
struct Place {
  int32_t level, image;
  int32_t y_begin, y_end, x_begin, x_end;
};

/// The tables of all RoIs and the memory they live in.
template <typename T>
struct RoiTables {
  Place* places;
  TapTable<T> y, x;
  std::vector<Tensor> memory;
};

/// Lists of cells for each bin (forward pass). `rois` is [R, 5] of T, `levels` [R]; an index out of range stops the device.
template <typename T>
RoiTables<T> taps_by_bin(const Tensor& rois, const Tensor& levels, const Levels& maps, const Pooling& pooling,
                         const OnDeviceOf& device);

/// Lists of bins for each cell (backward pass); list i belongs to cell y_begin + i (x_begin + i).
template <typename T>
RoiTables<T> taps_by_cell(const Tensor& rois, const Tensor& levels, const Levels& maps, const Pooling& pooling,
                          const OnDeviceOf& device);

}  // namespace maskray
