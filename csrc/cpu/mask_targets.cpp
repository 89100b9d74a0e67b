// Mask targets on the CPU: RoIAlign of a whole mask, read from the crop that stands for it.
//
// Same operations in the same order as torchvision's CPU kernel in float32, so that binarised targets agree at every tie.
// The work is laid out by rows: the pixels under one row of samples are gathered once and used for both sample rows that
// touch it, and the arithmetic runs over the bins of a row side by side.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "check.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "roi_geometry.h"

namespace maskray {
namespace {

using torch::stable::Tensor;

/// A mask as packed: `pixels` cover rows y0..y0+h and columns x0..x0+w of a height x width mask of zeros.
struct Crop {
  const uint8_t* pixels;
  int64_t y0, x0, h, w, height, width;
};

/// Everything a row of bins needs about its columns. The k-th sample of a bin is at [k * padded bins + bin].
struct Columns {
  std::vector<int64_t> low, high;  ///< column of the crop, -1: outside it
  std::vector<float> low_weight, high_weight;
};

/// One row of samples for all bins of a row.
struct SampleRow {
  const float *top, *bottom;                ///< pixels at the low columns of the upper and lower row
  const float *top_right, *bottom_right;    ///< pixels at the high columns
  const float *low_weight, *high_weight;    ///< weights of the columns
  float upper, lower;                       ///< weights of the rows
  int64_t samples, padded;                  ///< samples per bin along x; bins rounded up to whole lanes
  float* sums;                              ///< [padded], added to
};

struct AddSampleRow {
  template <Simd kSimd>
  static MASKRAY_INLINE void run(const SampleRow* row) {
    using N = Numbers<float, kSimd>;
    using Lanes = typename N::Lanes;
    const SampleRow r = *row;
    for (int64_t c = 0; c < r.padded; c += N::kLanes) {
      Lanes sum = N::load(r.sums + c);
      for (int64_t k = 0; k < r.samples; ++k) {
        const int64_t at = k * r.padded + c;
        const Lanes left = N::load(r.low_weight + at), right = N::load(r.high_weight + at);
        sum += (left * r.upper) * N::load(r.top + at) + (right * r.upper) * N::load(r.top_right + at) +
               (left * r.lower) * N::load(r.bottom + at) + (right * r.lower) * N::load(r.bottom_right + at);
      }
      N::store(r.sums + c, sum);
    }
  }
};

/// The pixels of one row of the mask under the columns of every sample: first the low columns, then the high ones.
struct GatheredRow {
  int64_t row = -1;
  std::vector<float> pixels;

  void gather(const Crop& crop, const Columns& columns, int64_t wanted) {
    const size_t count = columns.low.size();
    pixels.resize(2 * count);
    row = wanted;
    const uint8_t* from = crop.pixels + (wanted - crop.y0) * crop.w;
    for (size_t i = 0; i < count; ++i) {
      pixels[i] = columns.low[i] < 0 ? 0.0f : static_cast<float>(from[columns.low[i]]);
      pixels[count + i] = columns.high[i] < 0 ? 0.0f : static_cast<float>(from[columns.high[i]]);
    }
  }
};

constexpr int64_t kPadding = 16;  ///< lanes of the widest variant

/// Turns one RoI into targets; keeps its buffers from RoI to RoI.
class TargetMaker {
 public:
  TargetMaker(int64_t size, bool aligned, bool binarise)
      : size_(size), padded_((size + kPadding - 1) / kPadding * kPadding), aligned_(aligned), binarise_(binarise) {
    sums_.resize(static_cast<size_t>(padded_));
  }

  /// Targets [size, size] of the RoI (x1, y1, x2, y2) in pixels of the whole mask.
  void make(const Crop& crop, const float* roi, float* out) {
    const Axis<float> y = make_axis(roi[1], roi[3], 1.0f, size_, 0, aligned_);
    const Axis<float> x = make_axis(roi[0], roi[2], 1.0f, size_, 0, aligned_);
    const int64_t samples = find_columns(crop, x);
    rows_[0].row = rows_[1].row = -1;
    const float count = static_cast<float>(std::max<int64_t>(y.samples * x.samples, 1));
    for (int64_t b = 0; b < size_; ++b) {
      std::fill(sums_.begin(), sums_.end(), 0.0f);
      const SampleRange range = samples_near_map(y, b, crop.height);
      for (int64_t i = range.begin; i < range.end; ++i) {
        Sample<float> sample;
        if (sample_cells(sample_position(y, b, i), crop.height, sample)) {
          add_row(crop, sample, samples);
        }
      }
      for (int64_t c = 0; c < size_; ++c) {
        const float value = sums_[static_cast<size_t>(c)] / count;
        out[b * size_ + c] = binarise_ ? (value >= 0.5f ? 1.0f : 0.0f) : value;
      }
    }
  }

 private:
  /// Fill columns_; returns how many samples a bin has at most, of those near the mask.
  int64_t find_columns(const Crop& crop, const Axis<float>& x) {
    int64_t samples = 0;
    for (int64_t b = 0; b < size_; ++b) {
      const SampleRange range = samples_near_map(x, b, crop.width);
      samples = std::max(samples, range.end - range.begin);
    }
    const size_t count = static_cast<size_t>(samples * padded_);
    columns_.low.assign(count, -1);
    columns_.high.assign(count, -1);
    columns_.low_weight.assign(count, 0.0f);
    columns_.high_weight.assign(count, 0.0f);
    const auto in_crop = [&crop](int64_t column) {
      return column >= crop.x0 && column < crop.x0 + crop.w ? column - crop.x0 : -1;
    };
    for (int64_t b = 0; b < size_; ++b) {
      const SampleRange range = samples_near_map(x, b, crop.width);
      for (int64_t k = range.begin; k < range.end; ++k) {
        Sample<float> sample;
        if (!sample_cells(sample_position(x, b, k), crop.width, sample)) {
          continue;
        }
        const size_t at = static_cast<size_t>((k - range.begin) * padded_ + b);
        columns_.low[at] = in_crop(sample.low);
        columns_.high[at] = in_crop(sample.high);
        columns_.low_weight[at] = 1.0f - sample.high_weight;
        columns_.high_weight[at] = sample.high_weight;
      }
    }
    return samples;
  }

