// Work shared between threads piece by piece: whoever is free takes the next one.
//
// Results must not depend on who does which piece, and do not: every piece writes memory of its own.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace maskray {

/// Run worker(next) on each thread; next(i) gives the number of a piece in 0..pieces, or false when none is left.
template <typename Worker>
inline void share_work(int64_t pieces, const Worker& worker) {
  if (pieces <= 0) {
    return;
  }
  std::atomic<int64_t> taken{0};
  const auto next = [&taken, pieces](int64_t& piece) {
    piece = taken.fetch_add(1, std::memory_order_relaxed);
    return piece < pieces;
  };
  const int64_t threads = std::min<int64_t>(pieces, torch::stable::get_num_threads());
  if (threads <= 1) {
    worker(next);
    return;
  }
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { worker(next); });
}

}  // namespace maskray
