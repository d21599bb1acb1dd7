// SPDX-License-Identifier: MIT
// Autograd: reverse and forward mode, to any order.

// NOTE [ The family of derivatives ]
// Three operators are closed under differentiation. Let S_q(x) be the q-th derivative of all samples of x with respect
// to the parameters of their positions (q is a multi-index, `order`; e_r adds one to its entry r):
//
//     sample_q(x, P)  = S_q(x)                               columns
//     splat_q(c, P)   = the adjoint of sample_q in x, at c   an image
//     dot_q(c, x, P)  = sum of c * S_q(x) over the channels of the group, and over the taps that share the parameters
//
//     w.r.t. x:    sample_q <-> splat_q,           dot_q -> splat_q(g c)
//     w.r.t. c:    splat_q  <-> sample_q,          dot_q -> g sample_q(x)
//     w.r.t. P_r:  sample_q -> dot_{q + e_r}(g, x),  splat_q -> dot_{q + e_r}(c, g),  dot_q -> g dot_{q + e_r}(c, x)
//
// where g is the gradient of the result. unfold and fold are sample_0 and splat_0 with rates. sample_backward_q
// computes (splat_q, dot_{q + e_1}, ...) in one pass, and unfold_backward does the same with rates and q = 0. Every
// line below calls an operator of the family, so its derivatives are here too. In the formulas an undefined tensor is
// zero.

#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <algorithm>
#include <iterator>
#include <tuple>

#include "../dispatch/calls.h"
#include "../dispatch/signatures.h"
#include "../math/positions.h"
#include "family.h"
#include "node.h"

namespace ddu {

namespace {

using at::Tensor;
using c10::SymIntArrayRef;
using Order = Options::Ints;
using ImageSize = Sizes;

Tensor sum_of(const Tensor& a, const Tensor& b) { return !a.defined() ? b : !b.defined() ? a : at::add(a, b); }

Tensor product_of(const Tensor& a, const Tensor& b) { return a.defined() && b.defined() ? at::mul(a, b) : Tensor(); }

// ---- the operators of the family at given positions

struct Family {
  const Tensor& positions;
  const Options& options;
  const ImageSize& image_size;

  Source source() const {
    const auto* const found = std::find(std::begin(kSourceNames), std::end(kSourceNames), options.source);
    return static_cast<Source>(found - std::begin(kSourceNames));
  }

  bool is_rates() const { return source() == Source::kRates; }

  int64_t axes() const { return positions.dim() - 2; }

  // The number of parameters per window, or per tap.
  int64_t parameters() const {
    return is_rates() && positions.sym_size(1) == options.groups ? 1 : parameters_of(source(), axes());
  }

  Order zero() const { return Order(parameters(), 0); }

  // The order, raised by one in parameter r. It stops counting once the derivative vanishes.
  Order raised(Order order, int64_t r) const {
    order[r] += order[r] <= axes() ? 1 : 0;
    return order;
  }

  Tensor sample(const Tensor& image, const Order& order) const {
    return !image.defined() || vanishes(order) ? Tensor() : ddu::sample(image, positions, with(order));
  }

  Tensor splat(const Tensor& columns, const Order& order) const {
    return !columns.defined() || vanishes(order) ? Tensor() : ddu::splat(columns, image_size, positions, with(order));
  }

  Tensor dot(const Tensor& columns, const Tensor& image, const Order& order) const {
    return !columns.defined() || !image.defined() || vanishes(order) ? Tensor()
                                                                     : ddu::dot(columns, image, positions, with(order));
  }

  // splat_order and all of dot_{order + e_r}, in a single pass over the columns.
  std::tuple<Tensor, Tensor> both(const Tensor& columns, const Tensor& image, const Order& order) const {
    return is_rates() && order == zero() ? unfold_backward(columns, image, positions, options)
                                         : sample_backward(columns, image, positions, with(order));
  }

  // The derivatives of dot_order with respect to each parameter, in the shape of the positions.
  Tensor dots(const Tensor& columns, const Tensor& image, const Order& order) const {
    variable_list parts;
    for (int64_t r = 0; r < parameters(); ++r) {
      parts.push_back(dot(columns, image, raised(order, r)));
    }
    return from_parameters(parts);
  }

