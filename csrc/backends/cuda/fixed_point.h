// SPDX-License-Identifier: MIT
// Sums that don't depend on the order of additions.

// NOTE [ Fixed point ]
// Atomic additions happen in any order. Floating point sums depend on the order, integer sums don't. So, where
// determinism is asked for, each addend is first rounded to a multiple of a unit, and the multiples are added as 64-bit
// integers. Nothing is sorted, nobody waits, and the backward still needs only one pass.
//
// The unit is a power of two such that the largest possible sum, 2^log2_terms * largest, is just below 2^61 units. With
// a million contributions to a pixel, the unit is 2^-40 of the largest gradient, finer than a float sum. For double, a
// second integer holds what the first one rounds off, in units that are 2^32 times smaller.
//
// A number that isn't finite has no place on that scale. It is not added, but stores the mark kNotFinite; whatever is
// added to a mark afterwards (below 2^61 in all) leaves it recognisable, and it becomes NaN at the end.
#pragma once

#include <cstdint>

#include "device.h"

namespace ddu::cuda {

// The number of integers per sum.
template <class T>
constexpr int kLimbs = std::is_same_v<T, double> ? 2 : 1;

#if defined(__CUDACC__)

constexpr unsigned long long kNotFinite = 3ull << 61;  // 2^62 + 2^61; marked: from 2^62 to 2^63 - 1
constexpr int kLimbBits = 32;

// 2^exponent
__device__ __forceinline__ double power_of_two(int exponent) {
  return __longlong_as_double(static_cast<long long>(max(-1022, min(1023, exponent)) + 1023) << 52);
}

// Results depend on the order, in the last bits.
template <class T>
struct FloatingPoint {
  static constexpr int kStride = 1;

  __device__ __forceinline__ void add(T* sum, T value) const { atomicAdd(sum, value); }
};

template <class T>
struct FixedPoint {
  static constexpr int kStride = kLimbs<T>;
  double scale;  // units per 1
  double unit;

  // Meaningless unless sums are fixed point.
  __device__ __forceinline__ explicit FixedPoint(const Sums& sums) {
    const unsigned long long bits = sums.largest != nullptr ? *sums.largest : 0;
    // largest < 2^exponent
    const int exponent = std::is_same_v<T, double> ? static_cast<int>(bits >> 52) - 1022
                                                   : static_cast<int>(static_cast<unsigned>(bits) >> 23) - 126;
    // Limits the exponent so that the inverse exists too, and so does the second limb's unit.
    const int log2_scale = max(-1000, min(960, 61 - exponent - sums.log2_terms));
    scale = power_of_two(log2_scale);
    unit = power_of_two(-log2_scale);
  }

  __device__ __forceinline__ void add(unsigned long long* sum, T value) const {
    if (!is_finite(value)) {
      atomicExch(sum, kNotFinite);
      return;
    }
    const double units = static_cast<double>(value) * scale;
    const long long whole = __double2ll_rn(units);
    atomicAdd(sum, static_cast<unsigned long long>(whole));
    if constexpr (kLimbs<T> == 2) {
      const double rest = units - static_cast<double>(whole);
      atomicAdd(sum + 1, static_cast<unsigned long long>(__double2ll_rn(rest * static_cast<double>(1ll << kLimbBits))));
    }
  }

  __device__ __forceinline__ T value(const unsigned long long* sum) const {
    const auto whole = static_cast<long long>(sum[0]);
    if (whole >= (1ll << 62)) {
      return std::numeric_limits<T>::quiet_NaN();
    }
    double units = static_cast<double>(whole);
    if constexpr (kLimbs<T> == 2) {
      // Converts the whole part first: on its own it is exact only up to 2^53 units.
      const double rest = static_cast<double>(static_cast<long long>(sum[1])) / static_cast<double>(1ll << kLimbBits);
      const auto high = static_cast<double>(whole >> 16 << 16);
      units = high + (static_cast<double>(whole & 0xffff) + rest);
    }
    return static_cast<T>(units * unit);
  }
};

#endif

}  // namespace ddu::cuda
