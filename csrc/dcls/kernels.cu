// SPDX-License-Identifier: MIT
// The kernel and its gradients: NOTE [ Shares ] in share.h. Nothing is added atomically: every run gives the same bits.

#include "../backends/cuda/device.h"
#include "launch.h"

namespace ddu::dcls {

namespace {

using cuda::ceil_div;
using cuda::Compute;
using cuda::counted;
using cuda::dispatch_floating;
using cuda::grid_of;

constexpr int kWarp = 32;
constexpr int kThreads = 128;
constexpr int kPoints = 64;  // points whose places are in shared memory at once

// The place of a point along axis a, one of the last kAxes axes; the problem may have fewer.
template <class T>
__device__ __forceinline__ Place<T> place_of(
    const Problem& p, const T* positions, const T* sigma, int64_t point, int a) {
  if (a < p.first_axis()) {
    return nowhere<T>();
  }
  const int64_t at = (a - p.first_axis()) * p.rows * p.count + point;
  const T width = sigma == nullptr ? T(0) : sigma[at];
  return place(positions[at], width, p.size[a], static_cast<T>(least_sigma(p.version)));
}

struct Cell {
  int64_t index[kMaxAxes];
};

// Cell `number` of a box of cells. 32-bit divisions, used where they suffice, are several times as fast.
__device__ __forceinline__ Cell cell_of(int64_t number, int64_t height, int64_t width) {
  if (number < (int64_t(1) << 31) && height < (int64_t(1) << 31) && width < (int64_t(1) << 31)) {
    const auto line = static_cast<unsigned>(number) / static_cast<unsigned>(width);
    const auto plane = line / static_cast<unsigned>(height);
    return {{plane, line - plane * static_cast<unsigned>(height), number - line * width}};
  }
  const int64_t line = number / width;
  return {{line / height, line % height, number % width}};
}

// A thread owns kCells cells of a row, kThreads apart; a block shares the places of kPoints points at a time.
template <class scalar_t, bool kGauss, int kAxes, int kCells>
__global__ void __launch_bounds__(kThreads) build_kernel(
    const Problem p,
    const int64_t tiles,                              // per row
    const Compute<scalar_t>* __restrict__ weight,     // [rows, count]
    const Compute<scalar_t>* __restrict__ positions,  // [axes, rows, count]
    const Compute<scalar_t>* __restrict__ sigma,      // likewise, or nullptr
    scalar_t* __restrict__ result) {                  // [rows, *size]
  using T = Compute<scalar_t>;
  constexpr int kFirst = kMaxAxes - kAxes;
  __shared__ Place<T> places[kAxes][kPoints];
  __shared__ T sums[kAxes][kPoints];
  __shared__ T factors[kPoints];
  const int64_t row = blockIdx.x / tiles;
  const int64_t first_cell = blockIdx.x % tiles * (kThreads * kCells) + threadIdx.x;
  Cell cells[kCells];
  T total[kCells] = {};
#pragma unroll
  for (int c = 0; c < kCells; ++c) {
    cells[c] = cell_of(first_cell + c * kThreads, p.size[1], p.size[2]);
  }
  for (int64_t begin = 0; begin < p.count; begin += kPoints) {
    const int points = static_cast<int>(p.count - begin < kPoints ? p.count - begin : kPoints);
    __syncthreads();
    for (int task = static_cast<int>(threadIdx.x); task < points * kAxes; task += kThreads) {
      const int point = task / kAxes;
      const int axis = task % kAxes;
      const int a = kFirst + axis;
      const auto where = place_of(p, positions, sigma, row * p.count + begin + point, a);
      T sum = 0;
      if (p.normalised()) {
        const auto near = cells_near<kGauss>(where, p.size[a]);
        for (int64_t cell = near.begin; cell < near.end; ++cell) {
          sum += share<kGauss>(where, cell).value;
        }
      }
      places[axis][point] = where;
      sums[axis][point] = sum;
    }
    __syncthreads();
    for (int point = static_cast<int>(threadIdx.x); point < points; point += kThreads) {
      T all = 1;
      for (int axis = 0; axis < kAxes; ++axis) {
        all *= sums[axis][point];
      }
      const T own = weight[row * p.count + begin + point];
      factors[point] = p.normalised() ? own / (all + static_cast<T>(kEpsilon)) : own;
    }
    __syncthreads();
    for (int point = 0; point < points; ++point) {
#pragma unroll
      for (int c = 0; c < kCells; ++c) {
        if (first_cell + c * kThreads < p.cells()) {
          T product = factors[point];
#pragma unroll
          for (int axis = 0; axis < kAxes; ++axis) {
            product *= share<kGauss>(places[axis][point], cells[c].index[kFirst + axis]).value;
          }
          total[c] += product;
        }
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kCells; ++c) {
    const int64_t cell = first_cell + c * kThreads;
    if (cell < p.cells()) {
      result[row * p.cells() + cell] = static_cast<scalar_t>(total[c]);
    }
  }
}

template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffff, value, step);
  }
  return value;
}

// A warp owns a point; its lanes take turns at the cells.
template <class scalar_t, bool kGauss, int kAxes>
__global__ void __launch_bounds__(kThreads) differentiate_kernel(
    const Problem p,
    const scalar_t* __restrict__ grad_output,         // [rows, *size]
    const Compute<scalar_t>* __restrict__ weight,     // [rows, count]
    const Compute<scalar_t>* __restrict__ positions,  // [axes, rows, count]
    const Compute<scalar_t>* __restrict__ sigma,      // likewise, or nullptr
    Compute<scalar_t>* __restrict__ grad_weight,      // gradients have their tensors' shapes, or are nullptr
    Compute<scalar_t>* __restrict__ grad_positions,
    Compute<scalar_t>* __restrict__ grad_sigma) {
  using T = Compute<scalar_t>;
  constexpr int kFirst = kMaxAxes - kAxes;
  const int64_t point = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  if (point >= p.rows * p.count) {
    return;
  }
  Place<T> where[kAxes];
  Cells near[kMaxAxes] = {{0, 1}, {0, 1}, {0, 1}};
  Share<T> sums[kAxes];  // over all cells of an axis
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) {
    const int a = kFirst + axis;
    where[axis] = place_of(p, positions, sigma, point, a);
    near[a] = cells_near<kGauss>(where[axis], p.size[a]);
    Share<T> sum = {};
    for (int64_t cell = near[a].begin + lane; cell < near[a].end; cell += kWarp) {
      const auto one = share<kGauss>(where[axis], cell);
      sum.value += one.value;
      sum.by_position += one.by_position;
      sum.by_sigma += one.by_sigma;
    }
    sums[axis] = {sum_of_warp(sum.value), sum_of_warp(sum.by_position), sum_of_warp(sum.by_sigma)};
  }
  const scalar_t* const grad = grad_output + point / p.count * p.cells();
  T value = 0;
  T by_position[kAxes] = {};
  T by_sigma[kAxes] = {};
  const int64_t box = near[0].size() * near[1].size() * near[2].size();
  for (int64_t number = lane; number < box; number += kWarp) {
    const auto cell = cell_of(number, near[1].size(), near[2].size());
    int64_t at = 0;
#pragma unroll
    for (int a = 0; a < kMaxAxes; ++a) {
      at = at * p.size[a] + near[a].begin + cell.index[a];
    }
    const T g = static_cast<T>(grad[at]);
    Share<T> shares[kAxes];
    T product = g;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      const int a = kFirst + axis;
      shares[axis] = share<kGauss>(where[axis], near[a].begin + cell.index[a]);
      product *= shares[axis].value;
    }
    value += product;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      T others = g;
#pragma unroll
      for (int other = 0; other < kAxes; ++other) {
        others *= other == axis ? T(1) : shares[other].value;
      }
      by_position[axis] += others * shares[axis].by_position;
      by_sigma[axis] += others * shares[axis].by_sigma;
    }
  }
  T all = 1;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) {
    all *= sums[axis].value;
  }
  const T total = p.normalised() ? all + static_cast<T>(kEpsilon) : T(1);
  const T each = sum_of_warp(value) / total;
  const T factor = weight[point] / total;
  if (lane == 0 && grad_weight != nullptr) {
    grad_weight[point] = each;
  }
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) {
    const T of_position = sum_of_warp(by_position[axis]);
    const T of_sigma = sum_of_warp(by_sigma[axis]);
    T lost = p.normalised() ? each : T(0);
#pragma unroll
    for (int other = 0; other < kAxes; ++other) {
      lost *= other == axis ? T(1) : sums[other].value;
    }
    const int a = kFirst + axis;
    if (lane == 0 && a >= p.first_axis()) {
      const int64_t at = (a - p.first_axis()) * p.rows * p.count + point;
      if (grad_positions != nullptr) {
        grad_positions[at] = factor * (of_position - lost * sums[axis].by_position);
      }
      if (grad_sigma != nullptr) {
        grad_sigma[at] = factor * (of_sigma - lost * sums[axis].by_sigma) * sign_of_sigma(sigma[at]);
      }
    }
  }
}

