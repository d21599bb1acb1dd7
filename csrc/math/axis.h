// SPDX-License-Identifier: MIT
// One axis: the size of its output, and the two pixels between which a position lies.
#pragma once

#include <cmath>
#include <cstdint>

#include "../params.h"
#include "portability.h"

namespace ddu {

// F.unfold's size of the output along an axis: (padded - reach - 1) // stride + 1, rounded down for a plain and a
// symbolic integer alike. `padded` is the size with the padding on both sides, `reach` is dilation * (kernel - 1).
template <class Int>
Int output_size(const Int& padded, const Int& reach, int64_t stride) {
  const Int last = padded - reach - 1;  // where the last window could begin
  return last >= 0 ? Int(last / stride + 1) : Int(0);
}

// Marks a tap that has no neighbour in the image: neither pixel kNoPixel nor the one after it lies inside.
constexpr int kNoPixel = -2;

// The border of zeros that a copy of an image has around it, in pixels, so that every corner of a tap has an address:
// kNoPixel is the first pixel of the border.
constexpr int64_t kBorderLow = -kNoPixel;
constexpr int64_t kBorderHigh = 1;

DDU_HOST_DEVICE constexpr int64_t padded(int64_t size) { return kBorderLow + size + kBorderHigh; }

// The neighbours of a tap along one axis are `pixel` and `pixel + 1`, each inside the image or not, weighted with
// 1 - fraction and fraction. A step of the tap along the axis adds `direction` to the fraction.
template <class T, class Index = int64_t>
struct Neighbours {
  Index pixel;  // in [-1, size - 1], or kNoPixel
  T fraction;   // in [0, 1]
  T direction;  // 1; where the image is continued by its edge 0; where it is reflected -1 or 1
};

// Whether 32-bit pixels do for an axis: what `neighbours` asks of its Index.
DDU_HOST_DEVICE bool fits_int32(const Axis<int64_t>& axis) {
  const int64_t limit = int64_t(1) << 30;
  return axis.size < limit && axis.padding < limit && axis.dilation * (axis.kernel - 1) < limit;
}

// a modulo m, between 0 and m - 1.
DDU_HOST_DEVICE int64_t modulo(int64_t a, int64_t m) {
  const int64_t rest = a % m;
  return rest < 0 ? rest + m : rest;
}

// base + pixels, modulo the period.
DDU_HOST_DEVICE_RARE int64_t repeated(int64_t base, int64_t pixels, int64_t period) {
  return (modulo(base, period) + modulo(pixels, period)) % period;
}

// The neighbours at pixel base + pixels, of which the sum need not be a number that Index has, plus a fraction. `ahead`
// is below or above zero where the position lies further away than any sum of them.
template <class T, class Index>
DDU_HOST_DEVICE Neighbours<T, Index> beyond_zeros(
    Index size, Index base, Index pixels, T fraction, T ahead, PaddingMode mode) {
  if (ahead == 0 && pixels >= -base && pixels < size - 1 - base) {
    return {static_cast<Index>(base + pixels), fraction, T(1)};
  }
  if (mode == PaddingMode::kBorder || size == 1) {
    // The edge itself, whose weight is exactly one, beside a pixel of the border of zeros.
    const bool before = ahead < 0 || (ahead == 0 && pixels < -base);
    return before ? Neighbours<T, Index>{Index(-1), T(1), T(0)}
                  : Neighbours<T, Index>{static_cast<Index>(size - 1), T(0), T(0)};
  }
  // Reflected at the centres of the first and the last pixel, the image repeats itself, every second time backwards.
  const int64_t period = 2 * (static_cast<int64_t>(size) - 1);
  int64_t at = sizeof(Index) == 4 ? static_cast<int64_t>(base) + pixels : -period;  // a sum that may not wrap around
  if (at <= -size || at >= period) {
    at = repeated(base, pixels, period);
  }
  if (at >= 0 && at < size - 1) {
    return {static_cast<Index>(at), fraction, T(1)};
  }
  return {static_cast<Index>((at < 0 ? 0 : period) - 1 - at), 1 - fraction, T(-1)};
}

// NOTE [ Positions ]
// A tap samples at base + base_fraction + slope * parameter (math/positions.h). The sum of the last two, the offset, is
// what is split into whole pixels and a fraction; the base's pixels are added as integers. So the fraction does not
// lose bits to the size of the image. Nor does it to the size of the offset: the product is not rounded before the
// whole pixels are taken off, the fused multiply-add returns the exact remainder, rounded once. Therefore a tap never
// lands in another cell than in exact arithmetic, where the derivative would be another (up to offsets of 2^22 pixels
// in float).
//
// An offset is accepted if it leads to a neighbour in the image, never rejected if it does not, so one that is huge or
// NaN never becomes an address: it is compared as a floating point number first, and converted only below the limit.
template <class T, class Index>
DDU_HOST_DEVICE Neighbours<T, Index> neighbours(
    Index size, Index base, T base_fraction, T slope, T parameter, PaddingMode mode) {
  const T limit = static_cast<T>(Index(1) << (8 * sizeof(Index) - 2));
  const T offset = std::floor(slope * parameter + base_fraction);
  const bool near = std::fabs(offset) < limit;  // false for NaN
  const T whole = near ? offset : T(0);
  const T rest = std::fma(slope, parameter, base_fraction - whole);
  // The product was rounded up to a whole pixel. (A rest of 1 is one that was rounded: it stays in its cell.)
  const T carry = rest < 0 ? T(-1) : T(0);
  const Index pixels = static_cast<Index>(whole) + static_cast<Index>(carry);
  if (mode != PaddingMode::kZeros) {
    const bool finite = parameter - parameter == 0;
    return !finite ? Neighbours<T, Index>{Index(kNoPixel), T(0), T(0)}
        : near     ? beyond_zeros(size, base, pixels, rest - carry, T(0), mode)
                   : beyond_zeros(size, base, Index(0), T(0), offset, mode);
  }
  // The same as -1 <= base + pixels < size, without a sum that could wrap around.
  const bool inside = near & (pixels >= -1 - base) & (pixels < size - base);
  return {inside ? static_cast<Index>(base + pixels) : Index(kNoPixel), inside ? rest - carry : T(0), T(1)};
}

}  // namespace ddu
