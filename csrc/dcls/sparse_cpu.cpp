// SPDX-License-Identifier: MIT
// The sparse form on the CPU. A task owns whole channels, of one image (sum) or of all (dot), and adds in a fixed
// order.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "sparse_device.h"

namespace ddu::dcls {

namespace {

using at::Tensor;

// Fewer products than this don't justify another thread.
constexpr int64_t kGrain = 16384;

// The output indices along an axis for which the input, `shift` away, is inside.
struct Range {
  int64_t begin, end;

  Range(int64_t output, int64_t input, int64_t shift)
      : begin(std::max<int64_t>(0, -shift)), end(std::min(output, input - shift)) {}
};

// Calls f(first output, first input, length) for every row of the image that a tap reaches.
template <class F>
void over_lines(const SparseProblem& p, const int64_t* shifts, int64_t channel, int64_t tap, const F& f) {
  int64_t s[kMaxAxes];
  for (int a = 0; a < kMaxAxes; ++a) {
    s[a] = shift_of(p, shifts, channel, tap, a);
  }
  const Range plane(p.output[0], p.input[0], s[0]);
  const Range line(p.output[1], p.input[1], s[1]);
  const Range pixel(p.output[2], p.input[2], s[2]);
  if (pixel.begin >= pixel.end) {
    return;
  }
  for (int64_t i = plane.begin; i < plane.end; ++i) {
    for (int64_t j = line.begin; j < line.end; ++j) {
      f((i * p.output[1] + j) * p.output[2] + pixel.begin,
        ((i + s[0]) * p.input[1] + j + s[1]) * p.input[2] + pixel.begin + s[2], pixel.end - pixel.begin);
    }
  }
}

template <class T>
void add_line(const T* from, T factor, T* to, int64_t length) {
#pragma omp simd
  for (int64_t k = 0; k < length; ++k) {
    to[k] += factor * from[k];
  }
}

template <class T>
T dot_of_lines(const T* left, const T* right, int64_t length) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < length; ++k) {
    sum += left[k] * right[k];
  }
  return sum;
}

int64_t grain_of(const SparseProblem& p, int64_t images) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, images * p.taps * p.output_size()));
}

struct Cpu {
  static void sum(
      const SparseProblem& p, const Tensor& input, const Tensor& factors, const Tensor& shifts, Tensor& output) {
    const auto image = input.to(factors.scalar_type());
    const auto result =
        output.scalar_type() == factors.scalar_type() ? output : at::empty_like(output, factors.options());
    AT_DISPATCH_FLOATING_TYPES(factors.scalar_type(), "dcls_sparse_sum", [&] {
      const auto* const source = image.const_data_ptr<scalar_t>();
      const auto* const each = factors.const_data_ptr<scalar_t>();
      const auto* const moves = shifts.const_data_ptr<int64_t>();
      auto* const target = result.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, p.batch * p.channels, grain_of(p, 1), [&](int64_t begin, int64_t end) {
        for (int64_t plane = begin; plane < end; ++plane) {
          const int64_t channel = plane % p.channels;
          const auto* const from = source + plane * p.input_size();
          auto* const to = target + plane * p.output_size();
          std::fill_n(to, p.output_size(), scalar_t(0));
          for (int64_t tap = 0; tap < p.taps; ++tap) {
            const scalar_t factor = each[channel * p.taps + tap];
            over_lines(p, moves, channel, tap, [&](int64_t first, int64_t first_input, int64_t length) {
              add_line(from + first_input, factor, to + first, length);
            });
          }
        }
      });
    });
    if (!result.is_same(output)) {
      output.copy_(result);
    }
  }

  static void dot(
      const SparseProblem& p, const Tensor& left, const Tensor& input, const Tensor& shifts, Tensor& result) {
    const auto image = input.to(result.scalar_type());
    const auto weights = left.to(result.scalar_type());
    AT_DISPATCH_FLOATING_TYPES(result.scalar_type(), "dcls_sparse_dot", [&] {
      const auto* const source = image.const_data_ptr<scalar_t>();
      const auto* const factors = weights.const_data_ptr<scalar_t>();
      const auto* const moves = shifts.const_data_ptr<int64_t>();
      auto* const target = result.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, p.channels, grain_of(p, p.batch), [&](int64_t begin, int64_t end) {
        for (int64_t channel = begin; channel < end; ++channel) {
          auto* const sums = target + channel * p.taps;
          std::fill_n(sums, p.taps, scalar_t(0));
          for (int64_t b = 0; b < p.batch; ++b) {
            const auto* const from = source + (b * p.channels + channel) * p.input_size();
            const auto* const with = factors + (b * p.channels + channel) * p.output_size();
            for (int64_t tap = 0; tap < p.taps; ++tap) {
              scalar_t sum = 0;
              over_lines(p, moves, channel, tap, [&](int64_t first, int64_t first_input, int64_t length) {
                sum += dot_of_lines(with + first, from + first_input, length);
              });
              sums[tap] += sum;
            }
          }
        }
      });
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CPU, m) { register_sparse<Cpu>(m); }

}  // namespace ddu::dcls
