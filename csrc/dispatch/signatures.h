// SPDX-License-Identifier: MIT
// The C++ types of the schemas in schema.cpp.
//
// Inside the library every operator is a function
//     Result f(leading arguments..., const Tensor& positions, const Options& options)
// The three templates below convert between this and the signature that the dispatcher expects.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <string_view>
#include <tuple>
#include <utility>

#include "../options.h"

namespace ddu {

// The strict operators, except the convolution's: see convolution/convolution.h.
inline constexpr const char* kOperators[] = {"unfold",    "fold",    "unfold_backward", "sample",
                                             "splat",     "dot",     "sample_backward", "aggregate",
                                             "correlate", "scatter", "sums_backward",   "max_pool"};

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

using Ints = at::IntArrayRef;
using Word = std::string_view;

// unfold, fold, unfold_backward and the functions for models built on them: the map follows kernel_size.
template <auto f, class Leading = typename Arguments<decltype(f)>::Leading>
struct RatesSchema;

template <auto f, size_t... i>
struct RatesSchema<f, std::index_sequence<i...>> {
  using Args = Arguments<decltype(f)>;
  using Result = typename Args::Result;

  static Result call(
      typename Args::template At<i>... leading,
      Ints kernel_size,
      const at::Tensor& dilation_map,
      Ints stride,
      Ints padding,
      Ints dilation,
      int64_t groups,
      bool aligned,
      Word padding_mode) {
    return f(
        leading..., dilation_map,
        Options(name_of(Source::kRates), kernel_size, stride, padding, dilation, groups, aligned, padding_mode));
  }

  // Through the dispatcher.
  static Result dispatch(
      const char* name, typename Args::template At<i>... leading, const at::Tensor& dilation_map, const Options& o) {
    static const auto op = find_operator<decltype(call)>(name);
    return op.call(
        leading..., o.kernel_size, dilation_map, o.stride, o.padding, o.dilation, o.groups, o.aligned, o.padding_mode);
  }
};

// deform_unfold, affine_unfold and the like.
template <Source source, auto f, class Leading = typename Arguments<decltype(f)>::Leading>
struct WindowsSchema;

template <Source source, auto f, size_t... i>
struct WindowsSchema<source, f, std::index_sequence<i...>> {
  using Args = Arguments<decltype(f)>;

  static typename Args::Result call(
      typename Args::template At<i>... leading,
      Ints kernel_size,
      const at::Tensor& positions,
      Ints stride,
      Ints padding,
      Ints dilation,
      int64_t groups,
      Word padding_mode) {
    return f(
        leading..., positions,
        Options(
            name_of(source), kernel_size, stride, padding, dilation, groups,
            /*aligned=*/true, padding_mode));
  }
};

// The family, for any source.
template <auto f, class Leading = typename Arguments<decltype(f)>::Leading>
struct FamilySchema;

template <auto f, size_t... i>
struct FamilySchema<f, std::index_sequence<i...>> {
  using Args = Arguments<decltype(f)>;
  using Result = typename Args::Result;

  static Result call(
      typename Args::template At<i>... leading,
      const at::Tensor& positions,
      Word source,
      Ints kernel_size,
      Ints stride,
      Ints padding,
      Ints dilation,
      int64_t groups,
      bool aligned,
      Word padding_mode,
      Ints order) {
    return f(
        leading..., positions,
        Options(source, kernel_size, stride, padding, dilation, groups, aligned, padding_mode, order));
  }

  static Result dispatch(
      const char* name, typename Args::template At<i>... leading, const at::Tensor& positions, const Options& o) {
    static const auto op = find_operator<decltype(call)>(name);
    return op.call(
        leading..., positions, o.source, o.kernel_size, o.stride, o.padding, o.dilation, o.groups, o.aligned,
        o.padding_mode, o.order);
  }
};

}  // namespace ddu