  /// The gathered pixels of a row: null if the row is outside the crop (all zero).
  const float* gathered(const Crop& crop, int64_t row, int64_t other) {
    if (row < crop.y0 || row >= crop.y0 + crop.h) {
      zeros_.resize(std::max(zeros_.size(), 2 * columns_.low.size()), 0.0f);
      return zeros_.data();
    }
    for (GatheredRow& held : rows_) {
      if (held.row == row) {
        return held.pixels.data();
      }
    }
    GatheredRow& free = rows_[0].row == other ? rows_[1] : rows_[0];
    free.gather(crop, columns_, row);
    return free.pixels.data();
  }

  void add_row(const Crop& crop, const Sample<float>& sample, int64_t samples) {
    const auto outside = [&crop](int64_t row) { return row < crop.y0 || row >= crop.y0 + crop.h; };
    if (outside(sample.low) && outside(sample.high)) {
      return;  // adds exact zeros
    }
    const float* upper = gathered(crop, sample.low, sample.high);
    const float* lower = gathered(crop, sample.high, sample.low);
    const size_t count = columns_.low.size();
    const SampleRow row{upper,
                        lower,
                        upper + count,
                        lower + count,
                        columns_.low_weight.data(),
                        columns_.high_weight.data(),
                        1.0f - sample.high_weight,
                        sample.high_weight,
                        samples,
                        padded_,
                        sums_.data()};
    run_simd<AddSampleRow, const SampleRow*>(&row);
  }

  int64_t size_, padded_;
  bool aligned_, binarise_;
  Columns columns_;
  GatheredRow rows_[2];
  std::vector<float> sums_, zeros_;
};

/// Crops as structs; a crop that reaches out of the data or out of its own picture is an error.
std::vector<Crop> read_crops(const Tensor& data, const Tensor& offsets, const Tensor& extents) {
  const uint8_t* pixels = data.const_data_ptr<uint8_t>();
  const int64_t* offset = offsets.const_data_ptr<int64_t>();
  std::vector<Crop> crops;
  for (int64_t i = 0; i < offsets.size(0); ++i) {
    const int64_t* e = extents.const_data_ptr<int64_t>() + 6 * i;
    const bool inside = e[0] >= 0 && e[1] >= 0 && e[2] >= 0 && e[3] >= 0 && e[2] <= e[4] - e[0] && e[3] <= e[5] - e[1];
    check(inside, "crop ", i, " has extent (y0, x0, h, w, H, W) = (", e[0], ", ", e[1], ", ", e[2], ", ", e[3], ", ",
          e[4], ", ", e[5], "), wanted it inside its H x W picture");
    // h and w are bounded by the picture, so only absurd pictures could overflow the product.
    const bool fits = e[2] == 0 || e[3] <= data.size(0) / e[2];
    check(fits && offset[i] >= 0 && offset[i] <= data.size(0) - e[2] * e[3], "crop ", i, " of ", e[2], " x ", e[3],
          " at offset ", offset[i], " is not inside the ", data.size(0), " bytes of mask data");
    crops.push_back({pixels + offset[i], e[0], e[1], e[2], e[3], e[4], e[5]});
  }
  return crops;
}

/// Packed crops x RoIs [R, 4] -> targets [R, size, size].
Tensor mask_targets(Tensor data, Tensor offsets, Tensor extents, Tensor rois, Tensor crop_index, int64_t size,
                    bool aligned, bool binarise) {
  data = torch::stable::contiguous(data);
  offsets = torch::stable::contiguous(offsets);
  extents = torch::stable::contiguous(extents);
  rois = torch::stable::contiguous(rois);
  crop_index = torch::stable::contiguous(crop_index);
  const int64_t count = rois.size(0);
  Tensor out = torch::stable::empty({count, size, size}, torch::headeronly::ScalarType::Float);
  const std::vector<Crop> crops = read_crops(data, offsets, extents);
  const int64_t num_crops = static_cast<int64_t>(crops.size());
  const int64_t* index = crop_index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    check(index[i] >= -1 && index[i] < num_crops, "RoI ", i, " wants crop ", index[i], ", there are ", num_crops,
          ": give 0..", num_crops - 1, ", or -1 for a target of zeros");
  }
  const float* roi_data = rois.const_data_ptr<float>();
  float* out_data = out.mutable_data_ptr<float>();
  share_work(count, [&](const auto& next) {
    TargetMaker maker(size, aligned, binarise);
    for (int64_t i; next(i);) {
      float* to = out_data + i * size * size;
      if (index[i] < 0) {
        std::fill(to, to + size * size, 0.0f);
      } else {
        maker.make(crops[static_cast<size_t>(index[i])], roi_data + 4 * i, to);
      }
    }
  });
  return out;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CPU, m) { m.impl("mask_targets", TORCH_BOX(&maskray::mask_targets)); }
