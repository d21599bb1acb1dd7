// SPDX-License-Identifier: MIT
// The operators in terms of ATen's. They run on devices that have no kernels of their own, and decompositions trace
// them. Values, types, errors and precision match the kernels'; only time and memory don't.

#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/CPUFallback.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <limits>
#include <tuple>

#include "../../math/axis.h"
#include "../../math/positions.h"
#include "../../sums/sums.h"
#include "../backend.h"

namespace ddu {

namespace {

using at::Scalar;
using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;

// ---- the places of the taps

using SymShape = std::vector<SymInt>;

// The taps along an axis: tensors that broadcast to [B, G, *kernel, *out].
struct TapsOfAxis {
  Tensor pixel;                // the neighbour before the tap, in the image with its border
  std::array<Tensor, 2> low;   // that neighbour's weight, and its derivative with respect to the position
  std::array<Tensor, 2> high;  // the same for the neighbour after the tap
  Tensor distance;             // from the window's centre at rate one
};

// NOTE [ Positions in terms of ATen ]
// The computation is that of NOTE [ Positions ]. ATen has no fused multiply-add, so the exact remainder is computed
// from a parameter split in three: its whole part, and a coarse and a fine half of the rest, each short enough for its
// product with the slope to be exact. All sums but the last are exact too. (There is no `number - tensor`: C++
// implements it with an in-place operation, which a graph may not contain.)
class Taps {
 public:
  Taps(const SymParams& params, const Tensor& positions) : p_(params), axes_(params.axes) {
    const auto type = at::toOpMathType(positions.scalar_type());
    SymShape shape = {p_.batch, p_.groups};
    for (int64_t a = 0; a < axes_; ++a) {
      shape.emplace_back(per_tap(p_.source) ? axis(a).kernel : 1);
    }
    shape.emplace_back(p_.parameters);
    for (int64_t a = 0; a < axes_; ++a) {
      shape.push_back(axis(a).out_size);
    }
    const Tensor parameters = positions.to(type).reshape_symint(shape);
    const auto parameter = [&](int64_t r) { return parameters.select(2 + axes_, r); };
    Tensor finite = parameter(0).isfinite();
    for (int64_t r = 1; r < p_.parameters; ++r) {
      finite = finite & parameter(r).isfinite();
    }
    unit_ = at::ones_like(parameter(0)).masked_fill(finite.logical_not(), std::numeric_limits<double>::quiet_NaN());
    for (int64_t a = 0; a < axes_; ++a) {
      taps_.push_back(
          locate(a, p_.source == Source::kAffine ? displaced(a, parameter) : parameter(p_.parameters == 1 ? 0 : a)));
    }
  }

  const Axis<SymInt>& axis(int64_t a) const { return p_.axis[p_.first_axis() + a]; }
  const TapsOfAxis& operator[](int64_t a) const { return taps_[a]; }

  // 1, or NaN where a parameter is not finite. Such a tap has no neighbour in the image, but NaN in every weight.
  const Tensor& unit() const { return unit_; }

 private:
  // A 1-D tensor, laid along dimension `dim` of the last ones: (*kernel, *out).
  Tensor along(int64_t dim, const Tensor& values) const {
    SymShape sizes(2 * axes_, 1);
    sizes[dim] = values.sym_size(0);
    return values.view_symint(sizes);
  }

  // The taps' distances from the window's centre at rate one, along an axis.
  Tensor distances(int64_t a, const at::TensorOptions& numbers) const {
    const Tensor twice = at::arange(1 - axis(a).kernel, axis(a).kernel, 2, numbers);
    return along(a, twice * static_cast<double>(axis(a).dilation) / 2);
  }

