// SPDX-License-Identifier: MIT
// Conversions between channels-first and channels-last, for the convolution.

#include "convolution.h"
#include "device.h"

namespace ddu::cuda {

namespace {

constexpr int kTransposed = 32;  // rows and columns per tile

// [B, rows, columns] to [B, columns, rows].
template <class From, class To>
__global__ void __launch_bounds__(kTransposed * 8) transpose_kernel(
    const From* from, int64_t from_batch, int64_t from_row, To* to, int rows, int columns, int column_tiles) {
  __shared__ float tile[kTransposed][kTransposed + 1];
  const int64_t b = blockIdx.y;
  const int row = static_cast<int>(blockIdx.x) / column_tiles * kTransposed;
  const int column = static_cast<int>(blockIdx.x) % column_tiles * kTransposed;
  const int x = static_cast<int>(threadIdx.x) % kTransposed;
  for (int y = static_cast<int>(threadIdx.x) / kTransposed; y < kTransposed; y += 8) {
    if (row + y < rows && column + x < columns) {
      tile[y][x] = load(from + b * from_batch + (row + y) * from_row + column + x);
    }
  }
  __syncthreads();
  for (int y = static_cast<int>(threadIdx.x) / kTransposed; y < kTransposed; y += 8) {
    if (column + y < columns && row + x < rows) {
      to[(b * columns + column + y) * rows + row + x] = static_cast<To>(tile[x][y]);
    }
  }
}

template <class From, class To>
void launch_transpose(
    const void* from,
    int64_t from_batch,
    int64_t from_row,
    void* to,
    int64_t batch,
    int rows,
    int columns,
    cudaStream_t stream) {
  const int column_tiles = ceil_div(columns, kTransposed);
  const dim3 grid(
      grid_of(static_cast<int64_t>(ceil_div(rows, kTransposed)) * column_tiles), static_cast<unsigned>(batch));
  const auto kernel = counted<transpose_kernel<From, To>>();
  kernel.launch()<<<grid, kTransposed * 8, 0, stream>>>(
      static_cast<const From*>(from), from_batch, from_row, static_cast<To*>(to), rows, columns, column_tiles);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

void launch_channels_last(
    c10::ScalarType type,
    const void* from,
    int64_t from_batch,
    int64_t from_channel,
    void* to,
    int64_t batch,
    int64_t channels,
    int64_t length,
    cudaStream_t stream) {
  dispatch_half_or_float(type, [&](auto zero) {
    using T = decltype(zero);
    launch_transpose<T, T>(
        from, from_batch, from_channel, to, batch, static_cast<int>(channels), static_cast<int>(length), stream);
  });
}

void launch_channels_first(
    c10::ScalarType type,
    const float* from,
    void* to,
    int64_t batch,
    int64_t channels,
    int64_t length,
    cudaStream_t stream) {
  dispatch_half_or_float(type, [&](auto zero) {
    launch_transpose<float, decltype(zero)>(
        from, length * channels, channels, to, batch, static_cast<int>(length), static_cast<int>(channels), stream);
  });
}

}  // namespace ddu::cuda
