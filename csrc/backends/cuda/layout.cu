// SPDX-License-Identifier: MIT
// Conversions between layouts, before and after the kernels that do the work.

// NOTE [ Layout kernels ]
// Each element of a result has one thread that owns it. Neighbouring threads own neighbouring pixels, and a thread owns
// all channels of a packet, or of 32 bytes of sums. So reads and writes are whole memory sectors, without transposing
// through shared memory.

#include "fixed_point.h"
#include "packets.h"

namespace ddu::cuda {

namespace {

constexpr int kThreads = 256;

// A thread owns kPacketsAtOnce packets of a pixel.
constexpr int kPacketsAtOnce = 2;

template <class scalar_t, class Index>
__global__ void __launch_bounds__(kThreads) pack_kernel(
    const UnfoldParams p,
    const ImageView image,        // [B, C, H, W]
    uint4* __restrict__ packets,  // [B, G, packets per group, H + 3, W + 3]
    const int packets_in_group,
    const int chunks,  // of packets_in_group
    const unsigned pixel_blocks,
    uint4* __restrict__ cleared,
    const int64_t cleared_size) {
  let_next_begin();
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < cleared_size;
       k += static_cast<int64_t>(gridDim.x) * kThreads) {
    cleared[k] = make_uint4(0, 0, 0, 0);
  }
  constexpr int kElements = kPacket<scalar_t>;
  const unsigned pitch = static_cast<unsigned>(packed_row(p));
  const unsigned layer = static_cast<unsigned>(packed_layer(p));
  const unsigned plane = static_cast<unsigned>(packed_plane(p));
  const unsigned pixel = blockIdx.x % pixel_blocks * kThreads + threadIdx.x;
  const unsigned chunk = blockIdx.x / pixel_blocks % chunks;
  const Index group = static_cast<Index>(blockIdx.x / pixel_blocks / chunks);  // among the batch's B * G
  if (pixel >= plane) {
    return;
  }
  const int z = fast_axes(p) == 3 ? static_cast<int>(pixel / layer) - static_cast<int>(kBorderLow) : 0;
  const int y = static_cast<int>(pixel % layer / pitch) - static_cast<int>(kBorderLow);
  const int x = static_cast<int>(pixel % pitch) - static_cast<int>(kBorderLow);
  const int first_packet = chunk * kPacketsAtOnce;
  const int per_group = static_cast<int>(p.channels / p.groups);
  const Index groups = static_cast<Index>(p.groups);
  const auto within = [&](int index, int axis) { return index >= 0 && index < static_cast<int>(p.axis[axis].size); };
  const bool in_image = within(z, 0) && within(y, 1) && within(x, 2);
  const Index channel_stride = static_cast<Index>(image.channel);
  const auto* const source = static_cast<const scalar_t*>(image.data) + group / groups * image.batch +
      (group % groups * per_group + first_packet * kElements) * image.channel + z * image.axis[0] + y * image.axis[1] +
      x * image.axis[2];
  uint4* const to = packets + (group * packets_in_group + first_packet) * static_cast<Index>(plane) + pixel;
#pragma unroll
  for (int q = 0; q < kPacketsAtOnce; ++q) {
    if (first_packet + q < packets_in_group) {
      to[q * static_cast<Index>(plane)] = gather_packet(
          source + q * kElements * channel_stride, channel_stride,
          in_image ? per_group - (first_packet + q) * kElements : 0);
    }
  }
}

template <class T>
__device__ __forceinline__ unsigned long long bits_of(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return static_cast<unsigned long long>(__double_as_longlong(x));
  } else {
    return __float_as_uint(x);
  }
}

// NOTE [ Fixed point ]. Floating point numbers that aren't negative compare like their bits.
template <class scalar_t>
__global__ void __launch_bounds__(kThreads) largest_kernel(
    const ColumnsView columns,  // [B, rows, L]
    const int64_t rows,
    const int64_t positions,
    const int64_t size,
    unsigned long long* largest) {
  using T = Compute<scalar_t>;
  const auto* const data = static_cast<const scalar_t*>(columns.data);
  T mine = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const auto take = [&](T x) {
    x = std::fabs(x);
    mine = is_finite(x) && x > mine ? x : mine;
  };
  const bool contiguous = columns.position == 1 && columns.row == positions && columns.batch == rows * positions;
  if (contiguous) {
    constexpr int kElements = kPacket<scalar_t>;
    const int64_t head =
        min(size, static_cast<int64_t>((16 - reinterpret_cast<uintptr_t>(data) % 16) % 16 / sizeof(scalar_t)));
    const int64_t whole = (size - head) / kElements;
    const auto* const vectors = reinterpret_cast<const uint4*>(data + head);
#pragma unroll 4
    for (int64_t k = start; k < whole; k += stride) {
      const uint4 vector = __ldcs(vectors + k);
      if constexpr (std::is_same_v<scalar_t, double>) {
        take(__hiloint2double(vector.y, vector.x));
        take(__hiloint2double(vector.w, vector.z));
      } else {
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          take(element<scalar_t>(vector, e));
        }
      }
    }
    const int64_t tail = size - head - whole * kElements;
    if (start < head) {
      take(load(data + start));
    } else if (start - head < tail) {
      take(load(data + head + whole * kElements + start - head));
    }
  } else {
    for (int64_t k = start; k < size; k += stride) {
      take(load(
          data + k / positions / rows * columns.batch + k / positions % rows * columns.row +
          k % positions * columns.position));
    }
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    mine = max(mine, __shfl_xor_sync(0xffffffffu, mine, lanes));
  }
  if (threadIdx.x % 32 == 0 && mine > 0) {
    atomicMax(largest, bits_of(mine));
  }
}