  // Parameter r of a tensor with the shape of the positions: [B, entries * parameters, *out] -> [B, entries, *out].
  Tensor parameter(const Tensor& tensor, int64_t r) const {
    if (parameters() == 1 || !tensor.defined()) {
      return tensor;
    }
    const auto& sizes = tensor.sym_sizes();
    return tensor.reshape_symint(grid_shape(sizes, {sizes[1] / parameters(), parameters()})).select(2, r);
  }

  // The inverse: puts all parameters together.
  Tensor from_parameters(const variable_list& parts) const {
    const auto defined = std::find_if(parts.begin(), parts.end(), [](const Tensor& part) { return part.defined(); });
    if (parts.size() == 1 || defined == parts.end()) {
      return parts[0];
    }
    const auto& sizes = defined->sym_sizes();
    variable_list all;
    for (const auto& part : parts) {
      all.push_back(part.defined() ? part : defined->new_zeros_symint(sizes));
    }
    return at::stack(all, 2).reshape_symint(grid_shape(sizes, {sizes[1] * parameters()}));
  }

  // Columns multiplied by a factor for each window, [B, G, *out], or for each tap, [B, G * taps, *out].
  Tensor scaled(const Tensor& columns, const Tensor& factor) const {
    if (!columns.defined() || !factor.defined()) {
      return Tensor();
    }
    const auto& sizes = columns.sym_sizes();
    const auto per_group = factor.sym_size(1) / options.groups;
    const auto product = at::mul(
        columns.reshape_symint({sizes[0], options.groups, sizes[1] / options.groups / per_group, per_group, sizes[2]}),
        factor.reshape_symint({sizes[0], options.groups, 1, per_group, sizes[2]}));
    return product.reshape_symint(sizes).to(columns.scalar_type());
  }

 private:
  bool vanishes(const Order& order) const {
    return ddu::vanishes(term_of(source(), axes(), parameters(), [&](int64_t r) { return order[r]; }));
  }

  // [B, *channels, *out], for a tensor [B, C, *out].
  static c10::SmallVector<c10::SymInt, kMaxAxes + 3> grid_shape(
      SymIntArrayRef sizes, std::initializer_list<c10::SymInt> channels) {
    c10::SmallVector<c10::SymInt, kMaxAxes + 3> shape = {sizes[0]};
    shape.append(channels.begin(), channels.end());
    shape.append(sizes.begin() + 2, sizes.end());
    return shape;
  }

  Options with(const Order& order) const {
    auto result = options;
    result.order = order;
    return result;
  }
};

// ---- the operators to differentiate

// The tensors of a call, its positions last.
using Tensors = variable_list;

// Each of the four structs below describes an operator and its derivatives at x = (leading tensors..., positions):
//     value(x)              the operator itself
//     vjp(grads, x, needs)  the gradients of those tensors that need one
//     jvp(tangents, x)      the tangents of the results
//     saved(needs)          which tensors of x the vjp uses

struct Sample {
  static constexpr const char* kName = "DynamicDilationUnfoldBackward";

  static Tensors value(const Tensors& x, const Options& options, const ImageSize&) {
    return {sample(x[0], x[1], options)};
  }

  static Needs saved(const Needs& needs) { return {needs[1], true}; }

  static Tensors vjp(const Tensors& grads, const Tensors& x, const Family& f, const Order& order, const Needs& needs) {
    if (needs[0] && needs[1]) {
      auto [grad_input, grad_positions] = f.both(grads[0], x[0], order);
      return {grad_input, grad_positions};
    }
    return {
        needs[0] ? f.splat(grads[0], order) : Tensor(),
        needs[1] ? f.dots(grads[0], x[0], order) : Tensor(),
    };
  }

  static Tensors jvp(const Tensors& tangents, const Tensors& x, const Family& f, const Order& order) {
    auto result = f.sample(tangents[0], order);
    for (int64_t r = 0; r < f.parameters() && tangents[1].defined(); ++r) {
      result = sum_of(result, f.scaled(f.sample(x[0], f.raised(order, r)), f.parameter(tangents[1], r)));
    }
    return {result};
  }
};

struct Splat {
  static constexpr const char* kName = "DynamicDilationFoldBackward";

  static Tensors value(const Tensors& x, const Options& options, const ImageSize& size) {
    return {splat(x[0], size, x[1], options)};
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
    for (int64_t r = 0; r < f.parameters() && tangents[1].defined(); ++r) {
      result = sum_of(result, f.splat(f.scaled(x[0], f.parameter(tangents[1], r)), f.raised(order, r)));
    }
    return {result};
  }
};

struct Dot {
  static constexpr const char* kName = "DynamicDilationDotBackward";

