// SPDX-License-Identifier: MIT
// The sparse form: autograd, shapes, and in terms of ATen. See NOTE [ Sparse form ] in sparse.h.
#include "sparse.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include "../autograd/node.h"
#include "../checks.h"
#include "../dispatch/signatures.h"

namespace ddu::dcls {

using at::Tensor;
using c10::SymIntArrayRef;

namespace {

// ---- in terms of ATen: one tap at a time

// The input at y + shift for one tap, [B, C, L], with zeros outside.
Tensor moved(const Tensor& input, const Tensor& shifts, SymIntArrayRef size, int64_t tap) {
  const auto axes = shifts.sym_size(0).guard_int(__FILE__, __LINE__);
  const auto channels = input.sym_size(1);
  c10::SymInt length = 1;
  for (const auto& one : size) {
    length = length * one;
  }
  auto index = at::zeros({}, shifts.options());
  auto inside = at::ones({}, shifts.options().dtype(at::kBool));
  for (int64_t axis = 0; axis < axes; ++axis) {
    std::vector<c10::SymInt> along(axes + 1, 1);
    along[axis + 1] = size[axis];
    const auto image = input.sym_size(2 + axis);
    const auto cells = at::arange(size[axis], shifts.options()).reshape_symint(along);
    std::vector<c10::SymInt> of_channel(axes + 1, 1);
    of_channel[0] = channels;
    const auto shift = shifts.select(0, axis).select(1, tap).clamp(-kFarShift, kFarShift).reshape_symint(of_channel);
    const auto at = cells + shift;
    inside = inside.logical_and(at >= 0).logical_and(at < image);
    index = index * image + at;
  }
  index = at::where(inside, index, at::zeros({}, index.options())).reshape_symint({1, channels, length});
  const auto flat = input.reshape_symint({input.sym_size(0), channels, -1});
  const auto values = flat.gather(2, index.expand_symint({input.sym_size(0), channels, length}));
  return at::where(inside.reshape_symint({1, channels, length}), values, at::zeros({}, values.options()));
}

bool empty(const Tensor& input) { return input.sym_numel() == 0; }

Tensor sum_aten(const Tensor& input, const Tensor& factors, const Tensor& shifts, SymIntArrayRef output_size) {
  const auto shape = check_sparse_sum(input, factors, shifts, output_size);
  const auto type = at::toOpMathType(input.scalar_type());
  auto result = at::zeros_symint(shape, input.options().dtype(type));
  if (!empty(input)) {
    const auto image = input.to(type);
    for (int64_t tap = 0; tap < shifts.sym_size(2).guard_int(__FILE__, __LINE__); ++tap) {
      const auto factor = factors.select(1, tap).to(type).reshape_symint({1, input.sym_size(1), 1});
      result = result + (moved(image, shifts, output_size, tap) * factor).reshape_symint(shape);
    }
  }
  return result.to(input.scalar_type());
}

Tensor dot_aten(const Tensor& left, const Tensor& input, const Tensor& shifts) {
  const auto shape = check_sparse_dot(left, input, shifts);
  const auto type = at::toOpMathType(input.scalar_type());
  const auto taps = shifts.sym_size(2).guard_int(__FILE__, __LINE__);
  if (empty(input) || empty(left) || taps == 0) {
    return at::zeros_symint(shape, input.options());
  }
  const auto flat = left.to(type).flatten(2);
  const auto image = input.to(type);
  std::vector<Tensor> each;
  for (int64_t tap = 0; tap < taps; ++tap) {
    each.push_back((moved(image, shifts, left.sym_sizes().slice(2), tap) * flat).sum(at::IntArrayRef({0, 2})));
  }
  return at::stack(each, 1).to(input.scalar_type());
}

// ---- shapes

Tensor sum_meta(const Tensor& input, const Tensor& factors, const Tensor& shifts, SymIntArrayRef output_size) {
  return input.new_empty_symint(check_sparse_sum(input, factors, shifts, output_size));
}

Tensor dot_meta(const Tensor& left, const Tensor& input, const Tensor& shifts) {
  return input.new_empty_symint(check_sparse_dot(left, input, shifts));
}

void register_shapes(torch::Library& m) {
  m.impl("dcls_sparse_sum", TORCH_FN(sum_meta));
  m.impl("dcls_sparse_dot", TORCH_FN(dot_meta));
}

// ---- autograd

struct NoOptions {
  using Lists = std::array<c10::SmallVector<int64_t, 1>, 0>;
  NoOptions() = default;
  explicit NoOptions(const Lists&) {}
  Lists lists() const { return {}; }
};

Tensor total(const Tensor& a, const Tensor& b) { return !a.defined() ? b : b.defined() ? a + b : a; }

// For x = {input, factors, shifts}; the sizes are the input's.
struct SumFormula {
  static constexpr const char* kName = "DclsSparseSumBackward";
  using Options = NoOptions;

