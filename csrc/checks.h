// SPDX-License-Identifier: MIT
// From the tensors and options of a call to checked Params: the only door to them, and every check of the project.
//
// Every device and Meta come in here, so no kernel runs on unchecked arguments, whichever way the call came, and what
// is refused when it runs is refused with the same words when it is traced. `op` is the operator's name, for messages.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/SmallVector.h>

#include "options.h"
#include "params.h"

namespace ddu {

using SymParams = Params<c10::SymInt>;
using Shape = c10::SmallVector<c10::SymInt, kMaxAxes + 2>;

// Who calls, and how.
struct Caller {
  int64_t axes = 0;     // of the problem; 0: the ranks of the arguments tell
  bool model = false;   // unbatched arguments and broadcast positions are fine, and autocast may yet change the types
  bool family = false;  // sample, splat, dot and sample_backward, which call the positions so
};

// sample and unfold: input [B, C, *size], positions [B, positions_channels, *out].
SymParams check_sample(
    const char* op,
    const at::Tensor& input,
    const at::Tensor& positions,
    const Options& options,
    const Caller& caller = {});

// splat and fold: columns [B, C * taps, L].
SymParams check_splat(
    const char* op,
    const at::Tensor& columns,
    c10::SymIntArrayRef output_size,
    const at::Tensor& positions,
    const Options& options,
    const Caller& caller = {});

// dot, unfold_backward and sample_backward, which call their columns grad_output.
SymParams check_dot(
    const char* op,
    const char* columns_name,
    const at::Tensor& columns,
    const at::Tensor& input,
    const at::Tensor& positions,
    const Options& options,
    const Caller& caller = {});

// convolution, of caller.axes axes: weight [O, C / groups, *kernel] or [B, O, C / groups, *kernel], one per image; bias
// [O], or then also [B, O], and mask [B, M * taps, *out], or undefined. The options' groups are the dilation groups,
// their kernel_size is the weight's.
SymParams check_convolution(
    const char* op,
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& positions,
    const at::Tensor& bias,
    const at::Tensor& mask,
    const Options& options,
    int64_t groups,
    const Caller& caller);

// What convolution_backward takes besides: grad_output [B, O, *out], and no gradient of a mask that is not there.
void check_convolution_gradient(
    const char* op,
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const c10::SymInt& out_channels,
    const SymParams& params,
    bool has_mask,
    bool needs_mask);

// What the sums of windows take. Which of the tensors are there is up to the operator: undefined ones are left out. The
// size of the image is that of the input, or else image_size. `mask_groups` is what the caller asks for, or 0, and
// becomes what there are.
SymParams check_sums(
    const char* op,
    const at::Tensor& query,
    const at::Tensor& input,
    const at::Tensor& mask,
    const at::Tensor& weight,
    const at::Tensor& taps,
    const at::Tensor& positions,
    c10::SymIntArrayRef image_size,
    const Options& options,
    int64_t& mask_groups,
    const Caller& caller = {});

// dcls_kernel: weight [O, I, count], positions and, if the version has one, sigma [N, O, I, count], or undefined.
// Returns the shape of the kernel, [O, I, *kernel_size].
Shape check_dcls(
    const char* op,
    const at::Tensor& weight,
    const at::Tensor& positions,
    const at::Tensor& sigma,
    const Options::Ints& kernel_size,
    const std::string& version);

// dcls_sparse_sum: input [B, C, *size], factors [C, taps], shifts [N, C, taps] in int64. Returns [B, C, *output_size].
Shape check_sparse_sum(
    const at::Tensor& input, const at::Tensor& factors, const at::Tensor& shifts, c10::SymIntArrayRef output_size);

// dcls_sparse_dot: left [B, C, *output_size] and input. Returns [C, taps].
Shape check_sparse_dot(const at::Tensor& left, const at::Tensor& input, const at::Tensor& shifts);

// dcls_inside: positions [N, ...] in float or double, which has room for a position just before a cell.
void check_dcls_positions(const char* op, const at::Tensor& positions, const Options::Ints& kernel_size);

// What dcls_kernel_backward takes besides: grad_output of that shape, and no gradient of a sigma that is not there.
void check_dcls_gradient(
    const char* op,
    const at::Tensor& grad_output,
    const at::Tensor& weight,
    const Shape& shape,
    bool has_sigma,
    bool needs_sigma);

// ---- sizes that follow

Shape input_shape(const SymParams& params);    // [B, C, *size]
Shape columns_shape(const SymParams& params);  // [B, C * taps, L]
Shape dot_shape(const SymParams& params);      // [B, G, *out], or [B, G * taps, *out] of parameters of a tap
Shape grid_shape(const SymParams& params, const c10::SymInt& channels);  // [B, channels, *out]

// The term of the first derivative by parameter r of what params.term is.
Term raised_term(const SymParams& params, const Options& options, int64_t r);

// The same with plain integers, for a kernel.
UnfoldParams concrete(const SymParams& params);

}  // namespace ddu
