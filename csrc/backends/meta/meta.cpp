// SPDX-License-Identifier: MIT
// The Meta device, which computes sizes and types but no values. Traces run on it.

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

// Sparse and quantised tensors and the like reach CompositeExplicitAutograd (backends/aten), nested ones do not. No
// operator takes any of them; the checks say so and name the argument.
TORCH_LIBRARY_IMPL(ddu, NestedTensorCPU, m) { register_operators<Meta>(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorCUDA, m) { register_operators<Meta>(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorMeta, m) { register_operators<Meta>(m); }

}  // namespace ddu
