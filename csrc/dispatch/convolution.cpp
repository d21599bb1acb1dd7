// SPDX-License-Identifier: MIT
// The convolution with a dilation map: unfold and matrix product, for every device that has an unfold.
//
// NOTE [ Columns are temporary ]
// The columns take kH * kW times the memory of the input, so no caller sees them and nothing keeps them: they are made
// for as many images at a time as workspace_limit allows, and the backward makes them again. What autograd saves are
// the arguments. Only where the gradient is itself differentiated, or a tangent goes forward, are they ordinary
// intermediate results, of the whole batch: the derivatives are then those of unfold and the matrix product.

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <string>
#include <vector>

#include "../args.h"
#include "../ops.h"
#include "node.h"

namespace ddu {

namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymInt;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

Tensor value_or_undefined(const OptionalTensor& tensor) { return tensor.has_value() ? *tensor : Tensor(); }

OptionalTensor as_optional(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

// The options that every form of the operator takes, in the order of the schema; kernel_size is the weight's.
struct Options {
  Window window;  // its groups are the dilation groups
  int64_t groups;
  int64_t workspace_limit;
};

Options make_options(
    const Tensor& weight,
    IntArrayRef stride,
    IntArrayRef padding,
    IntArrayRef dilation,
    int64_t groups,
    int64_t dilation_groups,
    bool aligned,
    int64_t workspace_limit) {
  // A weight of another rank is refused by the checks; until then any kernel will do.
  std::array<int64_t, 2> kernel_size = {1, 1};
  if (weight.defined() && weight.dim() == 4) {
    kernel_size = {weight.sym_size(2).guard_int(__FILE__, __LINE__), weight.sym_size(3).guard_int(__FILE__, __LINE__)};
  }
  return {Window(kernel_size, stride, padding, dilation, dilation_groups, aligned), groups, workspace_limit};
}

// The arguments of a call; an argument that was left out is undefined.
struct Arguments {
  Tensor input;         // [B, C, H, W]
  Tensor weight;        // [O, C / groups, kH, kW]
  Tensor dilation_map;  // [B, rates * G, H_out, W_out]
  Tensor bias;          // [O]
  Tensor mask;          // [B, G * kH * kW, H_out, W_out]

  variable_list list() const { return {input, weight, dilation_map, bias, mask}; }
};

enum Needs : size_t { kInput, kWeight, kMap, kMask, kGradients };  // what conv2d_backward returns, in this order
using OutputMask = std::array<bool, kGradients>;

// ---- the schemas' parameters, as functions of the arguments and options

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <Tensor (*f)(const Arguments&, const Options&)>
Tensor conv2d_schema(
    const Tensor& input,
    const Tensor& weight,
    const Tensor& dilation_map,
    const OptionalTensor& bias,
    const OptionalTensor& mask,
    IntArrayRef stride,
    IntArrayRef padding,
    IntArrayRef dilation,
    int64_t groups,
    int64_t dilation_groups,
    bool aligned,
    int64_t workspace_limit) {
  return f(
      {input, weight, dilation_map, value_or_undefined(bias), value_or_undefined(mask)},
      make_options(weight, stride, padding, dilation, groups, dilation_groups, aligned, workspace_limit));
}

template <variable_list (*f)(const Tensor&, const Arguments&, const Options&, const OutputMask&)>
Gradients conv2d_backward_schema(
    const Tensor& grad_output,
    const Tensor& input,
    const Tensor& weight,
    const Tensor& dilation_map,
    const OptionalTensor& mask,
    IntArrayRef stride,
    IntArrayRef padding,
    IntArrayRef dilation,
    int64_t groups,
    int64_t dilation_groups,
    bool aligned,
    int64_t workspace_limit,
    std::array<bool, 4> output_mask) {
  const auto options =
      make_options(weight, stride, padding, dilation, groups, dilation_groups, aligned, workspace_limit);
  auto result = f(grad_output, {input, weight, dilation_map, Tensor(), value_or_undefined(mask)}, options, output_mask);
  // A result of an operator is a tensor: an empty one stands for what was not asked for.
  for (size_t i = 0; i < kGradients; ++i) {
    result[i] = output_mask[i] ? result[i] : at::empty({0}, input.options());
  }
  return {result[kInput], result[kWeight], result[kMap], result[kMask]};
}

// ---- checks

SymParams check(const char* op, const Arguments& a, const Options& options, Caller caller = Caller::kOperator) {
  return check_convolution(
      op, a.input, a.weight, a.dilation_map, a.bias, a.mask, options.window, options.groups, options.workspace_limit,
      caller);
}

SymParams check_backward(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  const auto* const op = "conv2d_backward";
  const auto params = check(op, a, options);
  check_convolution_gradient(op, grad_output, a.input, a.weight, params, a.mask.defined(), needs[kMask]);
  return params;
}

// ---- the mathematics, in differentiable steps

// [O, C / groups, kH, kW] -> [batch * groups, O / groups, C / groups * kH * kW], for a product of every image and
// group.
Tensor matrices(const Tensor& weight, const SymInt& batch, int64_t groups) {
  const auto rows = weight.sym_size(0) / groups;
  const auto inner = weight.sym_size(1) * weight.sym_size(2) * weight.sym_size(3);
  const auto one = weight.reshape_symint({1, groups, rows, inner});
  return one.expand_symint({batch, groups, rows, inner}).reshape_symint({batch * groups, rows, inner});
}

// Columns or their like, [B, C * kH * kW, L] -> [B * groups, C / groups * kH * kW, L].
Tensor by_group(const Tensor& columns, int64_t groups) {
  const auto& sizes = columns.sym_sizes();
  return columns.reshape_symint({sizes[0] * groups, sizes[1] / groups, sizes[2]});
}

// [B, C * kH * kW, L] -> [B, G, C / G, kH * kW, L]: what the mask, [B, G, 1, kH * kW, L], is multiplied with.
Tensor by_tap(const Tensor& columns, const Window& window) {
  const auto& sizes = columns.sym_sizes();
  const auto taps = window.kernel_size[0] * window.kernel_size[1];
  return columns.reshape_symint({sizes[0], window.groups, sizes[1] / taps / window.groups, taps, sizes[2]});
}

Tensor modulated(const Tensor& columns, const Tensor& mask, const Window& window) {
  if (!mask.defined()) {
    return columns;
  }
  const auto taps = window.kernel_size[0] * window.kernel_size[1];
  const auto factor = mask.reshape_symint({mask.sym_size(0), window.groups, 1, taps, columns.sym_size(2)});
  return (by_tap(columns, window) * factor).reshape_symint(columns.sym_sizes());
}

Tensor forward(const Arguments& a, const Options& options) {
  const auto batch = a.input.sym_size(0);
  const auto rows = a.weight.sym_size(0);
  const auto columns = modulated(unfold(a.input, a.dilation_map, options.window), a.mask, options.window);
  const auto left = matrices(a.weight, batch, options.groups);
  const auto right = by_group(columns, options.groups);
  const auto result = a.bias.defined() ? at::baddbmm(
                                             a.bias.reshape_symint({1, options.groups, rows / options.groups, 1})
                                                 .expand_symint({batch, options.groups, rows / options.groups, 1})
                                                 .reshape_symint({batch * options.groups, rows / options.groups, 1}),
                                             left, right)
                                       : at::bmm(left, right);
  return result.reshape_symint({batch, rows, a.dilation_map.sym_size(2), a.dilation_map.sym_size(3)});
}

// The gradients that are asked for, in the order of Needs.
variable_list backward(const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  variable_list result(kGradients);
  const auto& window = options.window;
  const auto batch = a.input.sym_size(0);
  const auto rows = a.weight.sym_size(0);
  const auto positions = a.dilation_map.sym_size(2) * a.dilation_map.sym_size(3);
  const auto grad = grad_output.reshape_symint({batch * options.groups, rows / options.groups, positions});
  Tensor columns;
  if (needs[kWeight] || needs[kMask]) {
    columns = unfold(a.input, a.dilation_map, window);
  }
  if (needs[kInput] || needs[kMap] || needs[kMask]) {
    auto grad_columns = at::bmm(matrices(a.weight, batch, options.groups).transpose(1, 2), grad);
    const auto per_image = a.input.sym_size(1) * window.kernel_size[0] * window.kernel_size[1];
    grad_columns = grad_columns.reshape_symint({batch, per_image, positions});
    if (needs[kMask]) {
      result[kMask] =
          (by_tap(grad_columns, window) * by_tap(columns, window)).sum(2).reshape_symint(a.mask.sym_sizes());
    }
    grad_columns = modulated(grad_columns, a.mask, window);
    if (needs[kMap]) {
      std::tie(result[kInput], result[kMap]) = unfold_backward(grad_columns, a.input, a.dilation_map, window);
    } else if (needs[kInput]) {
      result[kInput] = fold(grad_columns, a.input.sym_sizes().slice(2), a.dilation_map, window);
    }
  }
  if (needs[kWeight]) {
    const auto right = by_group(modulated(columns, a.mask, window), options.groups).transpose(1, 2);
    const auto each = at::bmm(grad, right);
    const auto& sizes = each.sym_sizes();
    const auto sum = each.reshape_symint({batch, options.groups, sizes[1], sizes[2]}).sum(0);
    result[kWeight] = sum.reshape_symint(a.weight.sym_sizes());
  }
  return result;
}

// ---- in chunks of the batch

// How many images at a time: as many as keep the temporary memory below the limit, and at least one. `copies` is the
// number of column-sized tensors that live at once.
int64_t chunk_size(const SymParams& sym, const Arguments& a, const Options& options, int64_t copies) {
  const auto params = concrete(sym);
  const auto taps = static_cast<double>(params.h.kernel) * static_cast<double>(params.w.kernel);
  const auto columns = static_cast<double>(params.channels) * taps * static_cast<double>(params.h.out_size) *
      static_cast<double>(params.w.out_size);
  const auto bytes = (columns * static_cast<double>(copies) + static_cast<double>(a.weight.numel())) *
      static_cast<double>(a.input.element_size());
  const auto fit = static_cast<double>(options.workspace_limit) / std::max(bytes, 1.0);
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(fit, static_cast<double>(params.batch))));
}

