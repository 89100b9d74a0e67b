// Feature maps in the layout that the CPU's kernels work on.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "cpu/huge_pages.h"
#include "roi_types.h"

namespace maskray {

/// The map, channels last in memory.
inline torch::stable::Tensor channels_last(const torch::stable::Tensor& map) {
  return torch::stable::contiguous(map, torch::headeronly::MemoryFormat::ChannelsLast);
}

/// A new float32 map, channels last, not filled.
inline torch::stable::Tensor empty_map(int64_t images, int64_t channels, int64_t height, int64_t width) {
  torch::stable::Tensor map =
      torch::stable::empty({images, channels, height, width}, ScalarType::Float, std::nullopt, std::nullopt,
                           std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  prefer_huge_pages(map.mutable_data_ptr(), static_cast<size_t>(map.numel()) * sizeof(float));
  return map;
}

}  // namespace maskray
