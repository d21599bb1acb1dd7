// SPDX-License-Identifier: MIT
// The operators in terms of ATen's: what runs on a device that has no kernels of its own, and what a decomposition
// traces. Values, types, errors and precision are the kernels'; only time and memory are not.

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

#include "../args.h"
#include "../math/geometry.h"
#include "../signatures.h"

namespace ddu {

namespace {

using at::Scalar;
using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;

// ---- where the taps lie

// A tensor of one dimension, laid along dimension `dim` of the last four: (kH, kW, H_out, W_out).
Tensor along(int64_t dim, const Tensor& values) {
  std::array<SymInt, 4> sizes = {1, 1, 1, 1};
  sizes[dim] = values.sym_size(0);
  return values.view_symint(sizes);
}

// The taps of an axis: tensors that broadcast to [B, G, kH, kW, H_out, W_out].
struct TapsOfAxis {
  Tensor pixel;                // the neighbour before the tap, in the image with a border
  std::array<Tensor, 2> low;   // its weight, and the weight's derivative by the rate
  std::array<Tensor, 2> high;  // of the neighbour after it
};

// NOTE [ Positions in plain ATen ]
// The computation is that of NOTE [ Positions ]. ATen has no fused multiply-add, so the exact remainder comes from a
// rate split in three: its whole part, and a coarse and a fine half of the rest, each short enough for its product with
// the slope to be exact. All sums but the last are exact, too. (A number minus a tensor is written otherwise: C++
// spells it with an operation in place, which a graph may not contain.)
TapsOfAxis locate(const Axis<SymInt>& axis, int64_t tap_dim, bool aligned, const Tensor& rate) {
  const auto type = rate.scalar_type();
  const auto rates = rate.options();
  const auto indices = rates.dtype(at::kLong);
  const double fraction = centre_fraction<double>(axis, aligned);
  const double limit = std::ldexp(1.0, 62);
  const double split = std::ldexp(1.0, type == at::kDouble ? 26 : 12);

  const Tensor taps = at::arange(1 - axis.kernel, axis.kernel, 2, rates);
  const Tensor slope = along(tap_dim, taps * static_cast<double>(axis.dilation) / 2);
  const Tensor near = ((slope * rate + fraction).abs() < limit);  // false for NaN
  const Tensor safe = at::where(near, rate, 0);
  const Tensor whole = (slope * safe + fraction).floor();

  const Tensor whole_rate = safe.trunc();
  const Tensor part = safe - whole_rate;
  const Tensor coarse = (part * split).round() / split;
  const Tensor rest = slope * whole_rate - whole + fraction + slope * coarse + slope * (part - coarse);
  const Tensor carry = rest.floor().clamp_max(0);

  const Tensor first = at::arange(Scalar(axis.out_size), indices) * axis.stride + centre_pixel(axis, 0, aligned);
  const Tensor position = along(tap_dim + 2, first) + whole.to(at::kLong) + carry.to(at::kLong);
  const Tensor inside = near & (position >= -1) & (position < Scalar(axis.size));
  const Tensor between = at::where(inside, rest - carry, 0);
  return {
      at::where(inside, position, kNoPixel) + kBorderLow,
      {at::rsub(between, 1), -slope},
      {between, slope},
  };
}

// ---- the family at one map

class Plain {
 public:
  Plain(const SymParams& params, const Tensor& dilation_map)
      : p_(params),
        per_group_(p_.channels / p_.groups),
        taps_(p_.h.kernel * p_.w.kernel),
        positions_(p_.h.out_size * p_.w.out_size),
        pitch_(p_.w.size + padded(0)) {
    const auto type = at::toOpMathType(dilation_map.scalar_type());
    const Tensor rates =
        dilation_map.to(type).reshape_symint({p_.batch, p_.groups, p_.rates, 1, 1, p_.h.out_size, p_.w.out_size});
    const Tensor rate_h = rates.select(2, 0);
    const Tensor rate_w = rates.select(2, p_.rates - 1);
    y_ = locate(p_.h, 0, p_.aligned, rate_h);
    x_ = locate(p_.w, 1, p_.aligned, rate_w);
    north_west_ = (y_.pixel * Scalar(pitch_) + x_.pixel).reshape_symint(per_tap());
    unit_ = at::ones_like(rate_h).masked_fill(
        (rate_h.isfinite() & rate_w.isfinite()).logical_not(), std::numeric_limits<double>::quiet_NaN());
  }

