// SPDX-License-Identifier: MIT
// What the CUDA sources provide to cuda.cpp, without any torch tensors, so that nvcc parses little.
//
// Every function queues its work on `stream` and returns. Strides are in elements. Only cuda.cpp decides which path a
// call takes: NOTE [ CUDA paths ].
#pragma once

#include <c10/core/ScalarType.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../math/portability.h"
#include "../../params.h"

namespace ddu::cuda {

// [B, C, *size], with a stride for each of kMaxAxes: 0 for axes that the problem lacks.
struct ImageView {
  const void* data;
  int64_t batch, channel, axis[kMaxAxes];
};

// [B, C * taps, L]
struct ColumnsView {
  const void* data;
  int64_t batch, row, position;
};

// The positions, [B, channels, *out], in the type of the other tensors; with a half type they may be float.
struct PositionsView {
  const void* data;
  bool is_float;
  int64_t batch, channel, axis[kMaxAxes];
};

// Where the sums for an image are accumulated: floating point numbers, added atomically in any order, or fixed point
// numbers (NOTE [ Fixed point ]), whose sum doesn't depend on the order.
struct Sums {
  void* data;
  const unsigned long long* largest;  // of the columns, as bits: see launch_largest; nullptr: floating point
  int log2_terms;                     // fixed point: no sum exceeds 2^log2_terms * largest
};

// ---- sample.cu

// columns [B, C, taps, L], any type, any term.
void launch_sample(
    const UnfoldParams& p,
    c10::ScalarType type,
    bool wide,  // whether offsets need 64 bits
    const ImageView& input,
    const PositionsView& positions,
    void* columns,
    cudaStream_t stream);

// The value (order 0) in float, half and bfloat16, with rates, along at most two axes.
void launch_sample_tiles(
    const UnfoldParams& p,
    c10::ScalarType type,
    const ImageView& input,
    const PositionsView& positions,
    void* columns,
    cudaStream_t stream);

// ---- reduce.cu

// One pass over the columns, for any type and any terms. Adds term `splat` of them to `sums` [B, C, *size], unless it
// is nullptr. Writes their products with the `dots` terms of input, and the `multiples` of each (math/positions.h), to
// `result` [B, G, positions_per_group, dots, multiples, L], which has the type of the positions.
void launch_reduce(
    const UnfoldParams& p,
    c10::ScalarType type,
    bool wide,
    const ColumnsView& columns,
    const PositionsView& positions,
    const Term* splat,
    const Sums& sums,
    const ImageView& input,
    const Term* dot_terms,
    int dots,
    int multiples,
    void* result,
    cudaStream_t stream);

// ---- tile.cu

// Adjacent channels of a group in the sums of the tiled kernel.
constexpr int kChannelBlock = 32;

inline int64_t channel_blocks(const UnfoldParams& p) {
  return (p.channels / p.groups + kChannelBlock - 1) / kChannelBlock;
}

// The number of axes that the fast kernels see: they treat a signal as an image of height one.
DDU_HOST_DEVICE int fast_axes(const UnfoldParams& p) { return p.axes == 3 ? 3 : 2; }

// Pixels of a plane of sums. Along the width there is one column of border before the image, along the other axes one
// layer before and one after it. The border after the end of a row is that of the next one. So each corner of a tap has
// a place.
DDU_HOST_DEVICE int64_t sums_row(const UnfoldParams& p) { return p.axis[2].size + 1; }
DDU_HOST_DEVICE int64_t sums_layer(const UnfoldParams& p) { return (p.axis[1].size + 2) * sums_row(p); }
DDU_HOST_DEVICE int64_t sums_plane(const UnfoldParams& p) {
  return (fast_axes(p) == 3 ? p.axis[0].size + 2 : 1) * sums_layer(p) + 1;
}

// How many blocks share the channels of a tile.
int64_t channel_splits(const UnfoldParams& p, c10::ScalarType type);

// Like launch_reduce, for order 0 of splat and order 1 of dot, in float, half and bfloat16. Must follow launch_pack,
// unless packets == nullptr.
//   sums     [B * G, channel blocks, sums_plane, kChannelBlock], or data == nullptr: no splat
//   packets  of the input, or nullptr: no dot
//   partial  [channel splits, B, G, positions_per_group, dots, multiples, L], float: if there are several dots, the
//            derivatives along each axis; if there is one, their sum weighted with dot_term. Still to be summed over
//            the splits.
void launch_tiles(
    const UnfoldParams& p,
    c10::ScalarType type,
    const ColumnsView& columns,
    const PositionsView& positions,
    const Sums& sums,
    const void* packets,
    const Term& dot_term,
    int dots,
    int multiples,
    float* partial,
    cudaStream_t stream);

// ---- packets.cu

// The value (order 0) in float, half and bfloat16, from an image that launch_pack has copied.
void launch_sample_packets(
    const UnfoldParams& p,
    c10::ScalarType type,
    const void* packets,
    const PositionsView& positions,
    void* columns,
    cudaStream_t stream);

// ---- layout.cu

// The number of elements of `type` in the packets of an image.
int64_t packets_size(const UnfoldParams& p, c10::ScalarType type);

// Also clears what the next kernel adds to: `cleared_bytes` bytes, a multiple of 16.
void launch_pack(
    const UnfoldParams& p,
    c10::ScalarType type,
    bool wide,
    const ImageView& image,
    void* packets,
    void* cleared,
    int64_t cleared_bytes,
    cudaStream_t stream);

// Writes the largest finite magnitude of the columns, as the bits of a float or a double, to *largest, which must be 0.
void launch_largest(
    const UnfoldParams& p,
    c10::ScalarType type,
    const ColumnsView& columns,
    unsigned long long* largest,
    cudaStream_t stream);

// The bytes of one number in Sums.
int64_t bytes_per_sum(c10::ScalarType type, bool fixed_point);

// Converts sums [B, C, H, W] to an image of `type`.
void launch_convert(const UnfoldParams& p, c10::ScalarType type, const Sums& sums, void* image, cudaStream_t stream);

// Sums for the map, as launch_tiles leaves them, and where they go. Size 0: none.
struct MapSums {
  const float* partial;  // [splits, size]
  void* result;
  bool is_float;  // otherwise the type of the image
  int64_t splits, size;
};

// Must follow launch_tiles. Converts its sums to an image [B, C, H, W] of `type`, unless that is nullptr, and adds up
// those for the map, in order.
void launch_finish(
    const UnfoldParams& p,
    c10::ScalarType type,
    bool wide,
    const Sums& sums,
    void* image,
    const MapSums& map,
    cudaStream_t stream);

}  // namespace ddu::cuda
