// SPDX-License-Identifier: MIT
#include "args.h"

#include <ATen/autocast_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <algorithm>
#include <array>
#include <sstream>
#include <string>

#include "math/geometry.h"

namespace ddu {

namespace {

using Pair = std::array<int64_t, 2>;
using Shape = c10::SmallVector<c10::SymInt, 4>;

template <class Sizes>
std::string tuple(const Sizes& sizes) {
  std::ostringstream out;
  out << "(";
  for (size_t i = 0; i < sizes.size(); ++i) {
    out << (i == 0 ? "" : ", ") << sizes[i];
  }
  out << (sizes.size() == 1 ? ",)" : ")");
  return out.str();
}

// As Python spells it.
const char* name(c10::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return "float64";
    case at::kFloat:
      return "float32";
    case at::kHalf:
      return "float16";
    case at::kBFloat16:
      return "bfloat16";
    case at::kLong:
      return "int64";
    case at::kInt:
      return "int32";
    case at::kBool:
      return "bool";
    case at::kByte:
      return "uint8";
    case at::kComplexFloat:
      return "complex64";
    case at::kComplexDouble:
      return "complex128";
    default:
      return c10::toString(type);
  }
}

// The checks of one call. Every message reads "<op>(): expected <argument> <what it takes>, but got <what it got>".
struct Check {
  const char* op;
  Caller caller;
  const char* groups_name = "groups";  // what the caller calls the groups of the map
  bool unbatched = false;

  // ---- options

  template <class Ints>
  void pair(const char* argument, const Ints& value, int64_t least) const {
    TORCH_CHECK(
        value.size() == 1 || value.size() == 2, op, "(): expected ", argument, " to be one or two ints, but got ",
        tuple(value));
    TORCH_CHECK(
        value.front() >= least && value.back() >= least, op, "(): expected ", argument, " to be at least ", least,
        ", but got ", tuple(value));
  }

  void at_least(const char* argument, int64_t value, int64_t least) const {
    TORCH_CHECK(value >= least, op, "(): expected ", argument, " to be at least ", least, ", but got ", value);
  }

  // ---- sizes

  c10::SymInt product(const char* what, const c10::SymInt& a, const c10::SymInt& b) const {
    const auto x = a.maybe_as_int();
    const auto y = b.maybe_as_int();
    int64_t result = 0;
    if (!x || !y) {
      return a * b;
    }
    TORCH_CHECK(
        !c10::mul_overflows(*x, *y, &result), op, "(): expected ", what, " below 2^63, but got ", *x, " * ", *y);
    return result;
  }

  c10::SymInt sum(const char* what, const c10::SymInt& a, const c10::SymInt& b) const {
    const auto x = a.maybe_as_int();
    const auto y = b.maybe_as_int();
    int64_t result = 0;
    if (!x || !y) {
      return a + b;
    }
    TORCH_CHECK(
        !c10::add_overflows(*x, *y, &result), op, "(): expected ", what, " below 2^63, but got ", *x, " + ", *y);
    return result;
  }

  // ---- tensors

  // One of the dense tensors of a type that the operators compute in.
  void tensor(const char* argument, const at::Tensor& tensor) const {
    TORCH_CHECK(tensor.defined(), op, "(): expected ", argument, " to be a tensor, but got None");
    TORCH_CHECK(
        !tensor.is_quantized(), op, "(): expected ", argument, " to be a dense tensor, but got a quantised one");
    TORCH_CHECK(!tensor.is_nested(), op, "(): expected ", argument, " to be a dense tensor, but got a nested one");
    TORCH_CHECK(
        tensor.layout() == c10::kStrided, op, "(): expected ", argument,
        " to be a dense tensor, but got one of layout ", tensor.layout());
    const auto type = tensor.scalar_type();
    TORCH_CHECK(
        type == at::kDouble || type == at::kFloat || type == at::kHalf || type == at::kBFloat16, op, "(): expected ",
        argument, " of type float64, float32, float16 or bfloat16, but got ", name(type));
  }

  // That a tensor has the device of the leading one, and its type (or float32 beside a half type, if `or_float`).
  void agrees(
      const char* argument,
      const at::Tensor& tensor,
      const char* lead_name,
      const at::Tensor& lead,
      bool or_float) const {
    const auto device = lead.device();
    TORCH_CHECK(
        tensor.device() == device, op, "(): expected ", argument, " on the device of ", lead_name, ", ", device,
        ", but got one on ", tensor.device());
    auto type = tensor.scalar_type();
    auto lead_type = lead.scalar_type();
    if (caller == Caller::kModel && (device.is_cpu() || device.is_cuda()) &&
        at::autocast::is_autocast_enabled(device.type())) {  // as they will be then: see autocast.cpp
      const auto cast = at::autocast::get_autocast_dtype(device.type());
      lead_type = lead_type == at::kDouble ? at::kDouble : cast;
      type = type == at::kDouble ? at::kDouble : or_float ? at::kFloat : cast;
    }
    or_float = or_float && (lead_type == at::kHalf || lead_type == at::kBFloat16);
    TORCH_CHECK(
        type == lead_type || (or_float && type == at::kFloat), op, "(): expected ", argument, " of type ",
        name(lead_type), or_float ? " or float32" : "", ", for ", lead_name, " is ", name(lead_type), ", but got ",
        name(type));
  }