// The number that a sum represents.
template <class T, bool kFixed>
struct SumReader {
  const void* data;
  FixedPoint<T> fixed;

  __device__ __forceinline__ explicit SumReader(const Sums& sums) : data(sums.data), fixed(sums) {}
  __device__ __forceinline__ T operator()(int64_t at) const {
    return fixed.value(static_cast<const unsigned long long*>(data) + at * kLimbs<T>);
  }
};

template <class T>
struct SumReader<T, false> {
  const T* data;

  __device__ __forceinline__ explicit SumReader(const Sums& sums) : data(static_cast<const T*>(sums.data)) {}
  __device__ __forceinline__ T operator()(int64_t at) const { return data[at]; }
};

// Sums [B, C, H, W].
template <class scalar_t, bool kFixed>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const Sums sums, const int64_t size, scalar_t* __restrict__ image) {
  const SumReader<Compute<scalar_t>, kFixed> sum(sums);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < size) {
    image[at] = static_cast<scalar_t>(sum(at));
  }
}

// Sums [B * G, channel blocks, sums_plane, kChannelBlock]. A thread owns kRun channels of a pixel.
constexpr int kRun = 8;

template <class scalar_t, bool kFixed, class Index>
__device__ __forceinline__ void unblock(
    const UnfoldParams& p,
    const Sums& sums,
    const Index runs,    // among the channels of a group
    const Index blocks,  // of channels
    const Index at,
    scalar_t* __restrict__ image) {  // [B, C, H, W]
  const SumReader<float, kFixed> sum(sums);
  const Index width = static_cast<Index>(p.axis[2].size);
  const Index rows = static_cast<Index>(p.axis[1].size);
  const Index pixels = static_cast<Index>(pixels_of(p));
  const Index per_group = static_cast<Index>(p.channels / p.groups);
  const Index pixel = at % pixels;
  const Index first = at / pixels % runs * kRun;
  const Index group = at / pixels / runs;
  const int64_t layer = fast_axes(p) == 3 ? pixel / width / rows + 1 : 0;
  const int64_t place = layer * sums_layer(p) + (pixel / width % rows + 1) * sums_row(p) + pixel % width + 1;
  const int64_t source =
      ((static_cast<int64_t>(group) * blocks + first / kChannelBlock) * sums_plane(p) + place) * kChannelBlock +
      first % kChannelBlock;
  scalar_t* const to = image + (static_cast<int64_t>(group) * per_group + first) * pixels + pixel;
  float values[kRun];
  if constexpr (kFixed) {
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      values[k] = sum(source + k);
    }
  } else {
    const auto* const vectors = reinterpret_cast<const float4*>(sum.data + source);
#pragma unroll
    for (int k = 0; k < kRun / 4; ++k) {
      const float4 vector = __ldcs(vectors + k);
      values[4 * k] = vector.x;
      values[4 * k + 1] = vector.y;
      values[4 * k + 2] = vector.z;
      values[4 * k + 3] = vector.w;
    }
  }
#pragma unroll
  for (int k = 0; k < kRun; ++k) {
    if (first + k < per_group) {
      to[k * pixels] = static_cast<scalar_t>(values[k]);
    }
  }
}

// The first blocks process the image, the rest the map.
template <class scalar_t, bool kFixed, class Index>
__global__ void __launch_bounds__(kThreads) finish_kernel(
    const UnfoldParams p,
    const Sums sums,
    const Index runs,    // among the channels of a group
    const Index blocks,  // of channels
    const Index size,
    const unsigned image_blocks,
    scalar_t* __restrict__ image,  // [B, C, H, W]
    const MapSums map) {
  wait_for_previous();
  if (blockIdx.x < image_blocks) {
    const Index at = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x;
    if (at < size) {
      unblock<scalar_t, kFixed>(p, sums, runs, blocks, at, image);
    }
    return;
  }
  const int64_t at = static_cast<int64_t>(blockIdx.x - image_blocks) * kThreads + threadIdx.x;
  if (at < map.size) {
    float sum = 0;
    for (int64_t split = 0; split < map.splits; ++split) {
      sum += map.partial[split * map.size + at];
    }
    if (map.is_float) {
      static_cast<float*>(map.result)[at] = sum;
    } else {
      static_cast<scalar_t*>(map.result)[at] = static_cast<scalar_t>(sum);
    }
  }
}

}  // namespace

