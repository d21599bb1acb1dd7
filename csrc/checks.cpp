// SPDX-License-Identifier: MIT
#include "checks.h"

#include <ATen/autocast_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <algorithm>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "dcls/share.h"
#include "math/axis.h"
#include "math/positions.h"

namespace ddu {

namespace {

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

// The type's name in Python.
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

// All the words, with "or" before the last.
template <size_t n>
std::string any_of(const char* const (&words)[n]) {
  std::string text;
  for (size_t i = 0; i < n; ++i) {
    text += std::string(i == 0 ? "" : i + 1 == n ? " or " : ", ") + "'" + words[i] + "'";
  }
  return text;
}

// The checks of one call. Every message reads "<op>(): expected <argument> <what it takes>, but got <what it got>".
struct Check {
  const char* op;
  Caller caller;
  const char* groups_name = "groups";  // the caller's name for the groups of the positions
  const char* positions_name = "positions";
  bool unbatched = false;
  bool axes_known = true;  // from the caller or an argument
  at::Tensor weight = {};  // of a convolution called by a model

  // ---- options

  // One int, or one per axis.
  template <class Values>
  void ints(const char* argument, const Values& value, int64_t least) const {
    const auto size = static_cast<int64_t>(value.size());
    const char* const several[] = {"", "one int", "one or two ints", "one or three ints"};
    TORCH_CHECK(
        size == 1 || size == caller.axes, op, "(): expected ", argument, " to be ", several[caller.axes], ", but got ",
        tuple(value));
    for (const auto& one : value) {
      TORCH_CHECK(one >= least, op, "(): expected ", argument, " to be at least ", least, ", but got ", tuple(value));
    }
  }

  void at_least(const char* argument, int64_t value, int64_t least) const {
    TORCH_CHECK(value >= least, op, "(): expected ", argument, " to be at least ", least, ", but got ", value);
  }

  // The enumerator that a word names.
  template <class Enum, size_t n>
  Enum word(const char* argument, const std::string& value, const char* const (&words)[n]) const {
    const auto* const found = std::find(std::begin(words), std::end(words), value);
    TORCH_CHECK(
        found != std::end(words), op, "(): expected ", argument, " to be ", any_of(words), ", but got '", value, "'");
    return static_cast<Enum>(found - std::begin(words));
  }

  // Returns the source, which determines the caller's name for the positions. If the caller doesn't know the number of
  // axes, sets it to what most arguments imply, so that the message blames the one that doesn't fit.
  Source start(const Options& options, const at::Tensor& positions, int64_t lead_axes) {
    const auto source = word<Source>("source", options.source, kSourceNames);
    if (!caller.family) {
      constexpr const char* kNames[] = {"dilation_map", "offset", "theta"};
      positions_name = kNames[static_cast<int>(source)];
    }
    if (caller.axes == 0) {
      const auto valid = [](int64_t axes) { return axes >= 1 && axes <= kMaxAxes; };
      const int64_t of_positions = positions.defined() && !positions.is_nested() ? positions.dim() - 2 : 0;
      int64_t of_options = 0;
      for (const auto* const list : {&options.kernel_size, &options.stride, &options.padding, &options.dilation}) {
        of_options = list->size() > 1 ? static_cast<int64_t>(list->size()) : of_options;
      }
      const bool outvoted = of_options == lead_axes || !valid(of_positions);
      axes_known = valid(lead_axes) || valid(of_positions) || valid(of_options);
      caller.axes = valid(lead_axes) && outvoted ? lead_axes
          : valid(of_positions)                  ? of_positions
          : valid(of_options)                    ? of_options
                                                 : 2;
    }
    return source;
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

  // Checks that a tensor is dense and of a type that the operators compute in.
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

  // Checks that a tensor has the leading tensor's device and type (or, with `or_float`, float32 if that is a half
  // type).
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
    if (caller.model && (device.is_cpu() || device.is_cuda()) &&
        at::autocast::is_autocast_enabled(device.type())) {  // compare the types after casting: see autocast.cpp
      const auto cast = at::autocast::get_autocast_dtype(device.type());
      lead_type = lead_type == at::kDouble ? at::kDouble : cast;
      type = type == at::kDouble ? at::kDouble : or_float ? at::kFloat : cast;
    }
    or_float = or_float && (lead_type == at::kHalf || lead_type == at::kBFloat16);
    TORCH_CHECK(
        type == lead_type || (or_float && type == at::kFloat), op, "(): expected ", argument, " of type ",
        name(lead_type), or_float ? " or float32" : "", ", because ", lead_name, " is ", name(lead_type), ", but got ",
        name(type));
  }

  // ---- sizes in messages

  int first() const { return kMaxAxes - static_cast<int>(caller.axes); }

