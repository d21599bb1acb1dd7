// SPDX-License-Identifier: MIT
// Images whose channels are adjacent, 16 bytes of them per pixel.

// NOTE [ Packets ]
// A tap reads four pixels of every channel. In an image [C, H, W] each of these reads fetches 2 to 8 bytes for a
// thread. Then kernels wait for the L1 cache, whose limit is the number of requests per cycle, not the number of bytes.
// So the image is first copied into packets: 16 bytes of a pixel, with 4 (float) or 8 (half types) consecutive channels
// of a group, which a thread loads at once. Neighbouring threads read neighbouring packets. sample_tile_kernel copies
// what a block needs into shared memory (NOTE [ Sample kernels ]); tile_kernel has no room there, so for it the whole
// image is copied.
//
// That copy has a border of zeros, 2 pixels before and 1 after the image, like the CPU's planes (kNoPixel is the first
// pixel of the border). So every tap has four corners with an address, and there are no masks, no special cases and no
// products with what lies beyond the border. Channels that pad the last packet of a group are zeros.
//
//     packets [B, G, ceil(C / G / kPacket), H + 3, W + 3, kPacket], for three axes with D + 3 before H + 3
#pragma once

#include "device.h"

namespace ddu::cuda {

// Elements in a packet.
template <class scalar_t>
constexpr int kPacket = 16 / sizeof(scalar_t);

// The copy's sizes, in pixels.
DDU_HOST_DEVICE int64_t packed_row(const UnfoldParams& p) { return padded(p.axis[2].size); }
DDU_HOST_DEVICE int64_t packed_layer(const UnfoldParams& p) { return padded(p.axis[1].size) * packed_row(p); }
DDU_HOST_DEVICE int64_t packed_plane(const UnfoldParams& p) {
  return (fast_axes(p) == 3 ? padded(p.axis[0].size) : 1) * packed_layer(p);
}

template <class scalar_t>
DDU_HOST_DEVICE int64_t packets_per_group(const UnfoldParams& p) {
  return ceil_div<int64_t>(p.channels / p.groups, kPacket<scalar_t>);
}

#if defined(__CUDACC__)

// Element k of a packet; k must be a compile-time constant after inlining.
template <class scalar_t>
__device__ __forceinline__ float element(const uint4& packet, int k) {
  const auto word = [&](int i) { return i == 0 ? packet.x : i == 1 ? packet.y : i == 2 ? packet.z : packet.w; };
  if constexpr (std::is_same_v<scalar_t, float>) {
    return __uint_as_float(word(k));
  } else if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
    return __uint_as_float(k % 2 == 0 ? word(k / 2) << 16 : word(k / 2) & 0xffff0000u);
  } else {
    const unsigned pair = word(k / 2);
    return __half2float(__ushort_as_half(static_cast<unsigned short>(k % 2 == 0 ? pair & 0xffffu : pair >> 16)));
  }
}

// The packet of channels [0, here) of a pixel, padded with zeros.
template <class scalar_t>
__device__ __forceinline__ uint4 gather_packet(const scalar_t* pixel, int64_t channel_stride, int here) {
  constexpr int kElements = kPacket<scalar_t>;
  using Word = std::conditional_t<sizeof(scalar_t) == 4, unsigned, unsigned short>;
  unsigned words[kElements];
#pragma unroll
  for (int k = 0; k < kElements; ++k, pixel += channel_stride) {
    words[k] = k < here ? static_cast<unsigned>(__ldg(reinterpret_cast<const Word*>(pixel))) : 0u;
  }
  if constexpr (kElements == 4) {
    return make_uint4(words[0], words[1], words[2], words[3]);
  } else {
    return make_uint4(
        words[0] | words[1] << 16, words[2] | words[3] << 16, words[4] | words[5] << 16, words[6] | words[7] << 16);
  }
}

// Stores past the caches.
template <class scalar_t>
__device__ __forceinline__ void stream_out(scalar_t* p, float value) {
  if constexpr (std::is_same_v<scalar_t, float>) {
    __stcs(p, value);
  } else {
    const scalar_t rounded = static_cast<scalar_t>(value);
    __stcs(reinterpret_cast<unsigned short*>(p), rounded.x);
  }
}

#endif

}  // namespace ddu::cuda
