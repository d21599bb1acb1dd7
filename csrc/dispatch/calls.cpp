// SPDX-License-Identifier: MIT
#include "ops.h"

#include "signatures.h"

namespace ddu {

namespace {

using at::Tensor;
using c10::SymIntArrayRef;

// Calls the operator that f stands for.
template <auto f>
struct Call {
  using Value = typename Schema<f>::Value;
  using Derivative = typename Schema<f>::Derivative;

  template <class... Leading>
  static auto value(const char* name, const Tensor& dilation_map, const Window& w, const Leading&... leading) {
    static const auto op = find_operator<Value>(name);
    return op.call(leading..., w.kernel_size, dilation_map, w.stride, w.padding, w.dilation, w.groups, w.aligned);
  }

  template <class... Leading>
  static auto derivative(const char* name, const Tensor& dilation_map, const Window& w, const Leading&... leading) {
    static const auto op = find_operator<Derivative>(name);
    return op.call(
        leading..., w.kernel_size, dilation_map, w.stride, w.padding, w.dilation, w.groups, w.aligned, w.order);
  }
};

}  // namespace

Tensor unfold(const Tensor& input, const Tensor& dilation_map, const Window& window) {
  return Call<&unfold>::value("ddu::unfold", dilation_map, window, input);
}

Tensor fold(const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Window& window) {
  return Call<&fold>::value("ddu::fold", dilation_map, window, columns, output_size);
}

std::tuple<Tensor, Tensor> unfold_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& dilation_map, const Window& window) {
  return Call<&unfold_backward>::value("ddu::unfold_backward", dilation_map, window, grad_output, input);
}

Tensor sample(const Tensor& input, const Tensor& dilation_map, const Window& window) {
  return Call<&sample>::derivative("ddu::sample", dilation_map, window, input);
}

Tensor splat(const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Window& window) {
  return Call<&splat>::derivative("ddu::splat", dilation_map, window, columns, output_size);
}

Tensor dot(const Tensor& columns, const Tensor& input, const Tensor& dilation_map, const Window& window) {
  return Call<&dot>::derivative("ddu::dot", dilation_map, window, columns, input);
}

}  // namespace ddu
