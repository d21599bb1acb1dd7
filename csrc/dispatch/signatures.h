// SPDX-License-Identifier: MIT
// The C++ form of the schemas in schema.cpp.
//
// Every operator has its options in the same place, so inside the library each is a function
//     Result f(leading arguments..., const Tensor& dilation_map, const Window& window)
// and Schema<&f> spells out what the dispatcher wants to see.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>
#include <utility>

#include "window.h"

namespace ddu {

// The operators with the options below, for loops that register them. The convolution's: dispatch/convolution.h.
inline constexpr const char* kOperators[] = {"unfold", "fold", "unfold_backward", "sample", "splat", "dot"};

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

template <class F>
struct Arguments;

template <class R, class... Args>
struct Arguments<R (*)(Args...)> {
  using Result = R;
  using Leading = std::make_index_sequence<sizeof...(Args) - 2>;
  template <size_t i>
  using At = std::tuple_element_t<i, std::tuple<Args...>>;
};

template <auto f, class Leading = typename Arguments<decltype(f)>::Leading>
struct Schema;

template <auto f, size_t... i>
struct Schema<f, std::index_sequence<i...>> {
  using Args = Arguments<decltype(f)>;
  using Result = typename Args::Result;
  using Ints = at::IntArrayRef;

  using Value = Result(typename Args::template At<i>..., Ints, const at::Tensor&, Ints, Ints, Ints, int64_t, bool);
  using Derivative =
      Result(typename Args::template At<i>..., Ints, const at::Tensor&, Ints, Ints, Ints, int64_t, bool, Ints);

  // unfold, fold, unfold_backward and the composites
  static Result value(
      typename Args::template At<i>... leading,
      Ints kernel_size,
      const at::Tensor& dilation_map,
      Ints stride,
      Ints padding,
      Ints dilation,
      int64_t groups,
      bool aligned) {
    return f(leading..., dilation_map, Window(kernel_size, stride, padding, dilation, groups, aligned));
  }

  // sample, splat and dot
  static Result derivative(
      typename Args::template At<i>... leading,
      Ints kernel_size,
      const at::Tensor& dilation_map,
      Ints stride,
      Ints padding,
      Ints dilation,
      int64_t groups,
      bool aligned,
      Ints order) {
    return f(leading..., dilation_map, Window(kernel_size, stride, padding, dilation, groups, aligned, order));
  }
};

}  // namespace ddu