  // The letters of the problem's axes, each between `before` and `after`.
  std::string letters(const char* before, const char* after, const char* between) const {
    static constexpr const char* kLetters[] = {"D", "H", "W"};
    std::string text;
    for (int a = first(); a < kMaxAxes; ++a) {
      text += std::string(a == first() ? "" : between) + before + kLetters[a] + after;
    }
    return text;
  }

  std::string image_pattern() const { return "C, " + letters("", "", ", "); }
  std::string taps_pattern() const { return letters("k", "", " * "); }

  // A number for each axis of the problem, as torch writes sizes in its messages.
  template <class Value>
  std::string by_axis(const SymParams& params, const Value& value, const char* between) const {
    std::ostringstream out;
    for (int a = first(); a < kMaxAxes; ++a) {
      out << (a == first() ? "" : between) << value(params.axis[a]);
    }
    return out.str();
  }

  // The sizes of a call's leading tensor. They determine whether the call is batched.
  Shape lead_shape(const char* argument, const at::Tensor& tensor, int64_t dims, const std::string& pattern) {
    unbatched = caller.model && tensor.dim() == dims - 1;
    TORCH_CHECK(
        unbatched || tensor.dim() == dims, op, "(): expected ", argument, " of shape (B, ", pattern, ")",
        caller.model ? " or (" : "", caller.model ? pattern : "", caller.model ? ")" : "", ", but got ",
        tuple(tensor.sym_sizes()));
    return batched(tensor);
  }

  // Reports a tensor whose rank fits no number of axes.
  [[noreturn]] void no_image(const char* argument, const at::Tensor& tensor) {
    constexpr const char* kBetween[] = {"", ", ", " or "};
    std::string shapes;
    for (caller.axes = 1; caller.axes <= kMaxAxes; ++caller.axes) {
      shapes += std::string(kBetween[caller.axes - 1]) + "(B, " + image_pattern() + ")";
    }
    TORCH_CHECK(false, op, "(): expected ", argument, " of shape ", shapes, ", but got ", tuple(tensor.sym_sizes()));
  }

  // The sizes, with the batch size of 1 that an unbatched tensor omits.
  Shape batched(const at::Tensor& tensor) const {
    Shape shape;
    if (unbatched) {
      shape.emplace_back(1);
    }
    shape.append(tensor.sym_sizes().begin(), tensor.sym_sizes().end());
    return shape;
  }

  // A shape as the caller would write it.
  std::string written(c10::SymIntArrayRef shape) const { return tuple(unbatched ? shape.slice(1) : shape); }

  // ---- parts of Params

  void window(SymParams& params, const Options& options, Source source) const {
    ints("kernel_size", options.kernel_size, 1);
    ints("stride", options.stride, 1);
    ints("padding", options.padding, 0);
    ints("dilation", options.dilation, 1);
    const auto of_axis = [&](const Options::Ints& list, int axis) {
      return list.size() == 1 ? list[0] : list[axis - first()];
    };
    for (int a = 0; a < kMaxAxes; ++a) {
      params.axis[a] = a < first() ? Axis<c10::SymInt>{1, 1, 1, 1, 0, 1}
                                   : Axis<c10::SymInt>{
                                         0,
                                         0,
                                         of_axis(options.kernel_size, a),
                                         of_axis(options.stride, a),
                                         of_axis(options.padding, a),
                                         of_axis(options.dilation, a)};
    }
    params.axes = caller.axes;
    params.source = source;
    params.aligned = options.aligned;
    params.padding_mode = word<PaddingMode>("padding_mode", options.padding_mode, kPaddingModeNames);
    params.groups = options.groups;
    at_least(groups_name, options.groups, 1);
  }

