// SPDX-License-Identifier: MIT
#include "calls.h"

#include "signatures.h"

namespace ddu {

using at::Tensor;
using c10::SymIntArrayRef;

Tensor unfold(const Tensor& input, const Tensor& dilation_map, const Options& options) {
  return RatesSchema<&unfold>::dispatch("ddu::unfold", input, dilation_map, options);
}

Tensor fold(const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Options& options) {
  return RatesSchema<&fold>::dispatch("ddu::fold", columns, output_size, dilation_map, options);
}

std::tuple<Tensor, Tensor> unfold_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& dilation_map, const Options& options) {
  return RatesSchema<&unfold_backward>::dispatch("ddu::unfold_backward", grad_output, input, dilation_map, options);
}

Tensor sample(const Tensor& input, const Tensor& positions, const Options& options) {
  return FamilySchema<&sample>::dispatch("ddu::sample", input, positions, options);
}

Tensor splat(const Tensor& columns, SymIntArrayRef output_size, const Tensor& positions, const Options& options) {
  return FamilySchema<&splat>::dispatch("ddu::splat", columns, output_size, positions, options);
}

Tensor dot(const Tensor& columns, const Tensor& input, const Tensor& positions, const Options& options) {
  return FamilySchema<&dot>::dispatch("ddu::dot", columns, input, positions, options);
}

std::tuple<Tensor, Tensor> sample_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& positions, const Options& options) {
  return FamilySchema<&sample_backward>::dispatch("ddu::sample_backward", grad_output, input, positions, options);
}

}  // namespace ddu
