// SPDX-License-Identifier: MIT
// The kernel and its gradients on the CPU: NOTE [ Shares ] in share.h. A task owns whole rows, one per pair of output
// and input channel, and adds the points in order, so the result doesn't depend on the number of threads.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "device.h"

namespace ddu::dcls {

namespace {

using at::Tensor;

// Fewer shares than this don't justify another thread.
constexpr int64_t kGrain = 16384;

// The shares of one point along one axis, [size], in the cells near it.
template <class T>
struct Table {
  Cells cells;
  T* value;
  T* by_position;
  T* by_sigma;
  Share<T> sum;
};

template <class T>
struct Tables {
  Table<T> axis[kMaxAxes];
  T total;  // the denominator of the shares

  // The product of the sums along the other axes.
  T sums_without(int axis) const {
    T result = 1;
    for (int other = 0; other < kMaxAxes; ++other) {
      result *= other == axis ? T(1) : this->axis[other].sum.value;
    }
    return result;
  }
};

// Tables for one point at a time.
template <class T>
class Workspace {
 public:
  explicit Workspace(const Problem& p) : p_(p), memory_(3 * (p.size[0] + p.size[1] + p.size[2])) {
    T* next = memory_.data();
    for (int a = 0; a < kMaxAxes; ++a) {
      auto& table = tables_.axis[a];
      table = {{0, 1}, next, next + p.size[a], next + 2 * p.size[a], {T(1), T(0), T(0)}};
      table.value[0] = T(1);
      next += 3 * p.size[a];
    }
  }

  // Computes the tables of point `index`, counted over all rows; sigma may be null.
  const Tables<T>& fill(const T* positions, const T* sigma, int64_t index, bool derivatives) {
    const T least = static_cast<T>(least_sigma(p_.version));
    for (int64_t axis = 0; axis < p_.axes; ++axis) {
      const auto at = axis * p_.rows * p_.count + index;
      const auto size = p_.size[p_.first_axis() + axis];
      const auto where =
          sigma == nullptr ? place(positions[at], T(0), size, least) : place(positions[at], sigma[at], size, least);
      auto& table = tables_.axis[p_.first_axis() + axis];
      p_.version == Version::kGauss ? fill<true>(table, where, size, derivatives)
                                    : fill<false>(table, where, size, derivatives);
    }
    tables_.total = p_.normalised() ? tables_.sums_without(kMaxAxes) + static_cast<T>(kEpsilon) : T(1);
    return tables_;
  }

 private:
  template <bool kGauss>
  static void fill(Table<T>& table, const Place<T>& where, int64_t size, bool derivatives) {
    table.cells = cells_near<kGauss>(where, size);
    table.sum = {T(0), T(0), T(0)};
    for (int64_t cell = table.cells.begin; cell < table.cells.end; ++cell) {
      const auto one = share<kGauss>(where, cell);
      table.value[cell] = one.value;
      table.sum.value += one.value;
      if (derivatives) {
        table.by_position[cell] = one.by_position;
        table.by_sigma[cell] = one.by_sigma;
        table.sum.by_position += one.by_position;
        table.sum.by_sigma += one.by_sigma;
      }
    }
  }

