// SPDX-License-Identifier: MIT
// Keeps positions inside the kernel. The gradient of a position outside passes through as if it were inside, unless a
// step against it would lead further out. So a position comes back as soon as a step leads inwards.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "../autograd/node.h"
#include "../checks.h"
#include "../dispatch/signatures.h"

namespace ddu::dcls {

namespace {

using at::Tensor;

// The options of a call: the sizes of the kernel.
struct KernelSize {
  using Ints = ddu::Options::Ints;
  using Lists = std::array<Ints, 1>;

  explicit KernelSize(at::IntArrayRef sizes) : kernel_size(sizes.begin(), sizes.end()) {}
  explicit KernelSize(const Lists& lists) : kernel_size(lists[0]) {}
  Lists lists() const { return {kernel_size}; }

  Ints kernel_size;
};

struct Bounds {
  double low;
  double high;
};

// The upper bound is just before the last cell: there the derivative from the right is still that of the inside.
Bounds bounds(int64_t size, at::ScalarType type) {
  const auto low = static_cast<double>(-(size / 2));
  const auto high = static_cast<double>(size - 1 - size / 2);
  if (size == 1) {
    return {low, high};
  }
  const auto before = type == at::kFloat
      ? static_cast<double>(std::nextafter(static_cast<float>(high), -std::numeric_limits<float>::infinity()))
      : std::nextafter(high, -std::numeric_limits<double>::infinity());
  return {low, before};
}

// f(axis, its bounds) for every axis, stacked.
template <class F>
Tensor by_axis(const Tensor& positions, const KernelSize& sizes, const F& f) {
  std::vector<Tensor> each;
  const auto axes = positions.sym_size(0).guard_int(__FILE__, __LINE__);
  for (int64_t axis = 0; axis < axes; ++axis) {
    const auto size = sizes.kernel_size[sizes.kernel_size.size() == 1 ? 0 : axis];
    each.push_back(f(axis, bounds(size, positions.scalar_type())));
  }
  return at::stack(each);
}

Tensor clamped(const Tensor& positions, at::IntArrayRef kernel_size) {
  const KernelSize sizes(kernel_size);
  check_dcls_positions("dcls_inside", positions, sizes.kernel_size);
  return by_axis(positions, sizes, [&](int64_t axis, const Bounds& b) {
    return at::clamp(positions.select(0, axis), b.low, b.high);
  });
}

struct Formula {
  static constexpr const char* kName = "DclsInsideBackward";
  using Options = KernelSize;

  static Needs saved(const Needs& needs) { return needs; }

  static variable_list vjp(
      const variable_list& grads, const variable_list& x, const Options& sizes, const Sizes&, const Needs& needs) {
    const auto zero = at::zeros({}, grads[0].options());
    return {by_axis(x[0], sizes, [&](int64_t axis, const Bounds& b) {
      const auto position = x[0].select(0, axis);
      const auto grad = grads[0].select(0, axis);
      const auto outwards =
          (position > b.high).logical_and(grad < 0).logical_or((position < b.low).logical_and(grad > 0));
      return at::where(outwards, zero, grad);
    })};
  }
};

Tensor inside_autograd(const Tensor& positions, at::IntArrayRef kernel_size) {
  const variable_list x = {positions};
  const auto results = recorded<Formula>(x, KernelSize(kernel_size), {}, [&] {
    static const auto op = find_operator<decltype(clamped)>("ddu::dcls_inside");
    return variable_list{op.call(positions, kernel_size)};
  });
  carry_tangents(results, x, [](const variable_list& tangents, const variable_list&) { return tangents; });
  return results[0];
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CompositeExplicitAutograd, m) { m.impl("dcls_inside", TORCH_FN(clamped)); }

TORCH_LIBRARY_IMPL(ddu, Autograd, m) { m.impl("dcls_inside", TORCH_FN(inside_autograd)); }

// Registered only to be refused: see backends/meta.
TORCH_LIBRARY_IMPL(ddu, NestedTensorCPU, m) { m.impl("dcls_inside", TORCH_FN(clamped)); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorCUDA, m) { m.impl("dcls_inside", TORCH_FN(clamped)); }

}  // namespace ddu::dcls
