// SPDX-License-Identifier: MIT
// What the kernels of the fused convolution share. For nvcc only.

// NOTE [ Fused convolution ]
// A warp owns 32 output positions. For every tap it locates them, a lane each, and leaves an address and the corners'
// weights in shared memory. Then it gathers the samples in the very layout in which mma wants its left operand: of an
// m16n8 product, lane 4 g + q holds rows g and g + 8 and of every row a few channels that depend on q. Which channels
// these are is free, for the sum goes over all of them, as long as the right operand has the same ones. So let lane q
// have the q-th packet (16 bytes, one load for each corner) of 64 bytes of channels, a segment, in two products of
// which the first takes the first half of all packets. The right operand is then read in packets too.
//
//     product j of a segment, lane 4 g + q:   left    words 2 j and 2 j + 1 of packet q of rows g and g + 8
//                                             right   words 2 j and 2 j + 1 of packet q of column g
//
// which is the same for half types, m16n8k16, where a word is a pair of channels, and for TF32, m16n8k8, where it is
// one. The right operand, 64 rows of 128 bytes, a step's, is shared by the warps of a block, in a ring of stages that
// cp.async fills.
//
// The columns of the product are permuted as well, so that what a lane holds of a row of results lies side by side:
// see column_of.
//
// In float32 without TF32 every operand is split in two TF32 numbers, and three products are added up: what the fourth
// would add is below float's rounding. Tensor cores cut their sums off where others round; so a sum is taken over from
// them after every step.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "convolution.h"
#include "device.h"
#include "packets.h"

namespace ddu::cuda {

constexpr int kWarp = 32;
constexpr int kRows = 32;   // positions of a warp
constexpr int kBlocks = 4;  // of 8 rows
constexpr int kStages = 3;
constexpr int kSegments = 2;  // of a step
constexpr int kLanes = 4;     // that share a row, a packet each of a segment
constexpr int kStepBytes = 128;
constexpr int kSharedBytes = 48 << 10;  // of a block, without asking for more

template <class T>
constexpr int kDepth = kStepBytes / static_cast<int>(sizeof(T));  // channels of a step

// FusedProblem, as the kernels see it.
struct Fused {
  UnfoldParams p;
  FastAxis axis[kMaxAxes];
  PositionsView positions;
  const char* input;
  const char* mask;
  int64_t input_batch;  // bytes
  int64_t mask_batch, mask_channel;
  int taps, length, channels, outputs;
  int group_channels, group_outputs;
  int runs, run;               // of a group of the convolution; channels of a run
  int position_run, mask_run;  // channels that share positions, and a mask
  unsigned step[kMaxAxes];     // bytes from a pixel to the next along an axis
};

// ---- arithmetic

// Words of a packet of channels: pairs of half types, single floats.
template <class T>
struct Words;

template <>
struct Words<c10::Half> {
  static __device__ __forceinline__ unsigned spread(float x) {
    const __half2 pair = __float2half2_rn(x);
    return reinterpret_cast<const unsigned&>(pair);
  }
  static __device__ __forceinline__ unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
    const __half2 r = __hfma2(
        reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b), reinterpret_cast<const __half2&>(c));
    return reinterpret_cast<const unsigned&>(r);
  }
  static __device__ __forceinline__ unsigned multiply(unsigned a, unsigned b) {
    const __half2 r = __hmul2(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
    return reinterpret_cast<const unsigned&>(r);
  }
};

template <>
struct Words<c10::BFloat16> {
  static __device__ __forceinline__ unsigned spread(float x) {
    const __nv_bfloat162 pair = __float2bfloat162_rn(x);
    return reinterpret_cast<const unsigned&>(pair);
  }
  static __device__ __forceinline__ unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
    unsigned r = 0;
#if __CUDA_ARCH__ >= 800
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
#endif
    return r;
  }
  static __device__ __forceinline__ unsigned multiply(unsigned a, unsigned b) {
    return multiply_add(a, b, 0x80008000u);  // plus minus zero
  }
};

