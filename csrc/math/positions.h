// SPDX-License-Identifier: MIT
// Sources of positions: where a tap lies along an axis, by what parameter, and what the derivatives by it are.
#pragma once

#include <cstdint>

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
//
// A window of rates is centred (`aligned`) where the window of rate one is, whole pixels in first_pixel and half a
// pixel in the fraction, or on its first tap.

// Whether the parameters are those of a tap.
DDU_HOST_DEVICE constexpr bool per_tap(Source source) { return source == Source::kOffsets; }

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

// What the window's centre leaves of a pixel: 0, or 1/2 where it lies between two.
template <class T, class Int>
DDU_HOST_DEVICE T centre_fraction(const Axis<Int>& axis, Source source, bool aligned) {
  return source == Source::kRates && aligned && axis.kernel % 2 == 0 && axis.dilation % 2 != 0 ? T(0.5) : T(0);
}

template <class Int>
DDU_HOST_DEVICE int64_t first_pixel(const Axis<Int>& axis, Source source, bool aligned) {
  const int64_t reach = source == Source::kRates && aligned ? axis.dilation * (axis.kernel - 1) : 0;
  return reach / 2 - axis.padding;
}

template <class T, class Index>
DDU_HOST_DEVICE TapPlace<T, Index> tap_place(const Axis<int64_t>& axis, Source source, bool aligned, Index tap) {
  return source == Source::kRates
      ? TapPlace<T, Index>{0, centre_fraction<T>(axis, source, aligned), tap_distance<T>(axis, tap)}
      : TapPlace<T, Index>{tap * static_cast<Index>(axis.dilation), T(0), T(1)};
}

// Parameters of a window, or of a tap, in a problem of so many axes; of rates there may also be one for all of them.
constexpr int64_t parameters_of(Source, int64_t axes) { return axes; }

// Tensors of positions are [batch, groups, (taps,) parameters, *out]. Entries of a group that the gradient has for one
// parameter.
DDU_HOST_DEVICE int64_t positions_per_group(const UnfoldParams& p) { return per_tap(p.source) ? taps_of(p) : 1; }

// The channel that a group's tap reads for an axis of the problem.
DDU_HOST_DEVICE int64_t parameter_channel(const UnfoldParams& p, int64_t group, int64_t tap, int axis) {
  const int64_t of_axis = p.parameters == 1 ? 0 : axis - p.first_axis();
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
// moves all axes: its n-th derivative is the sum over all n different axes, in every order.
template <class Order>
Term term_of(Source source, int64_t axes, int64_t parameters, const Order& order) {
  Term term = {};
  const int first = kMaxAxes - static_cast<int>(axes);
  for (int q = 0; q < kCorners; ++q) {
    bool occurs = true;
    int64_t number = 0;  // of axes
    for (int a = 0; a < kMaxAxes; ++a) {
      const int64_t times = (q & axis_bit(a)) != 0 ? 1 : 0;
      number += times;
      if (a < first) {
        occurs = occurs && times == 0;
      } else if (source != Source::kRates || parameters > 1) {
        occurs = occurs && times == order(a - first);
      }
      term.power[q][a] = static_cast<int8_t>(source == Source::kRates ? times : 0);
    }
    if (source == Source::kRates && parameters == 1) {
      occurs = occurs && number == order(0);
    }
    int64_t orders = 1;
    for (int64_t n = 2; n <= number && source == Source::kRates && parameters == 1; ++n) {
      orders *= n;
    }
    term.count[q] = static_cast<int8_t>(occurs ? orders : 0);
  }
  return term;
}

}  // namespace ddu
