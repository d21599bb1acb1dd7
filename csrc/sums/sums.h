// SPDX-License-Identifier: MIT
// Sums of windows: aggregation, correlation and other contractions of a window that don't mix channels.
//
// NOTE [ One form ]
// With S the samples of an input (NOTE [ The family of derivatives ]), all of them are contractions of one form. It is
// linear in each of its first four arguments:
//
//     T = sum over b, c, t, l of
//         query[b, c, l] * mask[b, m, t, l] * weight[b, c, t] * [taps[b, c, l] = t] * S(input, positions)[b, c, t, l]
//
// where c is a channel, m its mask group, t a tap and l an output position. A missing argument is a factor of one. The
// gradient of T with respect to an argument is a contraction that keeps the argument's indices:
//
//     aggregate   w.r.t. query   a weighted sum of every window
//     correlate   w.r.t. mask    the products of every window with a query
//     scatter     w.r.t. input   the adjoint of aggregate
//     sums_backward              w.r.t. any of the five arguments, in one call
//
// The gradient of one of these with respect to another argument is again a gradient of T, in which the incoming
// gradient takes the place of the argument whose indices the operator keeps. So the backward of each is sums_backward,
// and so are most higher derivatives. The rest, second derivatives with respect to the positions, is built from the
// family: autograd/sums.cpp.
//
// max_pool is aggregate with `taps`, once each window's largest tap is known.
//
// Every tensor starts with the batch axis, and no operator materialises columns.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../options.h"

namespace ddu::sums {

using OptionalTensor = std::optional<at::Tensor>;

// The arguments of the form. It is linear in those before kTaps, and kTaps has no gradient.
enum Slot : size_t { kQuery, kInput, kMask, kWeight, kTaps, kPositions, kSlots };

using Tensors = std::vector<at::Tensor>;  // one per slot, undefined where missing
using Wanted = std::array<bool, kSlots>;  // which gradients of T
using OutputMask = std::array<bool, 5>;   // the same in a schema, without kTaps

inline at::Tensor value_or_undefined(const OptionalTensor& tensor) {
  return tensor.has_value() ? *tensor : at::Tensor();
}

inline OptionalTensor as_optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

constexpr Wanted only(Slot slot) {
  Wanted wanted = {};
  wanted[slot] = true;
  return wanted;
}

inline bool any(const Wanted& wanted) { return std::find(wanted.begin(), wanted.end(), true) != wanted.end(); }

inline Wanted from_schema(const OutputMask& m) { return {m[0], m[1], m[2], m[3], false, m[4]}; }
inline OutputMask to_schema(const Wanted& w) { return {w[kQuery], w[kInput], w[kMask], w[kWeight], w[kPositions]}; }

// The options of a window, the number of mask groups, and which contractions a call computes.
struct Options {
  static constexpr size_t kWindowLists = std::tuple_size_v<ddu::Options::Lists>;
  using Lists = std::array<ddu::Options::Ints, kWindowLists + 2>;

  Options(const ddu::Options& window, int64_t mask_groups, const Wanted& wanted)
      : window(window), mask_groups(mask_groups), wanted(wanted) {}

  explicit Options(const Lists& lists) : window(of_window(lists)), mask_groups(lists[kWindowLists][0]) {
    std::transform(lists.back().begin(), lists.back().end(), wanted.begin(), [](int64_t bit) { return bit != 0; });
  }

  Lists lists() const {
    Lists result;
    const auto w = window.lists();
    std::copy(w.begin(), w.end(), result.begin());
    result[kWindowLists] = {mask_groups};
    result.back() = ddu::Options::Ints(wanted.begin(), wanted.end());
    return result;
  }

  ddu::Options window;
  int64_t mask_groups;  // of correlate's result; other operators take it from the mask
  Wanted wanted = {};