  // displacement() of math/positions.h; NaN where a parameter of the window is not finite.
  template <class Parameter>
  Tensor displaced(int64_t a, const Parameter& parameter) const {
    Tensor sum = parameter(a * (axes_ + 1) + axes_);
    const double most =
        sum.scalar_type() == at::kDouble ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
    for (int64_t e = 0; e < axes_; ++e) {
      sum = sum + parameter(a * (axes_ + 1) + e) * distances(e, sum.options());
    }
    return at::where(sum >= -most, sum.clamp_max(most), -most) * unit_;
  }

  TapsOfAxis locate(int64_t a, const Tensor& parameter) const {
    const auto& axis = this->axis(a);
    const auto type = parameter.scalar_type();
    const auto numbers = parameter.options();
    const auto indices = numbers.dtype(at::kLong);
    const double fraction = centre_fraction<double>(axis, p_.source, p_.aligned);
    const double limit = std::ldexp(1.0, 62);
    const double split = std::ldexp(1.0, type == at::kDouble ? 26 : 12);

    const Tensor distance = distances(a, numbers);
    const Tensor slope = by_axis(p_.source) ? distance : at::ones_like(distance);
    const Tensor offset = slope * parameter + fraction;
    const Tensor near = offset.abs() < limit;  // false for NaN
    const Tensor safe = at::where(near, parameter, 0);
    const Tensor whole = (slope * safe + fraction).floor();

    const Tensor whole_parameter = safe.trunc();
    const Tensor part = safe - whole_parameter;
    const Tensor coarse = (part * split).round() / split;
    const Tensor rest = slope * whole_parameter - whole + fraction + slope * coarse + slope * (part - coarse);
    const Tensor carry = rest.floor().clamp_max(0);
    const Tensor between = rest - carry;

    const Tensor first =
        at::arange(Scalar(axis.out_size), indices) * axis.stride + first_pixel(axis, p_.source, p_.aligned);
    Tensor position = along(axes_ + a, first) + whole.to(at::kLong) + carry.to(at::kLong);
    if (per_tap(p_.source)) {
      position = position + along(a, at::arange(axis.kernel, indices) * axis.dilation);
    }
    if (p_.padding_mode == PaddingMode::kZeros) {
      const Tensor inside = near & (position >= -1) & (position < Scalar(axis.size));
      return weighted(
          at::where(inside, position, kNoPixel), at::where(inside, between, 0), at::ones_like(distance), distance);
    }
    // See beyond_zeros in math/axis.h.
    const Tensor finite = parameter.isfinite();
    if (p_.padding_mode == PaddingMode::kBorder || axis.size == 1) {
      const Tensor before = at::where(near, position < 0, offset < 0);
      const Tensor after = at::where(near, position >= Scalar(axis.size - 1), offset > 0) & before.logical_not();
      const Tensor pixel = at::where(before, -1, at::where(after, Scalar(axis.size - 1), position));
      const Tensor inside = (before | after).logical_not();
      return weighted(
          at::where(finite, pixel, kNoPixel), at::where(inside, between, before.to(type)), inside.to(type), distance);
    }
    const SymInt period = 2 * (axis.size - 1);
    const Tensor at = at::remainder(position, Scalar(period));
    const Tensor forward = at < Scalar(axis.size - 1);
    const Tensor pixel = at::where(forward, at, at::rsub(at, Scalar(period - 1)));
    const Tensor inner = at::where(near, between, 0);
    return weighted(
        at::where(finite, pixel, kNoPixel), at::where(forward, inner, at::rsub(inner, 1)), forward.to(type) * 2 - 1,
        distance);
  }

  static TapsOfAxis weighted(
      const Tensor& pixel, const Tensor& fraction, const Tensor& direction, const Tensor& distance) {
    return {pixel + kBorderLow, {at::rsub(fraction, 1), -direction}, {fraction, direction}, distance};
  }

