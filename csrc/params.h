// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace ddu {

// One spatial axis. `Int` is int64_t in the kernels and a symbolic integer while shapes are worked out.
template <class Int>
struct Axis {
  Int size;      // of the image
  Int out_size;  // of the output grid
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
};

// A derivative by the rates, as a sum over the partial derivatives by the position: count[a][b] says how often the one
// taken a times along the height and b times along the width occurs. All zero where the derivative vanishes.
struct Term {
  int8_t count[2][2];
};

// All that a kernel needs to know besides its pointers. Layouts, in elements:
//   input         [batch, channels, h.size, w.size]
//   dilation_map  [batch, groups, rates, h.out_size, w.out_size]
//   columns       [batch, channels, h.kernel, w.kernel, h.out_size, w.out_size]
// args.h is the only place that fills it in, from checked arguments.
template <class Int>
struct Params {
  Int batch;
  Int channels;
  int64_t groups;
  int64_t rates;  // 1: one rate for both axes; 2: a rate per axis, height first
  Axis<Int> h;
  Axis<Int> w;
  bool aligned;
  Term term;
};

// Whether no term is left, as after differentiating more often than the interpolation is linear.
inline bool vanishes(const Term& term) {
  return term.count[0][0] == 0 && term.count[0][1] == 0 && term.count[1][0] == 0 && term.count[1][1] == 0;
}

// The first derivative by each of the rates, as many as there are.
inline const Term* gradient_terms(int64_t rates) {
  static constexpr Term kOneRate[] = {{{{0, 1}, {1, 0}}}};                          // d/dy + d/dx
  static constexpr Term kRatePerAxis[] = {{{{0, 0}, {1, 0}}}, {{{0, 1}, {0, 0}}}};  // d/dy; d/dx
  return rates == 1 ? kOneRate : kRatePerAxis;
}

using UnfoldParams = Params<int64_t>;

}  // namespace ddu
