// SPDX-License-Identifier: MIT
// The public functions: they call the operators for models, through the dispatcher.
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

#define DDU_SUMS(N) \
  Tensor aggregate##N##d( \
      const Tensor& input, const Tensor& mask, torch::ExpandingArray<N> kernel_size, const Tensor& dilation_map, \
      torch::ExpandingArray<N> stride, torch::ExpandingArray<N> padding, torch::ExpandingArray<N> dilation, \
      int64_t groups, bool aligned, std::string_view padding_mode) { \
    using Signature = Tensor( \
        const Tensor&, const Tensor&, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t, \
        bool, Word); \
    static const auto op = find_operator<Signature>("ddu::dynamic_dilation_aggregate" #N "d"); \
    return op.call( \
        input, mask, *kernel_size, dilation_map, *stride, *padding, *dilation, groups, aligned, padding_mode); \
  } \
  Tensor correlate##N##d( \
      const Tensor& query, const Tensor& input, torch::ExpandingArray<N> kernel_size, const Tensor& dilation_map, \
      torch::ExpandingArray<N> stride, torch::ExpandingArray<N> padding, torch::ExpandingArray<N> dilation, \
      int64_t groups, int64_t mask_groups, bool aligned, std::string_view padding_mode) { \
    using Signature = Tensor( \
        const Tensor&, const Tensor&, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t, \
        int64_t, bool, Word); \
    static const auto op = find_operator<Signature>("ddu::dynamic_dilation_correlate" #N "d"); \
    return op.call( \
        query, input, *kernel_size, dilation_map, *stride, *padding, *dilation, groups, mask_groups, aligned, \
        padding_mode); \
  } \
  std::tuple<Tensor, Tensor> max_pool##N##d( \
      const Tensor& input, torch::ExpandingArray<N> kernel_size, const Tensor& dilation_map, \
      std::optional<torch::ExpandingArray<N>> stride, torch::ExpandingArray<N> padding, \
      torch::ExpandingArray<N> dilation, int64_t groups, bool aligned, std::string_view padding_mode) { \
    using Signature = std::tuple<Tensor, Tensor>( \
        const Tensor&, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t, bool, Word); \
    static const auto op = find_operator<Signature>("ddu::dynamic_dilation_max_pool" #N "d"); \
    return op.call( \
        input, *kernel_size, dilation_map, *stride.value_or(kernel_size), *padding, *dilation, groups, aligned, \
        padding_mode); \
  }

DDU_SUMS(1)
DDU_SUMS(2)
DDU_SUMS(3)

#undef DDU_SUMS

#define DDU_MOVED_SUMS(N, kind) \
  Tensor kind##_aggregate##N##d( \
      const Tensor& input, const Tensor& mask, torch::ExpandingArray<N> kernel_size, const Tensor& positions, \
      torch::ExpandingArray<N> stride, torch::ExpandingArray<N> padding, torch::ExpandingArray<N> dilation, \
      int64_t groups, std::string_view padding_mode) { \
    using Signature = Tensor( \
        const Tensor&, const Tensor&, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t, \
        Word); \
    static const auto op = find_operator<Signature>("ddu::" #kind "_aggregate" #N "d"); \
    return op.call(input, mask, *kernel_size, positions, *stride, *padding, *dilation, groups, padding_mode); \
  } \
  Tensor kind##_correlate##N##d( \
      const Tensor& query, const Tensor& input, torch::ExpandingArray<N> kernel_size, const Tensor& positions, \
      torch::ExpandingArray<N> stride, torch::ExpandingArray<N> padding, torch::ExpandingArray<N> dilation, \
      int64_t groups, int64_t mask_groups, std::string_view padding_mode) { \
    using Signature = Tensor( \
        const Tensor&, const Tensor&, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t, \
        int64_t, Word); \
    static const auto op = find_operator<Signature>("ddu::" #kind "_correlate" #N "d"); \
    return op.call( \
        query, input, *kernel_size, positions, *stride, *padding, *dilation, groups, mask_groups, padding_mode); \
  }

DDU_MOVED_SUMS(1, deform)
DDU_MOVED_SUMS(1, affine)
DDU_MOVED_SUMS(2, deform)
DDU_MOVED_SUMS(2, affine)
DDU_MOVED_SUMS(3, deform)
DDU_MOVED_SUMS(3, affine)

#undef DDU_MOVED_SUMS

#define DDU_WINDOWS(N, unfold, fold, suffix) \
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
  }

DDU_WINDOWS(1, unfold1d, fold1d, "1d")
DDU_WINDOWS(2, unfold, fold, "")
DDU_WINDOWS(3, unfold3d, fold3d, "3d")

#undef DDU_WINDOWS

#define DDU_MOVED_WINDOWS(N, unfold) \
  Tensor unfold( \
      const Tensor& input, torch::ExpandingArray<N> kernel_size, const Tensor& positions, \
      torch::ExpandingArray<N> stride, torch::ExpandingArray<N> padding, torch::ExpandingArray<N> dilation, \
      int64_t groups, std::string_view padding_mode) { \
    using Signature = \
        Tensor(const Tensor&, IntArrayRef, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t, Word); \
    static const auto op = find_operator<Signature>("ddu::" #unfold); \
    return op.call(input, *kernel_size, positions, *stride, *padding, *dilation, groups, padding_mode); \
  }

DDU_MOVED_WINDOWS(1, deform_unfold1d)
DDU_MOVED_WINDOWS(1, affine_unfold1d)
DDU_MOVED_WINDOWS(2, deform_unfold2d)
DDU_MOVED_WINDOWS(2, affine_unfold2d)
DDU_MOVED_WINDOWS(3, deform_unfold3d)
DDU_MOVED_WINDOWS(3, affine_unfold3d)

#undef DDU_MOVED_WINDOWS

#define DDU_CONVOLUTIONS(N, conv, deform_conv, affine_conv, suffix) \
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
  } \
  Tensor affine_conv( \
      const Tensor& input, const Tensor& weight, const Tensor& theta, const OptionalTensor& bias, \
      torch::ExpandingArray<N> stride, torch::ExpandingArray<N> padding, torch::ExpandingArray<N> dilation, \
      int64_t groups, int64_t theta_groups, const OptionalTensor& mask, std::string_view padding_mode) { \
    using Signature = Tensor( \
        const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, IntArrayRef, IntArrayRef, IntArrayRef, \
        int64_t, int64_t, const OptionalTensor&, Word); \
    static const auto op = find_operator<Signature>("ddu::" #affine_conv); \
    return op.call( \
        input, weight, theta, bias, *stride, *padding, *dilation, groups, theta_groups, mask, padding_mode); \
  }

DDU_CONVOLUTIONS(1, conv1d, deform_conv1d, affine_conv1d, "1d")
DDU_CONVOLUTIONS(2, conv2d, deform_conv2d, affine_conv2d, "2d")
DDU_CONVOLUTIONS(3, conv3d, deform_conv3d, affine_conv3d, "3d")

#undef DDU_CONVOLUTIONS

}  // namespace ddu