Arguments narrowed(const Arguments& a, int64_t start, int64_t size) {
  return {
      a.input.narrow(0, start, size), a.weight, a.dilation_map.narrow(0, start, size), a.bias,
      a.mask.defined() ? a.mask.narrow(0, start, size) : Tensor()};
}

// A program that is only traced has no memory to bound and no values to look at: it is the mathematics in one piece.
bool is_traced(const Tensor& tensor) { return tensor.unsafeGetTensorImpl()->is_python_dispatch(); }

// Whether every rate is one. Looks no further than the first that is not.
bool all_ones(const Tensor& dilation_map) {
  const auto map = dilation_map.contiguous();
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, map.scalar_type(), "conv2d", [&] {
    const auto* rates = map.const_data_ptr<scalar_t>();
    return std::all_of(rates, rates + map.numel(), [](scalar_t rate) { return rate == scalar_t(1); });
  });
}

Tensor forward_in_chunks(const Arguments& a, const Options& options) {
  const auto sym = check("conv2d", a, options);
  if (is_traced(a.input)) {
    return forward(a, options);
  }
  const auto& window = options.window;
  // The windows are a plain convolution's. Torch's own adds the products up in the order that it always does, so a
  // layer that begins there begins with the bits of Conv2d. On a GPU to look would be to wait for it.
  if (a.input.is_cpu() && a.input.numel() != 0 && !a.mask.defined() && window.aligned && all_ones(a.dilation_map)) {
    return at::conv2d(
               a.input, a.weight, as_optional(a.bias), window.stride, window.padding, window.dilation, options.groups)
        .contiguous();
  }
  const auto batch = a.input.size(0);
  const auto chunk = chunk_size(sym, a, options, /*copies=*/a.mask.defined() ? 2 : 1);
  if (chunk >= batch) {
    return forward(a, options);
  }
  auto result = at::empty({batch, a.weight.size(0), a.dilation_map.size(2), a.dilation_map.size(3)}, a.input.options());
  for (int64_t start = 0; start < batch; start += chunk) {
    const auto size = std::min(chunk, batch - start);
    result.narrow(0, start, size).copy_(forward(narrowed(a, start, size), options));
  }
  return result;
}

