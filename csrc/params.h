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
  // A derivative by the rates as a sum over the partial derivatives by the position: term[a][b] counts how often the
  // one taken a times along the height and b times along the width occurs. All zero where the derivative vanishes.
  int8_t term[2][2];
};

// Whether no term is left, as after differentiating more often than the interpolation is linear.
inline bool vanishes(const int8_t (&term)[2][2]) {
  return term[0][0] == 0 && term[0][1] == 0 && term[1][0] == 0 && term[1][1] == 0;
}

using UnfoldParams = Params<int64_t>;

}  // namespace ddu