  // `size` holds one size per axis of the problem.
  void grid(SymParams& params, c10::SymIntArrayRef size) const {
    bool fits = true;
    for (int a = first(); a < kMaxAxes; ++a) {
      auto& axis = params.axis[a];
      axis.size = size[a - first()];
      const auto reach = product("dilation * (kernel_size - 1)", axis.dilation, axis.kernel - 1);
      const auto padded = sum("a padded size", axis.size, product("2 * padding", 2, axis.padding));
      axis.out_size = output_size(padded, reach, axis.stride);
      fits = fits && axis.out_size >= 1;
    }
    using SymAxis = const Axis<c10::SymInt>&;
    const auto option = [&](int64_t Axis<c10::SymInt>::* member) {
      std::vector<int64_t> values;
      for (int a = first(); a < kMaxAxes; ++a) {
        values.push_back(params.axis[a].*member);
      }
      return tuple(values);
    };
    TORCH_CHECK(
        fits, op, "(): expected an output of at least ",
        by_axis(
            params, [](SymAxis) { return 1; }, " x "),
        ", but got ",
        by_axis(
            params, [](SymAxis axis) { return axis.out_size; }, " x "),
        " from an image of ",
        by_axis(
            params, [](SymAxis axis) { return axis.size; }, " x "),
        ", kernel_size=", option(&Axis<c10::SymInt>::kernel), ", stride=", option(&Axis<c10::SymInt>::stride),
        ", padding=", option(&Axis<c10::SymInt>::padding), ", dilation=", option(&Axis<c10::SymInt>::dilation));
    c10::SymInt pixels = 1;
    c10::SymInt bordered = 1;
    for (int a = first(); a < kMaxAxes; ++a) {
      pixels = product("the number of pixels", pixels, params.axis[a].size);
      bordered = product(
          "the number of pixels", bordered, sum("a padded size", params.axis[a].size, kBorderLow + kBorderHigh));
    }
    TORCH_CHECK(
        params.padding_mode == PaddingMode::kZeros || pixels >= 1, op,
        "(): expected padding_mode 'zeros' for an image "
        "without pixels, ",
        by_axis(
            params, [](SymAxis axis) { return axis.size; }, " x "),
        ", but got '", name_of(params.padding_mode), "'");
    image(params, pixels);
    bytes("the bytes for the image", image(params, bordered));
    const auto columns = product("the size of columns", rows(params), positions(params));
    bytes("the bytes for columns", product("the size of columns", columns, params.batch));
  }

  c10::SymInt image(const SymParams& params, const c10::SymInt& pixels) const {
    const auto item = product("the size of the image", pixels, params.channels);
    return product("the size of the image", item, params.batch);
  }

  // Checks that kernels can count the bytes of columns, or of an image with its border: 8 per number, at most twice the
  // channels (padded to vectors), in at most 4 bands (cpu.cpp). This is the only limit on sizes.
  void bytes(const char* what, const c10::SymInt& size) const { product(what, size, 8 * 2 * 4); }

  c10::SymInt positions(const SymParams& params) const {
    c10::SymInt result = 1;
    for (int a = first(); a < kMaxAxes; ++a) {
      result = product("the number of output positions", result, params.axis[a].out_size);
    }
    return result;
  }

  c10::SymInt taps(const SymParams& params) const {
    c10::SymInt result = 1;
    for (int a = first(); a < kMaxAxes; ++a) {
      result = product("the number of taps", result, params.axis[a].kernel);
    }
    return result;
  }

  c10::SymInt rows(const SymParams& params) const {
    return product("the rows of columns", params.channels, taps(params));
  }

  // [batch, channels, *out]
  Shape over_grid(const SymParams& params, const c10::SymInt& channels) const {
    Shape shape = {params.batch, channels};
    for (int a = first(); a < kMaxAxes; ++a) {
      shape.push_back(params.axis[a].out_size);
    }
    return shape;
  }

  // Whether a tensor over the output grid has the expected shape or, in a model's call, one that broadcasts to it.
  bool covers(const Shape& shape, const Shape& expected, bool over_space) const {
    if (shape.size() != expected.size() || shape[1] != expected[1]) {
      return false;
    }
    const bool same = std::equal(shape.begin() + 2, shape.end(), expected.begin() + 2);
    const bool ones = caller.model && over_space &&
        std::all_of(shape.begin() + 2, shape.end(), [](const c10::SymInt& size) { return size == 1; });
    return (same || ones) && (shape[0] == expected[0] || (caller.model && !unbatched && shape[0] == 1));
  }

  void located(SymParams& params, const at::Tensor& tensor) const {
    const auto shape = batched(tensor);
    constexpr const char* kNames[] = {
        "the channels of the rates", "the channels of the offsets", "the channels of theta"};
    const char* const channels_name = kNames[static_cast<int>(params.source)];
    const auto entries =
        per_tap(params.source) ? product(channels_name, params.groups, taps(params)) : c10::SymInt(params.groups);
    const auto most = parameters_of(params.source, params.axes);
    const bool one = params.source == Source::kRates;
    const auto several_shape = over_grid(params, product(channels_name, entries, most));
    const auto one_shape = over_grid(params, entries);
    if (one && covers(shape, one_shape, true)) {
      params.parameters = 1;
      return;
    }
    params.parameters = most;
    TORCH_CHECK(
        covers(shape, several_shape, true), op, "(): expected ", positions_name, " of shape ",
        written(one ? one_shape : several_shape), one && most > 1 ? " or " : "",
        one && most > 1 ? written(several_shape) : "", ", but got ", tuple(tensor.sym_sizes()), maybe_swapped(tensor));
  }

