// What the forward and backward pass of RoIAlign share on the CPU: the RoIs as read and checked.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "check.h"
#include "roi_types.h"

namespace maskray {

using torch::stable::Tensor;

/// One RoI: which image of which level, and its corners in pixels.
template <typename T>
struct Roi {
  int64_t level, image;
  T x1, y1, x2, y2;
};

/// RoIs [R, 5] and levels [R] as structs; a level or an image that does not exist is an error, not a crash.
template <typename T>
inline std::vector<Roi<T>> read_rois(const Tensor& rois, const Tensor& levels, const std::vector<MapSize>& maps) {
  const Tensor rois_dense = torch::stable::contiguous(rois);
  const Tensor levels_dense = torch::stable::contiguous(levels);
  const T* values = rois_dense.const_data_ptr<T>();
  const int64_t* level = levels_dense.const_data_ptr<int64_t>();
  const int64_t count = rois.size(0);
  std::vector<Roi<T>> out(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const T* row = values + 5 * i;
    const int64_t num_levels = static_cast<int64_t>(maps.size());
    check(level[i] >= 0 && level[i] < num_levels, "RoI ", i, " has level ", level[i], ", wanted 0..", num_levels - 1,
          ": one level index for each feature map given");
    const int64_t images = maps[static_cast<size_t>(level[i])].images;
    check(row[0] >= T(0) && row[0] < static_cast<T>(images), "RoI ", i, " has batch index ", row[0], ", wanted 0..",
          images - 1, ": column 0 of rois is the image's index in the batch");
    out[static_cast<size_t>(i)] = {level[i], static_cast<int64_t>(row[0]), row[1], row[2], row[3], row[4]};
  }
  return out;
}

}  // namespace maskray