  static Tensors value(const Tensors& x, const Options& options, const ImageSize&) {
    return {dot(x[0], x[1], x[2], options)};
  }

  static Needs saved(const Needs& needs) { return {needs[1] || needs[2], needs[0] || needs[2], true}; }

  static Tensors vjp(const Tensors& grads, const Tensors& x, const Family& f, const Order& order, const Needs& needs) {
    variable_list by_parameter;
    for (int64_t r = 0; r < f.parameters() && needs[2]; ++r) {
      by_parameter.push_back(product_of(grads[0], f.dot(x[0], x[1], f.raised(order, r))));
    }
    return {
        needs[0] ? f.scaled(f.sample(x[1], order), grads[0]) : Tensor(),
        needs[1] ? f.splat(f.scaled(x[0], grads[0]), order) : Tensor(),
        needs[2] ? f.from_parameters(by_parameter) : Tensor(),
    };
  }

  static Tensors jvp(const Tensors& tangents, const Tensors& x, const Family& f, const Order& order) {
    auto result = sum_of(f.dot(tangents[0], x[1], order), f.dot(x[0], tangents[1], order));
    for (int64_t r = 0; r < f.parameters() && tangents[2].defined(); ++r) {
      result = sum_of(result, product_of(f.parameter(tangents[2], r), f.dot(x[0], x[1], f.raised(order, r))));
    }
    return {result};
  }
};

// The same at order zero, under their public names.

struct Unfold : Sample {
  static Tensors value(const Tensors& x, const Options& options, const ImageSize&) {
    return {unfold(x[0], x[1], options)};
  }
};

struct Fold : Splat {
  static Tensors value(const Tensors& x, const Options& options, const ImageSize& size) {
    return {fold(x[0], size, x[1], options)};
  }
};

// (splat_q, dot_{q + e_r} for each parameter r), differentiated as the sum of its parts.
struct SampleBackward {
  static constexpr const char* kName = "DynamicDilationUnfoldBackwardBackward";

  static Tensors value(const Tensors& x, const Options& options, const ImageSize&) {
    auto [grad_input, grad_positions] = sample_backward(x[0], x[1], x[2], options);
    return {grad_input, grad_positions};
  }

  static Needs saved(const Needs& needs) { return {needs[1] || needs[2], needs[0] || needs[2], true}; }

  static Tensors vjp(const Tensors& grads, const Tensors& x, const Family& f, const Order& order, const Needs& needs) {
    Tensors result(3);
    if (grads[0].defined()) {
      const auto part = Splat::vjp({grads[0]}, {x[0], x[2]}, f, order, {needs[0], needs[2]});
      result[0] = part[0];
      result[2] = part[1];
    }
    for (int64_t r = 0; r < f.parameters() && grads[1].defined(); ++r) {
      const auto part = Dot::vjp({f.parameter(grads[1], r)}, x, f, f.raised(order, r), needs);
      for (size_t i = 0; i < 3; ++i) {
        result[i] = sum_of(result[i], part[i]);
      }
    }
    return result;
  }

  static Tensors jvp(const Tensors& tangents, const Tensors& x, const Family& f, const Order& order) {
    variable_list by_parameter;
    for (int64_t r = 0; r < f.parameters(); ++r) {
      by_parameter.push_back(Dot::jvp(tangents, x, f, f.raised(order, r))[0]);
    }
    return {Splat::jvp({tangents[0], tangents[2]}, {x[0], x[2]}, f, order)[0], f.from_parameters(by_parameter)};
  }
};

struct UnfoldBackward : SampleBackward {
  static Tensors value(const Tensors& x, const Options& options, const ImageSize&) {
    auto [grad_input, grad_dilation_map] = unfold_backward(x[0], x[1], x[2], options);
    return {grad_input, grad_dilation_map};
  }
};

// ---- their nodes: one formula for all

template <class Op>
struct FamilyFormula {
  static constexpr const char* kName = Op::kName;
  using Options = ddu::Options;

  static Needs saved(const Needs& needs) { return Op::saved(needs); }

  static variable_list vjp(
      const variable_list& grads, const Tensors& x, const Options& options, const ImageSize& size, const Needs& needs) {
    const Family family{x.back(), options, size};
    return Op::vjp(grads, x, family, order_of(family), needs);
  }

