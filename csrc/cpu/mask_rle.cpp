// From M x M probabilities to COCO run lengths on the CPU, without the full-size mask.
//
// Bilinear interpolation is done along x first, one picture column at a time, then along y. Between two rows of the
// probability map the value runs from one number to another, so a stretch whose ends are clearly on one side of the
// threshold is decided at once; only stretches near a mask's edge are worked out pixel by pixel.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"

namespace maskray {
namespace {

using torch::stable::Tensor;

/// Where one row (column) of the picture lies in the probability map; -1: outside, counts as 0.
struct Place {
  int64_t low, high;
  float low_weight, high_weight;
};

/// The rows (columns) of the picture that the map can reach, and their places.
struct Span {
  int64_t begin = 0;
  std::vector<Place> places;
  int64_t end() const { return begin + static_cast<int64_t>(places.size()); }
};

constexpr double kFarthestBox = 1e9;  ///< a box beyond this many pixels is not a box; its mask is empty

/// grid_sample's rule (Detectron2, MMDetection): map cell centres, zeros outside, no rounding of the box.
Span sample_span(float low, float high, int64_t cells, int64_t pixels) {
  Span span;
  if (!(std::fabs(low) < kFarthestBox && std::fabs(high) < kFarthestBox) || low == high) {
    return span;
  }
  // One cell beyond the box on each side reaches all pixels with weight, whatever the rounding.
  const double cell = std::fabs(static_cast<double>(high) - low) / static_cast<double>(cells);
  const double first = std::floor(std::min(low, high) - cell - 2.0), last = std::ceil(std::max(low, high) + cell + 2.0);
  span.begin = static_cast<int64_t>(std::clamp(first, 0.0, static_cast<double>(pixels)));
  const int64_t end = static_cast<int64_t>(std::clamp(last, 0.0, static_cast<double>(pixels)));
  for (int64_t i = span.begin; i < end; ++i) {
    const float across = (static_cast<float>(i) + 0.5f - low) / (high - low) * 2.0f - 1.0f;
    const float at = ((across + 1.0f) * static_cast<float>(cells) - 1.0f) / 2.0f;
    if (!(at > -1.0f && at < static_cast<float>(cells))) {
      span.places.push_back({-1, -1, 0.0f, 0.0f});
      continue;
    }
    const float floor = std::floor(at);
    const int64_t cell_low = static_cast<int64_t>(floor);
    const int64_t cell_high = cell_low + 1 < cells ? cell_low + 1 : -1;
    span.places.push_back({cell_low, cell_high, 1.0f - (at - floor), at - floor});
  }
  return span;
}

/// torchvision's rule: map padded by one cell, box grown to match and cut to whole pixels, then a bilinear resize.
Span resize_span(float low, float high, int64_t cells, int64_t pixels) {
  Span span;
  if (!(std::fabs(low) < kFarthestBox && std::fabs(high) < kFarthestBox)) {
    return span;
  }
  const int64_t padded = cells + 2;
  const float grow = static_cast<float>(static_cast<double>(padded) / static_cast<double>(cells));
  const float half = (high - low) * 0.5f * grow, centre = (high + low) * 0.5f;
  const int64_t from = static_cast<int64_t>(centre - half), to = static_cast<int64_t>(centre + half);
  const int64_t length = std::max<int64_t>(to - from + 1, 1);
  const float scale = static_cast<float>(padded) / static_cast<float>(length);
  span.begin = std::clamp<int64_t>(from, 0, pixels);
  // An inverted box is one pixel long in the resize but empty in the paste.
  const int64_t end = std::min(to + 1, pixels);
  const auto unpad = [cells](int64_t cell) { return cell >= 1 && cell <= cells ? cell - 1 : -1; };
  for (int64_t i = span.begin; i < end; ++i) {
    const float at = std::max(scale * (static_cast<float>(i - from) + 0.5f) - 0.5f, 0.0f);
    const int64_t cell = std::min(static_cast<int64_t>(at), padded - 1);
    const float rest = length == padded ? 0.0f : std::min(std::max(at - static_cast<float>(cell), 0.0f), 1.0f);
    span.places.push_back({unpad(cell), unpad(std::min(cell + 1, padded - 1)), 1.0f - rest, rest});
  }
  return span;
}

/// Runs of ones in column-major order, as they grow, with the area and the tight box.
class Runs {
 public:
  explicit Runs(int64_t height, int64_t width) : height_(height), width_(width) {}

