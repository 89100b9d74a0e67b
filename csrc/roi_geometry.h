// The only statement of where an RoI samples a map. The CPU and CUDA kernels include it; nothing else does this arithmetic.
//
// The rule is torchvision's: bins of equal size, n samples per bin and axis, bilinear interpolation on cell centres. The
// two axes are independent, so everything here is about one axis: an output value is the sum over rows and columns of
// (weight of the row) x (weight of the column) x (feature).
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define MASKRAY_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MASKRAY_HOST_DEVICE inline
#endif

namespace maskray {

/// Samples along one axis of one RoI, in cells of the map.
template <typename T>
struct Axis {
  T start;          ///< where the first bin begins
  T bin;            ///< size of a bin; negative for an inverted RoI
  int64_t samples;  ///< samples per bin; 0 or less: none
};

/// One bilinear sample along one axis: (1 - high_weight) of cell `low`, high_weight of cell `high`.
template <typename T>
struct Sample {
  int64_t low;
  int64_t high;
  T high_weight;
};

/// Half-open range of sample numbers inside a bin.
struct SampleRange {
  int64_t begin;
  int64_t end;
};

/// The axis of an RoI that spans lo..hi in pixels of the picture.
///
/// @param scale cells per pixel.
/// @param pooled number of bins.
/// @param sampling samples per bin, or 0 for one sample per cell (rounded up).
/// @param aligned true: shift by half a cell; false: no shift, and the RoI is at least one cell long.
template <typename T>
MASKRAY_HOST_DEVICE Axis<T> make_axis(T lo, T hi, T scale, int64_t pooled, int64_t sampling, bool aligned) {
  const T offset = aligned ? T(0.5) : T(0);
  const T start = lo * scale - offset;
  const T end = hi * scale - offset;
  T length = end - start;
  if (!aligned && !(length >= T(1))) {
    length = length == length ? T(1) : length;  // NaN stays NaN: no sample is inside the map then
  }
  const T bin = length / static_cast<T>(pooled);
  int64_t samples = sampling;
  if (sampling <= 0) {
    // A NaN or infinite length has no sample; past 2^31 the cast would overflow and the map ends long before.
    const T wanted = std::ceil(length / static_cast<T>(pooled));
    samples = wanted >= T(1) ? (wanted < T(2147483647) ? static_cast<int64_t>(wanted) : 2147483647) : 0;
  }
  return {start, bin, samples};
}

/// Position of sample i of bin b, in cells. The order of operations is torchvision's.
template <typename T>
MASKRAY_HOST_DEVICE T sample_position(const Axis<T>& axis, int64_t b, int64_t i) {
  const T within = (static_cast<T>(i) + T(0.5)) * axis.bin / static_cast<T>(axis.samples);
  return axis.start + static_cast<T>(b) * axis.bin + within;
}

/// The two cells around a position; false if the position is more than one cell outside the map, or NaN.
template <typename T>
MASKRAY_HOST_DEVICE bool sample_cells(T position, int64_t size, Sample<T>& out) {
  // Written so that NaN fails: a NaN cast to an integer is undefined.
  if (!(position >= T(-1) && position <= static_cast<T>(size)) || size <= 0) {
    return false;
  }
  const T inside = position <= T(0) ? T(0) : position;
  const int64_t low = static_cast<int64_t>(inside);
  if (low >= size - 1) {
    out = {size - 1, size - 1, T(0)};
  } else {
    out = {low, low + 1, inside - static_cast<T>(low)};
  }
  return true;
}

/// Samples of bin b that may fall on the map: a superset, found without visiting them all.
///
/// An RoI of 1e9 pixels has 1e8 samples per bin, of which the map can hold a few hundred; without this, one bad box
/// would stall a training run.
template <typename T>
MASKRAY_HOST_DEVICE SampleRange samples_near_map(const Axis<T>& axis, int64_t b, int64_t size) {
  constexpr int64_t kFewEnoughToVisit = 64;
  if (axis.samples <= kFewEnoughToVisit) {
    return {0, axis.samples};
  }
  const double base = static_cast<double>(axis.start) + static_cast<double>(b) * static_cast<double>(axis.bin);
  const double step = static_cast<double>(axis.bin) / static_cast<double>(axis.samples);
  if (!std::isfinite(base) || !std::isfinite(step) || step == 0.0) {
    return {0, 0};
  }
  const double first = (-1.0 - base) / step;
  const double last = (static_cast<double>(size) - base) / step;
  // T's rounding of a position, in samples, plus two for the ends.
  const double epsilon = sizeof(T) == 4 ? 1.2e-7 : 2.3e-16;
  const double slack = 2.0 + 4.0 * epsilon * (std::fabs(base / step) + static_cast<double>(axis.samples));
  const double low = std::floor((first < last ? first : last) - slack);
  const double high = std::ceil((first < last ? last : first) + slack);
  const double count = static_cast<double>(axis.samples);
  const double begin = low > 0.0 ? (low < count ? low : count) : 0.0;
  const double end = high > 0.0 ? (high < count ? high : count) : 0.0;
  return {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
}

/// Call sink.append(cell, weight) for each cell that bin b takes from, and sink.add(back, weight) to add to the cell that was
/// appended `back` calls ago (0: the last one). The weights of a bin are sums over its samples: the average is theirs
/// divided by axis.samples.
template <typename T, typename Sink>
MASKRAY_HOST_DEVICE void merge_samples(const Axis<T>& axis, int64_t b, int64_t size, Sink& sink) {
  // Positions run one way, so a cell seen before in this bin is one of the last three appended.
  int64_t newest = -1, second = -1, third = -1;
  const auto take = [&](int64_t cell, T weight) {
    if (cell == newest) {
      sink.add(0, weight);
    } else if (cell == second) {
      sink.add(1, weight);
    } else if (cell == third) {
      sink.add(2, weight);
    } else {
      sink.append(cell, weight);
      third = second;
      second = newest;
      newest = cell;
    }
  };
  const SampleRange range = samples_near_map(axis, b, size);
  for (int64_t i = range.begin; i < range.end; ++i) {
    Sample<T> sample;
    if (!sample_cells(sample_position(axis, b, i), size, sample)) {
      continue;
    }
    take(sample.low, T(1) - sample.high_weight);
    if (sample.high_weight != T(0)) {
      take(sample.high, sample.high_weight);
    }
  }
}

}  // namespace maskray
