// SPDX-License-Identifier: MIT
// Sizes and types without values: the Meta device, which traces run on.

#include "backend.h"

namespace ddu {

namespace {

struct Meta {
  static void sample(const SymParams&, const at::Tensor&, const at::Tensor&, at::Tensor&) {}
  static void splat(const SymParams&, const at::Tensor&, const at::Tensor&, at::Tensor&) {}
  static void dot(const SymParams&, const at::Tensor&, const at::Tensor&, const at::Tensor&, at::Tensor&) {}
  static void unfold_backward(
      const SymParams&, const at::Tensor&, const at::Tensor&, const at::Tensor&, at::Tensor&, at::Tensor&) {}
};

}  // namespace

TORCH_LIBRARY_IMPL(ddu, Meta, m) { register_operators<Meta>(m); }

// Sparse and quantised tensors and the like come to CompositeExplicitAutograd (plain.cpp), nested ones do not. No
// operator takes any of them; the checks say so, with the argument's name.
TORCH_LIBRARY_IMPL(ddu, NestedTensorCPU, m) { register_operators<Meta>(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorCUDA, m) { register_operators<Meta>(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorMeta, m) { register_operators<Meta>(m); }

}  // namespace ddu
