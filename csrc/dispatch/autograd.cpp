// SPDX-License-Identifier: MIT
// Autograd: reverse and forward mode, to any order.

// NOTE [ The family of derivatives ]
// Three operators are closed under differentiation. With S_q(x) the q-th derivative of all samples of x by the rates (q
// is a multi-index, `order`; e_r adds one to its entry r):
//
//     sample_q(x, D)  = S_q(x)                               columns
//     splat_q(c, D)   = the adjoint of sample_q by x, at c   an image
//     dot_q(c, x, D)  = sum of c * S_q(x) over the channels of the group and the taps of the window
//
//     by x:    sample_q <-> splat_q,           dot_q -> splat_q(g c)
//     by c:    splat_q  <-> sample_q,          dot_q -> g sample_q(x)
//     by D_r:  sample_q -> dot_{q + e_r}(g, x),  splat_q -> dot_{q + e_r}(c, g),  dot_q -> g dot_{q + e_r}(c, x)
//
// where g is the gradient of the result. unfold and fold are sample_0 and splat_0; unfold_backward is
// (splat_0, dot_{e_1}, ...) in one. Every line below calls an operator that is in the family, so its derivatives are
// here too. In the formulas an undefined tensor is zero.

#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <tuple>

#include "../ops.h"
#include "../signatures.h"
#include "node.h"

namespace ddu {

namespace {

using at::Tensor;
using c10::SymIntArrayRef;
using Order = Window::Ints;
using ImageSize = Sizes;

Tensor sum_of(const Tensor& a, const Tensor& b) { return !a.defined() ? b : !b.defined() ? a : at::add(a, b); }

Tensor product_of(const Tensor& a, const Tensor& b) { return a.defined() && b.defined() ? at::mul(a, b) : Tensor(); }

// ---- the operators of the family at one map

struct Family {
  const Tensor& dilation_map;
  const Window& window;
  const ImageSize& image_size;

  int64_t rates() const { return dilation_map.sym_size(1) == window.groups ? 1 : 2; }

  Order zero() const { return Order(rates(), 0); }

  // One derivative more. What vanishes does not count on.
  Order raised(Order order, int64_t rate) const {
    order[rate] += order[rate] <= 2 ? 1 : 0;
    return order;
  }

  Tensor sample(const Tensor& image, const Order& order) const {
    return !image.defined() || vanishes(order) ? Tensor() : ddu::sample(image, dilation_map, with(order));
  }

  Tensor splat(const Tensor& columns, const Order& order) const {
    return !columns.defined() || vanishes(order) ? Tensor()
                                                 : ddu::splat(columns, image_size, dilation_map, with(order));
  }

  Tensor dot(const Tensor& columns, const Tensor& image, const Order& order) const {
    return !columns.defined() || !image.defined() || vanishes(order)
        ? Tensor()
        : ddu::dot(columns, image, dilation_map, with(order));
  }

  // The derivatives of dot_order by each rate, in the shape of the map.
  Tensor dots(const Tensor& columns, const Tensor& image, const Order& order) const {
    variable_list parts;
    for (int64_t r = 0; r < rates(); ++r) {
      parts.push_back(dot(columns, image, raised(order, r)));
    }
    return from_rates(parts);
  }

  // The rates of something map-shaped, [B, R * G, H_out, W_out] -> [B, G, H_out, W_out].
  Tensor rate(const Tensor& map, int64_t r) const {
    if (rates() == 1 || !map.defined()) {
      return map;
    }
    const auto& sizes = map.sym_sizes();
    return map.reshape_symint({sizes[0], window.groups, 2, sizes[2], sizes[3]}).select(2, r);
  }

  // The inverse, from all rates.
  Tensor from_rates(const variable_list& parts) const {
    if (parts.size() == 1) {
      return parts[0];
    }
    if (!parts[0].defined() && !parts[1].defined()) {
      return Tensor();
    }
    const auto& sizes = (parts[0].defined() ? parts[0] : parts[1]).sym_sizes();
    const auto part = [&](int r) { return parts[r].defined() ? parts[r] : parts[1 - r].new_zeros_symint(sizes); };
    return at::stack({part(0), part(1)}, 2).reshape_symint({sizes[0], 2 * window.groups, sizes[2], sizes[3]});
  }

  // Columns, multiplied by a factor [B, G, H_out, W_out] for each window.
  Tensor scaled(const Tensor& columns, const Tensor& factor) const {
    if (!columns.defined() || !factor.defined()) {
      return Tensor();
    }
    const auto& sizes = columns.sym_sizes();
    const auto batch = sizes[0];
    const auto per_group = sizes[1] / window.groups;
    const auto size = sizes[2];
    const auto product = at::mul(
        columns.reshape_symint({batch, window.groups, per_group, size}),
        factor.reshape_symint({batch, window.groups, 1, size}));
    return product.reshape_symint(sizes).to(columns.scalar_type());
  }

