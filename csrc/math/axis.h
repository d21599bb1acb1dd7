// SPDX-License-Identifier: MIT
// One axis: its output size, and the two pixels on either side of a position.
#pragma once

#include <cmath>
#include <cstdint>

#include "../params.h"
#include "portability.h"

namespace ddu {

// F.unfold's output size along an axis: (padded - reach - 1) // stride + 1, rounded down for plain and symbolic
// integers alike. `padded` is the size with the padding on both sides, `reach` is dilation * (kernel - 1).
template <class Int>
Int output_size(const Int& padded, const Int& reach, int64_t stride) {
  const Int last = padded - reach - 1;  // where the last window could begin
  return last >= 0 ? Int(last / stride + 1) : Int(0);
}

// Marks a tap without a neighbour in the image: neither pixel kNoPixel nor the next one lies inside.
constexpr int kNoPixel = -2;

// The widths, in pixels, of the border of zeros around a copy of an image, which gives every corner an address.
// kNoPixel is the first pixel of the border.
constexpr int64_t kBorderLow = -kNoPixel;
constexpr int64_t kBorderHigh = 1;

DDU_HOST_DEVICE constexpr int64_t padded(int64_t size) { return kBorderLow + size + kBorderHigh; }

// A tap's neighbours along one axis are `pixel` and `pixel + 1`, each inside the image or not, with the weights
// 1 - fraction and fraction. When the tap moves by one pixel along the axis, the fraction changes by `direction`.
template <class T, class Index = int64_t>
struct Neighbours {
  Index pixel;  // in [-1, size - 1], or kNoPixel
  T fraction;   // in [0, 1]
  T direction;  // 1; 0 where the edge continues the image; -1 or 1 where the image is reflected
};

// Whether 32-bit pixel numbers suffice for an axis, which is what `neighbours` requires of its Index.
DDU_HOST_DEVICE bool fits_int32(const Axis<int64_t>& axis) {
  const int64_t limit = int64_t(1) << 30;
  return axis.size < limit && axis.padding < limit && axis.dilation * (axis.kernel - 1) < limit;
}

// a modulo m, in [0, m - 1].
DDU_HOST_DEVICE int64_t modulo(int64_t a, int64_t m) {
  const int64_t rest = a % m;
  return rest < 0 ? rest + m : rest;
}

// base + pixels, modulo the period.
DDU_HOST_DEVICE_RARE int64_t repeated(int64_t base, int64_t pixels, int64_t period) {
  return (modulo(base, period) + modulo(pixels, period)) % period;
}

// The neighbours at pixel base + pixels, plus a fraction; the sum may overflow Index. `ahead` is negative or positive
// where the position lies beyond any such sum.
template <class T, class Index>
DDU_HOST_DEVICE Neighbours<T, Index> beyond_zeros(
    Index size, Index base, Index pixels, T fraction, T ahead, PaddingMode mode) {
  if (ahead == 0 && pixels >= -base && pixels < size - 1 - base) {
    return {static_cast<Index>(base + pixels), fraction, T(1)};
  }
  if (mode == PaddingMode::kBorder || size == 1) {
    // The edge itself, with a weight of exactly one, next to a pixel of the border of zeros.
    const bool before = ahead < 0 || (ahead == 0 && pixels < -base);
    return before ? Neighbours<T, Index>{Index(-1), T(1), T(0)}
                  : Neighbours<T, Index>{static_cast<Index>(size - 1), T(0), T(0)};
  }
  // Reflected at the centres of its first and last pixel, the image repeats, every other time backwards.
  const int64_t period = 2 * (static_cast<int64_t>(size) - 1);
  int64_t at = sizeof(Index) == 4 ? static_cast<int64_t>(base) + pixels : -period;  // the sum must not overflow
  if (at <= -size || at >= period) {
    at = repeated(base, pixels, period);
  }
  if (at >= 0 && at < size - 1) {
    return {static_cast<Index>(at), fraction, T(1)};
  }
  return {static_cast<Index>((at < 0 ? 0 : period) - 1 - at), 1 - fraction, T(-1)};
}

// NOTE [ Positions ]
// A tap samples at base + base_fraction + slope * parameter (math/positions.h). The last two terms add up to the
// offset. Only the offset is split into whole pixels and a fraction; the base's pixels are added as integers, so the
// fraction loses no bits to the size of the image. It loses none to the size of the offset either: the product is not
// rounded before the whole pixels are subtracted; the fused multiply-add returns the exact remainder, rounded once. So
// a tap always lands in the same cell as in exact arithmetic (up to offsets of 2^22 pixels in float); in another cell
// the derivative would be different.
//
// An offset is accepted if it leads to a neighbour in the image, not rejected if it doesn't. So a huge offset or NaN
// never becomes an address: it is first compared as a floating point number, and converted only below the limit.
template <class T, class Index>
DDU_HOST_DEVICE Neighbours<T, Index> neighbours(
    Index size, Index base, T base_fraction, T slope, T parameter, PaddingMode mode) {
  const T limit = static_cast<T>(Index(1) << (8 * sizeof(Index) - 2));
  const T offset = std::floor(slope * parameter + base_fraction);
  const bool near = std::fabs(offset) < limit;  // false for NaN
  const T whole = near ? offset : T(0);
  const T rest = std::fma(slope, parameter, base_fraction - whole);
  // A negative rest: the product was rounded up to a whole pixel. (A rest of 1 is also rounded: it stays in its cell.)
  const T carry = rest < 0 ? T(-1) : T(0);
  const Index pixels = static_cast<Index>(whole) + static_cast<Index>(carry);
  if (mode != PaddingMode::kZeros) {
    const bool finite = parameter - parameter == 0;
    return !finite ? Neighbours<T, Index>{Index(kNoPixel), T(0), T(0)}
        : near     ? beyond_zeros(size, base, pixels, rest - carry, T(0), mode)
                   : beyond_zeros(size, base, Index(0), T(0), offset, mode);
  }
  // Equivalent to -1 <= base + pixels < size, but no sum can overflow.
  const bool inside = near & (pixels >= -1 - base) & (pixels < size - base);
  return {inside ? static_cast<Index>(base + pixels) : Index(kNoPixel), inside ? rest - carry : T(0), T(1)};
}

}  // namespace ddu