  const Problem& p_;
  std::vector<T> memory_;
  Tables<T> tables_;
};

// Adds a point to the cells of its row.
template <class T>
void add(const Problem& p, const Tables<T>& t, T factor, T* cells) {
  const auto& last = t.axis[2];
  for (int64_t i = t.axis[0].cells.begin; i < t.axis[0].cells.end; ++i) {
    for (int64_t j = t.axis[1].cells.begin; j < t.axis[1].cells.end; ++j) {
      const T plane = factor * t.axis[0].value[i] * t.axis[1].value[j];
      T* const line = cells + (i * p.size[1] + j) * p.size[2];
#pragma omp simd
      for (int64_t k = last.cells.begin; k < last.cells.end; ++k) {
        line[k] += plane * last.value[k];
      }
    }
  }
}

// <g, b>, and <g, D_a b> with respect to the position and sigma on every axis.
template <class T>
struct Products {
  T value;
  T by_position[kMaxAxes];
  T by_sigma[kMaxAxes];
};

template <bool kSigma, class T>
Products<T> products(const Problem& p, const Tables<T>& t, const T* grad) {
  Products<T> result = {};
  const auto &first = t.axis[0], &second = t.axis[1], &last = t.axis[2];
  for (int64_t i = first.cells.begin; i < first.cells.end; ++i) {
    Products<T> plane = {};
    for (int64_t j = second.cells.begin; j < second.cells.end; ++j) {
      const T* const line = grad + (i * p.size[1] + j) * p.size[2];
      T value = 0, by_position = 0, by_sigma = 0;
#pragma omp simd reduction(+ : value, by_position, by_sigma)
      for (int64_t k = last.cells.begin; k < last.cells.end; ++k) {
        value += line[k] * last.value[k];
        by_position += line[k] * last.by_position[k];
        if constexpr (kSigma) {
          by_sigma += line[k] * last.by_sigma[k];
        }
      }
      plane.value += second.value[j] * value;
      plane.by_position[1] += second.by_position[j] * value;
      plane.by_position[2] += second.value[j] * by_position;
      if constexpr (kSigma) {
        plane.by_sigma[1] += second.by_sigma[j] * value;
        plane.by_sigma[2] += second.value[j] * by_sigma;
      }
    }
    result.value += first.value[i] * plane.value;
    result.by_position[0] += first.by_position[i] * plane.value;
    result.by_sigma[0] += first.by_sigma[i] * plane.value;
    for (int a = 1; a < kMaxAxes; ++a) {
      result.by_position[a] += first.value[i] * plane.by_position[a];
      result.by_sigma[a] += first.value[i] * plane.by_sigma[a];
    }
  }
  return result;
}

template <class T>
const T* data_of(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <class T>
T* mutable_data_of(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

// Calls f(first row, last row) in parallel.
template <class F>
void over_rows(const Problem& p, const F& f) {
  const int64_t work = std::max<int64_t>(1, p.count) * (p.size[0] + p.size[1] + p.size[2]);
  at::parallel_for(0, p.rows, std::max<int64_t>(1, kGrain / work), f);
}

struct Cpu {
  static void build(
      const Problem& p, const Tensor& weight, const Tensor& positions, const Tensor& sigma, Tensor& result) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, result.scalar_type(), "dcls_kernel", [&] {
      using T = at::opmath_type<scalar_t>;
      const auto* const weights = data_of<T>(weight);
      const auto* const places = data_of<T>(positions);
      const auto* const sigmas = data_of<T>(sigma);
      auto* const target = result.mutable_data_ptr<scalar_t>();
      over_rows(p, [&](int64_t begin, int64_t end) {
        Workspace<T> workspace(p);
        std::vector<T> cells(p.cells());
        for (int64_t row = begin; row < end; ++row) {
          std::fill(cells.begin(), cells.end(), T(0));
          for (int64_t point = row * p.count; point < (row + 1) * p.count; ++point) {
            const auto& tables = workspace.fill(places, sigmas, point, /*derivatives=*/false);
            add(p, tables, weights[point] / tables.total, cells.data());
          }
          std::copy(cells.begin(), cells.end(), target + row * p.cells());
        }
      });
    });
  }

  static void differentiate(
      const Problem& p,
      const Tensor& grad_output,
      const Tensor& weight,
      const Tensor& positions,
      const Tensor& sigma,
      const Gradients& gradients) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad_output.scalar_type(), "dcls_kernel_backward", [&] {
      using T = at::opmath_type<scalar_t>;
      const auto* const grads = grad_output.const_data_ptr<scalar_t>();
      const auto* const weights = data_of<T>(weight);
      const auto* const places = data_of<T>(positions);
      const auto* const sigmas = data_of<T>(sigma);
      auto* const by_weight = mutable_data_of<T>(gradients[kWeight]);
      auto* const by_position = mutable_data_of<T>(gradients[kPositions]);
      auto* const by_sigma = mutable_data_of<T>(gradients[kSigma]);
      const int64_t per_axis = p.rows * p.count;
      over_rows(p, [&](int64_t begin, int64_t end) {
        Workspace<T> workspace(p);
        std::vector<T> grad(p.cells());
        for (int64_t row = begin; row < end; ++row) {
          std::copy_n(grads + row * p.cells(), p.cells(), grad.begin());
          for (int64_t point = row * p.count; point < (row + 1) * p.count; ++point) {
            const auto& tables = workspace.fill(places, sigmas, point, /*derivatives=*/true);
            const auto sums = by_sigma == nullptr ? products</*kSigma=*/false>(p, tables, grad.data())
                                                  : products</*kSigma=*/true>(p, tables, grad.data());
            const T each = sums.value / tables.total;
            const T factor = weights[point] / tables.total;
            if (by_weight != nullptr) {
              by_weight[point] = each;
            }
            for (int64_t axis = 0; axis < p.axes; ++axis) {
              const int a = p.first_axis() + static_cast<int>(axis);
              const T lost = p.normalised() ? each * tables.sums_without(a) : T(0);
              const auto& sum = tables.axis[a].sum;
              const int64_t at = axis * per_axis + point;
              if (by_position != nullptr) {
                by_position[at] = factor * (sums.by_position[a] - lost * sum.by_position);
              }
              if (by_sigma != nullptr) {
                by_sigma[at] = factor * (sums.by_sigma[a] - lost * sum.by_sigma) * sign_of_sigma(sigmas[at]);
              }
            }
          }
        }
      });
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CPU, m) { register_device<Cpu>(m); }

}  // namespace ddu::dcls