template <>
struct Words<float> {
  static __device__ __forceinline__ unsigned spread(float x) { return __float_as_uint(x); }
  static __device__ __forceinline__ unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
    return __float_as_uint(fmaf(__uint_as_float(a), __uint_as_float(b), __uint_as_float(c)));
  }
  static __device__ __forceinline__ unsigned multiply(unsigned a, unsigned b) {
    return __float_as_uint(__uint_as_float(a) * __uint_as_float(b));
  }
};

struct Packet {
  unsigned word[4];
};

__device__ __forceinline__ Packet packet_of(const uint4& v) { return {{v.x, v.y, v.z, v.w}}; }

__device__ __forceinline__ unsigned to_tf32(float x) {
  unsigned r = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
#endif
  return r;
}

template <class T>
__device__ __forceinline__ void mma(
    float (&sum)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, c10::Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
#endif
}

// A left or right operand's packets, ready for mma: as they are, rounded to TF32, or split into two TF32 numbers.
template <class T, bool kExact>
struct Operand {
  Packet high;
  Packet low;  // only if kExact

  __device__ __forceinline__ explicit Operand(const Packet& p) : high(p) {
    if constexpr (std::is_same_v<T, float>) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = __uint_as_float(p.word[i]);
        high.word[i] = to_tf32(x);
        if constexpr (kExact) {
          // What is not finite is all in the lower part, which meets no lower part: that may be zero, times inf NaN.
          const float rest = x - __uint_as_float(high.word[i]);
          const bool split = is_finite(rest);
          high.word[i] = split ? high.word[i] : 0u;
          low.word[i] = to_tf32(split ? rest : x);
        }
      }
    }
  }
  __device__ __forceinline__ Operand() {}
};

// sum += rows 0..7 (top) and 8..15 (bottom) of the left operand times the right one, over a segment.
template <class T, bool kExact>
__device__ __forceinline__ void multiply(
    float (&sum)[4], const Operand<T, kExact>& top, const Operand<T, kExact>& bottom, const Operand<T, kExact>& right) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const auto product = [&](const Packet& t, const Packet& b, const Packet& r) {
      mma<T>(sum, t.word[2 * j], b.word[2 * j], t.word[2 * j + 1], b.word[2 * j + 1], r.word[2 * j], r.word[2 * j + 1]);
    };
    if constexpr (kExact) {
      product(top.low, bottom.low, right.high);
      product(top.high, bottom.high, right.low);
    }
    product(top.high, bottom.high, right.high);
  }
}

// ---- shared memory

__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// A barrier of one of the block's teams of warps.
template <int kTeams>
__device__ __forceinline__ void team_barrier(int team, int threads) {
  if constexpr (kTeams == 1) {
    __syncthreads();
  } else {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "r"(threads) : "memory");
  }
}

// Where packet j of a row of 128 bytes lies: two neighbouring rows' segments in different banks.
__device__ __forceinline__ int place_in_stage(int row, int j) {
  return row * kStepBytes + ((j ^ ((row & 1) << 2)) << 4);
}

// The column of the result that column n of product `tile` is: of the `kWidth` that four lanes hold of each other's
// side, lane q has kWidth consecutive ones, tile after tile.
template <int kWidth>
__device__ __forceinline__ constexpr int column_of(int tile, int n) {
  constexpr int kTilesOf = kWidth / 2;
  return tile / kTilesOf * (kLanes * kWidth) + n / 2 * kWidth + 2 * (tile % kTilesOf) + n % 2;
}

// ---- where the taps of a position lie

template <class T, int kAxes>
struct Locator {
  static constexpr int kFirst = kMaxAxes - kAxes;

  const Fused& f;
  bool valid;
  int64_t at;  // in the positions
  int64_t mask_at;
  int pixel[kAxes];
  float parameter[kAxes];
  bool finite;
  int tap[kAxes];

  __device__ __forceinline__ Locator(const Fused& f, int b, int position) : f(f), valid(position < f.length) {
    int rest = valid ? position : 0;
    at = b * f.positions.batch;
    mask_at = b * f.mask_batch + rest;
#pragma unroll
    for (int a = kAxes - 1; a >= 0; --a) {
      const auto& axis = f.axis[kFirst + a];
      const int index = a == 0 ? rest : rest % axis.out_size;
      rest = a == 0 ? rest : rest / axis.out_size;
      at += index * f.positions.axis[kFirst + a];
      pixel[a] = axis.pixel(index);
    }
  }

