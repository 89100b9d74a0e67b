// Greedy non-maximum suppression on the CPU, over images and groups (classes, pyramid levels) at once.
//
// Only valid boxes are sorted and compared, and only inside their group, so padding costs one pass over the mask. The
// IoU is torchvision's, operation for operation, in float32.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace maskray {
namespace {

using torch::stable::Tensor;

constexpr int64_t kPadding = 16;  ///< lanes of the widest variant

/// Boxes of one group as columns, best first. Padded to whole lanes.
struct Columns {
  std::vector<float> x1, y1, x2, y2, area;
  std::vector<uint32_t> gone;  ///< all ones: suppressed

  void resize(size_t count) {
    const size_t padded = (count + kPadding - 1) / kPadding * kPadding;
    for (std::vector<float>* column : {&x1, &y1, &x2, &y2, &area}) {
      column->assign(padded, 0.0f);
    }
    gone.assign(padded, 0U);
  }
};

/// What the inner loop needs, as pointers.
struct Group {
  const float *x1, *y1, *x2, *y2, *area;
  uint32_t* gone;
  int64_t count;
  float threshold;
};

// max and min as torchvision's CPU code has them (std::max, std::min), which fixes what NaN does.
template <typename Lanes>
MASKRAY_INLINE Lanes larger(const Lanes& a, const Lanes& b) {
  return a < b ? b : a;
}
template <typename Lanes>
MASKRAY_INLINE Lanes smaller(const Lanes& a, const Lanes& b) {
  return b < a ? b : a;
}


struct Suppress {
  template <Simd kSimd>
  static MASKRAY_INLINE void run(const Group* group) {
    using N = Numbers<float, kSimd>;
    using Lanes = typename N::Lanes;
    using Words = typename Conversions<N::kLanes>::Words;
    const Group g = *group;
    for (int64_t i = 0; i < g.count; ++i) {
      if (g.gone[i] != 0U) {
        continue;
      }
      const Lanes zero{};
      const Lanes x1 = zero + g.x1[i], y1 = zero + g.y1[i], x2 = zero + g.x2[i], y2 = zero + g.y2[i];
      const float area = g.area[i];
      // Starts at the lanes that hold i itself: what stands before i, and i, is put back below.
      const int64_t start = i / N::kLanes * N::kLanes;
      uint32_t before[N::kLanes];
      std::copy(g.gone + start, g.gone + i + 1, before);
      for (int64_t j = start; j < g.count; j += N::kLanes) {
        const Lanes w =
            larger(zero, smaller(x2, N::load(g.x2 + j)) - larger(x1, N::load(g.x1 + j)));
        const Lanes h =
            larger(zero, smaller(y2, N::load(g.y2 + j)) - larger(y1, N::load(g.y1 + j)));
        const Lanes inter = w * h;
        const Lanes iou = inter / (N::load(g.area + j) + area - inter);
        Words gone;
        std::memcpy(&gone, g.gone + j, sizeof(gone));
        gone |= (Words)(iou > g.threshold);
        std::memcpy(g.gone + j, &gone, sizeof(gone));
      }
      std::copy(before, before + (i + 1 - start), g.gone + start);
    }
  }
};

/// The largest float32 that is not above `threshold`: comparing with it equals comparing with the double.
float round_down(double threshold) {
  const float nearest = static_cast<float>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafterf(nearest, -std::numeric_limits<float>::infinity())
                                                  : nearest;
}

/// Valid boxes of one image: by group, then best score first, then lowest index. NaN scores count as the best, as in
/// torch.sort.
std::vector<int64_t> ranked(const bool* valid, const float* scores, const int64_t* groups, int64_t count) {
  std::vector<int64_t> order;
  for (int64_t i = 0; i < count; ++i) {
    if (valid[i]) {
      order.push_back(i);
    }
  }
  std::sort(order.begin(), order.end(), [scores, groups](int64_t a, int64_t b) {
    if (groups[a] != groups[b]) {
      return groups[a] < groups[b];
    }
    const float sa = scores[a], sb = scores[b];
    const bool nan_a = sa != sa, nan_b = sb != sb;
    if (nan_a != nan_b) {
      return nan_a;
    }
    return !nan_a && sa != sb ? sa > sb : a < b;
  });
  return order;
}

/// One image's boxes of one group: positions begin..end of its order.
struct Piece {
  int64_t image, begin, end;
};

void suppress_piece(const float* boxes, const int64_t* order, int64_t count, float threshold, Columns& columns,
                    bool* keep) {
  columns.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const float* box = boxes + 4 * order[i];
    columns.x1[i] = box[0];
    columns.y1[i] = box[1];
    columns.x2[i] = box[2];
    columns.y2[i] = box[3];
    columns.area[i] = (box[2] - box[0]) * (box[3] - box[1]);
  }
  const Group group{columns.x1.data(),   columns.y1.data(),   columns.x2.data(), columns.y2.data(),
                    columns.area.data(), columns.gone.data(), count,             threshold};
  run_simd<Suppress, const Group*>(&group);
  for (int64_t i = 0; i < count; ++i) {
    keep[order[i]] = columns.gone[i] == 0U;
  }
}

/// Boxes [B, N, 4], scores [B, N], groups [B, N], valid [B, N] -> keep [B, N].
Tensor nms(Tensor boxes, Tensor scores, Tensor groups, Tensor valid, double iou_threshold) {
  boxes = torch::stable::contiguous(boxes);
  scores = torch::stable::contiguous(scores);
  groups = torch::stable::contiguous(groups);
  valid = torch::stable::contiguous(valid);
  Tensor keep = torch::stable::empty_like(valid);  // dense: valid is contiguous here
  const int64_t images = valid.size(0), count = valid.size(1);
  const float* box_data = boxes.const_data_ptr<float>();
  const float* score_data = scores.const_data_ptr<float>();
  const int64_t* group_data = groups.const_data_ptr<int64_t>();
  const bool* valid_data = valid.const_data_ptr<bool>();
  bool* keep_data = keep.mutable_data_ptr<bool>();
  std::fill(keep_data, keep_data + images * count, false);

  std::vector<std::vector<int64_t>> orders(static_cast<size_t>(images));
  share_work(images, [&](const auto& next) {
    for (int64_t b; next(b);) {
      orders[static_cast<size_t>(b)] =
          ranked(valid_data + b * count, score_data + b * count, group_data + b * count, count);
    }
  });
  std::vector<Piece> pieces;
  for (int64_t b = 0; b < images; ++b) {
    const std::vector<int64_t>& order = orders[static_cast<size_t>(b)];
    const int64_t size = static_cast<int64_t>(order.size());
    for (int64_t begin = 0, end; begin < size; begin = end) {
      const int64_t group = group_data[b * count + order[begin]];
      for (end = begin + 1; end < size && group_data[b * count + order[end]] == group; ++end) {
      }
      pieces.push_back({b, begin, end});
    }
  }
  const float threshold = round_down(iou_threshold);
  share_work(static_cast<int64_t>(pieces.size()), [&](const auto& next) {
    Columns columns;
    for (int64_t i; next(i);) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      suppress_piece(box_data + piece.image * count * 4, orders[static_cast<size_t>(piece.image)].data() + piece.begin,
                     piece.end - piece.begin, threshold, columns, keep_data + piece.image * count);
    }
  });
  return keep;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CPU, m) { m.impl("nms", TORCH_BOX(&maskray::nms)); }
