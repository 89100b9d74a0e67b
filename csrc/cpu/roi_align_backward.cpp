// RoIAlign backward on the CPU: each band of feature rows belongs to one thread, which adds every RoI's share in order.
//
// No atomics, and every cell receives its additions in the order of the RoIs, so the bits do not depend on the number of
// threads. A band is filled with zeros just before it is added to, while it is in the cache; 16-bit gradients are summed
// in a float32 band and rounded once.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/huge_pages.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/roi_inputs.h"
#include "cpu/roi_taps.h"
#include "cpu/sums.h"

namespace maskray {
namespace {

/// One RoI as the backward pass sees it: its taps by cell, and its gradient [bins_y, bins_x, channels].
template <typename T>
struct RoiShare {
  CellLists<T> y, x;
  int64_t roi;
};

/// One RoI's part in one band.
template <typename Stored>
struct BandTask {
  using T = Computed<Stored>;
  T* band;              ///< [rows of the band, width, channels]
  const Stored* grad;   ///< [bins_y, bins_x, channels]
  T* bins;              ///< scratch [bins_x, channels]: the gradient that reaches one row
  const RoiShare<T>* share;
  int64_t first_row, last_row;  ///< rows of the map in the band, half open
  int64_t width, channels, bins_x;
};

template <typename Stored>
struct AddRoi {
  using T = Computed<Stored>;

  template <Simd kSimd>
  static MASKRAY_INLINE void run(const BandTask<Stored>* task) {
    const CellLists<T>& y = task->share->y;
    const CellLists<T>& x = task->share->x;
    const int64_t begin = std::max(task->first_row, y.begin);
    const int64_t end = std::min(task->last_row, y.end());
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = y.first[row - y.begin];
      const int64_t count = y.first[row - y.begin + 1] - first;
      if (count == 0) {
        continue;
      }
      gather_row<kSimd>(*task, y.taps.data() + first, count);
      T* cells = task->band + (row - task->first_row) * task->width * task->channels;
      for (int64_t column = x.begin; column < x.end(); ++column) {
        const int64_t from = x.first[column - x.begin];
        const int64_t taps = x.first[column - x.begin + 1] - from;
        if (taps > 0) {
          add_cell<kSimd>(cells + column * task->channels, task->bins, x.taps.data() + from, taps, task->channels);
        }
      }
    }
  }

  /// bins[..] = sum over the row's taps of weight x gradient.
  template <Simd kSimd>
  static MASKRAY_INLINE void gather_row(const BandTask<Stored>& task, const Tap<T>* taps, int64_t num_taps) {
    using N = Numbers<Stored, kSimd>;
    const int64_t size = task.bins_x * task.channels;
    over_numbers<kSimd, N::kLanes>(
        size, [&](auto block, auto partial, int64_t c, int64_t some) MASKRAY_LAMBDA_INLINE {
          Sums<N, block()> sum;
          add_taps<N, block(), partial()>(task.grad + c, taps, num_taps, size, some, sum);
          sum.template store_to<Numbers<T, kSimd>, partial()>(task.bins + c, some);
        });
  }

