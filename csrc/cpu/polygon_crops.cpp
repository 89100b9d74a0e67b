// Polygons to tight bitmaps on the CPU: the pixels of pycocotools' rleFrPoly, which are COCO's definition of a mask.
//
// That one walks along the outline in fifths of a pixel and sorts every step. A column of pixels only sees where an edge
// passes from its left half into its right one, and that place follows from the edge directly: the work grows with the
// columns an edge spans and with the pixels of the bitmap.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"

namespace maskray {
namespace {

using torch::stable::Tensor;

constexpr double kFine = 5.0;            ///< fine steps a pixel
constexpr double kFarthestPx = 1 << 27;  ///< fine coordinates then fit 32 bits with room to spare

constexpr int64_t kMostPixels = int64_t{1} << 40;  ///< of all bitmaps together

/// Rows y0..y1 and columns x0..x1 of a picture.
struct Window {
  int64_t y0, x0, y1, x1;

  int64_t height() const { return y1 - y0; }
  int64_t width() const { return x1 - x0; }
  bool is_empty() const { return y0 >= y1 || x0 >= x1; }
};

/// A corner in fine steps.
struct Corner {
  int x, y;
};

/// The first row that belongs to the mask below fine row v: ceil((v + 0.5) / 5 - 0.5), cut to the picture.
inline int64_t row_below(int64_t v, int64_t height) { return v <= 2 ? 0 : std::min<int64_t>((v + 2) / 5, height); }

/// The columns whose middle, between fine columns 5x + 2 and 5x + 3, lies between two fine columns: first and one past.
inline std::pair<int64_t, int64_t> columns_between(int64_t left, int64_t right, int64_t width) {
  const int64_t first = left <= 2 ? 0 : (left + 2) / 5;
  const int64_t end = right < 3 ? 0 : (right + 2) / 5;
  return {first, std::min(end, width)};
}

/// The coordinate at step t of an edge, rounded as rleFrPoly rounds.
inline int at_step(int from, double slope, int t) { return static_cast<int>(from + slope * t + 0.5); }

/// Where the mask changes: one byte a pixel of a window and one more row, flipped by each crossing.
class Flips {
 public:
  Flips(const Window& window, int64_t picture_height) : window_(window), picture_height_(picture_height) {
    bytes_.assign(static_cast<size_t>((window.height() + 1) * window.width()), 0);
  }

  /// Add an edge from a to b. Edges of a closed ring cross every column an even number of times.
  void add_edge(Corner a, Corner b) {
    const int dx = std::abs(b.x - a.x), dy = std::abs(b.y - a.y);
    if (dx == 0) {
      return;
    }
    const bool is_steep = dx < dy;
    if (is_steep ? a.y > b.y : a.x > b.x) {
      std::swap(a, b);
    }
    const auto [first, end] = columns_between(std::min(a.x, b.x), std::max(a.x, b.x), window_.x1);
    if (is_steep) {
      const double slope = static_cast<double>(b.x - a.x) / dy;
      for (int64_t x = first; x < end; ++x) {
        flip(x, a.y + step_before_middle(a.x, slope, dy, static_cast<int>(5 * x)));
      }
    } else {
      const double slope = static_cast<double>(b.y - a.y) / dx;
      for (int64_t x = first; x < end; ++x) {
        const int t = static_cast<int>(5 * x) + 2 - a.x;
        flip(x, std::min(at_step(a.y, slope, t), at_step(a.y, slope, t + 1)));
      }
    }
  }

  /// Turn flips into the pixels of the window, row by row.
  const uint8_t* integrate() {
    const int64_t width = window_.width();
    for (int64_t y = 1; y < window_.height(); ++y) {
      const uint8_t* __restrict above = bytes_.data() + (y - 1) * width;
      uint8_t* __restrict row = bytes_.data() + y * width;
      for (int64_t x = 0; x < width; ++x) {
        row[x] ^= above[x];
      }
    }
    return bytes_.data();
  }

 private:
  /// The last step of a steep edge on the near side of the middle of the pixel column that begins at fine column x.
  static int step_before_middle(int from, double slope, int steps, int x) {
    const auto is_past = [&](int t) {
      const int at = at_step(from, slope, t);
      return slope > 0.0 ? at >= x + 3 : at <= x + 2;
    };
    const double guess = (x + 2.5 - from) / slope;
    int t = std::clamp(static_cast<int>(std::clamp(guess, 1.0, static_cast<double>(steps))), 1, steps);
    while (t > 1 && is_past(t - 1)) {
      --t;
    }
    while (t < steps && !is_past(t)) {
      ++t;
    }
    return t - 1;
  }

