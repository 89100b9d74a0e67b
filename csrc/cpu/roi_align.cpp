// RoIAlign forward on the CPU: separable per RoI, channels last, taps merged per bin.
//
// A bin is the sum over its rows of (row weight) x (sum over its columns of column weight x feature). Where bins share
// rows (small RoIs), the inner sums are kept and used again; where they do not, everything stays in registers. Both ways
// do the same operations in the same order, so the choice does not show in the bits.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <numeric>

#include "cpu/huge_pages.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/roi_inputs.h"
#include "cpu/roi_taps.h"
#include "cpu/sums.h"

namespace maskray {
namespace {

/// One RoI's work: where it reads and writes, and its taps along both axes.
template <typename Stored>
struct RoiTask {
  using T = Computed<Stored>;
  const Stored* image;  ///< [height, width, channels]
  Stored* out;          ///< [pooled height, pooled width, channels]
  int64_t channels, width;
  int64_t bins_y, bins_x;
  const TapLists<T>* y;
  const TapLists<T>* x;
  T* rows;             ///< scratch of y->longest row buffers, [bins_x, channels] each
  int64_t* row_in;     ///< the cell each row buffer holds, -1: none
};

/// The cells of the next bin that this one does not read, asked for in time: pieces of far apart cells are a pattern that
/// the processor does not foresee.
template <typename T>
struct NextBin {
  const Tap<T>* begin;
  const Tap<T>* end;

  NextBin(const TapLists<T>& taps, int64_t bin) {
    const size_t next = static_cast<size_t>(bin) + 1;
    const Tap<T>* const all = taps.taps.data();
    begin = all + taps.first[next];
    end = next + 1 < taps.first.size() ? all + taps.first[next + 1] : begin;
    const bool is_empty = taps.first[next - 1] == taps.first[next];
    while (!is_empty && begin < end && begin->cell <= all[taps.first[next] - 1].cell) {
      ++begin;
    }
  }

  /// `numbers` of each cell from `row` on.
  template <int64_t numbers, typename Stored>
  MASKRAY_INLINE void fetch(const Stored* row, int64_t channels) const {
    constexpr int64_t kLine = 64 / sizeof(Stored);
    for (const Tap<T>* tap = begin; tap < end; ++tap) {
      for (int64_t at = 0; at < numbers; at += kLine) {
        __builtin_prefetch(row + tap->cell * channels + at);
      }
    }
  }
};

/// One bin at a time, in registers.
template <typename Stored>
struct Direct {
  template <Simd kSimd>
  static MASKRAY_INLINE void run(const RoiTask<Stored>* task) {
    for (int64_t by = 0; by < task->bins_y; ++by) {
      for (int64_t bx = 0; bx < task->bins_x; ++bx) {
        bin<kSimd>(*task, by, bx);
      }
    }
  }

  template <Simd kSimd>
  static MASKRAY_INLINE void bin(const RoiTask<Stored>& task, int64_t by, int64_t bx) {
    using N = Numbers<Stored, kSimd>;
    const auto* y_taps = task.y->taps.data() + task.y->first[by];
    const auto* x_taps = task.x->taps.data() + task.x->first[bx];
    const int64_t y_count = task.y->first[by + 1] - task.y->first[by];
    const int64_t x_count = task.x->first[bx + 1] - task.x->first[bx];
    const int64_t channels = task.channels, row_size = task.width * channels;
    const Stored* image = task.image;
    const NextBin<typename N::T> next(*task.x, bx);
    Stored* to = task.out + (by * task.bins_x + bx) * channels;
    over_numbers<kSimd, N::kLanes>(
        channels, [&](auto block, auto partial, int64_t c, int64_t some) MASKRAY_LAMBDA_INLINE {
          Sums<N, block()> total;
          for (int64_t i = 0; i < y_count; ++i) {
            Sums<N, block()> sum;
            const Stored* row = image + y_taps[i].cell * row_size + c;
            next.template fetch<block() * N::kLanes>(row, channels);
            add_taps<N, block(), partial()>(row, x_taps, x_count, channels, some, sum);
            total.add(sum, y_taps[i].weight);
          }
          total.template store_to<N, partial()>(to + c, some);
        });
  }
};

/// One row of bins at a time, from kept sums of the rows of the map.
template <typename Stored>
struct Buffered {
  using T = Computed<Stored>;
  static constexpr int64_t kMostBuffers = 8;  ///< more rows per bin than this are too many for the cache: use Direct

