// Every operator's signature, in one place. Kernels register themselves beside their code in cpu/ and cuda/.
#include <torch/csrc/stable/library.h>

#include <cstdint>

namespace {

/// Version of the operators' interface; model/ops/extension.py refuses a library with another one.
int64_t version() { return 4; }

/// Whether this build has the CUDA kernels.
bool has_cuda() {
#ifdef MASKRAY_WITH_CUDA
  return true;
#else
  return false;
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY(maskray, m) {
  m.def("version() -> int");
  m.def("has_cuda() -> bool");
  m.def("simd_variants() -> int");
  m.def("set_simd(int variant) -> int");
  m.def(
      "roi_align(Tensor[] features, Tensor rois, Tensor levels, SymInt height, SymInt width, float[] scales, "
      "int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, Tensor levels, SymInt[] sizes, float[] scales, "
      "int sampling_ratio, bool aligned) -> Tensor[]");
  m.def("nms(Tensor boxes, Tensor scores, Tensor groups, Tensor valid, float iou_threshold) -> Tensor");
  m.def(
      "mask_targets(Tensor data, Tensor offsets, Tensor extents, Tensor rois, Tensor crop_index, SymInt size, "
      "bool aligned, bool binarise) -> Tensor");
  m.def(
      "mask_rle(Tensor probs, Tensor boxes, Tensor sizes_hw, float threshold, bool padded) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "polygon_crops(Tensor points, Tensor ring_ends, Tensor object_ends, int height, int width) -> (Tensor, Tensor)");
  m.def("rle_areas(Tensor counts, Tensor ends, Tensor pixels) -> Tensor");
  m.def(
      "resize_bytes(Tensor picture, Tensor(a!) out, int height, int width, int top, int left, bool mirrored) -> ()");
  m.def("pointwise_conv(Tensor x, Tensor filters, Tensor? bias) -> Tensor");
  m.def("winograd_conv(Tensor x, Tensor filters, Tensor? bias, bool transposed) -> Tensor");
  m.def("winograd_filter_grad(Tensor x, Tensor grad) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(maskray, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&version));
  m.impl("has_cuda", TORCH_BOX(&has_cuda));
}