  // A reminder of a convolution's argument order, if the positions are smaller than the weight.
  std::string maybe_swapped(const at::Tensor& tensor) const {
    if (!weight.defined() || tensor.dim() != weight.dim() || tensor.sym_size(-1) >= weight.sym_size(-1)) {
      return "";
    }
    const std::string order = positions_name;
    return "; the order of the arguments is " +
        (order == "offset" ? "input, offset, weight" : "input, weight, " + order);
  }

  void order(SymParams& params, c10::IntArrayRef order) const {
    constexpr const char* kNames[] = {"rates", "offsets", "entries of theta"};
    TORCH_CHECK(
        order.empty() || static_cast<int64_t>(order.size()) == params.parameters, op,
        "(): expected order to have as many entries as a ", per_tap(params.source) ? "tap" : "window", " has ",
        kNames[static_cast<int>(params.source)], ", ", params.parameters, ", but got ", tuple(order));
    for (const auto entry : order) {
      TORCH_CHECK(entry >= 0, op, "(): expected order to be at least 0, but got ", tuple(order));
    }
    params.term =
        term_of(params.source, params.axes, params.parameters, [&](int64_t r) { return order.empty() ? 0 : order[r]; });
  }

  // The checks that follow once the size of the image is known, whichever argument it comes from.
  void rest(
      SymParams& params,
      c10::SymIntArrayRef size,
      const char* lead_name,
      const at::Tensor& lead,
      const at::Tensor& positions,
      const Options& options) const {
    TORCH_CHECK(
        params.channels % params.groups == 0, op, "(): expected ", groups_name, " to divide the ", params.channels,
        " channels of ", lead_name, ", but got ", params.groups);
    TORCH_CHECK(
        !unbatched || positions.dim() != params.axes + 2, op, "(): expected ", lead_name,
        " with a batch dimension, because ", positions_name, " of shape ", tuple(positions.sym_sizes()),
        " has one, but got shape ", tuple(lead.sym_sizes()));
    grid(params, size);
    located(params, positions);
    order(params, options.order);
    agrees(positions_name, positions, lead_name, lead, /*or_float=*/true);
  }

  void columns(const char* argument, const at::Tensor& tensor, const SymParams& params) const {
    const Shape expected = {params.batch, rows(params), positions(params)};
    const auto shape = batched(tensor);
    TORCH_CHECK(
        shape == expected, op, "(): expected ", argument, " of shape ", written(expected), ", but got ",
        tuple(tensor.sym_sizes()));
  }

  // A factor for every tap, in any number M of channel groups: [B, M * taps, *out].
  void mask(const at::Tensor& tensor, const SymParams& params) const {
    const auto shape = batched(tensor);
    const auto taps = this->taps(params);
    const bool ranked = static_cast<int64_t>(shape.size()) == params.axes + 2;
    const bool grouped = ranked && shape[1] >= taps && shape[1] % taps == 0 && params.channels % (shape[1] / taps) == 0;
    std::ostringstream expected;
    if (!unbatched) {
      expected << params.batch << ", ";
    }
    expected << "M * " << taps;
    for (int a = params.first_axis(); a < kMaxAxes; ++a) {
      expected << ", " << params.axis[a].out_size;
    }
    TORCH_CHECK(
        grouped && covers(shape, over_grid(params, shape[1]), /*over_space=*/false), op, "(): expected mask of shape (",
        expected.str(), "), for a number M of groups that divides the ", params.channels,
        " channels of input, but got ", tuple(tensor.sym_sizes()));
  }

  // A tensor that may have one entry per image or, in a model's call, one for all of them.
  void of_images(const char* argument, const at::Tensor& tensor, Shape expected, bool per_image) const {
    if (per_image && caller.model && tensor.dim() > 0 && tensor.sym_size(0) == 1) {
      expected[0] = 1;
    }
    shaped(argument, tensor, expected);
  }

