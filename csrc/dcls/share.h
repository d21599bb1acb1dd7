// SPDX-License-Identifier: MIT
// Along one axis: a cell's share of a point's weight, and the share's derivatives.
//
// NOTE [ Shares ]
// In every version a cell's share is a product over the axes, b = prod h(x_a), where x_a is the distance of the cell
// from the point along axis a. So its sum over all cells is a product too, S = prod S_a. A kernel is therefore built
// from tables with one entry per cell of an axis; no table has an entry for every point and cell.
//
//     kernel[cell]     = sum over the points of weight * b / (S + 1e-7)
//     gradient of P_a  = weight / (S + 1e-7) * (<g, D_a b> - <g, b> / (S + 1e-7) * D_a S)
//
// and likewise for sigma_a; D_a differentiates the factor of axis a. Without normalisation the last term is absent and
// the denominator is 1.
//
// At a kink, derivatives with respect to the position and sigma are those from the right.
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

#include "../math/portability.h"
#include "../params.h"

namespace ddu::dcls {

enum class Version : int8_t { kV0, kV1, kMax, kGauss };
constexpr const char* kVersionNames[] = {"v0", "v1", "max", "gauss"};

// The version with a given name.
inline Version version_of(std::string_view name) {
  int number = 0;
  while (name != kVersionNames[number]) {
    ++number;
  }
  return static_cast<Version>(number);
}

constexpr bool has_sigma(Version version) { return version == Version::kMax || version == Version::kGauss; }

constexpr double kEpsilon = 1e-7;  // added to the sum of the shares

// The least width: it is added to |sigma|.
constexpr double least_sigma(Version version) { return version == Version::kGauss ? 0.27 : 1.0; }

// From this distance on, in units of sigma, the Gaussian is 0 in every type.
constexpr double kFarthest = 100;

// The sizes of a call, for a kernel. All tensors are contiguous:
//   weight            [rows, count]
//   positions, sigma  [axes, rows, count]
//   result            [rows, *size], of the last `axes` of them; the other sizes are 1
struct Problem {
  int64_t rows;
  int64_t count;
  int64_t axes;
  int64_t size[kMaxAxes];
  Version version;

  DDU_HOST_DEVICE int first_axis() const { return kMaxAxes - static_cast<int>(axes); }
  DDU_HOST_DEVICE int64_t cells() const { return size[0] * size[1] * size[2]; }
  DDU_HOST_DEVICE bool normalised() const { return version != Version::kV0; }
};

// Where a point lies on an axis, counted from the first cell, and how wide it is. The fraction is taken from the
// position itself, so it loses no bits to the size of the kernel. If the position isn't finite, the fraction is NaN,
// and so are all shares.
template <class T>
struct Place {
  T whole;
  T fraction;
  T sigma;
  T inverse;  // of sigma

  DDU_HOST_DEVICE T distance(int64_t cell) const { return (static_cast<T>(cell) - whole) - fraction; }
};

template <class T>
DDU_HOST_DEVICE Place<T> place(T position, T sigma, int64_t size, T least) {
  const T whole = std::floor(position);
  const T width = std::fabs(sigma) + least;
  return {whole + static_cast<T>(size / 2), position - whole, width, 1 / width};
}

// The derivative of |sigma|.
template <class T>
DDU_HOST_DEVICE T sign_of_sigma(T sigma) {
  return sigma < 0 ? T(-1) : T(1);
}

// The place on an axis that the problem lacks: one cell, which takes everything.
template <class T>
DDU_HOST_DEVICE Place<T> nowhere() {
  return {T(0), T(0), T(1), T(1)};
}

template <class T>
struct Share {
  T value;
  T by_position;
  T by_sigma;
};

template <bool kGauss, class T>
DDU_HOST_DEVICE Share<T> share(const Place<T>& place, int64_t cell) {
  const T x = place.distance(cell);
  if constexpr (kGauss) {
    const T far = T(kFarthest);
    const T ratio = x * place.inverse;
    const T u = ratio > far ? far : ratio < -far ? -far : ratio;
    const T value = std::exp(T(-0.5) * u * u);
    const T slope = value * u * place.inverse;
    return {value, slope, slope * u};
  } else {
    if (x <= -place.sigma || x > place.sigma) {
      return {T(0), T(0), T(0)};
    }
    return {place.sigma - std::fabs(x), x > 0 ? T(1) : x <= 0 ? T(-1) : x, T(1)};
  }
}

// A range of an axis' cells outside which every share is exactly 0. It may be a cell or two wider than necessary.
struct Cells {
  int64_t begin;
  int64_t end;

  DDU_HOST_DEVICE int64_t size() const { return end - begin; }
};

template <bool kGauss, class T>
DDU_HOST_DEVICE Cells cells_near(const Place<T>& place, int64_t size) {
  if (!(place.fraction >= 0)) {  // the position is not finite
    return {0, size};
  }
  // From here on exp(-u^2 / 2) is 0.
  constexpr T kUnderflow = sizeof(T) == 4 ? T(14.5) : T(39);
  const T reach = kGauss ? place.sigma * kUnderflow : place.sigma;
  const T low = std::floor(place.whole - reach);
  const T high = std::floor(place.whole + reach) + T(3);
  const T limit = static_cast<T>(size);
  const int64_t begin = low > 0 ? (low < limit ? static_cast<int64_t>(low) : size) : 0;
  const int64_t end = high < limit ? (high > 0 ? static_cast<int64_t>(high) : 0) : size;
  return {begin, end < begin ? begin : end};
}

}  // namespace ddu::dcls
