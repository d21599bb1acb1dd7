// SPDX-License-Identifier: MIT
// The inner loops: along the W_out positions of one output row, for one tap and one channel.

// NOTE [ CPU kernels ]
// Images are read from, and added into, padded planes: one (H + 3) x (W + 3) plane per channel in the type that sums
// are computed in, the image at (2, 2), zeros around it. Every tap then has four corners with an address. The corners
// of one without a neighbour in the image (kNoPixel) are all zeros when read, and dropped with the border when added
// to. So there are no masks and no cases in the loops, a pixel that is infinite outside a window cannot leak in through
// a weight of zero, and strides and types of the image are dealt with once, by the copy into the planes.
//
// What depends on the position but not on the channel (address and weights of a tap: Taps) is computed once for an
// output row and then used for every channel of the group.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>

#include "../math/bilinear.h"
#include "../math/geometry.h"
#include "../params.h"

namespace ddu::cpu {

constexpr int64_t kBorderLow = -kNoPixel;  // so that kNoPixel is the first pixel of the border
constexpr int64_t kBorderHigh = 1;

constexpr int64_t padded(int64_t size) { return kBorderLow + size + kBorderHigh; }

// The corner weights of one tap, for each position of a row.
template <class T>
struct Weights {
  T* nw;
  T* ne;
  T* sw;
  T* se;
};

// The taps of the windows of one output row of one group. All arrays are [..., W_out].
template <class T>
class Taps {
 public:
  explicit Taps(const UnfoldParams& params)
      : p_(params),
        width_(params.w.out_size),
        pixels_(new int64_t[(params.h.kernel + params.w.kernel + 1) * width_]),
        values_(new T[(params.h.kernel + params.w.kernel + 1) * width_]) {}

  // rate_h, rate_w: the rates of output row i, [W_out].
  //
  // A rate that is not finite makes every weight of its window NaN and its taps have no neighbours, so NaN is what is
  // read, and what is added to the image falls into the border.
  void locate(int64_t i, const T* rate_h, const T* rate_w) {
    T* const unit = values_.get();
    for (int64_t j = 0; j < width_; ++j) {
      const bool finite = std::isfinite(rate_h[j]) && std::isfinite(rate_w[j]);
      unit[j] = finite ? T(1) : std::numeric_limits<T>::quiet_NaN();
    }
    const T fraction_h = centre_fraction<T>(p_.h, p_.aligned);
    const T fraction_w = centre_fraction<T>(p_.w, p_.aligned);
    const int64_t centre_h = centre_pixel(p_.h, i, p_.aligned);
    for (int64_t m = 0; m < p_.h.kernel; ++m) {
      const T slope = tap_slope<T>(p_.h, m);
      for (int64_t j = 0; j < width_; ++j) {
        const auto y = neighbours(p_.h.size, centre_h, fraction_h, slope, rate_h[j]);
        row(m)[j] = (y.pixel + kBorderLow) * padded(p_.w.size);
        fraction(m)[j] = y.fraction;
      }
    }
    for (int64_t n = 0; n < p_.w.kernel; ++n) {
      const T slope = tap_slope<T>(p_.w, n);
      for (int64_t j = 0; j < width_; ++j) {
        const auto x = neighbours(p_.w.size, centre_pixel(p_.w, j, p_.aligned), fraction_w, slope, rate_w[j]);
        row(p_.h.kernel + n)[j] = x.pixel + kBorderLow;
        fraction(p_.h.kernel + n)[j] = x.fraction;
      }
    }
  }

  // The element of a padded plane that is the nw corner of tap (m, n), for every position.
  const int64_t* corners(int64_t m, int64_t n) {
    int64_t* const nw = pixels_.get();
    const int64_t* const y = row(m);
    const int64_t* const x = row(p_.h.kernel + n);
    for (int64_t j = 0; j < width_; ++j) {
      nw[j] = y[j] + x[j];
    }
    return nw;
  }

  void weigh(int64_t m, int64_t n, const int8_t (&term)[2][2], const Weights<T>& weights) {
    const T* const unit = values_.get();
    const T* const y = fraction(m);
    const T* const x = fraction(p_.h.kernel + n);
    const T slope_h = tap_slope<T>(p_.h, m);
    const T slope_w = tap_slope<T>(p_.w, n);
    for (int64_t j = 0; j < width_; ++j) {
      const auto corner = corner_weights(axis_weights(y[j], slope_h), axis_weights(x[j], slope_w), term);
      weights.nw[j] = unit[j] * corner.nw;
      weights.ne[j] = unit[j] * corner.ne;
      weights.sw[j] = unit[j] * corner.sw;
      weights.se[j] = unit[j] * corner.se;
    }
  }

 private:
  int64_t* row(int64_t tap) { return pixels_.get() + (1 + tap) * width_; }
  T* fraction(int64_t tap) { return values_.get() + (1 + tap) * width_; }

  const UnfoldParams& p_;
  const int64_t width_;
  std::unique_ptr<int64_t[]> pixels_;  // the nw corners; the rows of the taps of the height; the columns of the width
  std::unique_ptr<T[]> values_;        // 1 or NaN; the fractions of both
};

// pitch: elements from one row of a padded plane to the next.

template <class T, class scalar_t>
void gather_row(
    int64_t width, const T* plane, int64_t pitch, const int64_t* nw, const Weights<T>& w, scalar_t* columns) {
  for (int64_t j = 0; j < width; ++j) {
    const T* const north = plane + nw[j];
    const T* const south = north + pitch;
    columns[j] =
        static_cast<scalar_t>(w.nw[j] * north[0] + w.ne[j] * north[1] + w.sw[j] * south[0] + w.se[j] * south[1]);
  }
}

template <class T>
void scatter_row(int64_t width, T* plane, int64_t pitch, const int64_t* nw, const Weights<T>& w, const T* columns) {
  for (int64_t j = 0; j < width; ++j) {
    T* const north = plane + nw[j];
    T* const south = north + pitch;
    north[0] += w.nw[j] * columns[j];
    north[1] += w.ne[j] * columns[j];
    south[0] += w.sw[j] * columns[j];
    south[1] += w.se[j] * columns[j];
  }
}

template <class T>
void dot_row(
    int64_t width, const T* plane, int64_t pitch, const int64_t* nw, const Weights<T>& w, const T* columns, T* sum) {
  for (int64_t j = 0; j < width; ++j) {
    const T* const north = plane + nw[j];
    const T* const south = north + pitch;
    sum[j] += columns[j] * (w.nw[j] * north[0] + w.ne[j] * north[1] + w.sw[j] * south[0] + w.se[j] * south[1]);
  }
}

}  // namespace ddu::cpu
