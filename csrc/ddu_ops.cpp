// SPDX-License-Identifier: MIT
// The public functions: what a model calls from Python, called through the dispatcher.
#include "include/ddu_ops/ddu_ops.h"

#include <c10/core/SymIntArrayRef.h>

#include "signatures.h"

namespace ddu {

namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

}  // namespace

Tensor unfold(
    const Tensor& input,
    IntOrPair kernel_size,
    const Tensor& dilation_map,
    IntOrPair stride,
    IntOrPair padding,
    IntOrPair dilation,
    int64_t groups,
    bool aligned) {
  using Signature =
      Tensor(const Tensor&, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t, bool);
  static const auto op = find_operator<Signature>("ddu::dynamic_dilation_unfold");
  return op.call(input, *kernel_size, dilation_map, *stride, *padding, *dilation, groups, aligned);
}

Tensor fold(
    const Tensor& columns,
    IntOrPair output_size,
    IntOrPair kernel_size,
    const Tensor& dilation_map,
    IntOrPair stride,
    IntOrPair padding,
    IntOrPair dilation,
    int64_t groups,
    bool aligned) {
  using Signature = Tensor(
      const Tensor&, c10::SymIntArrayRef, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t,
      bool);
  static const auto op = find_operator<Signature>("ddu::dynamic_dilation_fold");
  const c10::SymInt size[] = {output_size->at(0), output_size->at(1)};
  return op.call(columns, size, *kernel_size, dilation_map, *stride, *padding, *dilation, groups, aligned);
}

Tensor conv2d(
    const Tensor& input,
    const Tensor& weight,
    const Tensor& dilation_map,
    const OptionalTensor& bias,
    IntOrPair stride,
    IntOrPair padding,
    IntOrPair dilation,
    int64_t groups,
    int64_t dilation_groups,
    const OptionalTensor& mask,
    bool aligned,
    int64_t workspace_limit) {
  using Signature = Tensor(
      const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, IntArrayRef, IntArrayRef, IntArrayRef,
      int64_t, int64_t, const OptionalTensor&, bool, int64_t);
  static const auto op = find_operator<Signature>("ddu::dynamic_dilation_conv2d");
  return op.call(
      input, weight, dilation_map, bias, *stride, *padding, *dilation, groups, dilation_groups, mask, aligned,
      workspace_limit);
}

}  // namespace ddu
