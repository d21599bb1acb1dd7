// SPDX-License-Identifier: MIT
// The public functions: what a model calls from Python, called through the dispatcher.
#include "include/ddu_ops/ddu_ops.h"

#include <c10/core/SymIntArrayRef.h>

#include <vector>

#include "dispatch/signatures.h"

namespace ddu {

namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

}  // namespace

#define DDU_WINDOWS(N, unfold, fold, deform_unfold, suffix) \
  Tensor unfold( \
      const Tensor& input, torch::ExpandingArray<N> kernel_size, const Tensor& dilation_map, \
      torch::ExpandingArray<N> stride, torch::ExpandingArray<N> padding, torch::ExpandingArray<N> dilation, \
      int64_t groups, bool aligned, std::string_view padding_mode) { \
    using Signature = \
        Tensor(const Tensor&, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t, bool, Word); \
    static const auto op = find_operator<Signature>("ddu::dynamic_dilation_unfold" suffix); \
    return op.call(input, *kernel_size, dilation_map, *stride, *padding, *dilation, groups, aligned, padding_mode); \
  } \
  Tensor fold( \
      const Tensor& columns, torch::ExpandingArray<N> output_size, torch::ExpandingArray<N> kernel_size, \
      const Tensor& dilation_map, torch::ExpandingArray<N> stride, torch::ExpandingArray<N> padding, \
      torch::ExpandingArray<N> dilation, int64_t groups, bool aligned, std::string_view padding_mode) { \
    using Signature = Tensor( \
        const Tensor&, c10::SymIntArrayRef, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, \
        int64_t, bool, Word); \
    static const auto op = find_operator<Signature>("ddu::dynamic_dilation_fold" suffix); \
    const std::vector<c10::SymInt> size(output_size->begin(), output_size->end()); \
    return op.call( \
        columns, size, *kernel_size, dilation_map, *stride, *padding, *dilation, groups, aligned, padding_mode); \
  } \
  Tensor deform_unfold( \
      const Tensor& input, torch::ExpandingArray<N> kernel_size, const Tensor& offset, \
      torch::ExpandingArray<N> stride, torch::ExpandingArray<N> padding, torch::ExpandingArray<N> dilation, \
      int64_t groups, std::string_view padding_mode) { \
    using Signature = \
        Tensor(const Tensor&, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t, Word); \
    static const auto op = find_operator<Signature>("ddu::" #deform_unfold); \
    return op.call(input, *kernel_size, offset, *stride, *padding, *dilation, groups, padding_mode); \
  }

DDU_WINDOWS(1, unfold1d, fold1d, deform_unfold1d, "1d")
DDU_WINDOWS(2, unfold, fold, deform_unfold2d, "")
DDU_WINDOWS(3, unfold3d, fold3d, deform_unfold3d, "3d")

#undef DDU_WINDOWS

#define DDU_CONVOLUTIONS(N, conv, deform_conv, suffix) \
  Tensor conv( \
      const Tensor& input, const Tensor& weight, const Tensor& dilation_map, const OptionalTensor& bias, \
      torch::ExpandingArray<N> stride, torch::ExpandingArray<N> padding, torch::ExpandingArray<N> dilation, \
      int64_t groups, int64_t dilation_groups, const OptionalTensor& mask, bool aligned, \
      std::string_view padding_mode) { \
    using Signature = Tensor( \
        const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, IntArrayRef, IntArrayRef, IntArrayRef, \
        int64_t, int64_t, const OptionalTensor&, bool, Word); \
    static const auto op = find_operator<Signature>("ddu::dynamic_dilation_conv" suffix); \
    return op.call( \
        input, weight, dilation_map, bias, *stride, *padding, *dilation, groups, dilation_groups, mask, aligned, \
        padding_mode); \
  } \
  Tensor deform_conv( \
      const Tensor& input, const Tensor& offset, const Tensor& weight, const OptionalTensor& bias, \
      torch::ExpandingArray<N> stride, torch::ExpandingArray<N> padding, torch::ExpandingArray<N> dilation, \
      const OptionalTensor& mask, std::string_view padding_mode) { \
    using Signature = Tensor( \
        const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, IntArrayRef, IntArrayRef, IntArrayRef, \
        const OptionalTensor&, Word); \
    static const auto op = find_operator<Signature>("ddu::" #deform_conv); \
    return op.call(input, offset, weight, bias, *stride, *padding, *dilation, mask, padding_mode); \
  }

DDU_CONVOLUTIONS(1, conv1d, deform_conv1d, "1d")
DDU_CONVOLUTIONS(2, conv2d, deform_conv2d, "2d")
DDU_CONVOLUTIONS(3, conv3d, deform_conv3d, "3d")

#undef DDU_CONVOLUTIONS

}  // namespace ddu
