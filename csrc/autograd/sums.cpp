// SPDX-License-Identifier: MIT
// Autograd of the sums of windows, to any order.
//
// Every operator computes gradients of one form T (NOTE [ One form ]). So its derivative in a direction is T's matrix
// of second derivatives times the direction; that matrix is symmetric, so one function serves reverse and forward mode.
// The derivative with respect to an argument that T is linear in is T with the direction in the argument's place: no
// columns. The one with respect to the positions is a derivative of the family: along_positions, in formulas.cpp.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../sums/sums.h"
#include "node.h"

namespace ddu::sums {

namespace {

using at::Tensor;
using c10::SymIntArrayRef;

void add(Tensors& results, const Tensors& more) {
  for (size_t i = 0; i < kSlots; ++i) {
    if (more[i].defined()) {
      results[i] = results[i].defined() ? at::add(results[i], more[i]) : more[i];
    }
  }
}

// The change in the wanted gradients of T when the arguments change by `direction`.
Tensors change(
    const Tensors& x,
    const Tensors& direction,
    const Options& options,
    SymIntArrayRef image_size,
    const Wanted& wanted) {
  Tensors results(kSlots);
  for (const auto slot : {kQuery, kInput, kMask, kWeight}) {
    if (direction[slot].defined()) {
      auto moved = x;
      moved[slot] = direction[slot];
      auto others = wanted;
      others[slot] = false;
      add(results, contract(moved, options, image_size, others));
    }
  }
  if (direction[kPositions].defined()) {
    add(results, along_positions(x, direction[kPositions], options, image_size, wanted));
  }
  return results;
}

// For the operator that computes the gradients options.wanted.
struct Formula {
  static constexpr const char* kName = "DynamicDilationSumsBackward";
  using Options = sums::Options;

  static Wanted wanted(const Needs& needs) {
    Wanted result = {};
    std::copy(needs.begin(), needs.end(), result.begin());
    return result;
  }

  static variable_list vjp(
      const variable_list& grads,
      const variable_list& x,
      const Options& options,
      const Sizes& size,
      const Needs& needs) {
    Tensors direction(kSlots);
    size_t next = 0;
    for (size_t slot = 0; slot < kSlots; ++slot) {
      if (options.wanted[slot]) {
        direction[slot] = grads[next++];
      }
    }
    return change(x, direction, options, size, wanted(needs));
  }

  // An operator with one result is linear in everything but the positions: if only one argument needs a gradient, that
  // argument itself need not be saved.
  static Needs saved(const Needs& needs) {
    const auto count = std::count(needs.begin(), needs.end(), true);
    Needs result;
    for (size_t slot = 0; slot < kSlots; ++slot) {
      const bool alone = count == 1 && needs[slot];
      result.push_back(slot == kPositions || !(alone && (slot == kInput || slot == kQuery)));
    }
    return result;
  }
};

Sizes size_of(const Tensors& x, SymIntArrayRef image_size) {
  if (!image_size.empty()) {
    const auto axes = x[kPositions].is_nested() ? 0 : x[kPositions].dim() - 2;
    return image_size.size() == 1 && axes > 0 ? Sizes(axes, image_size[0])
                                              : Sizes(image_size.begin(), image_size.end());
  }
  if (x[kInput].is_nested() || x[kInput].dim() < 3) {
    return {};
  }
  const auto sizes = x[kInput].sym_sizes().slice(2);
  return {sizes.begin(), sizes.end()};
}

// The options with the mask's number of groups, which the derivative cannot read from a mask that isn't saved.
Options with_groups(const Tensors& x, Options options) {
  if (x[kMask].defined() && !x[kMask].is_nested() && x[kMask].dim() > 1) {
    int64_t taps = 1;
    const auto& kernel = options.window.kernel_size;
    for (int64_t a = 0; a < x[kMask].dim() - 2; ++a) {
      taps *= kernel.size() == 1 ? kernel[0] : static_cast<size_t>(a) < kernel.size() ? kernel[a] : 1;
    }
    options.mask_groups = taps > 0 ? (x[kMask].sym_size(1) / taps).guard_int(__FILE__, __LINE__) : 0;
  }
  return options;
}

// The results of compute(options, image size), with their derivatives recorded.
template <class Compute>
Tensors differentiable(const Tensors& x, const Options& given, SymIntArrayRef image_size, const Compute& compute) {
  const auto options = with_groups(x, given);
  const auto size = size_of(x, image_size);
  const auto taken = [&](const Tensors& all) {
    Tensors some;
    for (size_t slot = 0; slot < kSlots; ++slot) {
      if (options.wanted[slot]) {
        some.push_back(all[slot]);
      }
    }
    return some;
  };
  auto results = recorded<Formula>(x, options, size, [&] { return taken(compute(options, size)); });
  carry_tangents(results, x, [&](const Tensors& tangents, const Tensors& primals) {
    return taken(change(primals, tangents, options, size, options.wanted));
  });
  Tensors all(kSlots);
  size_t next = 0;
  for (size_t slot = 0; slot < kSlots; ++slot) {
    if (options.wanted[slot]) {
      all[slot] = results[next++];
    }
  }
  return all;
}

Tensors contract_autograd(const char*, const Tensors& x, const Options& options, SymIntArrayRef image_size) {
  return differentiable(x, options, image_size, [&](const Options& all, const Sizes& size) {
    return contract(x, all, size, all.wanted);
  });
}

std::tuple<Tensor, Tensor> max_pool_autograd(
    const Tensor& input, const Tensor& positions, const ddu::Options& options) {
  auto [values, taps] = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return max_pool(input, positions, options);
  }();
  Tensors x(kSlots);
  x[kInput] = input;
  x[kPositions] = positions;
  x[kTaps] = taps;
  const Options pooled(without_ignore(options), 0, only(kQuery));
  Tensors found(kSlots);
  found[kQuery] = values;
  return {differentiable(x, pooled, {}, [&](const Options&, const Sizes&) { return found; })[kQuery], taps};
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, Autograd, m) {
  register_contractions<&contract_autograd>(m);
  m.impl("max_pool", TORCH_FN(max_pool_schema<&max_pool_autograd>));
}

}  // namespace ddu::sums
