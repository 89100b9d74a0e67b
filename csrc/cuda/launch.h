// How a kernel is started: on the tensor's device, on torch's current stream, with errors as exceptions.
//
// The CUDA runtime is linked statically and the one torch function needed is a weak reference, so the library loads
// beside a torch without CUDA, and beside one built with another CUDA version.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "check.h"

extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                  void** ret_stream);

namespace maskray {

using torch::stable::Tensor;

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
}

/// Makes a tensor's device the current one while it lives, and knows torch's current stream there.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    check(&aoti_torch_get_current_cuda_stream != nullptr, "the tensors are on a GPU, but this torch has no CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    check_cuda(cudaSetDevice(tensor.get_device_index()));  // for our copy of the runtime; the guard spoke to torch's
  }

  cudaStream_t stream() const { return stream_; }

  /// kernel<<<blocks, threads>>>(args...) on the stream; does nothing without blocks.
  template <typename Job>
  void launch(void (*kernel)(Job), dim3 blocks, int threads, const Job& job) const {
    launch_with(0, kernel, blocks, threads, job);
  }

  /// The same with `shared_bytes` of dynamic shared memory, at most 48 KiB less what the kernel declares.
  template <typename Job>
  void launch_with(int64_t shared_bytes, void (*kernel)(Job), dim3 blocks, int threads, const Job& job) const {
    if (blocks.x == 0 || blocks.y == 0) {
      return;
    }
    kernel<<<blocks, threads, static_cast<size_t>(shared_bytes), stream_>>>(job);
    check_cuda(cudaGetLastError());
  }

  /// Fill with zero bytes.
  void clear(void* data, int64_t bytes) const {
    if (bytes > 0) {
      check_cuda(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream_));
    }
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

/// Blocks for `items` pieces of work at `per_block` each. Kernels stride over what goes beyond the limit.
inline unsigned blocks_for(int64_t items, int64_t per_block) {
  constexpr int64_t kMostBlocks = 1 << 24;
  return static_cast<unsigned>(std::min((items + per_block - 1) / per_block, kMostBlocks));
}

}  // namespace maskray