variable_list backward_in_chunks(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  const auto sym = check_backward(grad_output, a, options, needs);
  if (is_traced(a.input)) {
    return backward(grad_output, a, options, needs);
  }
  const auto batch = a.input.size(0);
  const int64_t copies = (needs[kWeight] || needs[kMask] ? 1 : 0) +
      (needs[kInput] || needs[kMap] || needs[kMask] ? 1 : 0) + (a.mask.defined() ? 1 : 0);
  const auto chunk = chunk_size(sym, a, options, copies);
  if (chunk >= batch) {
    return backward(grad_output, a, options, needs);
  }
  const auto sum_type = at::toOpMathType(a.weight.scalar_type());
  const auto empty_like = [](bool needed, const Tensor& like) {
    return needed ? at::empty(like.sizes(), like.options()) : Tensor();
  };
  variable_list result(kGradients);
  result[kInput] = empty_like(needs[kInput], a.input);
  result[kMap] = empty_like(needs[kMap], a.dilation_map);
  result[kMask] = empty_like(needs[kMask], a.mask);
  if (needs[kWeight]) {
    result[kWeight] = at::zeros(a.weight.sizes(), a.weight.options().dtype(sum_type));
  }
  for (int64_t start = 0; start < batch; start += chunk) {
    const auto size = std::min(chunk, batch - start);
    const auto part = backward(grad_output.narrow(0, start, size), narrowed(a, start, size), options, needs);
    for (const auto i : {kInput, kMap, kMask}) {
      if (needs[i]) {
        result[i].narrow(0, start, size).copy_(part[i]);
      }
    }
    if (needs[kWeight]) {
      result[kWeight].add_(part[kWeight]);
    }
  }
  if (needs[kWeight]) {
    result[kWeight] = result[kWeight].to(a.weight.scalar_type());
  }
  return result;
}

