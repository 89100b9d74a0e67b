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
  template <typename As, bool kPartial, typename Stored>
  MASKRAY_INLINE void store_to(Stored* to, int64_t some) const {
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; ++k) {
      store<kPartial, As>(to + k * N::kLanes, lanes[k], some);
    }
  }
};

/// Add weight x from[cell, ..] of each tap; cells lie `stride` numbers apart.
template <typename N, int kBlock, bool kPartial, typename Stored>
MASKRAY_INLINE void add_taps(const Stored* from, const Tap<typename N::T>* taps, int64_t count, int64_t stride,
                             int64_t some, Sums<N, kBlock>& sum) {
  for (int64_t j = 0; j < count; ++j) {
    const Stored* cell = from + taps[j].cell * stride;
    const typename N::T weight = taps[j].weight;
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; ++k) {
      sum.lanes[k] += load<kPartial, N>(cell + k * N::kLanes, some) * weight;
    }
  }
}

}  // namespace maskray