  void flip(int64_t x, int64_t v) {
    const int64_t y = row_below(v, picture_height_) - window_.y0;
    bytes_[static_cast<size_t>(y * window_.width() + x - window_.x0)] ^= 1;
  }

  Window window_;
  int64_t picture_height_;
  std::vector<uint8_t> bytes_;
};

/// One object's rings in one bitmap.
class Object {
 public:
  Object(int64_t height, int64_t width) : height_(height), width_(width) {}

  /// Take a ring of n corners, x, y in pixels of the picture.
  void add_ring(const double* xy, int64_t n) {
    Ring ring;
    ring.corners.reserve(static_cast<size_t>(n));
    int left = INT32_MAX, right = INT32_MIN, top = INT32_MAX, bottom = INT32_MIN;
    for (int64_t i = 0; i < n; ++i) {
      const Corner corner{static_cast<int>(kFine * xy[2 * i] + 0.5), static_cast<int>(kFine * xy[2 * i + 1] + 0.5)};
      left = std::min(left, corner.x);
      right = std::max(right, corner.x);
      top = std::min(top, corner.y);
      bottom = std::max(bottom, corner.y);
      ring.corners.push_back(corner);
    }
    const auto [first, end] = columns_between(left, right, width_);
    ring.window = {row_below(top, height_), first, row_below(bottom, height_), end};
    if (ring.window.is_empty()) {
      return;
    }
    window_ = rings_.empty() ? ring.window
                             : Window{std::min(window_.y0, ring.window.y0), std::min(window_.x0, ring.window.x0),
                                      std::max(window_.y1, ring.window.y1), std::max(window_.x1, ring.window.x1)};
    rings_.push_back(std::move(ring));
  }

  /// Pixels of the window that holds every ring: no less than `write` writes.
  int64_t largest() const { return rings_.empty() ? 0 : window_.height() * window_.width(); }

  /// Write the tight bitmap's rows to `out`; returns where it is.
  Window write(uint8_t* out) const {
    if (rings_.empty()) {
      return {0, 0, 0, 0};
    }
    if (rings_.size() == 1) {
      Flips flips = flips_of(rings_[0]);
      return write_tight(flips.integrate(), out);
    }
    std::vector<uint8_t> bitmap(static_cast<size_t>(largest()), 0);
    for (const Ring& ring : rings_) {
      Flips flips = flips_of(ring);
      add(flips.integrate(), ring.window, bitmap.data());
    }
    return write_tight(bitmap.data(), out);
  }

 private:
  struct Ring {
    std::vector<Corner> corners;
    Window window;
  };

  Flips flips_of(const Ring& ring) const {
    Flips flips(ring.window, height_);
    for (size_t i = 0; i < ring.corners.size(); ++i) {
      flips.add_edge(ring.corners[i], ring.corners[i + 1 < ring.corners.size() ? i + 1 : 0]);
    }
    return flips;
  }

  /// Add a ring's pixels to the bitmap of the object's window.
  void add(const uint8_t* ring, const Window& window, uint8_t* bitmap) const {
    const int64_t width = window.width();
    for (int64_t y = window.y0; y < window.y1; ++y) {
      const uint8_t* __restrict row = ring + (y - window.y0) * width;
      uint8_t* __restrict to = bitmap + (y - window_.y0) * window_.width() + window.x0 - window_.x0;
      for (int64_t x = 0; x < width; ++x) {
        to[x] |= row[x];
      }
    }
  }

  /// Copy the tight part of the window's bitmap; returns where it is.
  Window write_tight(const uint8_t* bitmap, uint8_t* out) const {
    const Window tight = tight_window(bitmap);
    for (int64_t y = tight.y0; y < tight.y1; ++y) {
      const uint8_t* row = bitmap + (y - window_.y0) * window_.width() + tight.x0 - window_.x0;
      out = std::copy(row, row + tight.width(), out);
    }
    return tight;
  }

