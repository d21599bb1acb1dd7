// SPDX-License-Identifier: MIT
// The operators' schemas, all of them. They are public: arguments are added at the end with a default.

#include <ATen/core/enum_tag.h>
#include <torch/library.h>

#define DDU_WINDOW \
  "int[2] kernel_size, Tensor dilation_map, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, " \
  "bool aligned=True"

#define DDU_CONVOLUTION \
  "int[2] stride, int[2] padding, int[2] dilation, int groups, int dilation_groups, bool aligned, " \
  "int workspace_limit"

TORCH_LIBRARY(ddu, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};

  // What models call: unbatched arguments and a map that is broadcast over the batch, brought down to the operators.
  m.def("dynamic_dilation_unfold(Tensor input, " DDU_WINDOW ") -> Tensor", tags);
  m.def("dynamic_dilation_fold(Tensor columns, SymInt[2] output_size, " DDU_WINDOW ") -> Tensor", tags);

  m.def(
      "dynamic_dilation_conv2d(Tensor input, Tensor weight, Tensor dilation_map, Tensor? bias=None, int[2] stride=1, "
      "int[2] padding=0, int[2] dilation=1, int groups=1, *, int dilation_groups=1, Tensor? mask=None, "
      "bool aligned=True, int workspace_limit=268435456) -> Tensor",
      tags);

  // The operators: strictly batched.
  m.def("unfold(Tensor input, " DDU_WINDOW ") -> Tensor", tags);
  m.def("fold(Tensor columns, SymInt[2] output_size, " DDU_WINDOW ") -> Tensor", tags);
  m.def(
      "unfold_backward(Tensor grad_output, Tensor input, int[2] kernel_size, Tensor dilation_map, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups, bool aligned) -> (Tensor grad_input, Tensor grad_dilation_map)",
      tags);

  // The convolution: conv2d_backward returns an empty tensor in the place of what output_mask leaves out.
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor dilation_map, Tensor? bias, Tensor? mask, " DDU_CONVOLUTION
      ") -> Tensor",
      tags);
  m.def(
      "conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor dilation_map, Tensor? "
      "mask, " DDU_CONVOLUTION
      ", bool[4] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_dilation_map, "
      "Tensor grad_mask)",
      tags);

  // The family that every derivative of them is made of. `order` is a derivative by the map's rates, a multi-index
  // with an entry per rate; empty, it is the value itself, and sample is unfold and splat is fold.
  m.def("sample(Tensor input, " DDU_WINDOW ", int[] order=[]) -> Tensor", tags);
  m.def("splat(Tensor columns, SymInt[2] output_size, " DDU_WINDOW ", int[] order=[]) -> Tensor", tags);
  m.def("dot(Tensor columns, Tensor input, " DDU_WINDOW ", int[] order=[]) -> Tensor", tags);
}