  // A tensor without a batch axis that could be omitted or broadcast.
  void shaped(const char* argument, const at::Tensor& tensor, const Shape& expected) const {
    const auto shape = tensor.sym_sizes();
    TORCH_CHECK(
        shape.size() == expected.size() && std::equal(shape.begin(), shape.end(), expected.begin()), op,
        "(): expected ", argument, " of shape ", tuple(expected), ", but got ", tuple(shape));
  }
};

// The checks of sample, which are also part of dot's.
SymParams check_input(Check& check, const at::Tensor& input, const at::Tensor& positions, const Options& options) {
  check.tensor("input", input);
  const auto source = check.start(options, positions, input.dim() - 2);
  check.tensor(check.positions_name, positions);
  if (!check.axes_known) {
    check.no_image("input", input);
  }
  SymParams params;
  check.window(params, options, source);
  const auto shape = check.lead_shape("input", input, check.caller.axes + 2, check.image_pattern());
  params.batch = shape[0];
  params.channels = shape[1];
  check.rest(params, c10::SymIntArrayRef(shape).slice(2), "input", input, positions, options);
  return params;
}

}  // namespace

SymParams check_sample(
    const char* op,
    const at::Tensor& input,
    const at::Tensor& positions,
    const Options& options,
    const Caller& caller) {
  Check check{op, caller};
  return check_input(check, input, positions, options);
}

SymParams check_splat(
    const char* op,
    const at::Tensor& columns,
    c10::SymIntArrayRef output_size,
    const at::Tensor& positions,
    const Options& options,
    const Caller& caller) {
  Check check{op, caller};
  check.tensor("columns", columns);
  const auto source =
      check.start(options, positions, output_size.size() > 1 ? static_cast<int64_t>(output_size.size()) : 0);
  check.tensor(check.positions_name, positions);
  SymParams params;
  check.window(params, options, source);
  check.ints("output_size", output_size, 0);
  const auto pattern = check.taps_pattern();
  const auto shape = check.lead_shape("columns", columns, 3, "C * " + pattern + ", L");
  const auto taps = check.taps(params);
  TORCH_CHECK(
      shape[1] % taps == 0, op, "(): expected columns to have a multiple of ", pattern, " = ", taps,
      " rows, but got shape ", tuple(columns.sym_sizes()));
  params.batch = shape[0];
  params.channels = shape[1] / taps;
  Shape size(check.caller.axes, output_size[0]);
  if (output_size.size() > 1) {
    std::copy(output_size.begin(), output_size.end(), size.begin());
  }
  check.rest(params, size, "columns", columns, positions, options);
  check.columns("columns", columns, params);
  return params;
}

SymParams check_dot(
    const char* op,
    const char* columns_name,
    const at::Tensor& columns,
    const at::Tensor& input,
    const at::Tensor& positions,
    const Options& options,
    const Caller& caller) {
  Check check{op, caller};
  check.tensor(columns_name, columns);
  const auto params = check_input(check, input, positions, options);
  check.columns(columns_name, columns, params);
  check.agrees(columns_name, columns, "input", input, /*or_float=*/false);
  return params;
}

SymParams check_convolution(
    const char* op,
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& positions,
    const at::Tensor& bias,
    const at::Tensor& mask,
    const Options& options,
    int64_t groups,
    const Caller& caller) {
  // deform_conv* infers its groups from the channels of offset.
  const bool inferred = caller.model && options.source == name_of(Source::kOffsets);
  const bool affine = caller.model && options.source == name_of(Source::kAffine);
  Check check{op, caller, inferred ? "the groups of offset" : affine ? "theta_groups" : "dilation_groups"};
  check.tensor("input", input);
  check.tensor("weight", weight);
  const auto axes = caller.axes;
  const auto kernel_pattern = "C_out, C / groups, " + check.letters("k", "", ", ");
  const bool per_image = weight.dim() == axes + 3;
  TORCH_CHECK(
      per_image || weight.dim() == axes + 2, op, "(): expected weight of shape (", kernel_pattern, ") or (B, ",
      kernel_pattern, "), but got ", tuple(weight.sym_sizes()));
  check.weight = caller.model ? weight : at::Tensor();
  const auto params = check_input(check, input, positions, options);
  TORCH_CHECK(
      !per_image || !check.unbatched, op, "(): expected weight of shape (", kernel_pattern,
      ") with an input that has no batch, but got ", tuple(weight.sym_sizes()));
  check.at_least("groups", groups, 1);
  const auto rows = weight.sym_size(per_image ? 1 : 0);
  TORCH_CHECK(
      params.channels % groups == 0 && rows % groups == 0, op, "(): expected groups to divide the ", params.channels,
      " channels of input and the ", rows, " of the output, but got ", groups);
  // Without channels any number of groups divides them, but it still determines a size.
  const auto windows = check.product("batch * groups", params.batch, groups);
  check.bytes(
      "the bytes for columns by group",
      check.product(
          "the size of columns by group", windows,
          check.product("the size of columns by group", check.taps(params), check.positions(params))));
  Shape weight_shape = {rows, params.channels / groups};
  for (int a = params.first_axis(); a < kMaxAxes; ++a) {
    weight_shape.push_back(params.axis[a].kernel);
  }
  if (per_image) {
    weight_shape.insert(weight_shape.begin(), params.batch);
  }
  check.of_images("weight", weight, weight_shape, per_image);
  check.agrees("weight", weight, "input", input, /*or_float=*/false);
  if (bias.defined()) {
    check.tensor("bias", bias);
    const bool of_image = per_image && bias.dim() == 2;
    check.of_images("bias", bias, of_image ? Shape{params.batch, rows} : Shape{rows}, of_image);
    check.agrees("bias", bias, "input", input, /*or_float=*/false);
  }
  if (mask.defined()) {
    check.tensor("mask", mask);
    check.mask(mask, params);
    check.agrees("mask", mask, "input", input, /*or_float=*/caller.model);
  }
  return params;
}

SymParams check_sums(
    const char* op,
    const at::Tensor& query,
    const at::Tensor& input,
    const at::Tensor& mask,
    const at::Tensor& weight,
    const at::Tensor& taps,
    const at::Tensor& positions,
    c10::SymIntArrayRef image_size,
    const Options& options,
    int64_t& mask_groups,
    const Caller& caller) {
  Check check{op, caller};
  const bool from_input = image_size.empty();
  const char* const lead_name = from_input ? "input" : "query";
  const at::Tensor& lead = from_input ? input : query;
  SymParams params;
  if (from_input) {
    params = check_input(check, input, positions, options);
  } else {
    check.tensor("query", query);
    const auto source =
        check.start(options, positions, image_size.size() > 1 ? static_cast<int64_t>(image_size.size()) : 0);
    check.tensor(check.positions_name, positions);
    check.window(params, options, source);
    check.ints("output_size", image_size, 0);
    const auto shape = check.lead_shape("query", query, check.caller.axes + 2, "C, *out");
    params.batch = shape[0];
    params.channels = shape[1];
    Shape size(check.caller.axes, image_size[0]);
    if (image_size.size() > 1) {
      std::copy(image_size.begin(), image_size.end(), size.begin());
    }
    check.rest(params, size, "query", query, positions, options);
  }
  const auto taps_count = check.taps(params);
  if (query.defined()) {
    check.tensor("query", query);
    const auto expected = check.over_grid(params, params.channels);
    TORCH_CHECK(
        check.batched(query) == expected, op, "(): expected query of shape ", check.written(expected), ", but got ",
        tuple(query.sym_sizes()));
    check.agrees("query", query, lead_name, lead, /*or_float=*/caller.model);
  }
  if (mask.defined()) {
    check.tensor("mask", mask);
    const auto shape = check.batched(mask);
    const bool ranked = shape.size() == static_cast<size_t>(params.axes) + 2;
    mask_groups =
        ranked && shape[1] % taps_count == 0 ? (shape[1] / taps_count).guard_int(__FILE__, __LINE__) : int64_t(0);
    TORCH_CHECK(
        mask_groups >= 1 && params.channels % mask_groups == 0, op, "(): expected mask of shape (B, M * ",
        check.taps_pattern(), ", *out), with ", taps_count, " taps and a number of groups M that divides the ",
        params.channels, " channels of ", lead_name, ", but got ", tuple(mask.sym_sizes()));
    const auto expected = check.over_grid(params, shape[1]);
    TORCH_CHECK(
        check.covers(shape, expected, /*over_space=*/false), op, "(): expected mask of shape ", check.written(expected),
        ", but got ", tuple(mask.sym_sizes()));
    check.agrees("mask", mask, lead_name, lead, /*or_float=*/caller.model);
  } else if (mask_groups != 0) {
    check.at_least("mask_groups", mask_groups, 1);
    TORCH_CHECK(
        params.channels % mask_groups == 0, op, "(): expected mask_groups to divide the ", params.channels,
        " channels of ", lead_name, ", but got ", mask_groups);
  } else {
    mask_groups = 1;
  }
  check.bytes(
      "the bytes for mask",
      check.product(
          "the size of mask", check.product("the size of mask", params.batch, mask_groups),
          check.product("the size of mask", taps_count, check.positions(params))));
  if (weight.defined()) {
    check.tensor("weight", weight);
    check.shaped("weight", weight, {params.batch, params.channels, taps_count});
    check.agrees("weight", weight, lead_name, lead, /*or_float=*/false);
  }
  if (taps.defined()) {
    TORCH_CHECK(
        taps.layout() == c10::kStrided && taps.scalar_type() == at::kLong && taps.device() == lead.device(), op,
        "(): expected taps to be a dense tensor of type int64 on ", lead.device(), ", but got one of type ",
        name(taps.scalar_type()), " on ", taps.device());
    check.shaped("taps", taps, check.over_grid(params, params.channels));
  }
  return params;
}

void check_convolution_gradient(
    const char* op,
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const c10::SymInt& out_channels,
    const SymParams& params,
    bool has_mask,
    bool needs_mask) {
  Check check{op, {}};
  check.caller.axes = params.axes;
  check.tensor("grad_output", grad_output);
  check.shaped("grad_output", grad_output, check.over_grid(params, out_channels));
  check.agrees("grad_output", grad_output, "input", input, /*or_float=*/false);
  TORCH_CHECK(
      has_mask || !needs_mask, op,
      "(): expected mask to be a tensor, because output_mask asks for its gradient, but got ", "None");
}

Shape check_dcls(
    const char* op,
    const at::Tensor& weight,
    const at::Tensor& positions,
    const at::Tensor& sigma,
    const Options::Ints& kernel_size,
    const std::string& version) {
  Check check{op, {}};
  check.tensor("weight", weight);
  check.tensor("positions", positions);
  TORCH_CHECK(weight.dim() == 3, op, "(): expected weight of shape (O, I, count), but got ", tuple(weight.sym_sizes()));
  // Positions of another shape are refused below; until then any number of axes will do.
  const bool axes_known =
      positions.dim() == 4 && positions.sym_size(0) >= 1 && positions.sym_size(0) <= int64_t(kMaxAxes);
  check.caller.axes = axes_known ? positions.sym_size(0).guard_int(__FILE__, __LINE__) : 2;
  const auto& sizes = weight.sym_sizes();
  TORCH_CHECK(
      axes_known && std::equal(sizes.begin(), sizes.end(), positions.sym_sizes().begin() + 1), op,
      "(): expected positions of shape (N, ", sizes[0], ", ", sizes[1], ", ", sizes[2],
      "), with N = 1, 2 or 3 axes, but got ", tuple(positions.sym_sizes()));
  check.agrees("positions", positions, "weight", weight, /*or_float=*/true);
  check.ints("kernel_size", kernel_size, 1);
  const auto kind = check.word<dcls::Version>("version", version, dcls::kVersionNames);
  TORCH_CHECK(
      sigma.defined() == dcls::has_sigma(kind), op, "(): expected sigma to be ",
      dcls::has_sigma(kind) ? "a tensor" : "None", " for version '", version, "', but got ",
      sigma.defined() ? "a tensor" : "None");
  if (sigma.defined()) {
    check.tensor("sigma", sigma);
    check.shaped("sigma", sigma, Shape(positions.sym_sizes().begin(), positions.sym_sizes().end()));
    check.agrees("sigma", sigma, "positions", positions, /*or_float=*/false);
  }
  Shape shape = {sizes[0], sizes[1]};
  c10::SymInt size = 1;
  for (int64_t a = 0; a < check.caller.axes; ++a) {
    shape.emplace_back(kernel_size[kernel_size.size() == 1 ? 0 : a]);
    size = check.product("the cells of the kernel", size, shape.back());
  }
  check.bytes("the bytes for the cells of the kernel", size);
  size = check.product("the size of the kernel", sizes[0], check.product("the size of the kernel", sizes[1], size));
  check.bytes("the bytes for the kernel", size);
  return shape;
}

namespace {

// Checks input [B, C, *size] and shifts [N, C, taps], where N is the number of axes.
void check_shifted(Check& check, const at::Tensor& input, const at::Tensor& shifts) {
  const auto* const op = check.op;
  check.tensor("input", input);
  TORCH_CHECK(
      input.dim() >= 3 && input.dim() <= 2 + kMaxAxes, op,
      "(): expected input of shape (B, C, ...), with 1, 2 or 3 axes, but got ", tuple(input.sym_sizes()));
  check.caller.axes = input.dim() - 2;
  TORCH_CHECK(
      shifts.layout() == c10::kStrided && shifts.scalar_type() == at::kLong, op,
      "(): expected shifts to be a dense tensor of type int64, but got one of layout ", shifts.layout(), " and type ",
      name(shifts.scalar_type()));
  TORCH_CHECK(
      shifts.dim() == 3 && shifts.sym_size(0) == check.caller.axes && shifts.sym_size(1) == input.sym_size(1), op,
      "(): expected shifts of shape (", check.caller.axes, ", ", input.sym_size(1), ", taps), but got ",
      tuple(shifts.sym_sizes()));
  TORCH_CHECK(
      shifts.device() == input.device(), op, "(): expected shifts on the device of input, ", input.device(),
      ", but got one on ", shifts.device());
}

}  // namespace

Shape check_sparse_sum(
    const at::Tensor& input, const at::Tensor& factors, const at::Tensor& shifts, c10::SymIntArrayRef output_size) {
  Check check{"dcls_sparse_sum", {}};
  check_shifted(check, input, shifts);
  check.tensor("factors", factors);
  check.shaped("factors", factors, {shifts.sym_size(1), shifts.sym_size(2)});
  check.agrees("factors", factors, "input", input, /*or_float=*/false);
  TORCH_CHECK(
      static_cast<int64_t>(output_size.size()) == check.caller.axes, check.op, "(): expected output_size to have ",
      check.caller.axes, " entries, but got ", tuple(output_size));
  Shape shape = {input.sym_size(0), input.sym_size(1)};
  c10::SymInt size = 1;
  for (const auto& one : output_size) {
    TORCH_CHECK(one >= 0, check.op, "(): expected output_size to be at least 0, but got ", tuple(output_size));
    shape.push_back(one);
    size = check.product("the size of the output", size, one);
  }
  check.bytes("the bytes of the output", size);
  size = check.product("the size of the output", shape[0], check.product("the size of the output", shape[1], size));
  check.bytes("the bytes of the output", size);
  return shape;
}

Shape check_sparse_dot(const at::Tensor& left, const at::Tensor& input, const at::Tensor& shifts) {
  Check check{"dcls_sparse_dot", {}};
  check_shifted(check, input, shifts);
  check.tensor("left", left);
  TORCH_CHECK(
      left.dim() == input.dim() && left.sym_size(0) == input.sym_size(0) && left.sym_size(1) == input.sym_size(1),
      check.op, "(): expected left of shape (", input.sym_size(0), ", ", input.sym_size(1), ", ...), with ",
      check.caller.axes, " axes, but got ", tuple(left.sym_sizes()));
  check.agrees("left", left, "input", input, /*or_float=*/false);
  return {shifts.sym_size(1), shifts.sym_size(2)};
}

void check_dcls_positions(const char* op, const at::Tensor& positions, const Options::Ints& kernel_size) {
  Check check{op, {}};
  check.tensor("positions", positions);
  const auto type = positions.scalar_type();
  TORCH_CHECK(
      type == at::kDouble || type == at::kFloat, op, "(): expected positions of type float64 or float32, but got ",
      name(type));
  TORCH_CHECK(
      positions.dim() >= 1 && positions.sym_size(0) >= 1 && positions.sym_size(0) <= int64_t(kMaxAxes), op,
      "(): expected positions of shape (N, ...), with N = 1, 2 or 3 axes, but got ", tuple(positions.sym_sizes()));
  check.caller.axes = positions.sym_size(0).guard_int(__FILE__, __LINE__);
  check.ints("kernel_size", kernel_size, 1);
}

void check_dcls_gradient(
    const char* op,
    const at::Tensor& grad_output,
    const at::Tensor& weight,
    const Shape& shape,
    bool has_sigma,
    bool needs_sigma) {
  const Check check{op, {}};
  check.tensor("grad_output", grad_output);
  check.shaped("grad_output", grad_output, shape);
  check.agrees("grad_output", grad_output, "weight", weight, /*or_float=*/false);
  TORCH_CHECK(
      has_sigma || !needs_sigma, op,
      "(): expected sigma to be a tensor, because output_mask asks for its gradient, but got None");
}

namespace {

c10::SymInt product_of(const SymParams& params, c10::SymInt Axis<c10::SymInt>::* member) {
  return params.axis[0].*member * params.axis[1].*member * params.axis[2].*member;
}

int64_t taps_of(const SymParams& params) {
  return params.axis[0].kernel * params.axis[1].kernel * params.axis[2].kernel;
}

}  // namespace

Shape input_shape(const SymParams& params) {
  Shape shape = {params.batch, params.channels};
  for (int a = params.first_axis(); a < kMaxAxes; ++a) {
    shape.push_back(params.axis[a].size);
  }
  return shape;
}

Shape columns_shape(const SymParams& params) {
  return {params.batch, params.channels * taps_of(params), product_of(params, &Axis<c10::SymInt>::out_size)};
}

Shape dot_shape(const SymParams& params) {
  return grid_shape(params, params.groups * (per_tap(params.source) ? taps_of(params) : 1));
}

Shape grid_shape(const SymParams& params, const c10::SymInt& channels) {
  Shape shape = {params.batch, channels};
  for (int a = params.first_axis(); a < kMaxAxes; ++a) {
    shape.push_back(params.axis[a].out_size);
  }
  return shape;
}

Term raised_term(const SymParams& params, const Options& options, int64_t r) {
  return term_of(params.source, params.axes, params.parameters, [&](int64_t parameter) {
    return (options.order.empty() ? 0 : options.order[parameter]) + (parameter == r ? 1 : 0);
  });
}

UnfoldParams concrete(const SymParams& params) {
  UnfoldParams result = {
      params.batch.guard_int(__FILE__, __LINE__),
      params.channels.guard_int(__FILE__, __LINE__),
      params.groups,
      params.axes,
      {},
      params.source,
      params.parameters,
      params.aligned,
      params.padding_mode,
      params.term};
  for (int a = 0; a < kMaxAxes; ++a) {
    const auto& axis = params.axis[a];
    result.axis[a] = {
        axis.size.guard_int(__FILE__, __LINE__),
        axis.out_size.guard_int(__FILE__, __LINE__),
        axis.kernel,
        axis.stride,
        axis.padding,
        axis.dilation};
  }
  return result;
}

}  // namespace ddu