  template <Simd kSimd>
  static MASKRAY_INLINE void run(const RoiTask<Stored>* task) {
    using N = Numbers<Stored, kSimd>;
    using Row = Numbers<T, kSimd>;
    const int64_t row_size = task->bins_x * task->channels;
    std::fill(task->row_in, task->row_in + task->y->longest, int64_t{-1});
    for (int64_t by = 0; by < task->bins_y; ++by) {
      const Tap<T>* taps = task->y->taps.data() + task->y->first[by];
      const int64_t count = task->y->first[by + 1] - task->y->first[by];
      const T* rows[kMostBuffers];
      for (int64_t i = 0; i < count; ++i) {
        rows[i] = row_of<kSimd>(*task, taps[i].cell, taps, count);
      }
      Stored* to = task->out + by * row_size;
      over_numbers<kSimd, N::kLanes>(
          row_size, [&](auto block, auto partial, int64_t c, int64_t some) MASKRAY_LAMBDA_INLINE {
            Sums<N, block()> total;
            for (int64_t i = 0; i < count; ++i) {
              total.template add<Row, partial()>(rows[i] + c, some, taps[i].weight);
            }
            total.template store_to<N, partial()>(to + c, some);
          });
    }
  }

  /// The sums [bins_x, channels] of row `cell`, made now if not kept. Rows in `keep` are needed and stay.
  template <Simd kSimd>
  static MASKRAY_INLINE const T* row_of(const RoiTask<Stored>& task, int64_t cell, const Tap<T>* keep,
                                        int64_t num_keep) {
    const int64_t buffers = task.y->longest, size = task.bins_x * task.channels;
    for (int64_t s = 0; s < buffers; ++s) {
      if (task.row_in[s] == cell) {
        return task.rows + s * size;
      }
    }
    const auto needed = [keep, num_keep](int64_t held) {
      return std::any_of(keep, keep + num_keep, [held](const Tap<T>& tap) { return tap.cell == held; });
    };
    int64_t slot = 0;
    while (slot + 1 < buffers && needed(task.row_in[slot])) {
      ++slot;
    }
    fill_row<kSimd>(task, cell, task.rows + slot * size);
    task.row_in[slot] = cell;
    return task.rows + slot * size;
  }