  const SymParams& p_;
  const int64_t axes_;
  std::vector<TapsOfAxis> taps_;
  Tensor unit_;
};

// ---- the family at given positions

class Plain {
 public:
  Plain(const SymParams& params, const Tensor& positions)
      : p_(params), axes_(params.axes), located_(params, positions) {
    for (int64_t a = 0; a < axes_; ++a) {
      taps_ *= located_.axis(a).kernel;
      positions_ = positions_ * located_.axis(a).out_size;
      padded_.push_back(located_.axis(a).size + padded(0));
      plane_ = plane_ * padded_.back();
    }
    Tensor index;
    SymInt pitch = 1;
    for (int64_t a = axes_ - 1; a >= 0; --a) {
      pitch_.insert(pitch_.begin(), pitch);
      const Tensor part = located_[a].pixel * Scalar(pitch);
      index = index.defined() ? index + part : part;
      pitch = pitch * padded_[a];
    }
    first_ = index.expand_symint(over_taps()).reshape_symint(per_tap_shape());
  }

  // [B, C, *size] -> [B, C * taps, L], not yet rounded to the image's type
  Tensor sample(const Term& term, const Tensor& image) const {
    std::vector<int64_t> border;
    for (int64_t a = 0; a < axes_; ++a) {
      border.insert(border.end(), {kBorderLow, kBorderHigh});
    }
    const Tensor pixels =
        at::constant_pad_nd(image.to(located_.unit().scalar_type()), border).reshape_symint(planes(plane_));
    Tensor columns;
    for (const auto& [index, weight] : corners(term)) {
      const Tensor part = pixels.gather(-1, index) * weight;
      columns = columns.defined() ? columns + part : part;
    }
    return columns.reshape_symint(columns_shape(p_));
  }