  /// Set rows begin..end of a column; calls come in column-major order.
  void set(int64_t column, int64_t begin, int64_t end) {
    if (begin >= end) {
      return;
    }
    const int64_t from = column * height_ + begin, to = column * height_ + end;
    if (!counts_.empty() && from == end_) {
      counts_.back() += to - from;
    } else {
      counts_.push_back(from - end_);
      counts_.push_back(to - from);
    }
    end_ = to;
    area += to - from;
    left_ = std::min(left_, column);
    right_ = std::max(right_, column + 1);
    top_ = std::min(top_, begin);
    bottom_ = std::max(bottom_, end);
  }

  /// The compressed string: differences to the count before last, five bits a character, low bits first.
  std::string compressed() {
    if (const int64_t rest = height_ * width_ - end_; rest > 0 || counts_.empty()) {
      counts_.push_back(rest);
    }
    std::string text;
    for (size_t i = 0; i < counts_.size(); ++i) {
      int64_t value = i > 2 ? counts_[i] - counts_[i - 2] : counts_[i];
      bool more = true;
      while (more) {
        const int64_t five = value & 0x1f;
        value >>= 5;
        // Bit 4 is the sign of what was written: done when the rest is only its extension.
        more = value != ((five & 0x10) != 0 ? -1 : 0);
        text.push_back(static_cast<char>((more ? five | 0x20 : five) + 48));
      }
    }
    return text;
  }

  void box_xywh(float* to) const {
    to[0] = area > 0 ? static_cast<float>(left_) : 0.0f;
    to[1] = area > 0 ? static_cast<float>(top_) : 0.0f;
    to[2] = area > 0 ? static_cast<float>(right_ - left_) : 0.0f;
    to[3] = area > 0 ? static_cast<float>(bottom_ - top_) : 0.0f;
  }

  int64_t area = 0;