  template <Simd kSimd>
  static MASKRAY_INLINE void fill_row(const RoiTask<Stored>& task, int64_t cell, T* buffer) {
    using N = Numbers<Stored, kSimd>;
    using Row = Numbers<T, kSimd>;
    const Stored* row = task.image + cell * task.width * task.channels;
    for (int64_t bx = 0; bx < task.bins_x; ++bx) {
      const Tap<T>* taps = task.x->taps.data() + task.x->first[bx];
      const int64_t count = task.x->first[bx + 1] - task.x->first[bx];
      T* to = buffer + bx * task.channels;
      const NextBin<T> next(*task.x, bx);
      over_numbers<kSimd, N::kLanes>(
          task.channels, [&](auto block, auto partial, int64_t c, int64_t some) MASKRAY_LAMBDA_INLINE {
            next.template fetch<block() * N::kLanes>(row + c, task.channels);
            Sums<N, block()> sum;
            add_taps<N, block(), partial()>(row + c, taps, count, task.channels, some, sum);
            sum.template store_to<Row, partial()>(to + c, some);
          });
    }
  }
};

/// Whether keeping row sums pays: the bins share enough rows to save more loads than the buffers cost.
template <typename T>
bool rows_pay(const TapLists<T>& y, const TapLists<T>& x, int64_t bins_x) {
  if (y.longest > Buffered<float>::kMostBuffers || y.taps.empty()) {
    return false;
  }
  const auto [low, high] = std::minmax_element(y.taps.begin(), y.taps.end(),
                                               [](const auto& a, const auto& b) { return a.cell < b.cell; });
  const int64_t used = static_cast<int64_t>(y.taps.size());
  const int64_t distinct = std::min(used, high->cell - low->cell + 1);
  const int64_t columns = static_cast<int64_t>(x.taps.size());
  return distinct * (columns + bins_x) + used * bins_x < used * columns;
}

template <typename Stored>
void forward(const std::vector<Tensor>& features, const std::vector<MapSize>& maps, const Tensor& rois,
             const Tensor& levels, const std::vector<double>& scales, const Pooling& pooling, Tensor& out) {
  using T = Computed<Stored>;
  const std::vector<Roi<T>> all = read_rois<T>(rois, levels, maps);
  const int64_t channels = maps[0].channels;
  const int64_t out_size = pooling.height * pooling.width * channels;
  Stored* out_data = static_cast<Stored*>(out.mutable_data_ptr());
  std::vector<const Stored*> data;
  for (const Tensor& map : features) {
    data.push_back(static_cast<const Stored*>(map.const_data_ptr()));
  }
  // RoIs that lie near each other read the same cells: taking them together finds those in the cache.
  std::vector<int64_t> order(all.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&all](int64_t a, int64_t b) {
    const auto key = [&all](int64_t i) {
      const Roi<T>& roi = all[static_cast<size_t>(i)];
      const double y = static_cast<double>(roi.y1) + static_cast<double>(roi.y2);
      return std::make_tuple(roi.level, roi.image, y == y ? y : 0.0, i);
    };
    return key(a) < key(b);
  });
  share_work(static_cast<int64_t>(all.size()), [&](const auto& next) {
    TapLists<T> y, x;
    std::vector<T> rows;
    std::vector<int64_t> row_in(Buffered<Stored>::kMostBuffers);
    for (int64_t piece; next(piece);) {
      const int64_t i = order[static_cast<size_t>(piece)];
      const Roi<T>& roi = all[static_cast<size_t>(i)];
      const MapSize& map = maps[static_cast<size_t>(roi.level)];
      const T scale = static_cast<T>(scales[static_cast<size_t>(roi.level)]);
      list_taps(make_axis(roi.y1, roi.y2, scale, pooling.height, pooling.sampling, pooling.aligned), pooling.height,
                map.height, y);
      list_taps(make_axis(roi.x1, roi.x2, scale, pooling.width, pooling.sampling, pooling.aligned), pooling.width,
                map.width, x);
      RoiTask<Stored> task{data[static_cast<size_t>(roi.level)] + roi.image * map.height * map.width * channels,
                           out_data + i * out_size, channels, map.width, pooling.height, pooling.width, &y, &x,
                           nullptr, row_in.data()};
      if (rows_pay(y, x, pooling.width)) {
        rows.resize(static_cast<size_t>(y.longest * pooling.width * channels));
        task.rows = rows.data();
        run_simd<Buffered<Stored>, const RoiTask<Stored>*>(&task);
      } else {
        run_simd<Direct<Stored>, const RoiTask<Stored>*>(&task);
      }
    }
  });
}

/// Features [N, C, H, W] per level, RoIs [R, 5], levels [R] -> [R, C, height, width], channels last in memory.
Tensor roi_align(std::vector<Tensor> features, Tensor rois, Tensor levels, int64_t height, int64_t width,
                 std::vector<double> scales, int64_t sampling_ratio, bool aligned) {
  std::vector<MapSize> maps;
  for (Tensor& map : features) {
    map = torch::stable::contiguous(map, torch::headeronly::MemoryFormat::ChannelsLast);
    maps.push_back({map.size(0), map.size(1), map.size(2), map.size(3)});
  }
  const ScalarType type = features[0].scalar_type();
  Tensor out = torch::stable::empty({rois.size(0), maps[0].channels, height, width}, type, std::nullopt,
                                    features[0].device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  prefer_huge_pages(out.mutable_data_ptr(), static_cast<size_t>(out.numel()) * out.element_size());
  with_storage(type, [&](auto stored) {
    forward<decltype(stored)>(features, maps, rois, levels, scales, {height, width, sampling_ratio, aligned}, out);
  });
  return out;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CPU, m) { m.impl("roi_align", TORCH_BOX(&maskray::roi_align)); }