// ---- shapes

Tensor forward_meta(const Arguments& a, const Options& options) {
  const auto params = check("conv2d", a, options);
  return a.input.new_empty_symint({params.batch, a.weight.sym_size(0), params.h.out_size, params.w.out_size});
}

variable_list backward_meta(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  check_backward(grad_output, a, options, needs);
  const auto like = [](bool needed, const Tensor& tensor) {
    return needed ? tensor.new_empty_symint(tensor.sym_sizes()) : Tensor();
  };
  return {
      like(needs[kInput], a.input), like(needs[kWeight], a.weight), like(needs[kMap], a.dilation_map),
      like(needs[kMask], a.mask)};
}

// ---- the operators through the dispatcher

Tensor conv2d(const Arguments& a, const Options& options) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("ddu::conv2d", "").typed<decltype(conv2d_schema<&forward_meta>)>();
  const auto& w = options.window;
  return op.call(
      a.input, a.weight, a.dilation_map, as_optional(a.bias), as_optional(a.mask), w.stride, w.padding, w.dilation,
      options.groups, w.groups, w.aligned, options.workspace_limit);
}

variable_list conv2d_backward(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("ddu::conv2d_backward", "")
                             .typed<decltype(conv2d_backward_schema<&backward_meta>)>();
  const auto& w = options.window;
  auto [grad_input, grad_weight, grad_dilation_map, grad_mask] = op.call(
      grad_output, a.input, a.weight, a.dilation_map, as_optional(a.mask), w.stride, w.padding, w.dilation,
      options.groups, w.groups, w.aligned, options.workspace_limit, needs);
  variable_list result = {grad_input, grad_weight, grad_dilation_map, grad_mask};
  for (size_t i = 0; i < kGradients; ++i) {
    result[i] = needs[i] ? result[i] : Tensor();
  }
  return result;
}

// ---- derivatives

struct ConvolutionNode final : torch::autograd::Node {
  explicit ConvolutionNode(const Options& options) : options_(options) {}

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(saved_.size());
    const auto& grad = grads[0];
    if (!grad.defined()) {
      return result;
    }
    const auto wanted = [&](size_t i) { return task_should_compute_output(i); };
    const Arguments a = {saved_[0].unpack(), saved_[1].unpack(), saved_[2].unpack(), Tensor(), saved_[4].unpack()};
    const OutputMask needs = {wanted(0), wanted(1), wanted(2), wanted(4)};
    if (std::any_of(needs.begin(), needs.end(), [](bool need) { return need; })) {
      const auto gradients = conv2d_backward(grad, a, options_, needs);
      result[0] = gradients[kInput];
      result[1] = gradients[kWeight];
      result[2] = gradients[kMap];
      result[4] = gradients[kMask];
    }
    if (wanted(3)) {
      result[3] = grad.sum(at::IntArrayRef({0, 2, 3}));
    }
    return result;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& saved : saved_) {
      saved.reset_data();
    }
  }

  std::string name() const override { return "DynamicDilationConv2dBackward"; }

  void save(const Arguments& a) {
    for (const auto& tensor : {a.input, a.weight, a.dilation_map, Tensor(), a.mask}) {
      saved_.emplace_back(tensor, /*is_output=*/false);
    }
  }

 private:
  Options options_;
  std::vector<SavedVariable> saved_;
};