  // [B, C * taps, L] -> [B, C, *size]
  Tensor splat(const Term& term, const Tensor& columns) const {
    const Tensor values = columns.to(located_.unit().scalar_type()).reshape_symint(planes(taps_ * positions_));
    Tensor image = at::zeros_symint(planes(plane_), values.options());
    for (const auto& [index, weight] : corners(term)) {
      image = image.scatter_add(-1, index, values * weight);
    }
    SymShape shape = {p_.batch, p_.channels};
    shape.insert(shape.end(), padded_.begin(), padded_.end());
    image = image.reshape_symint(shape);
    for (int64_t a = 0; a < axes_; ++a) {
      image = image.narrow_symint(2 + a, kBorderLow, located_.axis(a).size);
    }
    return image.to(columns.scalar_type(), /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
  }

  // [B, C, *size] -> the largest sample of every window and its tap, each [B, C, L]
  std::tuple<Tensor, Tensor> largest(const Term& value, const Tensor& image, bool ignore) const {
    Tensor samples = sample(value, image).reshape_symint({p_.batch, p_.channels, taps_, positions_});
    const Tensor taps = at::arange(taps_, samples.options().dtype(at::kLong)).view({taps_, 1});
    Tensor counts = at::ones_like(samples, samples.options().dtype(at::kBool));
    if (ignore) {
      for (int64_t a = 0; a < axes_; ++a) {
        const auto& at = located_[a];
        const SymInt last = kBorderLow + located_.axis(a).size - 1;
        const Tensor inside =
            (at.pixel >= kBorderLow) & ((at.pixel < Scalar(last)) | ((at.pixel == Scalar(last)) & (at.high[0] == 0)));
        const Tensor here = (inside | located_.unit().isnan()).expand_symint(over_taps());
        counts = counts &
            here.reshape_symint({p_.batch, p_.groups, 1, taps_, positions_})
                .expand_symint({p_.batch, p_.groups, p_.channels / p_.groups, taps_, positions_})
                .reshape_symint(samples.sym_sizes());
      }
      samples = samples.masked_fill(counts.logical_not(), -std::numeric_limits<double>::infinity());
    }
    const Tensor values = samples.amax(2, /*keepdim=*/true);  // NaN wins
    const Tensor last_nan = at::where(samples.isnan() & counts, taps, -1).amax(2);
    const Tensor first = at::where((samples == values) & counts, taps, taps_).amin(2);
    const Tensor chosen = at::where(last_nan >= 0, last_nan, at::where(first < taps_, first, -1));
    return {values.squeeze(2), chosen};
  }

  // -> [B, G, *out], or [B, G * taps, *out]
  Tensor dot(const Term& term, const Tensor& columns, const Tensor& image) const {
    if (vanishes(term)) {
      return at::zeros_symint(dot_shape(p_), located_.unit().options());
    }
    const SymInt summed = per_tap(p_.source) ? p_.channels / p_.groups : p_.channels / p_.groups * taps_;
    const int64_t kept = per_tap(p_.source) ? taps_ : 1;
    return (columns * sample(term, image))
        .reshape_symint({p_.batch, p_.groups, summed, kept * positions_})
        .sum(2)
        .reshape_symint(dot_shape(p_));
  }

 private:
  struct Corner {
    Tensor index;   // of a pixel in its plane: [B, G, C / G, taps * L]
    Tensor weight;  // [B, G, 1, taps * L]
  };

  // [B, G, *kernel, *out]
  SymShape over_taps() const {
    SymShape shape = {p_.batch, p_.groups};
    for (int64_t a = 0; a < axes_; ++a) {
      shape.emplace_back(located_.axis(a).kernel);
    }
    for (int64_t a = 0; a < axes_; ++a) {
      shape.push_back(located_.axis(a).out_size);
    }
    return shape;
  }

  SymShape per_tap_shape() const { return {p_.batch, p_.groups, 1, taps_ * positions_}; }

  SymShape planes(const SymInt& size) const { return {p_.batch, p_.groups, p_.channels / p_.groups, size}; }

  // The bit of an axis of the problem in the number of a corner or of a partial derivative.
  int bit(int64_t a) const { return axis_bit(p_.first_axis() + static_cast<int>(a)); }

  std::vector<Corner> corners(const Term& term) const {
    std::vector<Corner> result;
    for (int c = 0; c < 1 << axes_; ++c) {
      Tensor weight;
      for (int q = 0; q < 1 << axes_; ++q) {
        if (term.count[q] != 0) {
          const Tensor part = partial(term, q, c);
          weight = weight.defined() ? weight + part : part;
        }
      }
      SymInt offset = 0;
      for (int64_t a = 0; a < axes_; ++a) {
        offset = (c & bit(a)) != 0 ? offset + pitch_[a] : offset;
      }
      result.push_back(
          {(first_ + Scalar(offset)).expand_symint(planes(taps_ * positions_)),
           // Not every derivative depends on all parameters; the product with `unit` does, so it has the full shape.
           (located_.unit() * weight).expand_symint(over_taps()).reshape_symint(per_tap_shape())});
    }
    return result;
  }

  // What partial derivative q adds to the weight of corner c.
  Tensor partial(const Term& term, int q, int c) const {
    Tensor product;
    for (int64_t a = 0; a < axes_; ++a) {
      const int times = (q & bit(a)) != 0 ? 1 : 0;
      Tensor factor = (c & bit(a)) != 0 ? located_[a].high[times] : located_[a].low[times];
      for (int n = 0; n < term.power[q][p_.first_axis() + a]; ++n) {
        factor = factor * located_[a].distance;
      }
      product = product.defined() ? product * factor : factor;
    }
    return term.count[q] == 1 ? product : product * static_cast<int64_t>(term.count[q]);
  }

  const SymParams& p_;
  const int64_t axes_;
  const Taps located_;
  int64_t taps_ = 1;
  SymInt positions_ = 1;
  SymInt plane_ = 1;            // pixels of an image with the border of math/axis.h around it
  std::vector<SymInt> padded_;  // its sizes along the axes
  std::vector<SymInt> pitch_;   // and the distances of neighbours along them
  Tensor first_;                // index of a tap's first neighbour: [B, G, 1, taps * L]
};

// ---- the operators

// Warns, once per device type, that ddu_ops has no kernels for it, and says what runs instead.
void warn(c10::DeviceType device, const char* instead) {
  static std::atomic<uint64_t> warned = 0;
  const auto bit = uint64_t(1) << static_cast<int>(device);
  if ((warned.fetch_or(bit) & bit) == 0) {
    TORCH_WARN(
        "ddu_ops was built without kernels for device '", c10::DeviceTypeName(device, /*lower_case=*/true),
        "': its operators run ", instead, ", which takes more time and memory.");
  }
}

// Doesn't warn under tracing, nor if a device with kernels runs a decomposition.
void warn_of(const Tensor& tensor) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("ddu::sample", "");
  if (!tensor.unsafeGetTensorImpl()->is_python_dispatch() &&
      !op.hasKernelForDispatchKey(tensor.options().computeDispatchKey())) {
    warn(tensor.device().type(), "in terms of ATen's");
  }
}

struct Aten {
  static constexpr bool kMakesResults = true;

