// SPDX-License-Identifier: MIT
// What models call: unbatched arguments get a batch, a map or a mask with a batch size of 1 is expanded, and the
// operators do the rest. Composite, so every transform sees only these steps.

#include <torch/library.h>

#include "../args.h"
#include "../ops.h"
#include "../signatures.h"
#include "convolution.h"

namespace ddu {

namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymIntArrayRef;
using convolution::OptionalTensor;

Tensor with_batch(const Tensor& tensor) { return tensor.defined() ? tensor.unsqueeze(0) : tensor; }

// A map or a mask.
Tensor over_batch(const Tensor& tensor, const SymParams& params) {
  if (!tensor.defined() || tensor.sym_size(0) == params.batch) {
    return tensor;
  }
  const auto& sizes = tensor.sym_sizes();
  return tensor.expand_symint({params.batch, sizes[1], sizes[2], sizes[3]});
}

Tensor dynamic_dilation_unfold(const Tensor& input, const Tensor& dilation_map, const Window& window) {
  const auto params = check_sample("dynamic_dilation_unfold", input, dilation_map, window, Caller::kModel);
  if (input.dim() == 3) {
    return unfold(with_batch(input), with_batch(dilation_map), window).squeeze(0);
  }
  return unfold(input, over_batch(dilation_map, params), window);
}

Tensor dynamic_dilation_fold(
    const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Window& window) {
  const auto params = check_splat("dynamic_dilation_fold", columns, output_size, dilation_map, window, Caller::kModel);
  if (columns.dim() == 2) {
    return fold(with_batch(columns), output_size, with_batch(dilation_map), window).squeeze(0);
  }
  return fold(columns, output_size, over_batch(dilation_map, params), window);
}

Tensor dynamic_dilation_conv2d(
    const Tensor& input,
    const Tensor& weight,
    const Tensor& dilation_map,
    const OptionalTensor& bias,
    IntArrayRef stride,
    IntArrayRef padding,
    IntArrayRef dilation,
    int64_t groups,
    int64_t dilation_groups,
    const OptionalTensor& mask,
    bool aligned,
    int64_t workspace_limit) {
  convolution::Arguments a = {
      input, weight, dilation_map, convolution::value_or_undefined(bias), convolution::value_or_undefined(mask)};
  const convolution::Options options(
      weight, stride, padding, dilation, groups, dilation_groups, aligned, workspace_limit);
  const auto params = convolution::check("dynamic_dilation_conv2d", a, options, Caller::kModel);
  if (input.dim() == 3) {
    a.input = with_batch(input);
    a.dilation_map = with_batch(dilation_map);
    a.mask = with_batch(a.mask);
    return convolution::conv2d(a, options).squeeze(0);
  }
  a.dilation_map = over_batch(dilation_map, params);
  a.mask = over_batch(a.mask, params);
  return convolution::conv2d(a, options);
}

void register_composites(torch::Library& m) {
  m.impl("dynamic_dilation_unfold", TORCH_FN(Schema<&dynamic_dilation_unfold>::value));
  m.impl("dynamic_dilation_fold", TORCH_FN(Schema<&dynamic_dilation_fold>::value));
  m.impl("dynamic_dilation_conv2d", TORCH_FN(dynamic_dilation_conv2d));
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CompositeImplicitAutograd, m) { register_composites(m); }

// Under vmap alone nothing else takes a composite operator apart, and it would be called once for every item.
TORCH_LIBRARY_IMPL(ddu, FuncTorchBatchedDecomposition, m) { register_composites(m); }

}  // namespace ddu