  // [B, C, H, W] -> [B, C * kH * kW, L], not rounded to the type of the image yet
  Tensor sample(const Term& term, const Tensor& image) const {
    const Tensor pixels =
        at::constant_pad_nd(image.to(unit_.scalar_type()), {kBorderLow, kBorderHigh, kBorderLow, kBorderHigh})
            .reshape_symint(planes());
    Tensor columns;
    for (const auto& [index, weight] : corners(term)) {
      const Tensor part = pixels.gather(-1, index) * weight;
      columns = columns.defined() ? columns + part : part;
    }
    return columns.reshape_symint({p_.batch, p_.channels * taps_, positions_});
  }

  // [B, C * kH * kW, L] -> [B, C, H, W]
  Tensor splat(const Term& term, const Tensor& columns) const {
    const Tensor values =
        columns.to(unit_.scalar_type()).reshape_symint({p_.batch, p_.groups, per_group_, taps_ * positions_});
    Tensor image = at::zeros_symint(planes(), values.options());
    for (const auto& [index, weight] : corners(term)) {
      image = image.scatter_add(-1, index, values * weight);
    }
    return image.reshape_symint({p_.batch, p_.channels, p_.h.size + padded(0), pitch_})
        .narrow_symint(2, kBorderLow, p_.h.size)
        .narrow_symint(3, kBorderLow, p_.w.size)
        .to(columns.scalar_type(), /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
  }

  // -> [B, G, H_out, W_out]
  Tensor dot(const Term& term, const Tensor& columns, const Tensor& image) const {
    return (columns * sample(term, image))
        .reshape_symint({p_.batch, p_.groups, per_group_ * taps_, p_.h.out_size, p_.w.out_size})
        .sum(2);
  }

 private:
  struct Corner {
    Tensor index;   // of a pixel in its plane: [B, G, C / G, kH * kW * L]
    Tensor weight;  // [B, G, 1, kH * kW * L]
  };

  std::vector<SymInt> per_tap() const { return {p_.batch, p_.groups, 1, taps_ * positions_}; }

  std::vector<SymInt> planes() const { return {p_.batch, p_.groups, per_group_, (p_.h.size + padded(0)) * pitch_}; }

  std::array<Corner, 4> corners(const Term& term) const {
    const auto corner = [&](const auto& y, const auto& x, const SymInt& offset) {
      Tensor weight;
      for (int a = 0; a < 2; ++a) {
        for (int b = 0; b < 2; ++b) {
          if (term.count[a][b] != 0) {
            const Tensor once = y[a] * x[b];
            const Tensor part = term.count[a][b] == 1 ? once : once * static_cast<int64_t>(term.count[a][b]);
            weight = weight.defined() ? weight + part : part;
          }
        }
      }
      auto wide = planes();
      wide[3] = taps_ * positions_;
      return Corner{
          (north_west_ + Scalar(offset)).expand_symint(wide),
          // Derivatives do not depend on both rates; the product with `unit` does, so it has the full shape.
          (unit_ * weight)
              .expand_symint({p_.batch, p_.groups, p_.h.kernel, p_.w.kernel, p_.h.out_size, p_.w.out_size})
              .reshape_symint(per_tap())};
    };
    return {
        corner(y_.low, x_.low, 0), corner(y_.low, x_.high, 1), corner(y_.high, x_.low, pitch_),
        corner(y_.high, x_.high, pitch_ + 1)};
  }

  const SymParams& p_;
  const SymInt per_group_;
  const int64_t taps_;
  const SymInt positions_;
  const SymInt
      pitch_;  // of a plane: an image with the border of geometry.h around it, so that every corner has an index
  TapsOfAxis y_;
  TapsOfAxis x_;
  Tensor north_west_;  // the index of a tap's first neighbour: [B, G, 1, kH * kW * L]
  // 1, or NaN where a rate is not finite. Such a window has no neighbour in the image, but this in every weight.
  Tensor unit_;  // [B, G, 1, 1, H_out, W_out]
};

// ---- the operators

// Says once for each type of device that ddu_ops has no kernels for it, and what runs instead.
void warn(c10::DeviceType device, const char* instead) {
  static std::atomic<uint64_t> warned = 0;
  const auto bit = uint64_t(1) << static_cast<int>(device);
  if ((warned.fetch_or(bit) & bit) == 0) {
    TORCH_WARN(
        "ddu_ops was built without kernels for device '", c10::DeviceTypeName(device, /*lower_case=*/true),
        "': its operators run ", instead, ", which takes more time and memory.");
  }
}

// Not of what is only traced, nor where a device has kernels and a decomposition was called all the same.
void warn_of(const Tensor& tensor) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("ddu::sample", "");
  if (!tensor.unsafeGetTensorImpl()->is_python_dispatch() &&
      !op.hasKernelForDispatchKey(tensor.options().computeDispatchKey())) {
    warn(tensor.device().type(), "in terms of ATen's");
  }
}

Tensor sample_as(const char* op, const Tensor& input, const Tensor& dilation_map, const Window& window) {
  const auto params = check_sample(op, input, dilation_map, window);
  warn_of(input);
  if (vanishes(params.term)) {
    return at::zeros_symint(
        {params.batch, params.channels * params.h.kernel * params.w.kernel, params.h.out_size * params.w.out_size},
        input.options());
  }
  return Plain(params, dilation_map).sample(params.term, input).to(input.scalar_type());
}

Tensor splat_as(
    const char* op,
    const Tensor& columns,
    SymIntArrayRef output_size,
    const Tensor& dilation_map,
    const Window& window) {
  const auto params = check_splat(op, columns, output_size, dilation_map, window);
  warn_of(columns);
  if (vanishes(params.term)) {
    return at::zeros_symint({params.batch, params.channels, params.h.size, params.w.size}, columns.options());
  }
  return Plain(params, dilation_map).splat(params.term, columns);
}

Tensor unfold(const Tensor& input, const Tensor& dilation_map, const Window& window) {
  return sample_as("unfold", input, dilation_map, window);
}

Tensor sample(const Tensor& input, const Tensor& dilation_map, const Window& window) {
  return sample_as("sample", input, dilation_map, window);
}

Tensor fold(const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Window& window) {
  return splat_as("fold", columns, output_size, dilation_map, window);
}

Tensor splat(const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Window& window) {
  return splat_as("splat", columns, output_size, dilation_map, window);
}

Tensor dot(const Tensor& columns, const Tensor& input, const Tensor& dilation_map, const Window& window) {
  const auto params = check_dot("dot", "columns", columns, input, dilation_map, window);
  warn_of(columns);
  if (vanishes(params.term)) {
    return at::zeros_symint(
        {params.batch, params.groups, params.h.out_size, params.w.out_size}, dilation_map.options());
  }
  return Plain(params, dilation_map).dot(params.term, columns, input).to(dilation_map.scalar_type());
}

std::tuple<Tensor, Tensor> unfold_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& dilation_map, const Window& window) {
  const auto params = check_dot("unfold_backward", "grad_output", grad_output, input, dilation_map, window);
  warn_of(grad_output);
  const Plain plain(params, dilation_map);
  std::vector<Tensor> by_rate;
  for (int64_t r = 0; r < params.rates; ++r) {
    by_rate.push_back(plain.dot(gradient_terms(params.rates)[r], grad_output, input));
  }
  return {
      plain.splat(params.term, grad_output),
      at::stack(by_rate, 2).reshape_symint(dilation_map.sym_sizes()).to(dilation_map.scalar_type())};
}

// XLA and Lazy have no views below functionalization, so nothing in terms of ATen can run there: the CPU's kernels do.
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

// Also of tensors that are sparse, quantised and the like: the checks refuse them, with the argument's name.
TORCH_LIBRARY_IMPL(ddu, CompositeExplicitAutograd, m) {
  m.impl("unfold", TORCH_FN(Schema<&unfold>::value));
  m.impl("fold", TORCH_FN(Schema<&fold>::value));
  m.impl("unfold_backward", TORCH_FN(Schema<&unfold_backward>::value));
  m.impl("sample", TORCH_FN(Schema<&sample>::derivative));
  m.impl("splat", TORCH_FN(Schema<&splat>::derivative));
  m.impl("dot", TORCH_FN(Schema<&dot>::derivative));
}

}  // namespace ddu
