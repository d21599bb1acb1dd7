// SPDX-License-Identifier: MIT
// What the kernels of the fused convolution share. For nvcc only.

// NOTE [ Fused convolution ]
// A warp owns 32 output positions. For every tap, each lane locates one of them and leaves an address and the corners'
// weights in shared memory. Then the warp gathers the samples in the layout that mma expects of its left operand: in an
// m16n8 product, lane 4 g + q holds rows g and g + 8 and, of every row, a few channels that depend on q. It doesn't
// matter which channels these are, because the sum goes over all of them, as long as the right operand has the same
// ones. So lane q gets the q-th packet (16 bytes, one load per corner) of 64 bytes of channels, a segment. This takes
// two products, the first of which uses the first half of every packet. The right operand is then read in packets too.
//
//     product j of a segment, lane 4 g + q:   left    words 2 j and 2 j + 1 of packet q of rows g and g + 8
//                                             right   words 2 j and 2 j + 1 of packet q of column g
//
// which is the same for half types, m16n8k16, where a word is a pair of channels, and for TF32, m16n8k8, where it is
// one. The right operand, up to 64 rows of 128 bytes, a step's, is shared by the warps of a block, in a ring of stages
// that cp.async fills.
//
// The columns of the product are permuted as well, so that the part of a row of results that a lane holds is
// contiguous: see column_of.
//
// In float32 without TF32 every operand is split into two TF32 numbers, and three products are added up; the fourth
// would be below float's rounding. Tensor cores truncate their sums where others round, so a sum is taken over from
// them after every step.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <limits>

#include "convolution.h"
#include "packets.h"
#include "windows.h"

namespace ddu::cuda {

constexpr int kWarp = 32;
constexpr int kRows = 32;   // positions per warp
constexpr int kBlocks = 4;  // of 8 rows
constexpr int kStages = 3;
constexpr int kSegments = 2;  // per step
constexpr int kLanes = 4;     // that share a row, with a packet of a segment each
constexpr int kStepBytes = 128;
constexpr int kSharedBytes = 48 << 10;  // that a block gets without asking for more

template <class T>
constexpr int kDepth = kStepBytes / static_cast<int>(sizeof(T));  // channels per step

// FusedProblem, for the kernels.
struct Fused : Windows {
  const char* input;
  const char* mask;
  int64_t input_batch;  // bytes
  int64_t mask_batch, mask_channel;
  int channels, outputs;
  int group_channels, group_outputs;
  int runs, run;               // runs per group of the convolution; channels per run
  int position_run, mask_run;  // channels that share positions, and a mask
  int step[kMaxAxes];          // packets from one pixel to the next along an axis
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

// Packets of the left or right operand, ready for mma: unchanged, rounded to TF32, or split into two TF32 numbers.
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
          // What isn't finite goes entirely into the low part. Low parts aren't multiplied by each other: one may be 0,
          // and infinity times 0 is NaN.
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

// A barrier for one of the block's teams of warps.
template <int kTeams>
__device__ __forceinline__ void team_barrier(int team, int threads) {
  if constexpr (kTeams == 1) {
    __syncthreads();
  } else {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "r"(threads) : "memory");
  }
}

// The place of packet j in a row of 128 bytes. Segments of two neighbouring rows are in different banks.
__device__ __forceinline__ int place_in_stage(int row, int j) {
  return row * kStepBytes + ((j ^ ((row & 1) << 2)) << 4);
}

// The result's column that column n of product `tile` stands for: lane q has kWidth consecutive columns, two of every
// tile.
template <int kWidth>
__device__ __forceinline__ constexpr int column_of(int tile, int n) {
  constexpr int kTilesOf = kWidth / 2;
  return tile / kTilesOf * (kLanes * kWidth) + n / 2 * kWidth + 2 * (tile % kTilesOf) + n % 2;
}

// ---- a step of the product

// Fills a stage, kOfStage rows of 128 bytes, with the elements of a matrix that are valid(row, element), by packets,
// and with zeros in place of the others. `readable` is any address that may be read.
template <int kOfStage, int kThreads, class T, class Valid>
__device__ __forceinline__ void fill_stage(
    char* stage, const T* from, int64_t row_stride, const Valid& valid, const T* readable, int thread) {
  constexpr int kPacketElements = 16 / static_cast<int>(sizeof(T));
  for (int e = thread; e < kOfStage * 8; e += kThreads) {
    const int row = e / 8;
    const int j = e % 8;
    const bool here = valid(row, j * kPacketElements);
    copy_async(stage + place_in_stage(row, j), here ? from + row * row_stride + j * kPacketElements : readable, here);
  }
}

// Adds the product of the left operand, kPairs times 16 rows, and a segment of the stage, whose columns are permuted
// for kWidth.
template <int kWidth, class T, bool kExact, int kRowBlocks, int kPairs, int kTiles>
__device__ __forceinline__ void multiply_segment(
    float (&sum)[kPairs][kTiles][4],
    const Operand<T, kExact> (&left)[kRowBlocks],
    const char* stage,
    int segment,
    int g,
    int q) {
  static_assert(kRowBlocks == 2 * kPairs);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int row = column_of<kWidth>(n, g);
    const Operand<T, kExact> right(
        packet_of(*reinterpret_cast<const uint4*>(stage + place_in_stage(row, segment * kLanes + q))));
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      multiply<T, kExact>(sum[m][n], left[2 * m], left[2 * m + 1], right);
    }
  }
}

