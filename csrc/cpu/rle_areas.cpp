// Many compressed run lengths judged at once: what is certainly sound gets its area, the rest is left to a closer look.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "check.h"

namespace maskray {
namespace {

using torch::stable::Tensor;

constexpr int kMaxGroups = 6;  ///< 30 bits: a run below 2^29, so that no sum of runs below 2^31 pixels can overflow

/// One number of a string; false where it is unsound, not canonical or too long.
inline bool read_number(const uint8_t*& at, const uint8_t* end, int64_t& value) {
  value = 0;
  uint8_t before = 0;
  for (int group = 0; group < kMaxGroups && at < end; ++group) {
    const uint8_t symbol = static_cast<uint8_t>(*at++ - 48);
    if (symbol > 63) {
      return false;
    }
    value |= static_cast<int64_t>(symbol & 0x1f) << (5 * group);
    if (!(symbol & 0x20)) {
      if (symbol & 0x10) {
        value -= int64_t{1} << (5 * (group + 1));
      }
      // A last group that only repeats the sign is one that no encoder writes.
      return group == 0 || symbol != ((before & 0x10) ? 0x1f : 0);
    }
    before = symbol;
  }
  return false;
}

/// The pixels set by one string; -1 where it must be looked at alone.
int64_t area_of(const uint8_t* at, const uint8_t* end, int64_t pixels) {
  if (pixels < 1 || pixels >= int64_t{1} << 31) {
    return -1;
  }
  int64_t last[2] = {0, 0}, sum = 0, area = 0;
  for (int64_t number = 0; at < end; ++number) {
    int64_t run;
    if (!read_number(at, end, run)) {
      return -1;
    }
    // The first run is written plain and starts no chain of differences, nor do the second and third have one to follow.
    run += number > 2 ? last[number % 2] : 0;
    if (run < 0 || (run == 0 && number > 0) || run > pixels - sum) {
      return -1;
    }
    last[number % 2] = run;
    sum += run;
    area += number % 2 ? run : 0;
  }
  return sum == pixels ? area : -1;
}

/// Strings one after the other, their ends [n] and pictures' pixels [n] -> areas [n].
Tensor rle_areas(Tensor counts, Tensor ends, Tensor pixels) {
  counts = torch::stable::contiguous(counts);
  ends = torch::stable::contiguous(ends);
  pixels = torch::stable::contiguous(pixels);
  const int64_t n = ends.size(0);
  Tensor areas = torch::stable::empty({n}, torch::headeronly::ScalarType::Long);
  const uint8_t* text = counts.const_data_ptr<uint8_t>();
  const int64_t *end = ends.const_data_ptr<int64_t>(), *pixel = pixels.const_data_ptr<int64_t>();
  int64_t* out = areas.mutable_data_ptr<int64_t>();
  int64_t begin = 0;
  for (int64_t i = 0; i < n; ++i) {
    check(end[i] >= begin && end[i] <= counts.size(0), "string ", i, " ends at ", end[i], " of ", counts.size(0),
          " bytes, wanted ", begin, "..", counts.size(0));
    out[i] = end[i] > begin ? area_of(text + begin, text + end[i], pixel[i]) : -1;
    begin = end[i];
  }
  return areas;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CPU, m) { m.impl("rle_areas", TORCH_BOX(&maskray::rle_areas)); }
