// The samples of an RoI along one axis, merged: how much of each cell goes into each bin.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "roi_geometry.h"

namespace maskray {

/// `weight` of cell `cell` (in a list of a bin), or of bin `cell` (in a list of a cell).
template <typename T>
struct Tap {
  int64_t cell;
  T weight;
};

/// Lists of taps, one a bin: list b is taps[first[b] .. first[b + 1]).
template <typename T>
struct TapLists {
  std::vector<int64_t> first;
  std::vector<Tap<T>> taps;
  int64_t longest = 0;  ///< length of the longest list
};

/// Adds what merge_samples finds to the end of a list.
template <typename T>
struct TapSink {
  std::vector<Tap<T>>& taps;
  void append(int64_t cell, T weight) { taps.push_back({cell, weight}); }
  void add(int64_t back, T weight) { taps[taps.size() - 1 - static_cast<size_t>(back)].weight += weight; }
};

/// Taps of each bin: weights are averaged over the bin's samples, cells appear in the order of the samples.
template <typename T>
inline void list_taps(const Axis<T>& axis, int64_t pooled, int64_t size, TapLists<T>& lists) {
  lists.first.assign(1, 0);
  lists.taps.clear();
  lists.longest = 0;
  TapSink<T> sink{lists.taps};
  for (int64_t b = 0; b < pooled; ++b) {
    merge_samples(axis, b, size, sink);
    const int64_t begin = lists.first.back();
    const int64_t end = static_cast<int64_t>(lists.taps.size());
    for (int64_t i = begin; i < end; ++i) {
      lists.taps[i].weight /= static_cast<T>(axis.samples);
    }
    lists.first.push_back(end);
    lists.longest = std::max(lists.longest, end - begin);
  }
}

/// The same taps seen from the cells, for the backward pass.
template <typename T>
struct CellLists {
  int64_t begin = 0;           ///< first cell with a list; list of cell i is number i - begin
  std::vector<int64_t> first;  ///< as in TapLists; cells without taps have empty lists
  std::vector<Tap<T>> taps;    ///< Tap::cell is the bin here, ascending
  int64_t end() const { return begin + static_cast<int64_t>(first.size()) - 1; }
};

/// Turn the lists of bins into lists of cells (a counting sort).
template <typename T>
inline CellLists<T> by_cell(const TapLists<T>& bins) {
  CellLists<T> cells;
  cells.first.assign(1, 0);
  if (bins.taps.empty()) {
    return cells;
  }
  const auto less = [](const Tap<T>& a, const Tap<T>& b) { return a.cell < b.cell; };
  const auto [low, high] = std::minmax_element(bins.taps.begin(), bins.taps.end(), less);
  cells.begin = low->cell;
  cells.first.assign(static_cast<size_t>(high->cell - low->cell + 2), 0);
  for (const Tap<T>& tap : bins.taps) {
    ++cells.first[static_cast<size_t>(tap.cell - cells.begin + 1)];
  }
  for (size_t i = 1; i < cells.first.size(); ++i) {
    cells.first[i] += cells.first[i - 1];
  }
  cells.taps.resize(bins.taps.size());
  std::vector<int64_t> at(cells.first);
  for (size_t b = 0; b + 1 < bins.first.size(); ++b) {
    for (int64_t i = bins.first[b]; i < bins.first[b + 1]; ++i) {
      const Tap<T>& tap = bins.taps[static_cast<size_t>(i)];
      cells.taps[static_cast<size_t>(at[static_cast<size_t>(tap.cell - cells.begin)]++)] = {static_cast<int64_t>(b),
                                                                                             tap.weight};
    }
  }
  return cells;
}

}  // namespace maskray
