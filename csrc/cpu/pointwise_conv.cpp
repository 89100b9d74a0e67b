// 1 x 1 convolution on the CPU: one matrix product over the channels, the filters packed once, the bias put in on the way.
//
// torch copies the bias over the whole result first and then runs the vendor's product, which packs both sides.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "check.h"
#include "cpu/maps.h"
#include "cpu/parallel.h"
#include "cpu/products.h"

namespace maskray {
namespace {

using torch::stable::Tensor;

/// Filters [outputs, inputs], packed from one panel of outputs to another.
struct PackTask {
  const float* from;
  float* to;
  int64_t inputs, outputs;
  int64_t first, last;  ///< outputs to pack, from a panel's first on
};

struct Pack {
  template <Simd kSimd>
  static MASKRAY_INLINE void run(const PackTask* task) {
    for (int64_t output = task->first; output < task->last; output += kPanel<kSimd>) {
      float* const to = task->to + packed_at<kSimd>(output, task->inputs);
      const int64_t some = std::min(kPanel<kSimd>, task->last - output);
      constexpr int64_t kLine = 16;  // a line of the cache is read whole: those of all outputs may lie in one set of it
      for (int64_t first = 0; first < task->inputs; first += kLine) {
        const int64_t last = std::min(first + kLine, task->inputs);
        for (int64_t k = 0; k < some; ++k) {
          const float* const from = task->from + (output + k) * task->inputs;
          for (int64_t c = first; c < last; ++c) {
            to[c * kPanel<kSimd> + k] = from[c];
          }
        }
      }
    }
  }
};

/// x [N, C, H, W], filters [K, C, 1, 1], bias [K] -> [N, K, H, W], channels last.
Tensor pointwise_conv(Tensor x, Tensor filters, std::optional<Tensor> bias) {
  constexpr int64_t kOutputs = kPanel<Simd::kAvx512>, kRows = 96;
  x = channels_last(x);
  filters = torch::stable::contiguous(filters);
  const int64_t inputs = x.size(1), outputs = filters.size(0), rows = x.size(0) * x.size(2) * x.size(3);
  check(filters.size(1) == inputs, "the map has ", inputs, " channels, the filters are for ", filters.size(1),
        ": give maps of that width");
  Tensor out = empty_map(x.size(0), outputs, x.size(2), x.size(3));
  std::optional<Tensor> offsets;
  if (bias.has_value()) {
    offsets = torch::stable::contiguous(*bias);
  }
  const float* offset = offsets.has_value() ? offsets->const_data_ptr<float>() : nullptr;
  const Tensor packed = torch::stable::empty({inputs * packed_columns(outputs)}, ScalarType::Float);
  float* const right = static_cast<float*>(packed.mutable_data_ptr());
  const float* const taps = filters.const_data_ptr<float>();
  share_work((outputs + kOutputs - 1) / kOutputs, [&](const auto& next) {
    for (int64_t piece; next(piece);) {
      const PackTask task{taps, right, inputs, outputs, piece * kOutputs, std::min((piece + 1) * kOutputs, outputs)};
      run_simd<Pack, const PackTask*>(&task);
    }
  });
  const float* const from = x.const_data_ptr<float>();
  float* const to = out.mutable_data_ptr<float>();
  share_work((rows + kRows - 1) / kRows, [&](const auto& next) {
    for (int64_t piece; next(piece);) {
      const int64_t first = piece * kRows, count = std::min(kRows, rows - first);
      float* const made = to + first * outputs;
      for (int64_t row = 0; offset != nullptr && row < count; ++row) {
        std::copy(offset, offset + outputs, made + row * outputs);
      }
      const ProductTask task{from + first * inputs, inputs, 1, right, made, outputs, count, inputs, outputs,
                             offset != nullptr};
      run_simd<Product, const ProductTask*>(&task);
    }
  });
  return out;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CPU, m) { m.impl("pointwise_conv", TORCH_BOX(&maskray::pointwise_conv)); }