  __device__ __forceinline__ void begin(int number) {
#pragma unroll
    for (int a = kAxes - 1; a >= 0; --a) {
      const int kernel = f.axis[kFirst + a].kernel;
      tap[a] = a == 0 ? number : number % kernel;
      number = a == 0 ? number : number / kernel;
    }
  }

  // Of the window, or of tap `number`, for channels from `channel` on.
  __device__ __forceinline__ void load_parameters(int channel, int number) {
    float distance[kAxes] = {};
    if (f.p.source == Source::kAffine) {
      distances(distance);
    }
    finite = ddu::cuda::load_parameters<T>(
        f.p, f.positions, f.p.source, at, channel / f.position_run, number, distance, parameter);
  }

  // Of the tap from the window's centre at rate one.
  __device__ __forceinline__ void distances(float (&distance)[kAxes]) const {
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      distance[a] = f.axis[kFirst + a].distance(tap[a]);
    }
  }

  __device__ __forceinline__ float load_mask(int channel, int number) const {
    if (f.mask == nullptr) {
      return 1.f;
    }
    const int64_t row = static_cast<int64_t>(channel / f.mask_run) * f.taps + number;
    return load(reinterpret_cast<const T*>(f.mask) + mask_at + row * f.mask_channel);
  }

  __device__ __forceinline__ float slope(int a) const { return f.axis[kFirst + a].slope(f.p.source, tap[a]); }

  __device__ __forceinline__ void locate(Neighbours<float, int> (&n)[kAxes]) const {
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      n[a] = f.axis[kFirst + a].template neighbours_of<false>(f.p.source, tap[a], pixel[a], parameter[a]);
    }
  }

  // The address of the first corner, in bytes of the image, modulo 2^32; and which corners lie inside.
  __device__ __forceinline__ uint2 address(const Neighbours<float, int> (&n)[kAxes]) const {
    unsigned offset = 0;
    unsigned inside = valid ? (1u << (1 << kAxes)) - 1 : 0;
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      offset += static_cast<unsigned>(n[a].pixel) * f.step[kFirst + a];
      const bool low = n[a].pixel >= 0;
      const bool high = n[a].pixel >= -1 && n[a].pixel + 1 < f.axis[kFirst + a].size;
#pragma unroll
      for (int c = 0; c < 1 << kAxes; ++c) {
        const bool here = (c & axis_bit(kFirst + a)) != 0 ? high : low;
        inside = here ? inside : inside & ~(1u << c);
      }
    }
    return {offset, inside};
  }
};

// What the forward needs to know of a tap of a position.
template <class T, int kAxes>
struct alignas(16) Sampled {
  unsigned offset, inside;
  T weight[1 << kAxes];  // with the mask

  __device__ __forceinline__ void set(const Locator<T, kAxes>& at, int channel, int number) {
    Neighbours<float, int> n[kAxes];
    at.locate(n);
    const auto address = at.address(n);
    offset = address.x;
    inside = address.y;
    AxisWeights<float> along[kAxes];
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      along[a] = axis_weights(n[a].fraction, n[a].direction);
    }
    const float mask = at.finite ? at.load_mask(channel, number) : std::numeric_limits<float>::quiet_NaN();
#pragma unroll
    for (int c = 0; c < 1 << kAxes; ++c) {
      weight[c] = static_cast<T>(at.valid ? mask * corner_weight(along, 0, c) : 0.f);
    }
  }
};

// What the backward needs.
template <int kAxes>
struct alignas(16) Tapped {
  static constexpr unsigned kNotFinite = 1u << 31;

  unsigned offset, inside;  // with kNotFinite
  float mask;
  float fraction[kAxes];
  float direction[kAxes];

  template <class T>
  __device__ __forceinline__ void set(const Locator<T, kAxes>& at, int channel, int number) {
    Neighbours<float, int> n[kAxes];
    at.locate(n);
    const auto address = at.address(n);
    offset = address.x;
    inside = address.y | (at.finite ? 0u : kNotFinite);
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      fraction[a] = n[a].fraction;
      direction[a] = n[a].direction;
    }
    mask = at.valid ? at.load_mask(channel, number) : 0.f;
  }

  __device__ __forceinline__ bool finite() const { return (inside & kNotFinite) == 0; }
};

