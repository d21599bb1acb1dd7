// SPDX-License-Identifier: MIT
// Sizes and types without values: the Meta device, which traces run on.

#include "../backend.h"

namespace ddu {

namespace {

struct Meta {
  static constexpr bool kMakesResults = false;

  template <class... Arguments>
  static void sample(const Arguments&...) {}
  template <class... Arguments>
  static void splat(const Arguments&...) {}
  template <class... Arguments>
  static void dot(const Arguments&...) {}
  template <class... Arguments>
  static void sample_backward(const Arguments&...) {}
};

}  // namespace

TORCH_LIBRARY_IMPL(ddu, Meta, m) { register_operators<Meta>(m); }

// Sparse and quantised tensors and the like come to CompositeExplicitAutograd (backends/aten), nested ones do not. No
// operator takes any of them; the checks say so, with the argument's name.
TORCH_LIBRARY_IMPL(ddu, NestedTensorCPU, m) { register_operators<Meta>(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorCUDA, m) { register_operators<Meta>(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorMeta, m) { register_operators<Meta>(m); }

}  // namespace ddu