  // The sizes of a call's leading tensor, from which it follows whether the call is batched.
  Shape lead_shape(const char* argument, const at::Tensor& tensor, int64_t dims, const char* pattern) {
    unbatched = caller == Caller::kModel && tensor.dim() == dims - 1;
    TORCH_CHECK(
        unbatched || tensor.dim() == dims, op, "(): expected ", argument, " of shape (B, ", pattern, ")",
        caller == Caller::kModel ? " or (" : "", caller == Caller::kModel ? pattern : "",
        caller == Caller::kModel ? ")" : "", ", but got ", tuple(tensor.sym_sizes()));
    return batched(tensor);
  }

  // With the batch size of 1 that an unbatched tensor leaves out.
  Shape batched(const at::Tensor& tensor) const {
    Shape shape;
    if (unbatched) {
      shape.emplace_back(1);
    }
    shape.append(tensor.sym_sizes().begin(), tensor.sym_sizes().end());
    return shape;
  }

  // As the caller wrote it.
  std::string written(c10::SymIntArrayRef shape) const { return tuple(unbatched ? shape.slice(1) : shape); }

  // ---- the parts of Params

  void window(SymParams& params, const Window& window) const {
    pair("kernel_size", window.kernel_size, 1);
    pair("stride", window.stride, 1);
    pair("padding", window.padding, 0);
    pair("dilation", window.dilation, 1);
    params.h = {
        0, 0, window.kernel_size.front(), window.stride.front(), window.padding.front(), window.dilation.front()};
    params.w = {0, 0, window.kernel_size.back(), window.stride.back(), window.padding.back(), window.dilation.back()};
    params.aligned = window.aligned;
    params.groups = window.groups;
    at_least(groups_name, window.groups, 1);
  }

  void grid(SymParams& params, const c10::SymInt& height, const c10::SymInt& width) const {
    params.h.size = height;
    params.w.size = width;
    for (auto* axis : {&params.h, &params.w}) {
      const auto reach = product("dilation * (kernel_size - 1)", axis->dilation, axis->kernel - 1);
      const auto padded = sum("a padded size", axis->size, product("2 * padding", 2, axis->padding));
      axis->out_size = output_size(padded, reach, axis->stride);
    }
    TORCH_CHECK(
        params.h.out_size >= 1 && params.w.out_size >= 1, op, "(): expected an output of at least 1 x 1, but got ",
        params.h.out_size, " x ", params.w.out_size, " from an image of ", height, " x ", width,
        ", kernel_size=", pair_of(&Axis<c10::SymInt>::kernel, params),
        ", stride=", pair_of(&Axis<c10::SymInt>::stride, params),
        ", padding=", pair_of(&Axis<c10::SymInt>::padding, params),
        ", dilation=", pair_of(&Axis<c10::SymInt>::dilation, params));
    image(params, height, width);
    const auto bordered = [&](const c10::SymInt& size) { return sum("a padded size", size, kBorderLow + kBorderHigh); };
    bytes("the bytes for the image", image(params, bordered(height), bordered(width)));
    const auto columns = product("the size of columns", rows(params), positions(params));
    bytes("the bytes for columns", product("the size of columns", columns, params.batch));
  }

  c10::SymInt image(const SymParams& params, const c10::SymInt& height, const c10::SymInt& width) const {
    const auto pixels = product("the number of pixels", height, width);
    const auto item = product("the size of the image", pixels, params.channels);
    return product("the size of the image", item, params.batch);
  }

  // That kernels can count what they make of an image with its border, or of columns: numbers of 8 bytes, at most twice
  // the channels (filled up to vectors), in at most 4 bands (unfold_cpu.cpp). Sizes are limited here and nowhere else.
  void bytes(const char* what, const c10::SymInt& size) const { product(what, size, 8 * 2 * 4); }

  c10::SymInt positions(const SymParams& params) const {
    return product("the number of output positions", params.h.out_size, params.w.out_size);
  }

  c10::SymInt taps(const SymParams& params) const {
    return product("the number of taps", params.h.kernel, params.w.kernel);
  }

  c10::SymInt rows(const SymParams& params) const {
    return product("the rows of columns", params.channels, taps(params));
  }

