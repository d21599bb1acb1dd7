// SPDX-License-Identifier: MIT
// The convolution on raw memory: the interface between convolution.cpp, which allocates and divides the work into
// tasks, and convolution_impl.h, which is compiled once for each instruction set.

// NOTE [ CPU convolution ]
// A tile of positions is sampled into memory that stays in the cache, and multiplied there, so full columns never
// exist.
//
// Forward: a task is a tile of one image. For a few taps at a time, it samples all channels, [groups, tile, taps,
// channels of a group], multiplying by the mask, and multiplies each group's matrix by the same rows of its weight.
//
// Backward: a task is one chunk of channels (a plane or a few) for a band of tiles. For a tile and a few taps, the
// columns' gradient is the product of grad_output and the weight. It is multiplied by the samples once, which gives the
// gradients of mask and positions; then it is added into the planes of grad_input. The samples times grad_output give
// the gradient of the weight. For these two products grad_output is laid out both ways, for the images in progress.
//
// Images are stored in planes (NOTE [ CPU kernels ]), here of groups that share everything: the parameters of the
// positions, the mask and the weight. So a plane has one of each.
//
// Results do not depend on the number of threads. Only memory does: there are planes for as many chunks as there are
// threads to work on them.
// threads to work on them.
#pragma once

#include <cstdint>

#include "../../params.h"
#include "kernels.h"

namespace ddu::cpu {

// result = left * right, where left is [rows, inner] and right [inner, columns]; with `add` the product is added to the
// result. All are row-major, each with its own pitch.
template <class T>
using Product = void (*)(
    int64_t rows,
    int64_t columns,
    int64_t inner,
    const T* left,
    int64_t left_pitch,
    const T* right,
    int64_t right_pitch,
    bool add,
    T* result,
    int64_t result_pitch);

// How a call is divided.
struct Convolution {
  UnfoldParams window;  // its groups are those of the positions
  UnfoldParams shared;  // the same, with the groups that share everything
  Layout planes;
  int64_t groups;
  int64_t mask_groups;   // 0: no mask
  int64_t out_channels;  // over all groups
  bool weight_per_image;
  // Forward.
  int64_t tile;  // positions
  int64_t taps;  // at a time
  // Backward: in tiles of kTile.
  int64_t chunk_planes;  // the most per chunk
  int64_t chunks;        // per image
  int64_t chunk_taps;    // at a time
  int64_t bands;

  int64_t channels_in() const { return window.channels / groups; }  // per group
  int64_t channels_out() const { return out_channels / groups; }
  int64_t chunks_per_shared() const { return ceil_div(planes.planes, chunk_planes); }
  // Elements of the weight (or its gradient) of a group's outputs for one chunk: [channels_out, taps, lanes of the
  // chunk].
  int64_t chunk_weights() const { return channels_out() * taps_of(window) * chunk_planes * planes.lanes; }
  int64_t tiles() const { return ceil_div(positions_of(window), kTile); }
};

// A chunk of channels: planes of one group that shares everything.
struct Chunk {
  int64_t shared;       // the group
  int64_t first_plane;  // within the group
  int64_t planes;
  int64_t group;          // of the weight
  int64_t lanes;          // including padding in the last plane
  int64_t first_channel;  // within the weight's group
  int64_t channels;

  Chunk(const Convolution& c, int64_t chunk)
      : shared(chunk / c.chunks_per_shared()),
        first_plane(chunk % c.chunks_per_shared() * c.chunk_planes),
        planes(c.planes.planes - first_plane < c.chunk_planes ? c.planes.planes - first_plane : c.chunk_planes),
        group(shared / (c.shared.groups / c.groups)),
        lanes(planes * c.planes.lanes),
        first_channel(shared % (c.shared.groups / c.groups) * c.planes.per_group + first_plane * c.planes.lanes),
        channels(
            c.planes.per_group - first_plane * c.planes.lanes < lanes
                ? c.planes.per_group - first_plane * c.planes.lanes
                : lanes) {}
};

// Images are numbered from the first one in progress.
template <class scalar_t, class T>
struct Convolve {
  const T* planes;
  PositionsView<scalar_t, T> positions;
  Strided<const scalar_t*> mask;
  const T* weight;       // [images or 1, groups, taps, channels_in, channels_out]
  const scalar_t* bias;  // [images or 1, out_channels], or null
  bool bias_per_image;
  Dense<scalar_t*> result;
  Product<T> product;
};

// Chunks are numbered through all images; first_chunk is the first one in progress. Pointers that are not needed are
// null.
template <class scalar_t, class T>
struct ConvolveBackward {
  int64_t first_image;  // the first one in progress, among all
  int64_t sets;         // of sums of the weight's gradient; an image's number determines the set that it adds to
  int64_t first_chunk;
  int64_t first_plane;  // of first_chunk, among those of all images
  int64_t set;          // elements in the planes of all chunks in progress
  const T* planes;
  PositionsView<scalar_t, T> positions;
  Strided<const scalar_t*> mask;
  const T* weight;         // [images or 1, chunks, chunk_weights]
  const T* grad_rows;      // [images, tiles, kTile, out_channels]
  const T* grad_channels;  // [images, tiles, out_channels, kTile]
  T* image;                // [bands, planes], zeroed by the task
  T* weight_sums;          // [sets, bands, chunks, chunk_weights], added to
  T* position_sums;        // [chunks in progress, positions_per_group, parameters, L]
  T* mask_sums;            // [chunks in progress, taps, L]
  Term terms[kMaxAxes];    // the derivatives with respect to the basis parameters: math/positions.h
  Product<T> product;
};

// Like Kernels: each function does the tasks [begin, end).
template <class scalar_t, class T>
struct ConvolutionKernels {
  // A task is a row of a plane; `planes` holds the rows from `first_row` on.
  void (*pack)(
      const Convolution& c, Strided<const scalar_t*> image, T* planes, int64_t first_row, int64_t begin, int64_t end);

  // A task is a row of the image, for all lanes of a plane. Sums `copies` sets of planes, which start at `first_plane`.
  void (*unpack)(
      const Convolution& c,
      const T* planes,
      int64_t first_plane,
      int64_t set,
      int64_t copies,
      Dense<scalar_t*> image,
      int64_t begin,
      int64_t end);

  // grad_output -> grad_rows, grad_channels of ConvolveBackward. A task is a tile of an image.
  void (*pack_grad)(
      const Convolution& c, Dense<const scalar_t*> grad, T* grad_rows, T* grad_channels, int64_t begin, int64_t end);

  // A task is a tile of an image.
  void (*forward)(const Convolution& c, const Convolve<scalar_t, T>& call, int64_t begin, int64_t end);

  // A task is a chunk and a band.
  void (*backward)(const Convolution& c, const ConvolveBackward<scalar_t, T>& call, int64_t begin, int64_t end);

  // A fallback where there is no better product.
  Product<T> product;
};

template <class scalar_t, class T>
const ConvolutionKernels<scalar_t, T>& convolution_kernels();

}  // namespace ddu::cpu