  static void sample(const SymParams& params, const Tensor& input, const Tensor& positions, Tensor& columns) {
    warn_of(input);
    columns = Plain(params, positions).sample(params.term, input).to(input.scalar_type());
  }

  static void splat(const SymParams& params, const Tensor& columns, const Tensor& positions, Tensor& image) {
    warn_of(columns);
    image = Plain(params, positions).splat(params.term, columns);
  }

  static void dot(
      const SymParams& params, const Tensor& columns, const Tensor& input, const Tensor& positions, Tensor& result) {
    warn_of(columns);
    result = Plain(params, positions).dot(params.term, columns, input).to(positions.scalar_type());
  }

  static void sample_backward(
      const SymParams& params,
      const ParameterTerms& terms,
      const Tensor& grad_output,
      const Tensor& input,
      const Tensor& positions,
      Tensor& grad_input,
      Tensor& grad_positions) {
    warn_of(grad_output);
    const Plain plain(params, positions);
    std::vector<Tensor> by_parameter;
    for (int64_t r = 0; r < params.parameters; ++r) {
      by_parameter.push_back(plain.dot(terms[r], grad_output, input));
    }
    grad_input = plain.splat(params.term, grad_output);
    grad_positions = at::stack(by_parameter, 2).reshape_symint(positions.sym_sizes()).to(positions.scalar_type());
  }
};

std::tuple<Tensor, Tensor> max_pool(const Tensor& input, const Tensor& positions, const Options& options) {
  const auto params = sums::check_max_pool("max_pool", input, positions, options);
  warn_of(input);
  const bool ignore = options.padding_mode == sums::kIgnore;
  const auto [values, taps] = Plain(params, positions).largest(params.term, input, ignore);
  const auto laid_out = [&](const Tensor& result) {
    return result.reshape_symint(grid_shape(params, params.channels)).contiguous(sums::format_of(input));
  };
  return {laid_out(values.to(input.scalar_type())), laid_out(taps)};
}

// XLA and Lazy have no views below functionalization, so nothing in terms of ATen can run there; the CPU's kernels do.
template <c10::DeviceType device>
void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  warn(device, "on the CPU");
  at::native::cpu_fallback(op, stack);
}

template <c10::DeviceType device>
void register_on_cpu(torch::Library& m) {
  for (const auto* name : kOperators) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_cpu<device>>());
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, XLA, m) { register_on_cpu<at::kXLA>(m); }

TORCH_LIBRARY_IMPL(ddu, Lazy, m) { register_on_cpu<at::kLazy>(m); }

// Also called with sparse tensors, quantised ones and the like: the checks refuse them and name the argument.
TORCH_LIBRARY_IMPL(ddu, CompositeExplicitAutograd, m) {
  register_operators<Aten>(m);
  m.impl("max_pool", TORCH_FN(sums::max_pool_schema<&max_pool>));
}

}  // namespace ddu
