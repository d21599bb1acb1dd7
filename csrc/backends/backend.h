// SPDX-License-Identifier: MIT
// The operators of a device: check, allocate, leave the values to its kernels.
//
// A device is a struct with four static functions, and `TORCH_LIBRARY_IMPL(ddu, <key>, m) { register_operators<It>(m);
// }`. Each gets checked parameters and outputs that are contiguous and not initialised:
//     sample(params, input, dilation_map, columns)
//     splat(params, columns, dilation_map, image)
//     dot(params, columns, input, dilation_map, result)        result: [B, G, H_out, W_out]
//     unfold_backward(params, grad_output, input, dilation_map, grad_input, grad_dilation_map)
// Inputs may have any strides.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "../args.h"
#include "../signatures.h"

namespace ddu {

template <class Backend>
struct Operators {
  using Tensor = at::Tensor;
  using SymIntArrayRef = c10::SymIntArrayRef;

  static Tensor unfold(const Tensor& input, const Tensor& dilation_map, const Window& window) {
    return sample_as("unfold", input, dilation_map, window);
  }

  static Tensor sample(const Tensor& input, const Tensor& dilation_map, const Window& window) {
    return sample_as("sample", input, dilation_map, window);
  }

  static Tensor fold(
      const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Window& window) {
    return splat_as("fold", columns, output_size, dilation_map, window);
  }

  static Tensor splat(
      const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Window& window) {
    return splat_as("splat", columns, output_size, dilation_map, window);
  }

  static Tensor dot(const Tensor& columns, const Tensor& input, const Tensor& dilation_map, const Window& window) {
    const auto params = check_dot("dot", "columns", columns, input, dilation_map, window);
    return filled(
        params, {params.batch, params.groups, params.h.out_size, params.w.out_size}, dilation_map,
        [&](Tensor& result) { Backend::dot(params, columns, input, dilation_map, result); });
  }

  static std::tuple<Tensor, Tensor> unfold_backward(
      const Tensor& grad_output, const Tensor& input, const Tensor& dilation_map, const Window& window) {
    const auto params = check_dot("unfold_backward", "grad_output", grad_output, input, dilation_map, window);
    auto grad_input = at::empty_symint(input.sym_sizes(), input.options());
    auto grad_dilation_map = at::empty_symint(dilation_map.sym_sizes(), dilation_map.options());
    Backend::unfold_backward(params, grad_output, input, dilation_map, grad_input, grad_dilation_map);
    return {grad_input, grad_dilation_map};
  }

 private:
  static Tensor sample_as(const char* op, const Tensor& input, const Tensor& dilation_map, const Window& window) {
    const auto params = check_sample(op, input, dilation_map, window);
    const auto rows = params.channels * params.h.kernel * params.w.kernel;
    return filled(params, {params.batch, rows, params.h.out_size * params.w.out_size}, input, [&](Tensor& columns) {
      Backend::sample(params, input, dilation_map, columns);
    });
  }

  static Tensor splat_as(
      const char* op,
      const Tensor& columns,
      SymIntArrayRef output_size,
      const Tensor& dilation_map,
      const Window& window) {
    const auto params = check_splat(op, columns, output_size, dilation_map, window);
    return filled(params, {params.batch, params.channels, params.h.size, params.w.size}, columns, [&](Tensor& image) {
      Backend::splat(params, columns, dilation_map, image);
    });
  }

  // A new tensor with the options of `like`, filled by `fill`, or with zeros where the derivative vanishes.
  template <class Fill>
  static Tensor filled(const SymParams& params, SymIntArrayRef sizes, const Tensor& like, const Fill& fill) {
    if (vanishes(params.term)) {
      return at::zeros_symint(sizes, like.options());
    }
    auto result = at::empty_symint(sizes, like.options());
    fill(result);
    return result;
  }
};

template <class Backend>
void register_operators(torch::Library& m) {
  using Ops = Operators<Backend>;
  m.impl("unfold", TORCH_FN(Schema<&Ops::unfold>::value));
  m.impl("fold", TORCH_FN(Schema<&Ops::fold>::value));
  m.impl("unfold_backward", TORCH_FN(Schema<&Ops::unfold_backward>::value));
  m.impl("sample", TORCH_FN(Schema<&Ops::sample>::derivative));
  m.impl("splat", TORCH_FN(Schema<&Ops::splat>::derivative));
  m.impl("dot", TORCH_FN(Schema<&Ops::dot>::derivative));
}

}  // namespace ddu