// Calls product(where to add): to the sum itself or, if exact, to a sum of this step, which is then added.
template <bool kExact, int kPairs, int kTiles, class Product>
__device__ __forceinline__ void add_step(float (&sum)[kPairs][kTiles][4], const Product& product) {
  if constexpr (kExact) {
    float part[kPairs][kTiles][4] = {};
    product(part);
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[m][n][i] += part[m][n][i];
        }
      }
    }
  } else {
    product(sum);
  }
}

// ---- the places of a position's taps

// An output position's window, with its mask.
template <class T, int kAxes>
struct MaskedLocator : Locator<T, kAxes> {
  using Base = Locator<T, kAxes>;
  const Fused& f;
  bool valid;  // false if the position lies past the end
  int64_t mask_at;

  __device__ __forceinline__ MaskedLocator(const Fused& f, int b, int position, const int (&index)[kAxes])
      : Base(f, b, index),
        f(f),
        valid(position >= 0 && position < f.length),
        mask_at(b * f.mask_batch + (valid ? position : 0)) {}

  // For the channels from `channel` on.
  __device__ __forceinline__ void load_parameters(int channel, int number) {
    Base::load_parameters(channel / f.position_run, number);
  }

  __device__ __forceinline__ float load_mask(int channel, int number) const {
    if (f.mask == nullptr) {
      return 1.f;
    }
    const int64_t row = static_cast<int64_t>(channel / f.mask_run) * f.taps + number;
    return load(reinterpret_cast<const T*>(f.mask) + mask_at + row * f.mask_channel);
  }

  // Packets from the image's first one to the first corner's.
  __device__ __forceinline__ int offset(const Neighbours<float, int> (&n)[kAxes]) const {
    int offset = 0;
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      offset += n[a].pixel * f.step[Base::kFirst + a];
    }
    return offset;
  }

  __device__ __forceinline__ unsigned inside(const Neighbours<float, int> (&n)[kAxes]) const {
    return valid ? Base::corners_inside(n) : 0u;
  }
};

// Of positions in row-major order; those past the end stand for position 0, and are not valid.
template <class T, int kAxes>
__device__ __forceinline__ MaskedLocator<T, kAxes> locator_at(const Fused& f, int b, int position) {
  int index[kAxes];
  index_of<kAxes>(f, position < f.length ? position : 0, index);
  return MaskedLocator<T, kAxes>(f, b, position, index);
}

// What the forward needs to know of a position's tap.
template <class T, int kAxes>
struct alignas(16) Sampled {
  int offset;
  unsigned inside;
  unsigned factor[1 << kAxes];  // the corners' weights times the mask, in every element of a word

  __device__ __forceinline__ void set(const MaskedLocator<T, kAxes>& at, int channel, int number) {
    Neighbours<float, int> n[kAxes];
    at.locate(n);
    offset = at.offset(n);
    inside = at.inside(n);
    AxisWeights<float> along[kAxes];
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      along[a] = axis_weights(n[a].fraction, n[a].direction);
    }
    const float mask = at.finite ? at.load_mask(channel, number) : std::numeric_limits<float>::quiet_NaN();
#pragma unroll
    for (int c = 0; c < 1 << kAxes; ++c) {
      factor[c] = Words<T>::spread(at.valid ? mask * corner_weight(along, 0, c) : 0.f);
    }
  }
};

// What the backward needs to know.
template <int kAxes>
struct alignas(16) Tapped {
  static constexpr unsigned kNotFinite = 1u << 31;

