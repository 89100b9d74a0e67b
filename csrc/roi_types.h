// What every RoIAlign kernel speaks of: storage types, the sizes of the maps, the settings of the pooling.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <type_traits>

#include "check.h"

namespace maskray {

using torch::headeronly::ScalarType;

struct BFloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};

/// The type a storage type is computed in.
template <typename Stored>
using Computed = std::conditional_t<sizeof(Stored) == 2, float, Stored>;

/// Size of one feature map, in memory as [images, height, width, channels].
struct MapSize {
  int64_t images, channels, height, width;
};

/// Settings shared by every RoI.
struct Pooling {
  int64_t height, width;  ///< bins
  int64_t sampling;       ///< samples per bin and axis; 0: one a cell
  bool aligned;
};

/// Call f with a value of the storage type of `type`.
template <typename F>
inline auto with_storage(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(BFloat16Bits{});
    case ScalarType::Half:
      return f(Float16Bits{});
    default:
      check(type == ScalarType::Float, "features have a type RoIAlign cannot compute with: give float32, float64, ",
            "bfloat16 or float16");
      return f(float{});
  }
}

}  // namespace maskray
