// Sixteen numbers at a time, loaded from and stored as any of the four floating types.
//
// GCC's vector extension splits a wide vector into what the instruction set at hand has, on any architecture. Storage in
// 16 bits is computed in float32: the conversions below are exact, and round to nearest even on the way back.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/simd.h"

namespace maskray {

constexpr int64_t kLanes = 16;

typedef float FloatLanes __attribute__((vector_size(kLanes * 4)));
typedef double DoubleLanes __attribute__((vector_size(kLanes * 8)));
typedef uint32_t WordLanes __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfWordLanes __attribute__((vector_size(kLanes * 2)));

struct BFloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};

template <typename To, typename From>
MASKRAY_INLINE To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

MASKRAY_INLINE WordLanes choose(const WordLanes& mask, const WordLanes& yes, const WordLanes& no) {
  return (mask & yes) | (~mask & no);
}

/// float32 bits of bfloat16 bits.
MASKRAY_INLINE WordLanes widen_bfloat16(const WordLanes& bits) { return bits << 16; }

/// float32 bits of float16 bits: the exponent is rebased by a multiplication, which also normalises subnormals.
MASKRAY_INLINE WordLanes widen_float16(const WordLanes& bits) {
  const WordLanes magnitude = (bits & 0x7fffU) << 13;
  const FloatLanes rebased = same_bits<FloatLanes>(magnitude) * 0x1p112f;
  const WordLanes special = (WordLanes)(magnitude >= (0x7c00U << 13));
  return same_bits<WordLanes>(rebased) | (special & 0x7f800000U) | ((bits & 0x8000U) << 16);
}

/// bfloat16 bits nearest to float32 bits, ties to even; NaN becomes the one quiet NaN torch writes.
MASKRAY_INLINE WordLanes narrow_bfloat16(const WordLanes& bits) {
  const WordLanes rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const WordLanes nan = (WordLanes)((bits & 0x7fffffffU) > 0x7f800000U);
  return choose(nan, WordLanes{} + 0x7fc0U, rounded);
}

/// float16 bits nearest to float32 bits, ties to even.
MASKRAY_INLINE WordLanes narrow_float16(const WordLanes& bits) {
  const WordLanes magnitude = bits & 0x7fffffffU;
  const WordLanes normal = (magnitude + 0xfffU + ((magnitude >> 13) & 1U) - (112U << 23)) >> 13;
  // Below 2^-14 a float16 is a multiple of 2^-24, and so are float32 values in [0.5, 1): the addition does the rounding.
  const FloatLanes shifted = same_bits<FloatLanes>(magnitude) + 0.5f;
  const WordLanes subnormal = same_bits<WordLanes>(shifted) - 0x3f000000U;
  WordLanes result = choose((WordLanes)(magnitude < (113U << 23)), subnormal, normal);
  result = choose((WordLanes)(magnitude >= 0x477ff000U), WordLanes{} + 0x7c00U, result);  // 65520 and above
  result = choose((WordLanes)(magnitude > 0x7f800000U), WordLanes{} + 0x7e00U, result);
  return result | ((bits >> 16) & 0x8000U);
}

/// How values of one storage type are computed with: T, Lanes of T, loads and stores of 16.
template <typename Stored>
struct Numbers;

template <>
struct Numbers<float> {
  using T = float;
  using Lanes = FloatLanes;
  static MASKRAY_INLINE Lanes load(const float* from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof(Lanes));
    return lanes;
  }
  static MASKRAY_INLINE void store(float* to, const Lanes& lanes) { std::memcpy(to, &lanes, sizeof(Lanes)); }
};

template <>
struct Numbers<double> {
  using T = double;
  using Lanes = DoubleLanes;
  static MASKRAY_INLINE Lanes load(const double* from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof(Lanes));
    return lanes;
  }
  static MASKRAY_INLINE void store(double* to, const Lanes& lanes) { std::memcpy(to, &lanes, sizeof(Lanes)); }
};

template <typename Stored>
struct SixteenBitNumbers {
  using T = float;
  using Lanes = FloatLanes;
  static constexpr bool kBrain = sizeof(Stored) == 2 && std::is_same_v<Stored, BFloat16Bits>;
  static MASKRAY_INLINE Lanes load(const Stored* from) {
    HalfWordLanes bits;
    std::memcpy(&bits, from, sizeof(bits));
    const WordLanes wide = __builtin_convertvector(bits, WordLanes);
    if constexpr (kBrain) {
      return same_bits<Lanes>(widen_bfloat16(wide));
    } else {
      return same_bits<Lanes>(widen_float16(wide));
    }
  }
  static MASKRAY_INLINE void store(Stored* to, const Lanes& lanes) {
    const WordLanes wide = same_bits<WordLanes>(lanes);
    WordLanes narrow;
    if constexpr (kBrain) {
      narrow = narrow_bfloat16(wide);
    } else {
      narrow = narrow_float16(wide);
    }
    const HalfWordLanes bits = __builtin_convertvector(narrow, HalfWordLanes);
    std::memcpy(to, &bits, sizeof(bits));
  }
};

template <>
struct Numbers<BFloat16Bits> : SixteenBitNumbers<BFloat16Bits> {};
template <>
struct Numbers<Float16Bits> : SixteenBitNumbers<Float16Bits> {};

/// The first `count` < 16 numbers; the other lanes are zero.
template <typename Stored>
MASKRAY_INLINE typename Numbers<Stored>::Lanes load_some(const Stored* from, int64_t count) {
  Stored padded[kLanes] = {};
  std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(Stored));
  return Numbers<Stored>::load(padded);
}

template <typename Stored>
MASKRAY_INLINE void store_some(Stored* to, const typename Numbers<Stored>::Lanes& lanes, int64_t count) {
  Stored padded[kLanes];
  Numbers<Stored>::store(padded, lanes);
  std::memcpy(to, padded, static_cast<size_t>(count) * sizeof(Stored));
}

}  // namespace maskray
