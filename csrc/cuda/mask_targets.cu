// Mask targets on CUDA: RoIAlign of a whole mask, read from the crop that stands for it; a thread makes a bin.
//
// The samples of a bin are added in torchvision's order, without fused multiply-adds, so that binarised targets agree with
// the CPU's at every tie.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cassert>

#include "cuda/launch.h"
#include "roi_geometry.h"

namespace maskray {
namespace {

constexpr int kThreads = 128;

struct Job {
  const uint8_t* data;
  int64_t bytes;
  const int64_t *offsets, *extents;
  int64_t num_crops;
  const float* rois;
  const int64_t* crop_index;
  int64_t count, size;
  bool aligned, binarise;
  float* out;
};

/// A mask as packed: `pixels` cover rows y0..y0+h and columns x0..x0+w of a height x width mask of zeros.
struct Crop {
  const uint8_t* pixels;
  int64_t y0, x0, h, w, height, width;

  __device__ bool has_row(int64_t row) const { return row >= y0 && row < y0 + h; }

  __device__ float at(int64_t row, int64_t column) const {
    const bool inside = has_row(row) && column >= x0 && column < x0 + w;
    return inside ? static_cast<float>(pixels[(row - y0) * w + column - x0]) : 0.0f;
  }
};

/// The crop, which must lie inside its picture and inside the data: otherwise the device stops.
__device__ Crop read_crop(const Job& job, int64_t index) {
  assert(index >= 0 && index < job.num_crops && "crop_index out of -1..T-1");
  const int64_t* e = job.extents + 6 * index;
  assert(e[0] >= 0 && e[1] >= 0 && e[2] >= 0 && e[3] >= 0 && e[2] <= e[4] - e[0] && e[3] <= e[5] - e[1] &&
         "crop extent (y0, x0, h, w, H, W) is not inside its H x W picture");
  const int64_t offset = job.offsets[index];
  assert((e[2] == 0 || e[3] <= job.bytes / e[2]) && offset >= 0 && offset <= job.bytes - e[2] * e[3] &&
         "crop is not inside the mask data");
  return {job.data + offset, e[0], e[1], e[2], e[3], e[4], e[5]};
}

/// Sum over the samples of bin (by, bx).
__device__ float add_samples(const Crop& crop, const Axis<float>& y, const Axis<float>& x, int64_t by, int64_t bx) {
  float sum = 0.0f;
  const SampleRange rows = samples_near_map(y, by, crop.height);
  const SampleRange columns = samples_near_map(x, bx, crop.width);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    Sample<float> row;
    if (!sample_cells(sample_position(y, by, i), crop.height, row) ||
        !(crop.has_row(row.low) || crop.has_row(row.high))) {
      continue;  // adds exact zeros
    }
    const float upper = 1.0f - row.high_weight, lower = row.high_weight;
    for (int64_t k = columns.begin; k < columns.end; ++k) {
      Sample<float> column;
      if (!sample_cells(sample_position(x, bx, k), crop.width, column)) {
        continue;
      }
      const float left = 1.0f - column.high_weight, right = column.high_weight;
      sum += (left * upper) * crop.at(row.low, column.low) + (right * upper) * crop.at(row.low, column.high) +
             (left * lower) * crop.at(row.high, column.low) + (right * lower) * crop.at(row.high, column.high);
    }
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads) make_targets(const __grid_constant__ Job job) {
  const int64_t bins = job.size * job.size, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < job.count * bins;
       item += stride) {
    const int64_t roi = item / bins, bin = item % bins;
    if (job.crop_index[roi] == -1) {
      job.out[item] = 0.0f;
      continue;
    }
    const Crop crop = read_crop(job, job.crop_index[roi]);
    const float* box = job.rois + 4 * roi;
    const Axis<float> y = make_axis(box[1], box[3], 1.0f, job.size, int64_t{0}, job.aligned);
    const Axis<float> x = make_axis(box[0], box[2], 1.0f, job.size, int64_t{0}, job.aligned);
    const int64_t samples = y.samples * x.samples;
    const float value = add_samples(crop, y, x, bin / job.size, bin % job.size) /
                        static_cast<float>(samples > 1 ? samples : 1);
    job.out[item] = job.binarise ? (value >= 0.5f ? 1.0f : 0.0f) : value;
  }
}

/// Packed crops x RoIs [R, 4] -> targets [R, size, size].
Tensor mask_targets(Tensor data, Tensor offsets, Tensor extents, Tensor rois, Tensor crop_index, int64_t size,
                    bool aligned, bool binarise) {
  const OnDeviceOf device(data);
  data = torch::stable::contiguous(data);
  offsets = torch::stable::contiguous(offsets);
  extents = torch::stable::contiguous(extents);
  rois = torch::stable::contiguous(rois);
  crop_index = torch::stable::contiguous(crop_index);
  Tensor out = torch::stable::empty({rois.size(0), size, size}, torch::headeronly::ScalarType::Float, std::nullopt,
                                    data.device());
  const Job job{data.const_data_ptr<uint8_t>(),
                data.numel(),
                offsets.const_data_ptr<int64_t>(),
                extents.const_data_ptr<int64_t>(),
                offsets.size(0),
                rois.const_data_ptr<float>(),
                crop_index.const_data_ptr<int64_t>(),
                rois.size(0),
                size,
                aligned,
                binarise,
                out.mutable_data_ptr<float>()};
  device.launch(make_targets, blocks_for(out.numel(), kThreads), kThreads, job);
  return out;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CUDA, m) { m.impl("mask_targets", TORCH_BOX(&maskray::mask_targets)); }