int64_t packets_size(const UnfoldParams& p, c10::ScalarType type) {
  int64_t size = 0;
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    size = p.batch * p.groups * packets_per_group<scalar_t>(p) * kPacket<scalar_t> * packed_plane(p);
  });
  return size;
}

void launch_pack(
    const UnfoldParams& p,
    c10::ScalarType type,
    bool wide,
    const ImageView& image,
    void* packets,
    void* cleared,
    int64_t cleared_bytes,
    cudaStream_t stream) {
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const int64_t packets_in_group = packets_per_group<scalar_t>(p);
    const int64_t chunks = ceil_div<int64_t>(packets_in_group, kPacketsAtOnce);
    const int64_t pixel_blocks = ceil_div<int64_t>(packed_plane(p), kThreads);
    const auto grid = grid_of(p.batch * p.groups * chunks * pixel_blocks);
    dispatch_index(wide, [&](auto index) {
      counted<pack_kernel<scalar_t, decltype(index)>>().launch()<<<grid, kThreads, 0, stream>>>(
          p, image, static_cast<uint4*>(packets), static_cast<int>(packets_in_group), static_cast<int>(chunks),
          static_cast<unsigned>(pixel_blocks), static_cast<uint4*>(cleared),
          cleared_bytes / static_cast<int64_t>(sizeof(uint4)));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_largest(
    const UnfoldParams& p,
    c10::ScalarType type,
    const ColumnsView& columns,
    unsigned long long* largest,
    cudaStream_t stream) {
  const int64_t rows = p.channels * taps_of(p);
  const int64_t positions = positions_of(p);
  const int64_t size = p.batch * rows * positions;
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    constexpr int64_t kMostBlocks = 132 * 8;  // enough to fill a large GPU, few enough to limit atomics
    const auto grid = std::min(ceil_div<int64_t>(size, kThreads * 16), kMostBlocks);
    counted<largest_kernel<scalar_t>>().launch()<<<static_cast<unsigned>(grid), kThreads, 0, stream>>>(
        columns, rows, positions, size, largest);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

int64_t bytes_per_sum(c10::ScalarType type, bool fixed_point) {
  const bool is_double = type == c10::ScalarType::Double;
  return fixed_point ? 8 * (is_double ? kLimbs<double> : kLimbs<float>) : is_double ? 8 : 4;
}

void launch_convert(const UnfoldParams& p, c10::ScalarType type, const Sums& sums, void* image, cudaStream_t stream) {
  const int64_t size = p.batch * p.channels * pixels_of(p);
  const auto grid = grid_of(ceil_div<int64_t>(size, kThreads));
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto kernel = [&] {
      const auto fixed = counted<convert_kernel<scalar_t, true>>();
      if constexpr (std::is_same_v<scalar_t, Compute<scalar_t>>) {
        return fixed;  // floating point sums are already the image
      } else {
        return sums.largest != nullptr ? fixed : counted<convert_kernel<scalar_t, false>>();
      }
    }();
    kernel.launch()<<<grid, kThreads, 0, stream>>>(sums, size, static_cast<scalar_t*>(image));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_finish(
    const UnfoldParams& p,
    c10::ScalarType type,
    bool wide,
    const Sums& sums,
    void* image,
    const MapSums& map,
    cudaStream_t stream) {
  const int64_t runs = ceil_div<int64_t>(p.channels / p.groups, kRun);
  const int64_t size = image != nullptr ? p.batch * p.groups * runs * pixels_of(p) : 0;
  const int64_t image_blocks = ceil_div<int64_t>(size, kThreads);
  const auto grid = grid_of(image_blocks + ceil_div<int64_t>(map.size, kThreads));
  if (grid == 0) {
    return;
  }
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    dispatch_index(wide, [&](auto index) {
      using Index = decltype(index);
      const auto kernel = sums.largest != nullptr ? counted<finish_kernel<scalar_t, true, Index>>()
                                                  : counted<finish_kernel<scalar_t, false, Index>>();
      launch_after(
          kernel.launch(), grid, kThreads, 0, stream, p, sums, static_cast<Index>(runs),
          static_cast<Index>(channel_blocks(p)), static_cast<Index>(size), static_cast<unsigned>(image_blocks),
          static_cast<scalar_t*>(image), map);
    });
  });
}

}  // namespace ddu::cuda
