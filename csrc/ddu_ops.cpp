// SPDX-License-Identifier: MIT
// The public functions: what a model calls from Python, called through the dispatcher.
#include "include/ddu_ops/ddu_ops.h"

#include <c10/core/SymIntArrayRef.h>

#include <string>

#include "dispatch/signatures.h"

namespace ddu {

namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ddu::<stem>, of two axes, or ddu::<stem>1d.
template <class Signature>
c10::TypedOperatorHandle<Signature> find_for_axes(const std::string& stem, size_t axes, bool two_is_plain) {
  return find_operator<Signature>((axes == 2 && two_is_plain ? stem : stem + std::to_string(axes) + "d").c_str());
}

}  // namespace

template <size_t N>
Tensor unfold(
    const Tensor& input,
    torch::ExpandingArray<N> kernel_size,
    const Tensor& dilation_map,
    torch::ExpandingArray<N> stride,
    torch::ExpandingArray<N> padding,
    torch::ExpandingArray<N> dilation,
    int64_t groups,
    bool aligned,
    std::string_view padding_mode) {
  using Signature =
      Tensor(const Tensor&, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t, bool, Word);
  static const auto op = find_for_axes<Signature>("ddu::dynamic_dilation_unfold", N, true);
  return op.call(input, *kernel_size, dilation_map, *stride, *padding, *dilation, groups, aligned, padding_mode);
}

template <size_t N>
Tensor fold(
    const Tensor& columns,
    torch::ExpandingArray<N> output_size,
    torch::ExpandingArray<N> kernel_size,
    const Tensor& dilation_map,
    torch::ExpandingArray<N> stride,
    torch::ExpandingArray<N> padding,
    torch::ExpandingArray<N> dilation,
    int64_t groups,
    bool aligned,
    std::string_view padding_mode) {
  using Signature = Tensor(
      const Tensor&, c10::SymIntArrayRef, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t,
      bool, Word);
  static const auto op = find_for_axes<Signature>("ddu::dynamic_dilation_fold", N, true);
  const std::vector<c10::SymInt> size(output_size->begin(), output_size->end());
  return op.call(
      columns, size, *kernel_size, dilation_map, *stride, *padding, *dilation, groups, aligned, padding_mode);
}

template <size_t N>
Tensor deform_unfold(
    const Tensor& input,
    torch::ExpandingArray<N> kernel_size,
    const Tensor& offset,
    torch::ExpandingArray<N> stride,
    torch::ExpandingArray<N> padding,
    torch::ExpandingArray<N> dilation,
    int64_t groups,
    std::string_view padding_mode) {
  using Signature =
      Tensor(const Tensor&, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t, Word);
  static const auto op = find_for_axes<Signature>("ddu::deform_unfold", N, false);
  return op.call(input, *kernel_size, offset, *stride, *padding, *dilation, groups, padding_mode);
}

#define DDU_INSTANTIATE(N) \
  template Tensor unfold<N>( \
      const Tensor&, torch::ExpandingArray<N>, const Tensor&, torch::ExpandingArray<N>, torch::ExpandingArray<N>, \
      torch::ExpandingArray<N>, int64_t, bool, std::string_view); \
  template Tensor fold<N>( \
      const Tensor&, torch::ExpandingArray<N>, torch::ExpandingArray<N>, const Tensor&, torch::ExpandingArray<N>, \
      torch::ExpandingArray<N>, torch::ExpandingArray<N>, int64_t, bool, std::string_view); \
  template Tensor deform_unfold<N>( \
      const Tensor&, torch::ExpandingArray<N>, const Tensor&, torch::ExpandingArray<N>, torch::ExpandingArray<N>, \
      torch::ExpandingArray<N>, int64_t, std::string_view);

DDU_INSTANTIATE(1)
DDU_INSTANTIATE(2)
DDU_INSTANTIATE(3)

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
    std::string_view padding_mode,
    int64_t workspace_limit) {
  using Signature = Tensor(
      const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, IntArrayRef, IntArrayRef, IntArrayRef,
      int64_t, int64_t, const OptionalTensor&, bool, Word, int64_t);
  static const auto op = find_operator<Signature>("ddu::dynamic_dilation_conv2d");
  return op.call(
      input, weight, dilation_map, bias, *stride, *padding, *dilation, groups, dilation_groups, mask, aligned,
      padding_mode, workspace_limit);
}

}  // namespace ddu
