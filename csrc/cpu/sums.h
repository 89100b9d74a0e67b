// Several registers of sums side by side, so that one addition need not wait for the one before it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/roi_taps.h"

namespace maskray {

/// Registers that are summed side by side: two such blocks must fit the 16 registers of AVX2 and SSE, the 32 of AVX-512.
template <Simd kSimd>
constexpr int kBlockOf = kSimd == Simd::kAvx512 ? 8 : 4;

/// Call block(number of registers, partial?, first number, count if partial) until `count` numbers are done.
template <Simd kSimd, int64_t kLanes, typename F>
MASKRAY_INLINE void over_numbers(int64_t count, const F& block) {
  constexpr int kBlock = kBlockOf<kSimd>;
  int64_t c = 0;
  for (; c + kBlock * kLanes <= count; c += kBlock * kLanes) {
    block(std::integral_constant<int, kBlock>{}, std::false_type{}, c, int64_t{0});
  }
  for (; c + kLanes <= count; c += kLanes) {
    block(std::integral_constant<int, 1>{}, std::false_type{}, c, int64_t{0});
  }
  if (c < count) {
    block(std::integral_constant<int, 1>{}, std::true_type{}, c, count - c);
  }
}

/// kBlock registers that are summed into, zero at first: one by one, since GCC clears an array in memory, many times slower.
template <typename N, int kBlock>
struct Sums {
  typename N::Lanes lanes[kBlock];
  MASKRAY_INLINE Sums() {
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; ++k) {
      lanes[k] = typename N::Lanes{};
    }
  }
  /// += weight x the numbers from `from` on, read as N or any other As with its lanes.
  template <typename As, bool kPartial, typename Stored>
  MASKRAY_INLINE void add(const Stored* from, int64_t some, typename N::T weight) {
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; ++k) {
      lanes[k] += load<kPartial, As>(from + k * N::kLanes, some) * weight;
    }
  }
  MASKRAY_INLINE void add(const Sums& other, typename N::T weight) {
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; ++k) {
      lanes[k] += other.lanes[k] * weight;
    }
  }
  template <typename As, bool kPartial, typename Stored>
  MASKRAY_INLINE void store_to(Stored* to, int64_t some) const {
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; ++k) {
      store<kPartial, As>(to + k * N::kLanes, lanes[k], some);
    }
  }
  /// `to` += the sums.
  template <bool kPartial>
  MASKRAY_INLINE void add_to(typename N::T* to, int64_t some) const {
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; ++k) {
      store<kPartial, N>(to + k * N::kLanes, load<kPartial, N>(to + k * N::kLanes, some) + lanes[k], some);
    }
  }
};

/// Add weight x from[cell, ..] of each tap; cells lie `stride` numbers apart.
template <typename N, int kBlock, bool kPartial, typename Stored>
MASKRAY_INLINE void add_taps(const Stored* from, const Tap<typename N::T>* taps, int64_t count, int64_t stride,
                             int64_t some, Sums<N, kBlock>& sum) {
  for (int64_t j = 0; j < count; ++j) {
    sum.template add<N, kPartial>(from + taps[j].cell * stride, some, taps[j].weight);
  }
}

}  // namespace maskray
