// SPDX-License-Identifier: MIT
// Autograd's nodes for every operator: what a call saves, how it is released, and how compiled autograd traces it.
//
// A Formula states a derivative as a plain function of the saved values:
//     kName                                       the name in profilers
//     Options                                     of the call, convertible to integers (lists()) and back (constructor)
//     saved(needs)                                which of the call's tensors the vjp uses
//     vjp(grads, x, options, sizes, needs)        the gradients of those of the call's tensors x that need one
// `sizes` holds options that may be symbolic.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace ddu {

using torch::autograd::variable_list;
using Needs = c10::SmallVector<bool, 5>;         // for each tensor of a call
using Sizes = c10::SmallVector<c10::SymInt, 2>;  // of an image, along every axis

// Derivatives compute in the types of their forward, even where autocast is on.
struct WithoutAutocast {
  const c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

// Node pointers are std::shared_ptr up to torch 2.12 and c10::intrusive_ptr after it.
using NodePtr = decltype(torch::autograd::Edge::function);

template <class N, class... Args>
auto make_node(Args&&... args) {
  if constexpr (std::is_same_v<NodePtr, std::shared_ptr<torch::autograd::Node>>) {
    return std::shared_ptr<N>(new N(std::forward<Args>(args)...), [](N* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<N>(std::forward<Args>(args)...);
  }
}

template <class Formula>
struct FormulaNode final : torch::autograd::Node {
  using Options = typename Formula::Options;

  FormulaNode(const Options& options, const Sizes& sizes) : options_(options), sizes_(sizes) {}

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list x;
    Needs needs;
    for (size_t i = 0; i < saved_.size(); ++i) {
      needs.push_back(task_should_compute_output(i));
      x.push_back(saved_[i].unpack());
    }
    return gradients(grads, x, options_, sizes_, needs);
  }

  // Compiled autograd first asks a node which values its compiled form depends on. Then it replaces the saved tensors
  // and sizes with traced ones and asks for a call of a plain function on them.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(name());
    for (const auto& list : options_.lists()) {
      args.collect(c10::IntArrayRef(list));
    }
    args.collect(c10::SymIntArrayRef(sizes_));
    args.collect(saved_, /*is_output=*/false);
  }

  variable_list apply_with_saved(
      const variable_list& grads, torch::dynamo::autograd::SwapSavedVariables& saved) override {
    namespace compiled = torch::dynamo::autograd;
    saved.before(sizes_);
    saved.before(saved_);
    compiled::PackedArgs args;
    for (const auto& list : options_.lists()) {
      args.pack(std::vector<int64_t>(list.begin(), list.end()));
    }
    args.pack(std::vector<c10::SymInt>(sizes_.begin(), sizes_.end()));
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
        saved.get_py_compiler(), name(), &FormulaNode::apply_packed, types, /*is_custom_function=*/true,
        /*is_traceable=*/true);
    auto result = compiler->call_function(
        saved.get_py_compiler(), "apply_functional", function, grads, args.vec(),
        compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            compiled::get_input_metadata(next_edges())));
    saved.after(sizes_);
    saved.after(saved_);
    return result;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& saved : saved_) {
      saved.reset_data();
    }
  }

  std::string name() const override { return Formula::kName; }

  void save(const variable_list& x, const Needs& saved) {
    for (size_t i = 0; i < x.size(); ++i) {
      saved_.push_back(
          saved[i] ? torch::autograd::SavedVariable(x[i], /*is_output=*/false) : torch::autograd::SavedVariable());
    }
  }

 private:
  static variable_list gradients(
      const variable_list& grads,
      const variable_list& x,
      const Options& options,
      const Sizes& sizes,
      const Needs& needs) {
    const WithoutAutocast guard;
    const auto defined = [](const at::Tensor& grad) { return grad.defined(); };
    return std::any_of(grads.begin(), grads.end(), defined) ? Formula::vjp(grads, x, options, sizes, needs)
                                                            : variable_list(x.size());
  }

  // gradients(), with the arguments packed by apply_with_saved.
  static variable_list apply_packed(const variable_list& grads, const std::vector<c10::IValue>& packed) {
    torch::dynamo::autograd::PackedArgs args(packed);
    typename Options::Lists lists;
    for (auto& list : lists) {
      const auto ints = args.unpack<std::vector<int64_t>>();
      list.assign(ints.begin(), ints.end());
    }
    const auto sizes = args.unpack<std::vector<c10::SymInt>>();
    const auto needs = args.unpack<std::vector<bool>>();
    variable_list x;
    for (size_t i = 0; i < needs.size(); ++i) {
      x.push_back(args.unpack<at::Tensor>());
    }
    return gradients(grads, x, Options(lists), Sizes(sizes.begin(), sizes.end()), Needs(needs.begin(), needs.end()));
  }

  Options options_;
  Sizes sizes_;
  std::vector<torch::autograd::SavedVariable> saved_;
};

inline bool any_tangent(const variable_list& x) {
  return std::any_of(x.begin(), x.end(), [](const at::Tensor& tensor) {
    return tensor.defined() && tensor._fw_grad(/*level=*/0).defined();
  });
}

// Which tensors of x need a gradient.
inline Needs needs_gradient(const variable_list& x) {
  Needs needs;
  for (const auto& tensor : x) {
    needs.push_back(at::GradMode::is_enabled() && tensor.defined() && tensor.requires_grad());
  }
  return needs;
}

inline bool any(const Needs& needs) { return std::find(needs.begin(), needs.end(), true) != needs.end(); }

// Runs compute() on the tensors x below autograd and records the Formula's gradients, like the code that torch
// generates for its own operators.
template <class Formula, class Compute>
variable_list recorded(
    const variable_list& x, const typename Formula::Options& options, const Sizes& sizes, const Compute& compute) {
  const auto needs = needs_gradient(x);
  decltype(make_node<FormulaNode<Formula>>(options, sizes)) node;
  if (any(needs)) {
    node = make_node<FormulaNode<Formula>>(options, sizes);
    node->set_next_edges(torch::autograd::collect_next_edges(x));
    // Saves the dual tensors themselves: forward over reverse needs their tangents.
    node->save(x, Formula::saved(needs));
  }
  variable_list results = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return compute();
  }();
  if (node) {
    for (const auto& result : results) {
      torch::autograd::set_history(result, node);
    }
  }
  return results;
}

// If any of the tensors x has a tangent, gives the results theirs: jvp(tangents, primals).
template <class Jvp>
void carry_tangents(const variable_list& results, const variable_list& x, const Jvp& jvp) {
  if (!any_tangent(x)) {
    return;
  }
  const WithoutAutocast guard;
  variable_list primals;
  variable_list tangents;
  for (const auto& tensor : x) {
    primals.push_back(tensor.defined() ? tensor._fw_primal(/*level=*/0) : tensor);
    tangents.push_back(tensor.defined() ? tensor._fw_grad(/*level=*/0) : tensor);
  }
  const variable_list result_tangents = jvp(tangents, primals);
  for (size_t i = 0; i < results.size(); ++i) {
    if (result_tangents[i].defined()) {
      results[i]._set_fw_grad(result_tangents[i], /*level=*/0, /*is_inplace_op=*/false);
    }
  }
}

}  // namespace ddu
