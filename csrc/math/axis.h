// SPDX-License-Identifier: MIT
// The size of the output, and where the taps of a window lie along one axis.
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

// The border of zeros that a copy of an image has around it, in pixels, so that every tap has four corners with an
// address: kNoPixel is the first pixel of the border.
constexpr int64_t kBorderLow = -kNoPixel;
constexpr int64_t kBorderHigh = 1;

DDU_HOST_DEVICE constexpr int64_t padded(int64_t size) { return kBorderLow + size + kBorderHigh; }

// The neighbours of a tap along one axis are `pixel` and `pixel + 1`, each inside the image or not.
template <class T, class Index = int64_t>
struct Neighbours {
  Index pixel;  // floor of the position: in [-1, size - 1], or kNoPixel
  T fraction;   // position - pixel, in [0, 1]
};

// d position / d rate of a tap: its distance from the window's centre at rate 1, (tap - (k - 1) / 2) * d.
template <class T>
DDU_HOST_DEVICE T tap_slope(const Axis<int64_t>& axis, int64_t tap) {
  return static_cast<T>(2 * tap - (axis.kernel - 1)) * static_cast<T>(axis.dilation) / 2;
}

// The whole pixels of a window's centre: i * s - p + floor(a * d * (k - 1) / 2).
template <class Int>
DDU_HOST_DEVICE int64_t centre_pixel(const Axis<Int>& axis, int64_t out_index, bool aligned) {
  const int64_t reach = aligned ? axis.dilation * (axis.kernel - 1) : 0;
  return out_index * axis.stride - axis.padding + reach / 2;
}

// What centre_pixel leaves: 0, or 1/2 for an aligned window whose centre lies between two pixels.
template <class T, class Int>
DDU_HOST_DEVICE T centre_fraction(const Axis<Int>& axis, bool aligned) {
  return aligned && axis.kernel % 2 == 0 && axis.dilation % 2 != 0 ? T(0.5) : T(0);
}

// Whether 32-bit pixels do for an axis: what `neighbours` asks of its Index.
DDU_HOST_DEVICE bool fits_int32(const Axis<int64_t>& axis) {
  const int64_t limit = int64_t(1) << 30;
  return axis.size < limit && axis.padding < limit && axis.dilation * (axis.kernel - 1) < limit;
}

// NOTE [ Positions ]
// A tap samples at centre_pixel + centre_fraction + slope * rate (SPEC's formula, regrouped). The sum of the last two,
// the offset, is what is split into whole pixels and a fraction; the centre's pixels are added as integers. So the
// fraction does not lose bits to the size of the image. Nor does it to the size of the offset: the product is not
// rounded before the whole pixels are taken off, the fused multiply-add returns the exact remainder, rounded once.
// Therefore a tap never lands in another cell than in exact arithmetic, where the derivative would be another
// (up to offsets of 2^22 pixels in float).
//
// An offset is accepted if it leads to a neighbour in the image, never rejected if it does not, so one that is huge or
// NaN never becomes an address: it is compared as a floating point number first, and converted only below the limit.
template <class T, class Index>
DDU_HOST_DEVICE Neighbours<T, Index> neighbours(Index size, Index centre, T centre_fraction, T slope, T rate) {
  const T limit = static_cast<T>(Index(1) << (8 * sizeof(Index) - 2));
  const T offset = std::floor(slope * rate + centre_fraction);
  const bool near = std::fabs(offset) < limit;  // false for NaN
  const T whole = near ? offset : T(0);
  const T rest = std::fma(slope, rate, centre_fraction - whole);
  // The product was rounded up to a whole pixel. (A rest of 1 is one that was rounded: it stays in its cell.)
  const T carry = rest < 0 ? T(-1) : T(0);
  const Index pixels = static_cast<Index>(whole) + static_cast<Index>(carry);
  // The same as -1 <= centre + pixels < size, without a sum that could wrap around.
  const bool inside = near & (pixels >= -1 - centre) & (pixels < size - centre);
  return {inside ? static_cast<Index>(centre + pixels) : Index(kNoPixel), inside ? rest - carry : T(0)};
}

}  // namespace ddu