 private:
  bool vanishes(const Order& order) const { return rates() == 1 ? order[0] > 2 : order[0] > 1 || order[1] > 1; }

  Window with(const Order& order) const {
    auto result = window;
    result.order = order;
    return result;
  }
};

// ---- what is differentiated

// The tensors of a call, its dilation map last.
using Tensors = variable_list;

// Each of the four below has the derivatives of one operator at x = (leading tensors..., dilation map):
//     value(x)              the operator itself
//     vjp(grads, x, needs)  gradients of the tensors that need one
//     jvp(tangents, x)      the tangents of the results
//     saved(needs)          which of x the vjp looks at

struct Sample {
  static constexpr const char* kName = "DynamicDilationUnfoldBackward";

  static Tensors value(const Tensors& x, const Window& window, const ImageSize&) {
    return {sample(x[0], x[1], window)};
  }

  static Needs saved(const Needs& needs) { return {needs[1], true}; }

  static Tensors vjp(const Tensors& grads, const Tensors& x, const Family& f, const Order& order, const Needs& needs) {
    if (needs[0] && needs[1] && order == f.zero()) {
      auto [grad_input, grad_dilation_map] = unfold_backward(grads[0], x[0], x[1], f.window);
      return {grad_input, grad_dilation_map};
    }
    return {
        needs[0] ? f.splat(grads[0], order) : Tensor(),
        needs[1] ? f.dots(grads[0], x[0], order) : Tensor(),
    };
  }

  static Tensors jvp(const Tensors& tangents, const Tensors& x, const Family& f, const Order& order) {
    auto result = f.sample(tangents[0], order);
    for (int64_t r = 0; r < f.rates() && tangents[1].defined(); ++r) {
      result = sum_of(result, f.scaled(f.sample(x[0], f.raised(order, r)), f.rate(tangents[1], r)));
    }
    return {result};
  }
};

struct Splat {
  static constexpr const char* kName = "DynamicDilationFoldBackward";

  static Tensors value(const Tensors& x, const Window& window, const ImageSize& size) {
    return {splat(x[0], size, x[1], window)};
  }

  static Needs saved(const Needs& needs) { return {needs[1], true}; }

  static Tensors vjp(const Tensors& grads, const Tensors& x, const Family& f, const Order& order, const Needs& needs) {
    return {
        needs[0] ? f.sample(grads[0], order) : Tensor(),
        needs[1] ? f.dots(x[0], grads[0], order) : Tensor(),
    };
  }

  static Tensors jvp(const Tensors& tangents, const Tensors& x, const Family& f, const Order& order) {
    auto result = f.splat(tangents[0], order);
    for (int64_t r = 0; r < f.rates() && tangents[1].defined(); ++r) {
      result = sum_of(result, f.splat(f.scaled(x[0], f.rate(tangents[1], r)), f.raised(order, r)));
    }
    return {result};
  }
};

struct Dot {
  static constexpr const char* kName = "DynamicDilationDotBackward";

  static Tensors value(const Tensors& x, const Window& window, const ImageSize&) {
    return {dot(x[0], x[1], x[2], window)};
  }

  static Needs saved(const Needs& needs) { return {needs[1] || needs[2], needs[0] || needs[2], true}; }

  static Tensors vjp(const Tensors& grads, const Tensors& x, const Family& f, const Order& order, const Needs& needs) {
    variable_list by_rate;
    for (int64_t r = 0; r < f.rates() && needs[2]; ++r) {
      by_rate.push_back(product_of(grads[0], f.dot(x[0], x[1], f.raised(order, r))));
    }
    return {
        needs[0] ? f.scaled(f.sample(x[1], order), grads[0]) : Tensor(),
        needs[1] ? f.splat(f.scaled(x[0], grads[0]), order) : Tensor(),
        needs[2] ? f.from_rates(by_rate) : Tensor(),
    };
  }

  static Tensors jvp(const Tensors& tangents, const Tensors& x, const Family& f, const Order& order) {
    auto result = sum_of(f.dot(tangents[0], x[1], order), f.dot(x[0], tangents[1], order));
    for (int64_t r = 0; r < f.rates() && tangents[2].defined(); ++r) {
      result = sum_of(result, product_of(f.rate(tangents[2], r), f.dot(x[0], x[1], f.raised(order, r))));
    }
    return {result};
  }
};

// The same at order zero, by their public names.

struct Unfold : Sample {
  static Tensors value(const Tensors& x, const Window& window, const ImageSize&) {
    return {unfold(x[0], x[1], window)};
  }
};

struct Fold : Splat {
  static Tensors value(const Tensors& x, const Window& window, const ImageSize& size) {
    return {fold(x[0], size, x[1], window)};
  }
};

// (splat_0, dot_{e_r} for each rate r), differentiated as the sum of these.
struct UnfoldBackward {
  static constexpr const char* kName = "DynamicDilationUnfoldBackwardBackward";