  static Order order_of(const Family& family) {
    return family.options.order.empty() ? family.zero() : family.options.order;
  }
};

// Op::value, with its derivatives recorded.
template <class Op>
Tensors differentiable(const Tensors& x, const Options& options, const ImageSize& image_size) {
  auto results = recorded<FamilyFormula<Op>>(x, options, image_size, [&] { return Op::value(x, options, image_size); });
  carry_tangents(results, x, [&](const Tensors& tangents, const Tensors& primals) {
    const Family family{primals.back(), options, image_size};
    return Op::jvp(tangents, primals, family, FamilyFormula<Op>::order_of(family));
  });
  return results;
}

// ---- registration

// The size of an image; empty for tensors that are refused later.
ImageSize image_size(const Tensor& image) {
  if (image.is_nested() || image.dim() < 3) {
    return {};
  }
  const auto sizes = image.sym_sizes().slice(2);
  return {sizes.begin(), sizes.end()};
}

// The size of an image along every axis; output_size may have one entry for all.
ImageSize full_size(SymIntArrayRef output_size, const Tensor& positions) {
  return output_size.size() == 1 && !positions.is_nested() && positions.dim() > 2
      ? ImageSize(positions.dim() - 2, output_size[0])
      : ImageSize(output_size.begin(), output_size.end());
}

template <class Op>
Tensor sample_autograd(const Tensor& input, const Tensor& positions, const Options& options) {
  return differentiable<Op>({input, positions}, options, image_size(input))[0];
}

template <class Op>
Tensor splat_autograd(
    const Tensor& columns, SymIntArrayRef output_size, const Tensor& positions, const Options& options) {
  return differentiable<Op>({columns, positions}, options, full_size(output_size, positions))[0];
}

Tensor dot_autograd(const Tensor& columns, const Tensor& input, const Tensor& positions, const Options& options) {
  return differentiable<Dot>({columns, input, positions}, options, image_size(input))[0];
}

template <class Op>
std::tuple<Tensor, Tensor> backward_autograd(
    const Tensor& grad_output, const Tensor& input, const Tensor& positions, const Options& options) {
  auto results = differentiable<Op>({grad_output, input, positions}, options, image_size(input));
  return {results[0], results[1]};
}

}  // namespace

Tensor sample_along(const Tensor& input, const Tensor& positions, const Tensor& direction, const Options& options) {
  const ImageSize none;
  const Family family{positions, options, none};
  return Sample::jvp({Tensor(), direction}, {input, positions}, family, family.zero())[0];
}

Tensor splat_along(
    const Tensor& columns,
    SymIntArrayRef output_size,
    const Tensor& positions,
    const Tensor& direction,
    const Options& options) {
  const ImageSize size(output_size.begin(), output_size.end());
  const Family family{positions, options, size};
  return Splat::jvp({Tensor(), direction}, {columns, positions}, family, family.zero())[0];
}

Tensor dots_along(
    const Tensor& columns,
    const Tensor& input,
    const Tensor& positions,
    const Tensor& direction,
    const Options& options) {
  const ImageSize none;
  const Family family{positions, options, none};
  variable_list by_parameter;
  for (int64_t r = 0; r < family.parameters(); ++r) {
    const auto order = family.raised(family.zero(), r);
    by_parameter.push_back(Dot::jvp({Tensor(), Tensor(), direction}, {columns, input, positions}, family, order)[0]);
  }
  return family.from_parameters(by_parameter);
}

TORCH_LIBRARY_IMPL(ddu, Autograd, m) {
  m.impl("unfold", TORCH_FN(RatesSchema<&sample_autograd<Unfold>>::call));
  m.impl("fold", TORCH_FN(RatesSchema<&splat_autograd<Fold>>::call));
  m.impl("unfold_backward", TORCH_FN(RatesSchema<&backward_autograd<UnfoldBackward>>::call));
  m.impl("sample", TORCH_FN(FamilySchema<&sample_autograd<Sample>>::call));
  m.impl("splat", TORCH_FN(FamilySchema<&splat_autograd<Splat>>::call));
  m.impl("dot", TORCH_FN(FamilySchema<&dot_autograd>::call));
  m.impl("sample_backward", TORCH_FN(FamilySchema<&backward_autograd<SampleBackward>>::call));
}

}  // namespace ddu
