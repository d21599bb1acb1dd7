// SPDX-License-Identifier: MIT
// Turns the tensors and options of a call into checked Params. All checks of the project are here, and there is no
// other way to obtain Params.
//
// Every device calls these functions, and so does Meta. So no kernel runs on unchecked arguments, however it is called,
// and a call that fails when it runs fails with the same message when it is traced. `op` is the operator's name, for
// messages.
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

// What the checks need to know about the caller.
struct Caller {
  int64_t axes = 0;     // of the problem; 0: deduced from the arguments
  bool model = false;   // allows unbatched arguments and broadcast positions, and autocast may still change the types
  bool family = false;  // sample, splat, dot or sample_backward, whose positions are called `positions`
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

// dot; also unfold_backward and sample_backward, whose columns are called grad_output.
SymParams check_dot(
    const char* op,
    const char* columns_name,
    const at::Tensor& columns,
    const at::Tensor& input,
    const at::Tensor& positions,
    const Options& options,
    const Caller& caller = {});

// convolution, with caller.axes axes: weight [O, C / groups, *kernel], or one per image, [B, O, C / groups, *kernel];
// bias [O], or with one weight per image also [B, O]; mask [B, M * taps, *out]. Bias and mask may be undefined. The
// options' groups are the dilation groups, and their kernel_size comes from the weight.
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

// convolution_backward, in addition: grad_output [B, O, *out], and no gradient for a missing mask.
void check_convolution_gradient(
    const char* op,
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const c10::SymInt& out_channels,
    const SymParams& params,
    bool has_mask,
    bool needs_mask);

// The sums of windows. The operator determines which tensors there are; the others are undefined. The size of the image
// is that of the input, or else image_size. `mask_groups` holds the number that the caller asks for, or 0, and is set
// to the actual number.
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

// dcls_inside: positions [N, ...] in float or double, which can represent a position just before a cell.
void check_dcls_positions(const char* op, const at::Tensor& positions, const Options::Ints& kernel_size);

// dcls_kernel_backward, in addition: grad_output of that shape, and no gradient for a missing sigma.
void check_dcls_gradient(
    const char* op,
    const at::Tensor& grad_output,
    const at::Tensor& weight,
    const Shape& shape,
    bool has_sigma,
    bool needs_sigma);

// ---- derived sizes

Shape input_shape(const SymParams& params);    // [B, C, *size]
Shape columns_shape(const SymParams& params);  // [B, C * taps, L]
Shape dot_shape(const SymParams& params);      // [B, G, *out]; with parameters per tap [B, G * taps, *out]
Shape grid_shape(const SymParams& params, const c10::SymInt& channels);  // [B, channels, *out]

// The term of params.term's first derivative with respect to parameter r.
Term raised_term(const SymParams& params, const Options& options, int64_t r);

// The parameters with plain integers, for a kernel.
UnfoldParams concrete(const SymParams& params);

}  // namespace ddu
