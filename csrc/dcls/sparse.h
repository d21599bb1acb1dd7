// SPDX-License-Identifier: MIT
// Depthwise convolution with a few taps per channel, at any whole displacements.
//
// NOTE [ Sparse form ]
//     sparse_sum(input, factors, shifts, size)[b, c, y]
//         = sum over j of factors[c, j] * input[b, c, y + shifts[:, c, j]]
//     sparse_dot(left, input, shifts)[c, j]
//         = sum over b, y of left[b, c, y] * input[b, c, y + shifts[:, c, j]]
//
// with zeros outside. Each is a derivative of the other: the sum's derivative with respect to the input is the sum with
// negated shifts, and with respect to the factors it is the dot; the dot's derivatives are sums. So derivatives of
// every order and mode are built from these two.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "../math/portability.h"
#include "../params.h"

namespace ddu::dcls {

// The sizes of a call, for a kernel. All tensors are contiguous: images [batch, channels, *size], factors [channels,
// taps], shifts [axes, channels, taps].
struct SparseProblem {
  int64_t batch;
  int64_t channels;
  int64_t taps;
  int64_t axes;
  int64_t input[kMaxAxes];   // the last `axes` of them count, the others are 1
  int64_t output[kMaxAxes];  // of the sum, or of the dot's left image

  DDU_HOST_DEVICE int first_axis() const { return kMaxAxes - static_cast<int>(axes); }
  DDU_HOST_DEVICE int64_t input_size() const { return input[0] * input[1] * input[2]; }
  DDU_HOST_DEVICE int64_t output_size() const { return output[0] * output[1] * output[2]; }
};

// A shift that reaches nothing, but is small enough that sums with it don't overflow.
constexpr int64_t kFarShift = int64_t(1) << 60;

// The shift along axis a, 0 if the problem lacks that axis.
DDU_HOST_DEVICE int64_t shift_of(const SparseProblem& p, const int64_t* shifts, int64_t channel, int64_t tap, int a) {
  if (a < p.first_axis()) {
    return 0;
  }
  const int64_t shift = shifts[((a - p.first_axis()) * p.channels + channel) * p.taps + tap];
  return shift < -kFarShift ? -kFarShift : shift > kFarShift ? kFarShift : shift;
}

// ---- through the dispatcher

at::Tensor sparse_sum(
    const at::Tensor& input, const at::Tensor& factors, const at::Tensor& shifts, c10::SymIntArrayRef output_size);
at::Tensor sparse_dot(const at::Tensor& left, const at::Tensor& input, const at::Tensor& shifts);

}  // namespace ddu::dcls
