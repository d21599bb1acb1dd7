// SPDX-License-Identifier: MIT
// The kernel and its first gradients in differentiable steps: NOTE [ Shares ] in share.h. The tables of shares,
// [rows, count, cells of an axis], are combined in matrix products, so only in three dimensions does any tensor have an
// entry for every point and all cells of two axes.

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include "../autograd/node.h"
#include "../autograd/product.h"
#include "dcls.h"
#include "share.h"

namespace ddu::dcls {

namespace {

using at::Tensor;
using c10::SymInt;

// A table for every axis, and what is computed from them.
struct Tables {
  std::vector<Tensor> value, by_position, by_sigma;  // [rows, count, cells]
  std::vector<Tensor> sum;                           // [rows, count]
  Tensor weight;                                     // [rows, count]
  Tensor total;                                      // the denominator of the shares, or undefined
  std::vector<Tensor> sign;                          // of sigma
  std::vector<SymInt> shape;                         // of the result

  // weight / total
  Tensor factor() const { return total.defined() ? weight / total : weight; }

  size_t axes() const { return value.size(); }

  // The product of the sums along the other axes.
  Tensor sums_without(size_t axis) const {
    Tensor result = at::ones_like(weight);
    for (size_t other = 0; other < axes(); ++other) {
      result = other == axis ? result : result * sum[other];
    }
    return result;
  }
};

Tensor in_rows(const Tensor& tensor, const SymInt& rows, const SymInt& count) {
  return tensor.to(at::toOpMathType(tensor.scalar_type())).reshape_symint({rows, count});
}

Tables tables(const Arguments& a, const Options& options) {
  Tables t;
  const auto version = version_of(options.version);
  const auto rows = a.weight.sym_size(0) * a.weight.sym_size(1);
  const auto count = a.weight.sym_size(2);
  t.weight = in_rows(a.weight, rows, count);
  t.shape = {a.weight.sym_size(0), a.weight.sym_size(1)};
  const auto axes = a.positions.sym_size(0).guard_int(__FILE__, __LINE__);
  for (int64_t axis = 0; axis < axes; ++axis) {
    const auto size = options.kernel_size[options.kernel_size.size() == 1 ? 0 : axis];
    t.shape.emplace_back(size);
    const auto position = in_rows(a.positions.select(0, axis), rows, count).unsqueeze(2);
    const auto whole = position.detach().floor();
    const auto cells = at::arange(size, position.options()) - size / 2;
    const auto x = (cells - whole) - (position - whole);
    const auto zero = at::zeros({}, position.options());
    const auto one = at::ones({}, position.options());
    auto sigma = one;
    if (has_sigma(version)) {
      const auto raw = in_rows(a.sigma.select(0, axis), rows, count);
      t.sign.push_back(at::where(raw < 0, -one, one));
      sigma = (raw * t.sign.back() + least_sigma(version)).unsqueeze(2);
    }
    if (version == Version::kGauss) {
      const auto u = at::clamp(x / sigma, -kFarthest, kFarthest);
      const auto value = at::exp(-0.5 * u * u);
      t.value.push_back(value);
      t.by_position.push_back(value * u / sigma);
      t.by_sigma.push_back(value * u * u / sigma);
    } else {
      const auto outside = (x <= -sigma).logical_or(x > sigma);
      const auto slope = at::where(x > 0, one, at::where(x <= 0, -one, x.detach()));
      t.value.push_back(at::where(outside, zero, sigma - slope * x));
      t.by_position.push_back(at::where(outside, zero, slope));
      t.by_sigma.push_back(at::where(outside, zero, one));
    }
    t.sum.push_back(t.value.back().sum(2));
  }
  if (version != Version::kV0) {
    t.total = t.sums_without(t.axes()) + kEpsilon;
  }
  return t;
}

// [rows, count, m] and [rows, count, n] to [rows, count, m * n].
Tensor outer_product(const Tensor& left, const Tensor& right) {
  return (left.unsqueeze(3) * right.unsqueeze(2)).flatten(2);
}

// The shares along all axes but the first.
Tensor others(const Tables& t) {
  auto result = t.axes() == 1 ? at::ones_like(t.weight).unsqueeze(2) : t.value[1];
  return t.axes() == 3 ? outer_product(result, t.value[2]) : result;
}

// [rows, m, n] with [rows, count, n] to [rows, count, m].
Tensor contracted(const Tensor& matrix, const Tensor& shares) { return product(shares, matrix.transpose(1, 2)); }

// The gradient with respect to the table of each axis, without the point's factor: [rows, count, cells].
std::vector<Tensor> by_tables(const Tables& t, const Tensor& grad) {
  const auto& sizes = t.value;
  SymInt rest_size = 1;
  for (size_t axis = 1; axis < t.axes(); ++axis) {
    rest_size = rest_size * sizes[axis].sym_size(2);
  }
  const auto matrix = grad.reshape_symint({t.weight.sym_size(0), sizes[0].sym_size(2), rest_size});
  std::vector<Tensor> result = {contracted(matrix, others(t))};
  if (t.axes() > 1) {
    const auto rest = product(t.value[0], matrix);  // [rows, count, cells of the other axes]
    if (t.axes() == 2) {
      result.push_back(rest);
    } else {
      const auto plane = rest.unflatten_symint(2, {sizes[1].sym_size(2), sizes[2].sym_size(2)});
      result.push_back((plane * t.value[2].unsqueeze(2)).sum(3));
      result.push_back((plane * t.value[1].unsqueeze(3)).sum(2));
    }
  }
  return result;
}

}  // namespace

Tensor forward(const Arguments& a, const Options& options) {
  const WithoutAutocast guard;
  const auto t = tables(a, options);
  const auto left = (t.factor().unsqueeze(2) * t.value[0]).transpose(1, 2);
  return product(left, others(t)).reshape_symint(t.shape).to(a.weight.scalar_type());
}

Gradients backward(const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  const WithoutAutocast guard;
  const auto t = tables(a, options);
  const auto grads = by_tables(t, grad_output.to(t.weight.scalar_type()));
  const auto factor = t.factor();
  auto by_weight = (grads[0] * t.value[0]).sum(2);
  by_weight = t.total.defined() ? by_weight / t.total : by_weight;
  const auto gradient = [&](const std::vector<Tensor>& derivative, const Tensor& like, bool of_sigma) {
    std::vector<Tensor> each;
    for (size_t axis = 0; axis < t.axes(); ++axis) {
      auto one = (grads[axis] * derivative[axis]).sum(2);
      if (t.total.defined()) {
        one = one - by_weight * t.sums_without(axis) * derivative[axis].sum(2);
      }
      one = factor * one;
      each.push_back(of_sigma ? one * t.sign[axis] : one);
    }
    return at::stack(each).reshape_symint(like.sym_sizes()).to(like.scalar_type());
  };
  Gradients result(kGradients);
  if (needs[kWeight]) {
    result[kWeight] = by_weight.reshape_symint(a.weight.sym_sizes()).to(a.weight.scalar_type());
  }
  if (needs[kPositions]) {
    result[kPositions] = gradient(t.by_position, a.positions, /*of_sigma=*/false);
  }
  if (needs[kSigma]) {
    result[kSigma] = gradient(t.by_sigma, a.sigma, /*of_sigma=*/true);
  }
  return result;
}

}  // namespace ddu::dcls