 private:
  static ddu::Options::Lists of_window(const Lists& lists) {
    ddu::Options::Lists result;
    std::copy_n(lists.begin(), kWindowLists, result.begin());
    return result;
  }
};

// A checked call. If the operator has only one result, its slot in `x` is undefined.
struct Call {
  const Tensors& x;
  SymParams params;
  int64_t mask_groups;  // 1 without a mask
  Wanted wanted;
};

// ---- the operators through the dispatcher

// The wanted gradients of T, from whichever operator computes them.
Tensors contract(const Tensors& x, const Options& options, c10::SymIntArrayRef image_size, const Wanted& wanted);

std::tuple<at::Tensor, at::Tensor> max_pool(
    const at::Tensor& input, const at::Tensor& positions, const ddu::Options& options);

// ---- in differentiable steps, with columns: formulas.cpp

Tensors by_columns(const Tensors& x, const Options& options, c10::SymIntArrayRef image_size, const Wanted& wanted);

// The change in the wanted gradients of T when the positions change by `direction`.
Tensors along_positions(
    const Tensors& x,
    const at::Tensor& direction,
    const Options& options,
    c10::SymIntArrayRef image_size,
    const Wanted& wanted);

// ---- the schemas: `f` takes the tensors, the options and the size of the image to produce, if any

using Compute = Tensors (*)(const char* op, const Tensors& x, const Options& options, c10::SymIntArrayRef image_size);

#define DDU_WINDOW_PARAMETERS \
  const at::Tensor &positions, std::string_view source, at::IntArrayRef kernel_size, at::IntArrayRef stride, \
      at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, bool aligned, std::string_view padding_mode
#define DDU_WINDOW_OPTIONS ddu::Options(source, kernel_size, stride, padding, dilation, groups, aligned, padding_mode)

template <Compute f>
at::Tensor aggregate_schema(
    const at::Tensor& input,
    const OptionalTensor& mask,
    const OptionalTensor& weight,
    const OptionalTensor& taps,
    DDU_WINDOW_PARAMETERS) {
  const Tensors x = {
      at::Tensor(), input, value_or_undefined(mask), value_or_undefined(weight), value_or_undefined(taps), positions};
  return f("aggregate", x, Options(DDU_WINDOW_OPTIONS, 0, only(kQuery)), {})[kQuery];
}

template <Compute f>
at::Tensor correlate_schema(
    const at::Tensor& query, const at::Tensor& input, DDU_WINDOW_PARAMETERS, int64_t mask_groups) {
  TORCH_CHECK(mask_groups >= 1, "correlate(): expected mask_groups to be at least 1, but got ", mask_groups);
  const Tensors x = {query, input, at::Tensor(), at::Tensor(), at::Tensor(), positions};
  return f("correlate", x, Options(DDU_WINDOW_OPTIONS, mask_groups, only(kMask)), {})[kMask];
}

template <Compute f>
at::Tensor scatter_schema(
    const at::Tensor& query,
    const OptionalTensor& mask,
    const OptionalTensor& weight,
    const OptionalTensor& taps,
    c10::SymIntArrayRef output_size,
    DDU_WINDOW_PARAMETERS) {
  const Tensors x = {
      query, at::Tensor(), value_or_undefined(mask), value_or_undefined(weight), value_or_undefined(taps), positions};
  return f("scatter", x, Options(DDU_WINDOW_OPTIONS, 0, only(kInput)), output_size)[kInput];
}

template <Compute f>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> sums_backward_schema(
    const at::Tensor& query,
    const at::Tensor& input,
    const OptionalTensor& mask,
    const OptionalTensor& weight,
    const OptionalTensor& taps,
    DDU_WINDOW_PARAMETERS,
    OutputMask output_mask) {
  const Tensors x = {query,    input, value_or_undefined(mask), value_or_undefined(weight), value_or_undefined(taps),
                     positions};
  const auto wanted = from_schema(output_mask);
  auto result = f("sums_backward", x, Options(DDU_WINDOW_OPTIONS, 0, wanted), {});
  // Operators must return defined tensors: an empty one stands for a gradient that was not asked for.
  for (size_t i = 0; i < kSlots; ++i) {
    result[i] = wanted[i] ? result[i] : at::empty({0}, input.options());
  }
  return {result[kQuery], result[kInput], result[kMask], result[kWeight], result[kPositions]};
}

template <std::tuple<at::Tensor, at::Tensor> (*f)(const at::Tensor&, const at::Tensor&, const ddu::Options&)>
std::tuple<at::Tensor, at::Tensor> max_pool_schema(const at::Tensor& input, DDU_WINDOW_PARAMETERS) {
  return f(input, positions, DDU_WINDOW_OPTIONS);
}

#undef DDU_WINDOW_PARAMETERS
#undef DDU_WINDOW_OPTIONS

// ---- a device's operators

// max_pool's calls are checked and differentiated with these options: the largest tap of a window lies in the image,
// where "ignore" and "zeros" agree.
constexpr const char* kIgnore = "ignore";
ddu::Options without_ignore(const ddu::Options& options);

Call check(
    const char* op,
    const Tensors& x,
    const Options& options,
    c10::SymIntArrayRef image_size,
    const Caller& caller = {0, false, true});
SymParams check_max_pool(
    const char* op,
    const at::Tensor& input,
    const at::Tensor& positions,
    const ddu::Options& options,
    const Caller& caller = {0, false, true});

// For results with the channels of an image: channels-last if the image is, as in F.conv2d.
at::MemoryFormat format_of(const at::Tensor& image);

// The wanted results, uninitialised.
Tensors allocate(const Call& call);
std::tuple<at::Tensor, at::Tensor> allocate_max_pool(const SymParams& params, const at::Tensor& input);

// A device is a struct with two static functions, which fill the allocated tensors:
//     contract(call, results)
//     max_pool(params, ignore, input, positions, values, taps)
// Wanted results have at least one element.
template <class Backend>
struct Operators {
  static Tensors contract(const char* op, const Tensors& x, const Options& options, c10::SymIntArrayRef image_size) {
    const auto call = check(op, x, options, image_size);
    auto results = allocate(call);
    Backend::contract(call, results);
    return results;
  }

  static std::tuple<at::Tensor, at::Tensor> max_pool(
      const at::Tensor& input, const at::Tensor& positions, const ddu::Options& options) {
    const auto params = check_max_pool("max_pool", input, positions, options);
    auto results = allocate_max_pool(params, input);
    Backend::max_pool(
        params, options.padding_mode == kIgnore, input, positions, std::get<0>(results), std::get<1>(results));
    return results;
  }
};

template <Compute contract>
void register_contractions(torch::Library& m) {
  m.impl("aggregate", TORCH_FN(aggregate_schema<contract>));
  m.impl("correlate", TORCH_FN(correlate_schema<contract>));
  m.impl("scatter", TORCH_FN(scatter_schema<contract>));
  m.impl("sums_backward", TORCH_FN(sums_backward_schema<contract>));
}

template <class Backend>
void register_operators(torch::Library& m) {
  register_contractions<&Operators<Backend>::contract>(m);
  m.impl("max_pool", TORCH_FN(max_pool_schema<&Operators<Backend>::max_pool>));
}

}  // namespace ddu::sums
