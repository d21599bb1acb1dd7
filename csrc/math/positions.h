// SPDX-License-Identifier: MIT
// Sources of positions: where a tap lies along an axis, by what parameter, and what the derivatives by it are.
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
// where first_pixel depends on the axis; pixels, fraction and slope on the tap as well; and the parameter is read from
// the tensor of positions: of a window, or of each of its taps. Nothing else in the library knows of the source, except
// that the gradient by a parameter of a window is a sum over its taps.
//
//     source     parameters                        pixels      slope                    parameter is of a
//     kRates     1, for all axes, or one per axis  0           (tap - (k - 1) / 2) * d  window
//     kOffsets   one per axis                      tap * d     1                        tap
//     kAffine    a matrix and a shift              0           1                        window: displacement()
//
// The affine map takes a tap's distances from the window's centre at rate one, (tap - (k - 1) / 2) * d along every
// axis, to its displacement: that is what stands in the place of the parameter.
//
// A window of rates is centred (`aligned`) where the window of rate one is, whole pixels in first_pixel and half a
// pixel in the fraction, or on its first tap; one of an affine map always where the window of rate one is.

// Whether the parameters are those of a tap.
DDU_HOST_DEVICE constexpr bool per_tap(Source source) { return source == Source::kOffsets; }

// Whether a tap's place along an axis depends on its number along that axis alone, for all taps of a window.
DDU_HOST_DEVICE constexpr bool by_axis(Source source) { return source == Source::kRates; }

template <class T, class Index = int64_t>
struct TapPlace {
  Index pixels;
  T fraction;
  T slope;  // d position / d parameter
};

// A tap's distance from the window's centre at rate 1: (tap - (k - 1) / 2) * d.
template <class T, class Index>
DDU_HOST_DEVICE T tap_distance(const Axis<int64_t>& axis, Index tap) {
  return static_cast<T>(2 * tap - (static_cast<Index>(axis.kernel) - 1)) * static_cast<T>(axis.dilation) / 2;
}

// Whether the window's centre is that of the window at rate one.
DDU_HOST_DEVICE constexpr bool is_centred(Source source, bool aligned) {
  return source == Source::kAffine || (source == Source::kRates && aligned);
}

// What the window's centre leaves of a pixel: 0, or 1/2 where it lies between two.
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

// A tap's displacement along an axis: the sum of matrix[e] * distance[e] and the shift, each product exact, each sum
// rounded. Of finite numbers it is finite, however large they are.
template <int kAxes, class T>
DDU_HOST_DEVICE T displacement(const T (&matrix)[kAxes], T shift, const T (&distance)[kAxes]) {
  constexpr T kMost = std::numeric_limits<T>::max();
  T sum = shift;
  for (int e = 0; e < kAxes; ++e) {
    sum = std::fma(matrix[e], distance[e], sum);
  }
  return sum >= -kMost ? (sum <= kMost ? sum : kMost) : -kMost;
}

// Parameters of a window, or of a tap, in a problem of so many axes; of rates there may also be one for all of them. Of
// an affine map, parameter axis * (axes + 1) + e is entry e of the axis' row, or its shift for e = axes.
constexpr int64_t parameters_of(Source source, int64_t axes) {
  return source == Source::kAffine ? axes * (axes + 1) : axes;
}

// The derivative by an entry of an affine map's matrix is, at every tap, the one by the shift of its axis times a
// distance. So kernels sum products with as many terms as bases_of(), those by parameters basis(b), and of each of them
// with `multiples`: of an affine map its products with the distances along every axis, and then itself.
constexpr int64_t multiples_of(Source source, int64_t axes) { return source == Source::kAffine ? axes + 1 : 1; }
constexpr int64_t bases_of(Source source, int64_t axes, int64_t parameters) {
  return parameters / multiples_of(source, axes);
}
constexpr int64_t basis(Source source, int64_t axes, int64_t b) { return (b + 1) * multiples_of(source, axes) - 1; }

// Tensors of positions are [batch, groups, (taps,) parameters, *out]. Entries of a group that the gradient has for one
// parameter.
DDU_HOST_DEVICE int64_t positions_per_group(const UnfoldParams& p) { return per_tap(p.source) ? taps_of(p) : 1; }

// The channel that a group's tap reads for an axis of the problem: the first one, of an affine map.
DDU_HOST_DEVICE int64_t parameter_channel(const UnfoldParams& p, int64_t group, int64_t tap, int axis) {
  const int64_t number = axis - p.first_axis();
  const int64_t of_axis = p.source == Source::kAffine ? number * (p.axes + 1) : p.parameters == 1 ? 0 : number;
  return (per_tap(p.source) ? group * taps_of(p) + tap : group) * p.parameters + of_axis;
}

// ---- derivatives by the parameters

inline bool vanishes(const Term& term) {
  for (const auto count : term.count) {
    if (count != 0) {
      return false;
    }
  }
  return true;
}

// Whether it is the sample itself.
inline bool is_value(const Term& term) {
  for (int q = 1; q < kCorners; ++q) {
    if (term.count[q] != 0) {
      return false;
    }
  }
  return term.count[0] == 1;
}

// Whether it differentiates once, along one axis or another.
inline bool is_first_derivative(const Term& term) {
  for (int q = 0; q < kCorners; ++q) {
    const bool along_one_axis = q == axis_bit(0) || q == axis_bit(1) || q == axis_bit(2);
    if (term.count[q] != 0 && !along_one_axis) {
      return false;
    }
  }
  return true;
}

// The derivative whose order in parameter r is order(r), as a term; zero where it vanishes.
//
// Within a cell a sample is linear in the position along every axis, so no partial derivative occurs twice. One rate
// moves all axes: its n-th derivative is the sum over all n different axes, in every order. Any other parameter moves
// the position along one axis, by 1 or by the tap's distance along an axis.
template <class Order>
Term term_of(Source source, int64_t axes, int64_t parameters, const Order& order) {
  Term term = {};
  const int first = kMaxAxes - static_cast<int>(axes);
  if (source == Source::kRates && parameters == 1) {
    for (int q = 0; q < kCorners; ++q) {
      int64_t number = 0;  // of axes
      int8_t orders = 1;   // in which they come
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
  int64_t most = 0;  // derivatives by a position
  int8_t power[kMaxAxes] = {};
  for (int a = first; a < kMaxAxes; ++a) {
    const int64_t each = parameters / axes;  // parameters of an axis
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

// The first derivative by parameter basis(b).
inline Term first_term(const UnfoldParams& p, int64_t b) {
  const auto r = basis(p.source, p.axes, b);
  return term_of(p.source, p.axes, p.parameters, [r](int64_t s) { return r == s ? 1 : 0; });
}

}  // namespace ddu