  Window tight_window(const uint8_t* bitmap) const {
    const int64_t height = window_.height(), width = window_.width();
    std::vector<uint8_t> in_column(static_cast<size_t>(width), 0);
    int64_t top = height, bottom = 0;
    for (int64_t y = 0; y < height; ++y) {
      const uint8_t* __restrict row = bitmap + y * width;
      uint8_t* __restrict column = in_column.data();
      uint8_t any = 0;
      for (int64_t x = 0; x < width; ++x) {
        any |= row[x];
        column[x] |= row[x];
      }
      if (any) {
        top = std::min(top, y);
        bottom = y + 1;
      }
    }
    if (bottom == 0) {
      return {0, 0, 0, 0};
    }
    int64_t left = 0, right = width;
    while (!in_column[static_cast<size_t>(left)]) {
      ++left;
    }
    while (!in_column[static_cast<size_t>(right - 1)]) {
      --right;
    }
    return {window_.y0 + top, window_.x0 + left, window_.y0 + bottom, window_.x0 + right};
  }

  int64_t height_, width_;
  Window window_{0, 0, 0, 0};
  std::vector<Ring> rings_;
};

/// Ends of consecutive groups over `count` things must ascend from 0 and reach `count`.
void check_ends(const int64_t* ends, int64_t groups, int64_t count, const char* of, const char* things) {
  int64_t before = 0;
  for (int64_t i = 0; i < groups; ++i) {
    check(ends[i] >= before && ends[i] <= count, of, " ", i, " ends at ", ends[i], " of ", count, " ", things,
          ", wanted ", before, "..", count);
    before = ends[i];
  }
  check(before == count, "the last ", of, " ends at ", before, ", there are ", count, " ", things);
}

/// Corners [P, 2], ends of rings [R] and of objects [G] -> pixels [S] and extents (y0, x0, h, w) [G, 4].
std::tuple<Tensor, Tensor> polygon_crops(Tensor points, Tensor ring_ends, Tensor object_ends, int64_t height,
                                         int64_t width) {
  points = torch::stable::contiguous(points);
  ring_ends = torch::stable::contiguous(ring_ends);
  object_ends = torch::stable::contiguous(object_ends);
  const int64_t rings = ring_ends.size(0), count = object_ends.size(0);
  const double* xy = points.const_data_ptr<double>();
  const int64_t* ring_end = ring_ends.const_data_ptr<int64_t>();
  const int64_t* object_end = object_ends.const_data_ptr<int64_t>();
  check_ends(ring_end, rings, points.size(0), "ring", "corners");
  check_ends(object_end, count, rings, "object", "rings");
  for (int64_t i = 0; i < 2 * points.size(0); ++i) {
    check(std::abs(xy[i]) < kFarthestPx, "corner ", i / 2, " is (", xy[i / 2 * 2], ", ", xy[i / 2 * 2 + 1],
          "), wanted finite numbers below 2^27 pixels");
  }
  std::vector<Object> objects(static_cast<size_t>(count), Object(height, width));
  int64_t largest = 0, ring = 0;
  for (int64_t i = 0; i < count; ++i) {
    Object& object = objects[static_cast<size_t>(i)];
    for (; ring < object_end[i]; ++ring) {
      const int64_t begin = ring == 0 ? 0 : ring_end[ring - 1];
      object.add_ring(xy + 2 * begin, ring_end[ring] - begin);
    }
    check(object.largest() <= kMostPixels - largest, "the boxes of the objects up to ", i, " hold more than 2^40 pixels");
    largest += object.largest();
  }
  Tensor pixels = torch::stable::empty({largest}, torch::headeronly::ScalarType::Byte);
  Tensor extents = torch::stable::empty({count, 4}, torch::headeronly::ScalarType::Long);
  uint8_t* out = pixels.mutable_data_ptr<uint8_t>();
  int64_t* extent = extents.mutable_data_ptr<int64_t>();
  for (const Object& object : objects) {
    const Window tight = object.write(out);
    out += tight.height() * tight.width();
    const int64_t place[] = {tight.y0, tight.x0, tight.height(), tight.width()};
    extent = std::copy(place, place + 4, extent);
  }
  return {torch::stable::narrow(pixels, 0, 0, out - pixels.mutable_data_ptr<uint8_t>()), extents};
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CPU, m) { m.impl("polygon_crops", TORCH_BOX(&maskray::polygon_crops)); }