 private:
  int64_t height_, width_;
  std::vector<int64_t> counts_;
  int64_t end_ = 0;
  int64_t left_ = INT64_MAX, right_ = 0, top_ = INT64_MAX, bottom_ = 0;
};

/// One column's rows: stretches over which the two map rows are the same.
struct Stretch {
  int64_t begin, end;  ///< rows of the picture
  int64_t low, high;   ///< rows of the map
};

std::vector<Stretch> stretches_of(const Span& y) {
  std::vector<Stretch> stretches;
  for (int64_t i = 0; i < static_cast<int64_t>(y.places.size()); ++i) {
    const Place& place = y.places[static_cast<size_t>(i)];
    if (!stretches.empty() && stretches.back().low == place.low && stretches.back().high == place.high) {
      ++stretches.back().end;
    } else {
      stretches.push_back({y.begin + i, y.begin + i + 1, place.low, place.high});
    }
  }
  return stretches;
}

/// Whether a probability belongs to the mask: `>` for torchvision's rule, `>=` for the other.
struct Rule {
  float threshold;
  bool strict;
  bool operator()(float value) const { return strict ? value > threshold : value >= threshold; }
};

void run_column(int64_t column, const float* values, const Span& y, const std::vector<Stretch>& stretches,
                const Rule& rule, Runs& runs) {
  // Rounding moves a weighted mean of two numbers by less than this share of them.
  constexpr float kMargin = 1e-6f;
  for (const Stretch& s : stretches) {
    const float low = s.low < 0 ? 0.0f : values[s.low], high = s.high < 0 ? 0.0f : values[s.high];
    const float margin = kMargin * (std::fabs(low) + std::fabs(high));
    if (std::max(low, high) + margin < rule.threshold) {
      continue;
    }
    if (std::min(low, high) - margin > rule.threshold) {
      runs.set(column, s.begin, s.end);
      continue;
    }
    for (int64_t row = s.begin; row < s.end; ++row) {
      const Place& place = y.places[static_cast<size_t>(row - y.begin)];
      if (rule(low * place.low_weight + high * place.high_weight)) {
        runs.set(column, row, row + 1);
      }
    }
  }
}

/// Runs of one detection. `probs` is [cells, cells], `box` x1, y1, x2, y2.
Runs run_lengths(const float* probs, int64_t cells, const float* box, int64_t height, int64_t width, const Rule& rule,
                 bool padded) {
  const auto span_of = padded ? resize_span : sample_span;
  const Span x = span_of(box[0], box[2], cells, width);
  const Span y = span_of(box[1], box[3], cells, height);
  const std::vector<Stretch> stretches = stretches_of(y);
  Runs runs(height, width);
  std::vector<float> values(static_cast<size_t>(cells));
  for (int64_t column = x.begin; column < x.end(); ++column) {
    const Place& place = x.places[static_cast<size_t>(column - x.begin)];
    for (int64_t m = 0; m < cells; ++m) {
      const float low = place.low < 0 ? 0.0f : probs[m * cells + place.low];
      const float high = place.high < 0 ? 0.0f : probs[m * cells + place.high];
      values[static_cast<size_t>(m)] = low * place.low_weight + high * place.high_weight;
    }
    run_column(column, values.data(), y, stretches, rule, runs);
  }
  return runs;
}

/// Probabilities [D, M, M], boxes [D, 4], sizes [D, 2] -> all strings joined, their ends [D], areas [D], boxes [D, 4].
std::tuple<Tensor, Tensor, Tensor, Tensor> mask_rle(Tensor probs, Tensor boxes, Tensor sizes_hw, double threshold,
                                                    bool padded) {
  using torch::headeronly::ScalarType;
  probs = torch::stable::contiguous(probs);
  boxes = torch::stable::contiguous(boxes);
  sizes_hw = torch::stable::contiguous(sizes_hw);
  const int64_t count = probs.size(0), cells = probs.size(1);
  const int64_t* sizes = sizes_hw.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t h = sizes[2 * i], w = sizes[2 * i + 1];
    check(h >= 0 && w >= 0 && (h == 0 || w <= INT32_MAX / h), "detection ", i, " has picture size ", h, " x ", w,
          ", wanted height x width below 2^31 pixels");
  }
  Tensor ends = torch::stable::empty({count}, ScalarType::Long);
  Tensor areas = torch::stable::empty({count}, ScalarType::Long);
  Tensor tight = torch::stable::empty({count, 4}, ScalarType::Float);
  const float* prob_data = probs.const_data_ptr<float>();
  const float* box_data = boxes.const_data_ptr<float>();
  int64_t* end_data = ends.mutable_data_ptr<int64_t>();
  int64_t* area_data = areas.mutable_data_ptr<int64_t>();
  float* tight_data = tight.mutable_data_ptr<float>();
  const Rule rule{static_cast<float>(threshold), padded};
  std::vector<std::string> texts(static_cast<size_t>(count));
  share_work(count, [&](const auto& next) {
    for (int64_t i; next(i);) {
      Runs runs = run_lengths(prob_data + i * cells * cells, cells, box_data + 4 * i, sizes[2 * i], sizes[2 * i + 1],
                              rule, padded);
      area_data[i] = runs.area;
      runs.box_xywh(tight_data + 4 * i);
      texts[static_cast<size_t>(i)] = runs.compressed();
    }
  });
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    total += static_cast<int64_t>(texts[static_cast<size_t>(i)].size());
    end_data[i] = total;
  }
  Tensor joined = torch::stable::empty({total}, ScalarType::Byte);
  uint8_t* to = joined.mutable_data_ptr<uint8_t>();
  for (const std::string& text : texts) {
    to = std::copy(text.begin(), text.end(), to);
  }
  return {joined, ends, areas, tight};
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CPU, m) { m.impl("mask_rle", TORCH_BOX(&maskray::mask_rle)); }
