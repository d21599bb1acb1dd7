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
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../ops.h"
#include "../signatures.h"
#include "node.h"

namespace ddu {

namespace {

using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using Order = Window::Ints;
using ImageSize = c10::SmallVector<SymInt, 2>;  // as its caller gave it, like Window

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
using Needs = c10::SmallVector<bool, 3>;

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

// ---- how: one node for all of them

template <class Op>
struct FamilyNode final : Node {
  FamilyNode(const Window& window, const ImageSize& image_size) : window_(window), image_size_(image_size) {}

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    Needs needs;
    Tensors x;
    bool any = false;
    for (const auto& grad : grads) {
      any = any || grad.defined();
    }
    if (!any) {
      return variable_list(saved_.size());
    }
    for (size_t i = 0; i < saved_.size(); ++i) {
      needs.push_back(task_should_compute_output(i));
      x.push_back(saved_[i].unpack());
    }
    return vjp(grads, x, window_, image_size_, needs);
  }

  // Compiled autograd asks a node for what its compiled form depends on, then for a call of a plain function on the
  // saved tensors and sizes, for which it has put what it traces with.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(name());
    for (const auto& option : options()) {
      args.collect(c10::IntArrayRef(option));
    }
    args.collect(c10::SymIntArrayRef(image_size_));
    args.collect(saved_, /*is_output=*/false);
  }

  variable_list apply_with_saved(
      const variable_list& grads, torch::dynamo::autograd::SwapSavedVariables& saved) override {
    namespace compiled = torch::dynamo::autograd;
    saved.before(image_size_);
    saved.before(saved_);
    compiled::PackedArgs args;
    for (const auto& option : options()) {
      args.pack(std::vector<int64_t>(option.begin(), option.end()));
    }
    args.pack(std::vector<SymInt>(image_size_.begin(), image_size_.end()));
    std::vector<bool> needs;
    for (size_t i = 0; i < saved_.size(); ++i) {
      needs.push_back(task_should_compute_output(i));
    }
    args.pack(needs);
    for (const auto& variable : saved_) {
      args.pack(variable.unpack());
    }
    std::vector<at::TypePtr> types;
    for (const auto& value : args.vec()) {
      types.push_back(value.isTensor() ? at::TensorType::get() : value.type());
    }
    const auto& compiler = compiled::getPyCompilerInterface();
    const auto function = compiler->bind_function(
        saved.get_py_compiler(), name(), &FamilyNode::apply_packed, types, /*is_custom_function=*/true,
        /*is_traceable=*/true);
    auto result = compiler->call_function(
        saved.get_py_compiler(), "apply_functional", function, grads, args.vec(),
        compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            compiled::get_input_metadata(next_edges())));
    saved.after(image_size_);
    saved.after(saved_);
    return result;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& saved : saved_) {
      saved.reset_data();
    }
  }

  std::string name() const override { return Op::kName; }

  void save(const Tensors& x, const Needs& saved) {
    for (size_t i = 0; i < x.size(); ++i) {
      saved_.push_back(saved[i] ? SavedVariable(x[i], /*is_output=*/false) : SavedVariable());
    }
  }

  static Order order_of(const Family& family) {
    return family.window.order.empty() ? family.zero() : family.window.order;
  }

 private:
  static variable_list vjp(
      const variable_list& grads, const Tensors& x, const Window& window, const ImageSize& size, const Needs& needs) {
    const Family family{x.back(), window, size};
    return Op::vjp(grads, x, family, order_of(family), needs);
  }

  // The window as lists of integers.
  std::array<Window::Ints, 6> options() const {
    return {window_.kernel_size, window_.stride, window_.padding,
            window_.dilation,    window_.order,  {window_.groups, window_.aligned ? 1 : 0}};
  }

  // vjp with its arguments as apply_with_saved packs them.
  static variable_list apply_packed(const variable_list& grads, const std::vector<c10::IValue>& packed) {
    torch::dynamo::autograd::PackedArgs args(packed);
    std::array<std::vector<int64_t>, 6> options;
    for (auto& option : options) {
      option = args.unpack<std::vector<int64_t>>();
    }
    const auto& [kernel_size, stride, padding, dilation, order, rest] = options;
    const Window window(kernel_size, stride, padding, dilation, rest[0], rest[1] != 0, order);
    const auto size = args.unpack<std::vector<SymInt>>();
    const auto needs = args.unpack<std::vector<bool>>();
    Tensors x;
    for (size_t i = 0; i < needs.size(); ++i) {
      x.push_back(args.unpack<Tensor>());
    }
    return vjp(grads, x, window, ImageSize(size.begin(), size.end()), Needs(needs.begin(), needs.end()));
  }

  Window window_;
  ImageSize image_size_;
  std::vector<SavedVariable> saved_;
};

// Op::value with its derivatives recorded, in the way of torch's own generated code.
template <class Op>
Tensors differentiable(const Tensors& x, const Window& window, const ImageSize& image_size) {
  Needs needs;
  bool any_grad = false;
  bool any_tangent = false;
  for (const auto& tensor : x) {
    needs.push_back(at::GradMode::is_enabled() && tensor.requires_grad());
    any_grad = any_grad || needs.back();
    any_tangent = any_tangent || tensor._fw_grad(/*level=*/0).defined();
  }

  decltype(make_node<FamilyNode<Op>>(window, image_size)) node;
  if (any_grad) {
    node = make_node<FamilyNode<Op>>(window, image_size);
    node->set_next_edges(torch::autograd::collect_next_edges(x));
    // The dual tensors themselves: forward over reverse needs their tangents.
    node->save(x, Op::saved(needs));
  }
  auto results = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return Op::value(x, window, image_size);
  }();
  if (any_grad) {
    for (const auto& result : results) {
      torch::autograd::set_history(result, node);
    }
  }
  if (any_tangent) {
    Tensors primals;
    Tensors tangents;
    for (const auto& tensor : x) {
      primals.push_back(tensor._fw_primal(/*level=*/0));
      tangents.push_back(tensor._fw_grad(/*level=*/0));
    }
    const Family family{primals.back(), window, image_size};
    const auto result_tangents = Op::jvp(tangents, primals, family, FamilyNode<Op>::order_of(family));
    for (size_t i = 0; i < results.size(); ++i) {
      if (result_tangents[i].defined()) {
        results[i]._set_fw_grad(result_tangents[i], /*level=*/0, /*is_inplace_op=*/false);
      }
    }
  }
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