  /// cell[0..channels) += sum over the cell's taps of weight x bins.
  template <Simd kSimd>
  static MASKRAY_INLINE void add_cell(T* cell, const T* bins, const Tap<T>* taps, int64_t num_taps, int64_t channels) {
    using N = Numbers<T, kSimd>;
    over_numbers<kSimd, N::kLanes>(
        channels, [&](auto block, auto partial, int64_t c, int64_t some) MASKRAY_LAMBDA_INLINE {
          Sums<N, block()> sum;
          add_taps<N, block(), partial()>(bins + c, taps, num_taps, channels, some, sum);
          sum.template add_to<partial()>(cell + c, some);
        });
  }
};

/// Round a finished float32 band to its storage type.
template <typename Stored>
struct NarrowBand {
  template <Simd kSimd>
  static MASKRAY_INLINE void run(const float* from, Stored* to, int64_t count) {
    using N = Numbers<Stored, kSimd>;
    over_numbers<kSimd, N::kLanes>(
        count, [&](auto block, auto partial, int64_t i, int64_t some) MASKRAY_LAMBDA_INLINE {
          for (int k = 0; k < block(); ++k) {
            const int64_t at = i + k * N::kLanes;
            store<partial(), N>(to + at, load<partial(), Numbers<float, kSimd>>(from + at, some), some);
          }
        });
  }
};

/// A few rows of one image of one level: what one thread does at a time.
struct Band {
  int64_t level, image, first_row, last_row;
};

constexpr int64_t kBandRows = 8;

std::vector<Band> split_into_bands(const std::vector<MapSize>& maps) {
  std::vector<Band> bands;
  for (size_t level = 0; level < maps.size(); ++level) {
    for (int64_t image = 0; image < maps[level].images; ++image) {
      for (int64_t row = 0; row < maps[level].height; row += kBandRows) {
        bands.push_back({static_cast<int64_t>(level), image, row, std::min(row + kBandRows, maps[level].height)});
      }
    }
  }
  return bands;
}

/// The RoIs' taps by cell, grouped by level and image; RoIs without any tap are left out.
template <typename T>
std::vector<std::vector<std::vector<RoiShare<T>>>> shares_by_image(const std::vector<Roi<T>>& rois,
                                                                   const std::vector<MapSize>& maps,
                                                                   const std::vector<double>& scales,
                                                                   const Pooling& pooling) {
  std::vector<RoiShare<T>> shares(rois.size());
  share_work(static_cast<int64_t>(rois.size()), [&](const auto& next) {
    TapLists<T> lists;
    for (int64_t i; next(i);) {
      const Roi<T>& roi = rois[static_cast<size_t>(i)];
      const MapSize& map = maps[static_cast<size_t>(roi.level)];
      const T scale = static_cast<T>(scales[static_cast<size_t>(roi.level)]);
      RoiShare<T>& share = shares[static_cast<size_t>(i)];
      list_taps(make_axis(roi.y1, roi.y2, scale, pooling.height, pooling.sampling, pooling.aligned), pooling.height,
                map.height, lists);
      share.y = by_cell(lists);
      list_taps(make_axis(roi.x1, roi.x2, scale, pooling.width, pooling.sampling, pooling.aligned), pooling.width,
                map.width, lists);
      share.x = by_cell(lists);
      share.roi = i;
    }
  });
  std::vector<std::vector<std::vector<RoiShare<T>>>> grouped(maps.size());
  for (size_t level = 0; level < maps.size(); ++level) {
    grouped[level].resize(static_cast<size_t>(maps[level].images));
  }
  for (size_t i = 0; i < rois.size(); ++i) {
    if (!shares[i].y.taps.empty() && !shares[i].x.taps.empty()) {
      grouped[static_cast<size_t>(rois[i].level)][static_cast<size_t>(rois[i].image)].push_back(std::move(shares[i]));
    }
  }
  return grouped;
}

template <typename Stored>
void backward(const Tensor& grad, const Tensor& rois, const Tensor& levels, const std::vector<MapSize>& maps,
              const std::vector<double>& scales, const Pooling& pooling, std::vector<Tensor>& out) {
  using T = Computed<Stored>;
  const auto grouped = shares_by_image(read_rois<T>(rois, levels, maps), maps, scales, pooling);
  const std::vector<Band> bands = split_into_bands(maps);
  const Stored* grads = static_cast<const Stored*>(grad.const_data_ptr());
  const int64_t channels = maps[0].channels;
  share_work(static_cast<int64_t>(bands.size()), [&](const auto& next) {
    std::vector<T> bins(static_cast<size_t>(pooling.width * channels));
    std::vector<T> sums;
    for (int64_t piece; next(piece);) {
      const Band& band = bands[static_cast<size_t>(piece)];
      const MapSize& map = maps[static_cast<size_t>(band.level)];
      const int64_t row_size = map.width * channels;
      const int64_t size = (band.last_row - band.first_row) * row_size;
      Stored* to = static_cast<Stored*>(out[static_cast<size_t>(band.level)].mutable_data_ptr()) +
                   (band.image * map.height + band.first_row) * row_size;
      T* at;
      if constexpr (std::is_same_v<T, Stored>) {
        at = to;
        std::fill(at, at + size, T(0));
      } else {
        sums.assign(static_cast<size_t>(size), T(0));
        at = sums.data();
      }
      for (const RoiShare<T>& share : grouped[static_cast<size_t>(band.level)][static_cast<size_t>(band.image)]) {
        if (share.y.begin >= band.last_row || share.y.end() <= band.first_row) {
          continue;
        }
        const BandTask<Stored> task{at, grads + share.roi * pooling.height * pooling.width * channels, bins.data(),
                                    &share, band.first_row, band.last_row, map.width, channels, pooling.width};
        run_simd<AddRoi<Stored>, const BandTask<Stored>*>(&task);
      }
      if constexpr (!std::is_same_v<T, Stored>) {
        run_simd<NarrowBand<Stored>, const float*, Stored*, int64_t>(at, to, size);
      }
    }
  });
}

/// Gradient [R, C, h, w] -> gradients of the feature maps. `sizes` holds N, C, H, W of each level in turn.
std::vector<Tensor> roi_align_backward(Tensor grad, Tensor rois, Tensor levels, std::vector<int64_t> sizes,
                                       std::vector<double> scales, int64_t sampling_ratio, bool aligned) {
  grad = torch::stable::contiguous(grad, torch::headeronly::MemoryFormat::ChannelsLast);
  std::vector<MapSize> maps;
  std::vector<Tensor> out;
  for (size_t i = 0; i + 3 < sizes.size(); i += 4) {
    maps.push_back({sizes[i], sizes[i + 1], sizes[i + 2], sizes[i + 3]});
    out.push_back(torch::stable::empty({sizes[i], sizes[i + 1], sizes[i + 2], sizes[i + 3]}, grad.scalar_type(),
                                       std::nullopt, grad.device(), std::nullopt,
                                       torch::headeronly::MemoryFormat::ChannelsLast));
    prefer_huge_pages(out.back().mutable_data_ptr(), static_cast<size_t>(out.back().numel()) * grad.element_size());
  }
  const Pooling pooling{grad.size(2), grad.size(3), sampling_ratio, aligned};
  with_storage(grad.scalar_type(), [&](auto stored) {
    backward<decltype(stored)>(grad, rois, levels, maps, scales, pooling, out);
  });
  return out;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CPU, m) { m.impl("roi_align_backward", TORCH_BOX(&maskray::roi_align_backward)); }
