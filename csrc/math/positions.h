// SPDX-License-Identifier: MIT
// Sources of positions: where a tap lies along an axis, which parameters move it, and the derivatives with respect to
// them.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "../params.h"
#include "axis.h"

namespace ddu {

// NOTE [ Sources of positions ]
// A tap samples, along an axis, at
//
//     out_index * stride + first_pixel + pixels + fraction + slope * parameter
//
// where first_pixel depends on the axis; pixels, fraction and slope depend on the tap as well; and the parameter comes
// from the tensor of positions and belongs to a window or to each of its taps. The rest of the library is independent
// of the source, except that the gradient with respect to a parameter of a window is a sum over its taps.
//
//     source     parameters                        pixels      slope                    parameter belongs to
//     kRates     1, for all axes, or one per axis  0           (tap - (k - 1) / 2) * d  the window
//     kOffsets   one per axis                      tap * d     1                        the tap
//     kAffine    a matrix and a shift              0           1                        the window: displacement()
//
// The affine map turns a tap's distances from the window's centre at rate one, (tap - (k - 1) / 2) * d along each axis,
// into its displacement, which replaces the parameter above.
//
// A window of rates is either `aligned`, centred where the window of rate one is (whole pixels go into first_pixel,
// half a pixel into the fraction), or centred on the first tap of that window. A window of an affine map is always
// centred where the window of rate one is.

// Whether each tap has parameters of its own.
DDU_HOST_DEVICE constexpr bool per_tap(Source source) { return source == Source::kOffsets; }

// Whether a tap's place along an axis depends only on its index along that axis, in every window.
DDU_HOST_DEVICE constexpr bool by_axis(Source source) { return source == Source::kRates; }

template <class T, class Index = int64_t>
struct TapPlace {
  Index pixels;
  T fraction;
  T slope;  // d position / d parameter
};

// A tap's distance from the window's centre at rate one: (tap - (k - 1) / 2) * d.
template <class T, class Index>
DDU_HOST_DEVICE T tap_distance(const Axis<int64_t>& axis, Index tap) {
  return static_cast<T>(2 * tap - (static_cast<Index>(axis.kernel) - 1)) * static_cast<T>(axis.dilation) / 2;
}

// Whether the window is centred where the window of rate one is.
DDU_HOST_DEVICE constexpr bool is_centred(Source source, bool aligned) {
  return source == Source::kAffine || (source == Source::kRates && aligned);
}

// The fractional part of the window's centre: 0, or 1/2 where it lies between two pixels.
template <class T, class Int>
DDU_HOST_DEVICE T centre_fraction(const Axis<Int>& axis, Source source, bool aligned) {
  return is_centred(source, aligned) && axis.kernel % 2 == 0 && axis.dilation % 2 != 0 ? T(0.5) : T(0);
}

template <class Int>
DDU_HOST_DEVICE int64_t first_pixel(const Axis<Int>& axis, Source source, bool aligned) {
  const int64_t reach = is_centred(source, aligned) ? axis.dilation * (axis.kernel - 1) : 0;
  return reach / 2 - axis.padding;
}

template <class T, class Index>
DDU_HOST_DEVICE TapPlace<T, Index> tap_place(const Axis<int64_t>& axis, Source source, bool aligned, Index tap) {
  return {
      per_tap(source) ? tap * static_cast<Index>(axis.dilation) : Index(0), centre_fraction<T>(axis, source, aligned),
      by_axis(source) ? tap_distance<T>(axis, tap) : T(1)};
}

// A tap's displacement along an axis: the sum of matrix[e] * distance[e], plus the shift. Products are exact, sums are
// rounded. If the operands are finite, so is the result, however large they are.
template <int kAxes, class T>
DDU_HOST_DEVICE T displacement(const T (&matrix)[kAxes], T shift, const T (&distance)[kAxes]) {
  constexpr T kMost = std::numeric_limits<T>::max();
  T sum = shift;
  for (int e = 0; e < kAxes; ++e) {
    sum = std::fma(matrix[e], distance[e], sum);
  }
  return sum >= -kMost ? (sum <= kMost ? sum : kMost) : -kMost;
}

// The number of parameters of a window or a tap in a problem with `axes` axes; with rates there may also be just one
// for all axes. Parameter axis * (axes + 1) + e of an affine map is entry e of the axis' row, or its shift if e = axes.
constexpr int64_t parameters_of(Source source, int64_t axes) {
  return source == Source::kAffine ? axes * (axes + 1) : axes;
}

// At every tap, the derivative with respect to an entry of an affine map's matrix is the one with respect to the shift
// of its axis, times a distance. So kernels only sum products for bases_of() terms, those of the parameters basis(b),
// and from each of them derive `multiples`: for an affine map the products with the distances along every axis, then
// the sum itself.
constexpr int64_t multiples_of(Source source, int64_t axes) { return source == Source::kAffine ? axes + 1 : 1; }
constexpr int64_t bases_of(Source source, int64_t axes, int64_t parameters) {
  return parameters / multiples_of(source, axes);
}
constexpr int64_t basis(Source source, int64_t axes, int64_t b) { return (b + 1) * multiples_of(source, axes) - 1; }

// Tensors of positions are [batch, groups, (taps,) parameters, *out]. This is how many entries per group the gradient
// with respect to one parameter has.
DDU_HOST_DEVICE int64_t positions_per_group(const UnfoldParams& p) { return per_tap(p.source) ? taps_of(p) : 1; }

// The channel that a group's tap reads for an axis of the problem; for an affine map, the first of them.
DDU_HOST_DEVICE int64_t parameter_channel(const UnfoldParams& p, int64_t group, int64_t tap, int axis) {
  const int64_t number = axis - p.first_axis();
  const int64_t of_axis = p.source == Source::kAffine ? number * (p.axes + 1) : p.parameters == 1 ? 0 : number;
  return (per_tap(p.source) ? group * taps_of(p) + tap : group) * p.parameters + of_axis;
}

// ---- derivatives with respect to the parameters

inline bool vanishes(const Term& term) {
  for (const auto count : term.count) {
    if (count != 0) {
      return false;
    }
  }
  return true;
}

// Whether the term is the sample itself.
inline bool is_value(const Term& term) {
  for (int q = 1; q < kCorners; ++q) {
    if (term.count[q] != 0) {
      return false;
    }
  }
  return term.count[0] == 1;
}

// Whether every partial derivative in the term differentiates once, along one axis.
inline bool is_first_derivative(const Term& term) {
  for (int q = 0; q < kCorners; ++q) {
    const bool along_one_axis = q == axis_bit(0) || q == axis_bit(1) || q == axis_bit(2);
    if (term.count[q] != 0 && !along_one_axis) {
      return false;
    }
  }
  return true;
}

// The term for the derivative of order order(r) in each parameter r; zero where that vanishes.
//
// Within a cell a sample is linear in the position along each axis, so no partial derivative is taken twice along the
// same axis. A rate for all axes moves the tap along each of them: its n-th derivative is the sum over all sets of n
// different axes, in every order. Any other parameter moves the tap along one axis, by 1 or by a distance of the tap.
template <class Order>
Term term_of(Source source, int64_t axes, int64_t parameters, const Order& order) {
  Term term = {};
  const int first = kMaxAxes - static_cast<int>(axes);
  if (source == Source::kRates && parameters == 1) {
    for (int q = 0; q < kCorners; ++q) {
      int64_t number = 0;  // how many axes
      int8_t orders = 1;   // in how many orders
      bool occurs = true;
      for (int a = 0; a < kMaxAxes; ++a) {
        const bool here = (q & axis_bit(a)) != 0;
        number += here ? 1 : 0;
        orders = static_cast<int8_t>(here ? orders * number : orders);
        occurs = occurs && !(here && a < first);
        term.power[q][a] = here ? 1 : 0;
      }
      term.count[q] = occurs && number == order(0) ? orders : int8_t(0);
    }
    return term;
  }
  int q = 0;
  int64_t most = 0;  // the highest order along an axis
  int8_t power[kMaxAxes] = {};
  for (int a = first; a < kMaxAxes; ++a) {
    const int64_t each = parameters / axes;  // parameters per axis
    int64_t times = 0;
    for (int64_t e = 0; e < each; ++e) {
      const int64_t here = order((a - first) * each + e) > 1 ? 2 : order((a - first) * each + e);
      times += here;
      const int64_t along = source == Source::kRates ? a : source == Source::kAffine && e < axes ? first + e : kMaxAxes;
      if (along < kMaxAxes && here == 1) {
        ++power[along];
      }
    }
    q |= times != 0 ? axis_bit(a) : 0;
    most = times > most ? times : most;
  }
  if (most <= 1) {
    term.count[q] = 1;
    for (int a = 0; a < kMaxAxes; ++a) {
      term.power[q][a] = power[a];
    }
  }
  return term;
}

// The first derivative with respect to parameter basis(b).
inline Term first_term(const UnfoldParams& p, int64_t b) {
  const auto r = basis(p.source, p.axes, b);
  return term_of(p.source, p.axes, p.parameters, [r](int64_t s) { return r == s ? 1 : 0; });
}

}  // namespace ddu