  void map(SymParams& params, const at::Tensor& dilation_map) const {
    Shape expected = {params.batch, params.groups, params.h.out_size, params.w.out_size};
    const auto per_axis = product("2 * groups", 2, params.groups);
    const auto shape = batched(dilation_map);
    const bool one_rate = shape.size() == 4 && shape[1] == params.groups;
    const bool broadcast = caller == Caller::kModel && !unbatched;
    const bool fits = shape.size() == 4 && (one_rate || shape[1] == per_axis) && shape[2] == expected[2] &&
        shape[3] == expected[3] && (shape[0] == params.batch || (broadcast && shape[0] == 1));
    if (!fits) {
      const auto one = written(expected);
      expected[1] = per_axis;
      TORCH_CHECK(
          false, op, "(): expected dilation_map of shape ", one, " or ", written(expected), ", but got ",
          tuple(dilation_map.sym_sizes()));
    }
    params.rates = one_rate ? 1 : 2;
  }

  void order(SymParams& params, c10::IntArrayRef order) const {
    TORCH_CHECK(
        order.empty() || static_cast<int64_t>(order.size()) == params.rates, op,
        "(): expected order to have as many entries as a window has rates, ", params.rates, ", but got ", tuple(order));
    for (const auto entry : order) {
      TORCH_CHECK(entry >= 0, op, "(): expected order to be at least 0, but got ", tuple(order));
    }
    for (int a = 0; a < 2; ++a) {
      for (int b = 0; b < 2; ++b) {
        // One rate moves both axes: the binomial coefficients of (d/dy + d/dx)^q, without what differentiates twice.
        const bool occurs = order.empty() ? a + b == 0
            : order.size() == 1           ? a + b == order[0]
                                          : a == order[0] && b == order[1];
        params.term.count[a][b] = static_cast<int8_t>(!occurs ? 0 : order.size() == 1 && a + b == 2 ? 2 : 1);
      }
    }
  }

  // What follows the sizes of the image, whichever argument they come from.
  void rest(
      SymParams& params,
      const c10::SymInt& height,
      const c10::SymInt& width,
      const char* lead_name,
      const at::Tensor& lead,
      const at::Tensor& dilation_map,
      const Window& window) const {
    TORCH_CHECK(
        params.channels % params.groups == 0, op, "(): expected ", groups_name, " to divide the ", params.channels,
        " channels of ", lead_name, ", but got ", params.groups);
    grid(params, height, width);
    map(params, dilation_map);
    order(params, window.order);
    agrees("dilation_map", dilation_map, lead_name, lead, /*or_float=*/true);
  }

  void columns(const char* argument, const at::Tensor& tensor, const SymParams& params) const {
    const Shape expected = {params.batch, rows(params), positions(params)};
    const auto shape = batched(tensor);
    TORCH_CHECK(
        shape.size() == 3 && shape[0] == expected[0] && shape[1] == expected[1] && shape[2] == expected[2], op,
        "(): expected ", argument, " of shape ", written(expected), ", but got ", tuple(tensor.sym_sizes()));
  }

  // A tensor that has no batch to leave out or to broadcast.
  void shaped(const char* argument, const at::Tensor& tensor, const Shape& expected) const {
    const auto shape = tensor.sym_sizes();
    TORCH_CHECK(
        shape.size() == expected.size() && std::equal(shape.begin(), shape.end(), expected.begin()), op,
        "(): expected ", argument, " of shape ", tuple(expected), ", but got ", tuple(shape));
  }

 private:
  static std::string pair_of(int64_t Axis<c10::SymInt>::* option, const SymParams& params) {
    return tuple(Pair{params.h.*option, params.w.*option});
  }
};

// sample, and the part of dot that it shares with it.
SymParams check_input(Check& check, const at::Tensor& input, const at::Tensor& dilation_map, const Window& window) {
  check.tensor("input", input);
  check.tensor("dilation_map", dilation_map);
  SymParams params;
  check.window(params, window);
  const auto shape = check.lead_shape("input", input, 4, "C, H, W");
  params.batch = shape[0];
  params.channels = shape[1];
  check.rest(params, shape[2], shape[3], "input", input, dilation_map, window);
  return params;
}

}  // namespace

SymParams check_sample(
    const char* op, const at::Tensor& input, const at::Tensor& dilation_map, const Window& window, Caller caller) {
  Check check{op, caller};
  return check_input(check, input, dilation_map, window);
}