  static Needs saved(const Needs& needs) { return {needs[1], needs[0], true}; }

  static variable_list vjp(
      const variable_list& grads, const variable_list& x, const Options&, const Sizes& sizes, const Needs& needs) {
    const auto& grad = grads[0];
    return {
        needs[0] ? sparse_sum(grad, x[1], x[2].neg(), sizes) : Tensor(),
        needs[1] ? sparse_dot(grad, x[0], x[2]) : Tensor(), Tensor()};
  }
};

// For x = {left, input, shifts}; the sizes are those of left, then the input's.
struct DotFormula {
  static constexpr const char* kName = "DclsSparseDotBackward";
  using Options = NoOptions;

  static Needs saved(const Needs& needs) { return {needs[1], needs[0], true}; }

  static variable_list vjp(
      const variable_list& grads, const variable_list& x, const Options&, const Sizes& sizes, const Needs& needs) {
    const auto& grad = grads[0];
    const SymIntArrayRef both(sizes.begin(), sizes.end());
    const auto axes = both.size() / 2;
    return {
        needs[0] ? sparse_sum(x[1], grad, x[2], both.slice(0, axes)) : Tensor(),
        needs[1] ? sparse_sum(x[0], grad, x[2].neg(), both.slice(axes)) : Tensor(), Tensor()};
  }
};

void append_size(Sizes& sizes, const Tensor& image) {
  const auto size = image.sym_sizes().slice(std::min<int64_t>(2, image.dim()));
  sizes.append(size.begin(), size.end());
}

Tensor sum_autograd(const Tensor& input, const Tensor& factors, const Tensor& shifts, SymIntArrayRef output_size) {
  const variable_list x = {input, factors, shifts};
  Sizes sizes;
  append_size(sizes, input);
  const auto results = recorded<SumFormula>(
      x, {}, sizes, [&] { return variable_list{sparse_sum(input, factors, shifts, output_size)}; });
  carry_tangents(results, x, [&](const variable_list& t, const variable_list& p) {
    return variable_list{total(
        t[0].defined() ? sparse_sum(t[0], p[1], p[2], output_size) : Tensor(),
        t[1].defined() ? sparse_sum(p[0], t[1], p[2], output_size) : Tensor())};
  });
  return results[0];
}

Tensor dot_autograd(const Tensor& left, const Tensor& input, const Tensor& shifts) {
  const variable_list x = {left, input, shifts};
  Sizes sizes;
  append_size(sizes, left);
  append_size(sizes, input);
  const auto results =
      recorded<DotFormula>(x, {}, sizes, [&] { return variable_list{sparse_dot(left, input, shifts)}; });
  carry_tangents(results, x, [&](const variable_list& t, const variable_list& p) {
    return variable_list{total(
        t[0].defined() ? sparse_dot(t[0], p[1], p[2]) : Tensor(),
        t[1].defined() ? sparse_dot(p[0], t[1], p[2]) : Tensor())};
  });
  return results[0];
}

}  // namespace

Tensor sparse_sum(const Tensor& input, const Tensor& factors, const Tensor& shifts, SymIntArrayRef output_size) {
  static const auto op = find_operator<decltype(sparse_sum)>("ddu::dcls_sparse_sum");
  return op.call(input, factors, shifts, output_size);
}

Tensor sparse_dot(const Tensor& left, const Tensor& input, const Tensor& shifts) {
  static const auto op = find_operator<decltype(sparse_dot)>("ddu::dcls_sparse_dot");
  return op.call(left, input, shifts);
}

TORCH_LIBRARY_IMPL(ddu, Autograd, m) {
  m.impl("dcls_sparse_sum", TORCH_FN(sum_autograd));
  m.impl("dcls_sparse_dot", TORCH_FN(dot_autograd));
}

TORCH_LIBRARY_IMPL(ddu, CompositeExplicitAutograd, m) {
  m.impl("dcls_sparse_sum", TORCH_FN(sum_aten));
  m.impl("dcls_sparse_dot", TORCH_FN(dot_aten));
}

TORCH_LIBRARY_IMPL(ddu, Meta, m) { register_shapes(m); }

// Registered only to be refused: see backends/meta.
TORCH_LIBRARY_IMPL(ddu, NestedTensorCPU, m) { register_shapes(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorCUDA, m) { register_shapes(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorMeta, m) { register_shapes(m); }

}  // namespace ddu::dcls