template <int kAxes>
__device__ __forceinline__ unsigned corner_step(const Fused& f, int c) {
  unsigned offset = 0;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    offset += (c & axis_bit(kMaxAxes - kAxes + a)) != 0 ? f.step[kMaxAxes - kAxes + a] : 0u;
  }
  return offset;
}

// The packets at the corners of a tap; zeros for those outside.
template <int kAxes>
__device__ __forceinline__ void gather(
    const Fused& f, const char* image, unsigned offset, unsigned inside, uint4 (&corner)[1 << kAxes]) {
#pragma unroll
  for (int c = 0; c < 1 << kAxes; ++c) {
    corner[c] = make_uint4(0, 0, 0, 0);
    if ((inside >> c & 1) != 0) {
      corner[c] = __ldg(reinterpret_cast<const uint4*>(image + (offset + corner_step<kAxes>(f, c))));
    }
  }
}

template <class T, int kAxes>
__device__ __forceinline__ Packet interpolate(const uint4 (&corner)[1 << kAxes], const T (&weight)[1 << kAxes]) {
  Packet result;
#pragma unroll
  for (int c = 0; c < 1 << kAxes; ++c) {
    const unsigned factor = Words<T>::spread(static_cast<float>(weight[c]));
    const auto packet = packet_of(corner[c]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      result.word[i] = c == 0 ? Words<T>::multiply(packet.word[i], factor)
                              : Words<T>::multiply_add(packet.word[i], factor, result.word[i]);
    }
  }
  return result;
}

// ---- steps

// The steps of a sum, run by run, tap by tap, `chunks` of channels each.
struct Step {
  int run, tap, chunk;

  __device__ __forceinline__ Step(int number, int taps, int chunks)
      : run(number / chunks / taps), tap(number / chunks % taps), chunk(number % chunks) {}

  __device__ __forceinline__ void next(int taps, int chunks) {
    if (++chunk == chunks) {
      chunk = 0;
      if (++tap == taps) {
        tap = 0;
        ++run;
      }
    }
  }
};

// ---- host

inline Fused fused(const FusedProblem& problem, c10::ScalarType type) {
  const auto& p = problem.p;
  const auto bytes = static_cast<int64_t>(c10::elementSize(type));
  Fused f = {};
  f.p = p;
  f.positions = problem.positions;
  f.input = static_cast<const char*>(problem.input);
  f.mask = static_cast<const char*>(problem.mask);
  f.input_batch = pixels_of(p) * p.channels * bytes;
  f.mask_batch = problem.mask_batch;
  f.mask_channel = problem.mask_channel;
  f.taps = static_cast<int>(taps_of(p));
  f.length = static_cast<int>(positions_of(p));
  f.channels = static_cast<int>(p.channels);
  f.outputs = static_cast<int>(problem.outputs);
  f.group_channels = static_cast<int>(p.channels / problem.groups);
  f.group_outputs = static_cast<int>(problem.outputs / problem.groups);
  f.run = static_cast<int>(problem.run);
  f.runs = f.group_channels / f.run;
  f.position_run = static_cast<int>(p.channels / p.groups);
  f.mask_run = static_cast<int>(p.channels / problem.mask_groups);
  int64_t step = p.channels * bytes;
  for (int a = kMaxAxes - 1; a >= 0; --a) {
    f.axis[a] = fast_axis(p, a);
    f.step[a] = static_cast<unsigned>(step);
    step *= p.axis[a].size;
  }
  return f;
}

// f(a value of the type, whether the product is exact) as constants.
template <class F>
void dispatch_product(c10::ScalarType type, bool exact, const F& f) {
  if (type == c10::ScalarType::Half) {
    f(c10::Half(), std::false_type());
  } else if (type == c10::ScalarType::BFloat16) {
    f(c10::BFloat16(), std::false_type());
  } else if (exact) {
    f(float(), std::true_type());
  } else {
    f(float(), std::false_type());
  }
}

template <class F>
void dispatch_axes(const UnfoldParams& p, const F& f) {
  return fast_axes(p) == 3 ? f(std::integral_constant<int, 3>()) : f(std::integral_constant<int, 2>());
}

// Of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

}  // namespace ddu::cuda
