// SPDX-License-Identifier: MIT
// The weights of the four corners around a tap, and their derivatives by the rates.
#pragma once

#include <cstdint>

#include "../params.h"
#include "portability.h"

namespace ddu {

// Weights of a tap's two neighbours along one axis: [0] their values, [1] differentiated by the rate.
template <class T>
struct AxisWeights {
  T low[2];
  T high[2];
};

template <class T>
DDU_HOST_DEVICE AxisWeights<T> axis_weights(T fraction, T slope) {
  return {{1 - fraction, -slope}, {fraction, slope}};
}

template <class T>
struct CornerWeights {
  T nw, ne, sw, se;
};

// sum over a, b of term[a][b] * (height weights, a times differentiated) x (width weights, b times differentiated).
//
// Bilinear interpolation within a cell is linear in each position, and each position linear in its rate, so these are
// all the derivatives there are. With one rate for both axes, d/dD = d/dy + d/dx: the first derivative has two terms,
// the second one 2 d2/dydx.
template <class T>
DDU_HOST_DEVICE CornerWeights<T> corner_weights(const AxisWeights<T>& y, const AxisWeights<T>& x, const Term& term) {
  CornerWeights<T> corner = {0, 0, 0, 0};
  for (int a = 0; a < 2; ++a) {
    for (int b = 0; b < 2; ++b) {
      if (term.count[a][b] != 0) {
        const T count = static_cast<T>(term.count[a][b]);
        corner.nw += count * y.low[a] * x.low[b];
        corner.ne += count * y.low[a] * x.high[b];
        corner.sw += count * y.high[a] * x.low[b];
        corner.se += count * y.high[a] * x.high[b];
      }
    }
  }
  return corner;
}

}  // namespace ddu