SymParams check_splat(
    const char* op,
    const at::Tensor& columns,
    c10::SymIntArrayRef output_size,
    const at::Tensor& dilation_map,
    const Window& window,
    Caller caller) {
  Check check{op, caller};
  check.tensor("columns", columns);
  check.tensor("dilation_map", dilation_map);
  SymParams params;
  check.window(params, window);
  check.pair("output_size", output_size, 0);
  const auto shape = check.lead_shape("columns", columns, 3, "C * kH * kW, L");
  const auto taps = check.taps(params);
  TORCH_CHECK(
      shape[1] % taps == 0, op, "(): expected columns to have a multiple of kH * kW = ", taps, " rows, but got shape ",
      tuple(columns.sym_sizes()));
  params.batch = shape[0];
  params.channels = shape[1] / taps;
  check.rest(params, output_size.front(), output_size.back(), "columns", columns, dilation_map, window);
  check.columns("columns", columns, params);
  return params;
}

SymParams check_dot(
    const char* op,
    const char* columns_name,
    const at::Tensor& columns,
    const at::Tensor& input,
    const at::Tensor& dilation_map,
    const Window& window) {
  Check check{op, Caller::kOperator};
  check.tensor(columns_name, columns);
  const auto params = check_input(check, input, dilation_map, window);
  check.columns(columns_name, columns, params);
  check.agrees(columns_name, columns, "input", input, /*or_float=*/false);
  return params;
}

SymParams check_convolution(
    const char* op,
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& dilation_map,
    const at::Tensor& bias,
    const at::Tensor& mask,
    const Window& window,
    int64_t groups,
    int64_t workspace_limit,
    Caller caller) {
  Check check{op, caller, "dilation_groups"};
  check.tensor("input", input);
  check.tensor("weight", weight);
  TORCH_CHECK(
      weight.dim() == 4, op, "(): expected weight of shape (C_out, C / groups, kH, kW), but got ",
      tuple(weight.sym_sizes()));
  const auto params = check_input(check, input, dilation_map, window);
  check.at_least("groups", groups, 1);
  check.at_least("workspace_limit", workspace_limit, 0);
  const auto rows = weight.sym_size(0);
  TORCH_CHECK(
      params.channels % groups == 0 && rows % groups == 0, op, "(): expected groups to divide the ", params.channels,
      " channels of input and the ", rows, " of the output, but got ", groups);
  // Where there are no channels any number of groups divides them, and is a size all the same.
  const auto windows = check.product("batch * groups", params.batch, groups);
  check.bytes(
      "the bytes for columns by group",
      check.product(
          "the size of columns by group", windows,
          check.product("the size of columns by group", check.taps(params), check.positions(params))));
  check.shaped("weight", weight, {rows, params.channels / groups, params.h.kernel, params.w.kernel});
  check.agrees("weight", weight, "input", input, /*or_float=*/false);
  if (bias.defined()) {
    check.tensor("bias", bias);
    check.shaped("bias", bias, {rows});
    check.agrees("bias", bias, "input", input, /*or_float=*/false);
  }
  if (mask.defined()) {
    check.tensor("mask", mask);
    const Shape expected = {
        params.batch, check.product("the channels of mask", params.groups, check.taps(params)), params.h.out_size,
        params.w.out_size};
    const auto shape = check.batched(mask);
    const bool broadcast = caller == Caller::kModel && !check.unbatched;
    TORCH_CHECK(
        shape.size() == 4 && (shape[0] == expected[0] || (broadcast && shape[0] == 1)) && shape[1] == expected[1] &&
            shape[2] == expected[2] && shape[3] == expected[3],
        op, "(): expected mask of shape ", check.written(expected), ", but got ", tuple(mask.sym_sizes()));
    check.agrees("mask", mask, "input", input, /*or_float=*/false);
  }
  return params;
}

void check_convolution_gradient(
    const char* op,
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    const SymParams& params,
    bool has_mask,
    bool needs_mask) {
  const Check check{op, Caller::kOperator};
  check.tensor("grad_output", grad_output);
  check.shaped("grad_output", grad_output, {params.batch, weight.sym_size(0), params.h.out_size, params.w.out_size});
  check.agrees("grad_output", grad_output, "input", input, /*or_float=*/false);
  TORCH_CHECK(
      has_mask || !needs_mask, op, "(): expected mask to be a tensor, for output_mask asks for its gradient, but got ",
      "None");
}

UnfoldParams concrete(const SymParams& params) {
  const auto axis = [](const Axis<c10::SymInt>& axis) -> Axis<int64_t> {
    return {
        axis.size.guard_int(__FILE__, __LINE__),
        axis.out_size.guard_int(__FILE__, __LINE__),
        axis.kernel,
        axis.stride,
        axis.padding,
        axis.dilation};
  };
  return {
      params.batch.guard_int(__FILE__, __LINE__),
      params.channels.guard_int(__FILE__, __LINE__),
      params.groups,
      params.rates,
      axis(params.h),
      axis(params.w),
      params.aligned,
      params.term};
}

}  // namespace ddu