// Calls f with constants: whether the shares are Gaussian, and the number of axes that the kernel sees.
template <class F>
void dispatch_shares(const Problem& p, const F& f) {
  const auto for_axes = [&](auto gauss) {
    if (p.axes == 3) {
      f(gauss, std::integral_constant<int, 3>());
    } else {
      f(gauss, std::integral_constant<int, 2>());
    }
  };
  if (p.version == Version::kGauss) {
    for_axes(std::true_type());
  } else {
    for_axes(std::false_type());
  }
}

}  // namespace

void launch_build(
    const Problem& p,
    c10::ScalarType type,
    const void* weight,
    const void* positions,
    const void* sigma,
    void* result,
    cudaStream_t stream) {
  // More cells per thread save work on the places; fewer cells give more blocks.
  constexpr int kMany = 3;
  constexpr int64_t kEnoughCells = int64_t(1) << 21;
  const bool many = cuda::forced.fast || p.rows * p.cells() >= kEnoughCells;
  const int64_t tiles = ceil_div<int64_t>(p.cells(), kThreads * (many ? kMany : 1));
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = Compute<scalar_t>;
    dispatch_shares(p, [&](auto gauss, auto axes) {
      constexpr bool kGauss = decltype(gauss)::value;
      constexpr int kAxes = decltype(axes)::value;
      const auto kernel = many ? counted<build_kernel<scalar_t, kGauss, kAxes, kMany>>()
                               : counted<build_kernel<scalar_t, kGauss, kAxes, 1>>();
      kernel.launch()<<<grid_of(p.rows * tiles), kThreads, 0, stream>>>(
          p, tiles, static_cast<const T*>(weight), static_cast<const T*>(positions), static_cast<const T*>(sigma),
          static_cast<scalar_t*>(result));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_differentiate(
    const Problem& p,
    c10::ScalarType type,
    const void* grad_output,
    const void* weight,
    const void* positions,
    const void* sigma,
    void* grad_weight,
    void* grad_positions,
    void* grad_sigma,
    cudaStream_t stream) {
  const auto blocks = grid_of(ceil_div<int64_t>(p.rows * p.count, kThreads / kWarp));
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = Compute<scalar_t>;
    dispatch_shares(p, [&](auto gauss, auto axes) {
      const auto kernel = counted<differentiate_kernel<scalar_t, decltype(gauss)::value, decltype(axes)::value>>();
      kernel.launch()<<<blocks, kThreads, 0, stream>>>(
          p, static_cast<const scalar_t*>(grad_output), static_cast<const T*>(weight), static_cast<const T*>(positions),
          static_cast<const T*>(sigma), static_cast<T*>(grad_weight), static_cast<T*>(grad_positions),
          static_cast<T*>(grad_sigma));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::dcls
