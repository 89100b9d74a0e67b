// RoIAlign forward on the CPU: separable per RoI, channels last, taps merged per bin.
//
// A bin is the sum over its rows of (row weight) x (sum over its columns of column weight x feature). Where bins share
// rows (small RoIs), the inner sums are kept and used again; where they do not, everything stays in registers. Both ways
// do the same operations in the same order, so the choice does not show in the bits.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <numeric>

#include "cpu/parallel.h"
#include "cpu/roi_inputs.h"
#include "cpu/roi_taps.h"

namespace maskray {
namespace {

/// One RoI's work: where it reads and writes, and its taps along both axes.
template <typename Stored>
struct RoiTask {
  using T = typename Numbers<Stored>::T;
  const Stored* image;  ///< [height, width, channels]
  Stored* out;          ///< [pooled height, pooled width, channels]
  int64_t channels, width;
  int64_t bins_y, bins_x;
  const TapLists<T>* y;
  const TapLists<T>* x;
  T* rows;             ///< scratch of y->longest row buffers, [bins_x, channels] each
  int64_t* row_in;     ///< the cell each row buffer holds, -1: none
};

/// sum over taps of weight x image[row, cell, channel..], for kBlock x 16 channels.
template <typename Stored, int kBlock, bool kPartial>
MASKRAY_INLINE void sum_columns(const Stored* row, const Tap<typename Numbers<Stored>::T>* taps, int64_t count,
                                int64_t channels, int64_t partial, typename Numbers<Stored>::Lanes* sum) {
  using N = Numbers<Stored>;
  for (int64_t j = 0; j < count; ++j) {
    const Stored* from = row + taps[j].cell * channels;
    const typename N::T weight = taps[j].weight;
    for (int k = 0; k < kBlock; ++k) {
      typename N::Lanes value;
      if constexpr (kPartial) {
        value = load_some(from, partial);
      } else {
        value = N::load(from + k * kLanes);
      }
      sum[k] = j == 0 ? value * weight : sum[k] + value * weight;
    }
  }
}

/// One bin without row buffers, for kBlock x 16 channels (or `partial` channels).
template <typename Stored, int kBlock, bool kPartial>
MASKRAY_INLINE void bin_block(const RoiTask<Stored>& task, int64_t by, int64_t bx, int64_t c, int64_t partial) {
  using N = Numbers<Stored>;
  const auto* y_taps = task.y->taps.data() + task.y->first[by];
  const auto* x_taps = task.x->taps.data() + task.x->first[bx];
  const int64_t y_count = task.y->first[by + 1] - task.y->first[by];
  const int64_t x_count = task.x->first[bx + 1] - task.x->first[bx];
  typename N::Lanes total[kBlock] = {};
  if (x_count > 0) {
    for (int64_t i = 0; i < y_count; ++i) {
      typename N::Lanes sum[kBlock] = {};
      const Stored* row = task.image + y_taps[i].cell * task.width * task.channels + c;
      sum_columns<Stored, kBlock, kPartial>(row, x_taps, x_count, task.channels, partial, sum);
      for (int k = 0; k < kBlock; ++k) {
        total[k] = i == 0 ? sum[k] * y_taps[i].weight : total[k] + sum[k] * y_taps[i].weight;
      }
    }
  }
  Stored* to = task.out + (by * task.bins_x + bx) * task.channels + c;
  for (int k = 0; k < kBlock; ++k) {
    if constexpr (kPartial) {
      store_some(to, total[k], partial);
    } else {
      N::store(to + k * kLanes, total[k]);
    }
  }
}

/// Call block<kBlock, kPartial>(first channel, partial count) until all channels are done.
template <int kBlock, typename F>
MASKRAY_INLINE void over_channels(int64_t channels, const F& block) {
  int64_t c = 0;
  for (; c + kBlock * kLanes <= channels; c += kBlock * kLanes) {
    block(std::integral_constant<int, kBlock>{}, std::false_type{}, c, int64_t{0});
  }
  for (; c + kLanes <= channels; c += kLanes) {
    block(std::integral_constant<int, 1>{}, std::false_type{}, c, int64_t{0});
  }
  if (c < channels) {
    block(std::integral_constant<int, 1>{}, std::true_type{}, c, channels - c);
  }
}

/// Registers hold two blocks: 4 x 16 numbers each fit AVX-512's 32 registers, 2 x 16 the 16 of AVX2 and SSE.
template <Simd kSimd>
constexpr int kBlockOf = kSimd == Simd::kAvx512 ? 4 : 2;

template <typename Stored>
struct Direct {
  template <Simd kSimd>
  static MASKRAY_INLINE void run(const RoiTask<Stored>* task) {
    for (int64_t by = 0; by < task->bins_y; ++by) {
      for (int64_t bx = 0; bx < task->bins_x; ++bx) {
        over_channels<kBlockOf<kSimd>>(
            task->channels, [task, by, bx](auto block, auto partial, int64_t c, int64_t count) MASKRAY_LAMBDA_INLINE {
              bin_block<Stored, block(), partial()>(*task, by, bx, c, count);
            });
      }
    }
  }
};

/// Fill row buffer [bins_x, channels] with the column sums of one row of the map.
template <typename Stored, Simd kSimd>
MASKRAY_INLINE void fill_row(const RoiTask<Stored>& task, int64_t cell, typename Numbers<Stored>::T* buffer) {
  using N = Numbers<Stored>;
  using T = typename N::T;
  for (int64_t bx = 0; bx < task.bins_x; ++bx) {
    const auto* taps = task.x->taps.data() + task.x->first[bx];
    const int64_t count = task.x->first[bx + 1] - task.x->first[bx];
    const Stored* row = task.image + cell * task.width * task.channels;
    T* to = buffer + bx * task.channels;
    over_channels<kBlockOf<kSimd>>(
        task.channels, [&](auto block, auto partial, int64_t c, int64_t some) MASKRAY_LAMBDA_INLINE {
          typename N::Lanes sum[block()] = {};
          sum_columns<Stored, block(), partial()>(row + c, taps, count, task.channels, some, sum);
          for (int k = 0; k < block(); ++k) {
            if constexpr (partial()) {
              store_some(to + c, sum[k], some);
            } else {
              Numbers<T>::store(to + c + k * kLanes, sum[k]);
            }
          }
        });
  }
}

/// Number of the row buffer that holds `cell`, filled now if none does. Buffers of cells in `keep` are not given away.
template <typename Stored, Simd kSimd>
MASKRAY_INLINE int64_t row_buffer(const RoiTask<Stored>& task, int64_t cell,
                                  const Tap<typename Numbers<Stored>::T>* keep, int64_t num_keep) {
  const int64_t buffers = task.y->longest;
  for (int64_t s = 0; s < buffers; ++s) {
    if (task.row_in[s] == cell) {
      return s;
    }
  }
  int64_t slot = 0;
  const auto kept = [&](int64_t held) MASKRAY_LAMBDA_INLINE {
    for (int64_t i = 0; i < num_keep; ++i) {
      if (keep[i].cell == held) {
        return true;
      }
    }
    return false;
  };
  while (slot + 1 < buffers && kept(task.row_in[slot])) {
    ++slot;
  }
  fill_row<Stored, kSimd>(task, cell, task.rows + slot * task.bins_x * task.channels);
  task.row_in[slot] = cell;
  return slot;
}

template <typename Stored>
struct Buffered {
  template <Simd kSimd>
  static MASKRAY_INLINE void run(const RoiTask<Stored>* task) {
    using N = Numbers<Stored>;
    using T = typename N::T;
    const int64_t row_size = task->bins_x * task->channels;
    std::fill(task->row_in, task->row_in + task->y->longest, int64_t{-1});
    for (int64_t by = 0; by < task->bins_y; ++by) {
      const Tap<T>* taps = task->y->taps.data() + task->y->first[by];
      const int64_t count = task->y->first[by + 1] - task->y->first[by];
      int64_t slots[kMostBuffers];
      for (int64_t i = 0; i < count; ++i) {
        slots[i] = row_buffer<Stored, kSimd>(*task, taps[i].cell, taps, count);
      }
      const T* rows = task->rows;
      Stored* to = task->out + by * row_size;
      over_channels<kBlockOf<kSimd>>(
          row_size, [&](auto block, auto partial, int64_t c, int64_t some) MASKRAY_LAMBDA_INLINE {
            typename N::Lanes total[block()] = {};
            for (int64_t i = 0; i < count; ++i) {
              const T* from = rows + slots[i] * row_size + c;
              for (int k = 0; k < block(); ++k) {
                typename N::Lanes value;
                if constexpr (partial()) {
                  value = load_some(from, some);
                } else {
                  value = Numbers<T>::load(from + k * kLanes);
                }
                total[k] = i == 0 ? value * taps[i].weight : total[k] + value * taps[i].weight;
              }
            }
            for (int k = 0; k < block(); ++k) {
              if constexpr (partial()) {
                store_some(to + c, total[k], some);
              } else {
                N::store(to + c + k * kLanes, total[k]);
              }
            }
          });
    }
  }

  static constexpr int64_t kMostBuffers = 8;  ///< more rows per bin than this are too many for the cache: use Direct
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
  using T = typename Numbers<Stored>::T;
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
  with_storage(type, [&](auto stored) {
    forward<decltype(stored)>(features, maps, rois, levels, scales, {height, width, sampling_ratio, aligned}, out);
  });
  return out;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CPU, m) { m.impl("roi_align", TORCH_BOX(&maskray::roi_align)); }