bool any_requires_grad(const variable_list& tensors) {
  return at::GradMode::is_enabled() && std::any_of(tensors.begin(), tensors.end(), [](const Tensor& tensor) {
           return tensor.defined() && tensor.requires_grad();
         });
}

bool any_tangent(const variable_list& tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& tensor) {
    return tensor.defined() && tensor._fw_grad(/*level=*/0).defined();
  });
}

Tensor forward_autograd(const Arguments& a, const Options& options) {
  const auto tensors = a.list();
  if (any_tangent(tensors)) {
    check("conv2d", a, options);
    return forward(a, options);
  }
  decltype(make_node<ConvolutionNode>(options)) node;
  if (any_requires_grad(tensors)) {
    node = make_node<ConvolutionNode>(options);
    node->set_next_edges(torch::autograd::collect_next_edges(tensors));
    node->save(a);
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return conv2d(a, options);
  }();
  if (node) {
    torch::autograd::set_history(result, node);
  }
  return result;
}

variable_list backward_autograd(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  auto tensors = a.list();
  tensors.push_back(grad_output);
  if (any_tangent(tensors) || any_requires_grad(tensors)) {
    check_backward(grad_output, a, options, needs);
    return backward(grad_output, a, options, needs);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return conv2d_backward(grad_output, a, options, needs);
}

// ---- what models call

Tensor with_batch(const Tensor& tensor) { return tensor.defined() ? tensor.unsqueeze(0) : tensor; }

Tensor over_batch(const Tensor& tensor, const SymInt& batch) {
  if (!tensor.defined() || tensor.sym_size(0) == batch) {
    return tensor;
  }
  const auto& sizes = tensor.sym_sizes();
  return tensor.expand_symint({batch, sizes[1], sizes[2], sizes[3]});
}

Tensor dynamic_dilation_conv2d(
    const Tensor& input,
    const Tensor& weight,
    const Tensor& dilation_map,
    const OptionalTensor& bias,
    IntArrayRef stride,
    IntArrayRef padding,
    IntArrayRef dilation,
    int64_t groups,
    int64_t dilation_groups,
    const OptionalTensor& mask,
    bool aligned,
    int64_t workspace_limit) {
  const Arguments a = {input, weight, dilation_map, value_or_undefined(bias), value_or_undefined(mask)};
  const auto options =
      make_options(weight, stride, padding, dilation, groups, dilation_groups, aligned, workspace_limit);
  const auto params = check("dynamic_dilation_conv2d", a, options, Caller::kModel);
  if (input.dim() == 3) {
    const Arguments batched = {with_batch(input), weight, with_batch(dilation_map), a.bias, with_batch(a.mask)};
    return conv2d(batched, options).squeeze(0);
  }
  return conv2d(
      {input, weight, over_batch(dilation_map, params.batch), a.bias, over_batch(a.mask, params.batch)}, options);
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CompositeImplicitAutograd, m) {
  m.impl("dynamic_dilation_conv2d", TORCH_FN(dynamic_dilation_conv2d));
}

// Under vmap alone nothing else takes it apart: see composite.cpp.
TORCH_LIBRARY_IMPL(ddu, FuncTorchBatchedDecomposition, m) {
  m.impl("dynamic_dilation_conv2d", TORCH_FN(dynamic_dilation_conv2d));
}

TORCH_LIBRARY_IMPL(ddu, Autograd, m) {
  m.impl("conv2d", TORCH_FN(conv2d_schema<&forward_autograd>));
  m.impl("conv2d_backward", TORCH_FN(conv2d_backward_schema<&backward_autograd>));
}

TORCH_LIBRARY_IMPL(ddu, CompositeExplicitAutograd, m) {
  m.impl("conv2d", TORCH_FN(conv2d_schema<&forward_in_chunks>));
  m.impl("conv2d_backward", TORCH_FN(conv2d_backward_schema<&backward_in_chunks>));
}

TORCH_LIBRARY_IMPL(ddu, Meta, m) {
  m.impl("conv2d", TORCH_FN(conv2d_schema<&forward_meta>));
  m.impl("conv2d_backward", TORCH_FN(conv2d_backward_schema<&backward_meta>));
}

}  // namespace ddu
