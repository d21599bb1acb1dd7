// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "math/portability.h"

namespace ddu {

constexpr int kMaxAxes = 3;
constexpr int kMaxParameters = kMaxAxes * (kMaxAxes + 1);  // of a window: see math/positions.h

// One spatial axis. `Int` is int64_t in kernels and a symbolic integer during shape inference.
template <class Int>
struct Axis {
  Int size;      // of the image
  Int out_size;  // of the output grid
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
};

// What moves the taps of a window: see math/positions.h.
enum class Source : int8_t { kRates, kOffsets, kAffine };
constexpr const char* kSourceNames[] = {"rates", "offsets", "affine"};
constexpr const char* name_of(Source source) { return kSourceNames[static_cast<int>(source)]; }

// What lies outside the image: see math/axis.h.
enum class PaddingMode : int8_t { kZeros, kBorder, kReflection };
constexpr const char* kPaddingModeNames[] = {"zeros", "border", "reflection"};
constexpr const char* name_of(PaddingMode mode) { return kPaddingModeNames[static_cast<int>(mode)]; }

// An axis' bit (0: depth, 1: height, 2: width) in the number of a corner or of a partial derivative.
DDU_HOST_DEVICE constexpr int axis_bit(int axis) { return 1 << (kMaxAxes - 1 - axis); }

constexpr int kCorners = 1 << kMaxAxes;

// A derivative of all samples with respect to the parameters of their positions, as a sum of partial derivatives with
// respect to the position. Partial derivative q differentiates once along each axis whose bit is set in q. It occurs
// count[q] times, multiplied along each axis e by the tap's place in the window at rate one, to the power[q][e].
struct Term {
  int8_t count[kCorners];
  int8_t power[kCorners][kMaxAxes];
};

// Everything a kernel needs to know besides its pointers. Layouts, in elements:
//   input      [batch, channels, *size]
//   positions  [batch, groups, parameters, *out_size]; with offsets [batch, groups, taps, parameters, *out_size]
//   columns    [batch, channels, *kernel, *out_size]
// Filled in from checked arguments, and only in checks.h.
template <class Int>
struct Params {
  Int batch;
  Int channels;
  int64_t groups;
  int64_t axes;  // N, the number of axes of the problem
  // Depth, height and width; the problem has the last `axes` of them. An axis it lacks has an image of one pixel and a
  // kernel of one tap that makes one step, so a kernel for two axes also works for one.
  Axis<Int> axis[kMaxAxes];
  Source source;
  int64_t parameters;  // per window, or per tap: see math/positions.h
  bool aligned;
  PaddingMode padding_mode;
  Term term;

  DDU_HOST_DEVICE int first_axis() const { return kMaxAxes - static_cast<int>(axes); }
};

using UnfoldParams = Params<int64_t>;

DDU_HOST_DEVICE int64_t taps_of(const UnfoldParams& p) {
  return p.axis[0].kernel * p.axis[1].kernel * p.axis[2].kernel;
}
DDU_HOST_DEVICE int64_t positions_of(const UnfoldParams& p) {
  return p.axis[0].out_size * p.axis[1].out_size * p.axis[2].out_size;
}
DDU_HOST_DEVICE int64_t pixels_of(const UnfoldParams& p) { return p.axis[0].size * p.axis[1].size * p.axis[2].size; }

}  // namespace ddu
