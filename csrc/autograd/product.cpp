// SPDX-License-Identifier: MIT
#include "product.h"

#include <ATen/ATen.h>

#include <array>

#include "node.h"

namespace ddu {

using at::Tensor;

namespace {

// The derivatives of bmm(x[0], x[1]), plus x[2] if it is defined. Autocast would cast those of torch's bmm.
struct Product {
  static constexpr const char* kName = "DynamicDilationProductBackward";

  struct Options {
    using Lists = std::array<c10::SmallVector<int64_t, 1>, 0>;
    Options() = default;
    explicit Options(const Lists&) {}
    Lists lists() const { return {}; }
  };

  static Tensor value(const Tensor& left, const Tensor& right, const Tensor& bias) {
    return bias.defined() ? at::baddbmm(bias, left, right) : at::bmm(left, right);
  }

  static Needs saved(const Needs& needs) { return {needs[1], needs[0], false}; }

  static variable_list vjp(
      const variable_list& grads, const variable_list& x, const Options&, const Sizes&, const Needs& needs) {
    const auto& grad = grads[0];
    return {
        needs[0] ? product(grad, x[1].transpose(1, 2)) : Tensor(),
        needs[1] ? product(x[0].transpose(1, 2), grad) : Tensor(),
        needs[2] ? grad.sum(2, /*keepdim=*/true) : Tensor(),
    };
  }

  static variable_list jvp(const variable_list& tangents, const variable_list& x) {
    Tensor result;
    if (tangents[0].defined()) {
      result = product(tangents[0], x[1]);
    }
    if (tangents[1].defined()) {
      const auto part = product(x[0], tangents[1]);
      result = result.defined() ? result + part : part;
    }
    if (tangents[2].defined()) {
      const auto part = tangents[2].expand_symint({x[0].sym_size(0), x[0].sym_size(1), x[1].sym_size(2)});
      result = result.defined() ? result + part : part;
    }
    return {result};
  }
};

}  // namespace

Tensor product(const Tensor& left, const Tensor& right, const Tensor& bias) {
  if (c10::impl::tls_is_dispatch_keyset_excluded(c10::autograd_dispatch_keyset)) {
    return Product::value(left, right, bias);
  }
  const variable_list x = {left, right, bias};
  auto results = recorded<Product>(x, {}, {}, [&] { return variable_list{Product::value(left, right, bias)}; });
  carry_tangents(results, x, &Product::jvp);
  return results[0];
}

}  // namespace ddu