  static Tensors value(const Tensors& x, const Window& window, const ImageSize&) {
    auto [grad_input, grad_dilation_map] = unfold_backward(x[0], x[1], x[2], window);
    return {grad_input, grad_dilation_map};
  }

  static Needs saved(const Needs& needs) { return {needs[1] || needs[2], needs[0] || needs[2], true}; }

  static Tensors vjp(const Tensors& grads, const Tensors& x, const Family& f, const Order&, const Needs& needs) {
    Tensors result(3);
    if (grads[0].defined()) {
      const auto part = Splat::vjp({grads[0]}, {x[0], x[2]}, f, f.zero(), {needs[0], needs[2]});
      result[0] = part[0];
      result[2] = part[1];
    }
    for (int64_t r = 0; r < f.rates() && grads[1].defined(); ++r) {
      const auto part = Dot::vjp({f.rate(grads[1], r)}, x, f, f.raised(f.zero(), r), needs);
      for (size_t i = 0; i < 3; ++i) {
        result[i] = sum_of(result[i], part[i]);
      }
    }
    return result;
  }

  static Tensors jvp(const Tensors& tangents, const Tensors& x, const Family& f, const Order&) {
    variable_list by_rate;
    for (int64_t r = 0; r < f.rates(); ++r) {
      by_rate.push_back(Dot::jvp(tangents, x, f, f.raised(f.zero(), r))[0]);
    }
    return {Splat::jvp({tangents[0], tangents[2]}, {x[0], x[2]}, f, f.zero())[0], f.from_rates(by_rate)};
  }
};

// ---- how: one formula for the node of each of them

template <class Op>
struct FamilyFormula {
  static constexpr const char* kName = Op::kName;
  using Options = Window;

  static Needs saved(const Needs& needs) { return Op::saved(needs); }

  static variable_list vjp(
      const variable_list& grads, const Tensors& x, const Window& window, const ImageSize& size, const Needs& needs) {
    const Family family{x.back(), window, size};
    return Op::vjp(grads, x, family, order_of(family), needs);
  }

  static Order order_of(const Family& family) {
    return family.window.order.empty() ? family.zero() : family.window.order;
  }
};

// Op::value with its derivatives recorded.
template <class Op>
Tensors differentiable(const Tensors& x, const Window& window, const ImageSize& image_size) {
  auto results = recorded<FamilyFormula<Op>>(x, window, image_size, [&] { return Op::value(x, window, image_size); });
  carry_tangents(results, x, [&](const Tensors& tangents, const Tensors& primals) {
    const Family family{primals.back(), window, image_size};
    return Op::jvp(tangents, primals, family, FamilyFormula<Op>::order_of(family));
  });
  return results;
}

// ---- registration

// A tensor of another rank, or a nested one, is refused below; until then any size will do.
ImageSize image_size(const Tensor& image) {
  return !image.is_nested() && image.dim() == 4 ? ImageSize{image.sym_size(2), image.sym_size(3)} : ImageSize{};
}

template <class Op>
Tensor sample_autograd(const Tensor& input, const Tensor& dilation_map, const Window& window) {
  return differentiable<Op>({input, dilation_map}, window, image_size(input))[0];
}

template <class Op>
Tensor splat_autograd(
    const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Window& window) {
  return differentiable<Op>({columns, dilation_map}, window, ImageSize(output_size.begin(), output_size.end()))[0];
}

Tensor dot_autograd(const Tensor& columns, const Tensor& input, const Tensor& dilation_map, const Window& window) {
  return differentiable<Dot>({columns, input, dilation_map}, window, image_size(input))[0];
}

std::tuple<Tensor, Tensor> unfold_backward_autograd(
    const Tensor& grad_output, const Tensor& input, const Tensor& dilation_map, const Window& window) {
  auto results = differentiable<UnfoldBackward>({grad_output, input, dilation_map}, window, image_size(input));
  return {results[0], results[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, Autograd, m) {
  m.impl("unfold", TORCH_FN(Schema<&sample_autograd<Unfold>>::value));
  m.impl("fold", TORCH_FN(Schema<&splat_autograd<Fold>>::value));
  m.impl("unfold_backward", TORCH_FN(Schema<&unfold_backward_autograd>::value));
  m.impl("sample", TORCH_FN(Schema<&sample_autograd<Sample>>::derivative));
  m.impl("splat", TORCH_FN(Schema<&splat_autograd<Splat>>::derivative));
  m.impl("dot", TORCH_FN(Schema<&dot_autograd>::derivative));
}

}  // namespace ddu