  int offset;
  unsigned inside;  // combined with kNotFinite
  float mask;
  float fraction[kAxes];
  float direction[kAxes];

  template <class T>
  __device__ __forceinline__ void set(const MaskedLocator<T, kAxes>& at, int channel, int number) {
    Neighbours<float, int> n[kAxes];
    at.locate(n);
    offset = at.offset(n);
    inside = at.inside(n) | (at.finite ? 0u : kNotFinite);
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      fraction[a] = n[a].fraction;
      direction[a] = n[a].direction;
    }
    mask = at.valid ? at.load_mask(channel, number) : 0.f;
  }

  __device__ __forceinline__ bool finite() const { return (inside & kNotFinite) == 0; }
};

// The packets of an image, from which each of a tap's corners is addressed.
template <int kAxes>
struct CornerPackets {
  const uint4* from[1 << kAxes];

  __device__ __forceinline__ CornerPackets(const Fused& f, int b) {
#pragma unroll
    for (int c = 0; c < 1 << kAxes; ++c) {
      int offset = 0;
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        offset += (c & axis_bit(kMaxAxes - kAxes + a)) != 0 ? f.step[kMaxAxes - kAxes + a] : 0;
      }
      from[c] = reinterpret_cast<const uint4*>(f.input + b * f.input_batch) + offset;
    }
  }

  // Zeros for corners outside.
  __device__ __forceinline__ void gather(int offset, unsigned inside, uint4 (&corner)[1 << kAxes]) const {
#pragma unroll
    for (int c = 0; c < 1 << kAxes; ++c) {
      corner[c] = load_packet_if(inside & 1u << c, from[c] + offset);
    }
  }
};

template <class T, int kAxes>
__device__ __forceinline__ Packet interpolate(const uint4 (&corner)[1 << kAxes], const unsigned (&factor)[1 << kAxes]) {
  Packet result;
#pragma unroll
  for (int c = 0; c < 1 << kAxes; ++c) {
    const auto packet = packet_of(corner[c]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      result.word[i] = c == 0 ? Words<T>::multiply(packet.word[i], factor[c])
                              : Words<T>::multiply_add(packet.word[i], factor[c], result.word[i]);
    }
  }
  return result;
}

// ---- steps

// The steps of a sum, by run, tap, and chunk of channels; there are `chunks` per run and tap.
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
  static_cast<Windows&>(f) = windows_of(p, problem.positions);
  f.input = static_cast<const char*>(problem.input);
  f.mask = static_cast<const char*>(problem.mask);
  f.input_batch = pixels_of(p) * p.channels * bytes;
  f.mask_batch = problem.mask_batch;
  f.mask_channel = problem.mask_channel;
  f.channels = static_cast<int>(p.channels);
  f.outputs = static_cast<int>(problem.outputs);
  f.group_channels = static_cast<int>(p.channels / problem.groups);
  f.group_outputs = static_cast<int>(problem.outputs / problem.groups);
  f.run = static_cast<int>(problem.run);
  f.runs = f.group_channels / f.run;
  f.position_run = static_cast<int>(p.channels / p.groups);
  f.mask_run = static_cast<int>(p.channels / problem.mask_groups);
  int64_t step = p.channels * bytes / 16;
  for (int a = kMaxAxes - 1; a >= 0; --a) {
    f.step[a] = static_cast<int>(step);
    step *= p.axis[a].size;
  }
  return f;
}

// Calls f with constants: a value of the type, and whether the product is exact.
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

// An attribute of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// In how many parts, at most `most`, to split the work of each of `blocks` blocks so that the last wave of blocks is
// full. `resident` of them fit on a multiprocessor. Parts repeat some of the work, so there should be few.
inline int64_t splits_of(int64_t blocks, int64_t most, int64_t resident) {
  constexpr double kInCommon = 0.02;  // fraction of a block's work that each part repeats
  const int64_t at_once = resident * device_attribute(cudaDevAttrMultiProcessorCount);
  int64_t best = 1;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t splits = 1; splits <= most && (splits == 1 || blocks * splits <= 4 * at_once); ++splits) {
    const auto waves = static_cast<double>(ceil_div(std::max<int64_t>(blocks, 1) * splits, at_once));
    const double time = waves * (static_cast<double>(ceil_div(most, splits)) / static_cast<double>(most) + kInCommon);
    if (time < least) {
      least = time;
      best = splits;
    }
  }
  return best;
}

}  // namespace ddu::cuda
