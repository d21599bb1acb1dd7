// SPDX-License-Identifier: MIT
// The operators of a device: they check, allocate, and leave the values to the device's kernels.
//
// A device is a struct with four static functions, and `TORCH_LIBRARY_IMPL(ddu, <key>, m) { register_operators<It>(m);
// }`. Each function gets checked parameters and contiguous, uninitialised outputs:
//     sample(params, input, positions, columns)
//     splat(params, columns, positions, image)
//     dot(params, columns, input, positions, result)
//     sample_backward(params, terms, grad_output, input, positions, grad_input, grad_positions)
// The last is splat combined with a dot for each of the `terms`, one per parameter. Inputs may have any strides. A
// backend that has kMakesResults sets its outputs instead of filling them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <tuple>

#include "../checks.h"
#include "../dispatch/signatures.h"
#include "../math/positions.h"

namespace ddu {

// The first derivatives of params.term with respect to each parameter.
using ParameterTerms = std::array<Term, kMaxParameters>;

// The terms that all others are multiples of: see math/positions.h.
inline ParameterTerms bases_of(const SymParams& params, const ParameterTerms& terms) {
  ParameterTerms bases = {};
  for (int64_t b = 0; b < bases_of(params.source, params.axes, params.parameters); ++b) {
    bases[b] = terms[basis(params.source, params.axes, b)];
  }
  return bases;
}

template <class Backend>
struct Operators {
  using Tensor = at::Tensor;
  using SymIntArrayRef = c10::SymIntArrayRef;
  static constexpr Caller kStrict = {};
  static constexpr Caller kFamily = {0, false, true};

  static Tensor unfold(const Tensor& input, const Tensor& dilation_map, const Options& options) {
    return sample_as("unfold", input, dilation_map, options, kStrict);
  }

  static Tensor sample(const Tensor& input, const Tensor& positions, const Options& options) {
    return sample_as("sample", input, positions, options, kFamily);
  }

  static Tensor fold(
      const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Options& options) {
    return splat_as("fold", columns, output_size, dilation_map, options, kStrict);
  }

  static Tensor splat(
      const Tensor& columns, SymIntArrayRef output_size, const Tensor& positions, const Options& options) {
    return splat_as("splat", columns, output_size, positions, options, kFamily);
  }

  static Tensor dot(const Tensor& columns, const Tensor& input, const Tensor& positions, const Options& options) {
    const auto params = check_dot("dot", "columns", columns, input, positions, options, kFamily);
    return filled(params, dot_shape(params), positions, [&](Tensor& result) {
      Backend::dot(params, columns, input, positions, result);
    });
  }

  static std::tuple<Tensor, Tensor> unfold_backward(
      const Tensor& grad_output, const Tensor& input, const Tensor& dilation_map, const Options& options) {
    return backward_as("unfold_backward", grad_output, input, dilation_map, options, kStrict);
  }

  static std::tuple<Tensor, Tensor> sample_backward(
      const Tensor& grad_output, const Tensor& input, const Tensor& positions, const Options& options) {
    return backward_as("sample_backward", grad_output, input, positions, options, kFamily);
  }

 private:
  static Tensor sample_as(
      const char* op, const Tensor& input, const Tensor& positions, const Options& options, const Caller& caller) {
    const auto params = check_sample(op, input, positions, options, caller);
    return filled(params, columns_shape(params), input, [&](Tensor& columns) {
      Backend::sample(params, input, positions, columns);
    });
  }

  static Tensor splat_as(
      const char* op,
      const Tensor& columns,
      SymIntArrayRef output_size,
      const Tensor& positions,
      const Options& options,
      const Caller& caller) {
    const auto params = check_splat(op, columns, output_size, positions, options, caller);
    return filled(params, input_shape(params), columns, [&](Tensor& image) {
      Backend::splat(params, columns, positions, image);
    });
  }

  static std::tuple<Tensor, Tensor> backward_as(
      const char* op,
      const Tensor& grad_output,
      const Tensor& input,
      const Tensor& positions,
      const Options& options,
      const Caller& caller) {
    const auto params = check_dot(op, "grad_output", grad_output, input, positions, options, caller);
    if (vanishes(params.term)) {
      return {
          at::zeros_symint(input.sym_sizes(), input.options()),
          at::zeros_symint(positions.sym_sizes(), positions.options())};
    }
    ParameterTerms terms = {};
    for (int64_t r = 0; r < params.parameters; ++r) {
      terms[r] = raised_term(params, options, r);
    }
    auto grad_input = made(input.sym_sizes(), input);
    auto grad_positions = made(positions.sym_sizes(), positions);
    Backend::sample_backward(params, terms, grad_output, input, positions, grad_input, grad_positions);
    for (int64_t r = 0; r < params.parameters; ++r) {
      if (!Backend::kMakesResults && vanishes(terms[r])) {  // zero, even if there are NaNs
        const auto entries = grad_positions.sym_size(1) / params.parameters;
        grad_positions.unflatten_symint(1, {entries, params.parameters}).select(2, r).zero_();
      }
    }
    return {grad_input, grad_positions};
  }

  // A new tensor with the options of `like`: filled by `fill`, or zeros if the derivative vanishes.
  template <class Fill>
  static Tensor filled(const SymParams& params, SymIntArrayRef sizes, const Tensor& like, const Fill& fill) {
    if (vanishes(params.term)) {
      return at::zeros_symint(sizes, like.options());
    }
    auto result = made(sizes, like);
    fill(result);
    return result;
  }

  static Tensor made(SymIntArrayRef sizes, const Tensor& like) {
    return Backend::kMakesResults ? Tensor() : at::empty_symint(sizes, like.options());
  }
};

template <class Backend>
void register_operators(torch::Library& m) {
  using Ops = Operators<Backend>;
  m.impl("unfold", TORCH_FN(RatesSchema<&Ops::unfold>::call));
  m.impl("fold", TORCH_FN(RatesSchema<&Ops::fold>::call));
  m.impl("unfold_backward", TORCH_FN(RatesSchema<&Ops::unfold_backward>::call));
  m.impl("sample", TORCH_FN(FamilySchema<&Ops::sample>::call));
  m.impl("splat", TORCH_FN(FamilySchema<&Ops::splat>::call));
  m.impl("dot", TORCH_FN(FamilySchema<&Ops::dot>::call));
  m.impl("sample_backward", TORCH_FN(FamilySchema<&Ops::sample_backward>::call));
}

}  // namespace ddu
