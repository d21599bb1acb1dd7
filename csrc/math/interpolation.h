// SPDX-License-Identifier: MIT
// Samples between the corners around a tap: the weights and their derivatives.
#pragma once

#include <cstdint>

#include "../params.h"
#include "portability.h"

namespace ddu {

// The weights of a tap's two neighbours along one axis: [0] holds the values, [1] the derivatives with respect to the
// position.
template <class T>
struct AxisWeights {
  T low[2];
  T high[2];
};

template <class T>
DDU_HOST_DEVICE AxisWeights<T> axis_weights(T fraction, T direction) {
  return {{1 - fraction, -direction}, {fraction, direction}};
}

// The factor of partial derivative q at a tap. `distance` holds the tap's distances from the window's centre at rate
// one along the last kAxes axes.
template <int kAxes, class T>
DDU_HOST_DEVICE T term_factor(const Term& term, int q, const T (&distance)[kAxes]) {
  T factor = static_cast<T>(term.count[q]);
  for (int a = 0; a < kAxes; ++a) {
    for (int n = 0; n < term.power[q][kMaxAxes - kAxes + a]; ++n) {
      factor *= distance[a];
    }
  }
  return factor;
}

// The weight of corner c in partial derivative q: a product over the axes. Along each axis whose bit is set in c, the
// corner is the neighbour after the tap; along the others it is the one before it.
template <int kAxes, class T>
DDU_HOST_DEVICE T corner_weight(const AxisWeights<T> (&weights)[kAxes], int q, int c) {
  T product = 1;
  for (int a = 0; a < kAxes; ++a) {
    const int bit = axis_bit(kMaxAxes - kAxes + a);
    const int times = (q & bit) != 0 ? 1 : 0;
    const T weight = (c & bit) != 0 ? weights[a].high[times] : weights[a].low[times];
    product = a == 0 ? weight : product * weight;
  }
  return product;
}

// Replaces the values at the corners with the partial derivatives at the tap: number q takes the place of corner q.
// Differences come before products, so whatever the corners have in common cancels exactly.
template <int kAxes, class T>
DDU_HOST_DEVICE void differentiate(const T (&fraction)[kAxes], const T (&direction)[kAxes], T (&corner)[1 << kAxes]) {
  for (int a = 0; a < kAxes; ++a) {
    const int bit = axis_bit(kMaxAxes - kAxes + a);
    for (int c = 0; c < 1 << kAxes; ++c) {
      if ((c & bit) == 0) {
        const T low = corner[c];
        const T high = corner[c | bit];
        corner[c] = (1 - fraction[a]) * low + fraction[a] * high;
        corner[c | bit] = direction[a] * (high - low);
      }
    }
  }
}

// The weights of all corners for a term.
template <int kAxes, class T>
struct CornerWeights {
  T corner[1 << kAxes];
};

template <int kAxes, class T>
DDU_HOST_DEVICE CornerWeights<kAxes, T> corner_weights(
    const AxisWeights<T> (&weights)[kAxes], const T (&distance)[kAxes], const Term& term) {
  CornerWeights<kAxes, T> result = {};
  if (term.count[0] != 0) {  // the value, which occurs once and on its own
    for (int c = 0; c < 1 << kAxes; ++c) {
      result.corner[c] = corner_weight(weights, 0, c);
    }
    return result;
  }
  for (int q = 1; q < 1 << kAxes; ++q) {
    if (term.count[q] != 0) {
      const T factor = term_factor(term, q, distance);
      for (int c = 0; c < 1 << kAxes; ++c) {
        result.corner[c] += factor * corner_weight(weights, q, c);
      }
    }
  }
  return result;
}

}  // namespace ddu
