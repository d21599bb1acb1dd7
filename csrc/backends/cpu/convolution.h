// SPDX-License-Identifier: MIT
// The convolution on raw memory: the interface between convolution.cpp, which allocates and cuts the work into tasks,
// and convolution_impl.h, which is compiled once for each instruction set.

// NOTE [ CPU convolution ]
// A tile of positions is sampled into memory that stays in the cache and multiplied there, so columns never exist.
//
// Forward: a task is a tile of one image. A few taps at a time, all channels are sampled, [groups, tile, taps, channels
// of a group], multiplied by the mask on the way, and each group's matrix is multiplied by as many rows of its weight.
//
// Backward: a task is one chunk of channels, a plane or a few, for a band of tiles. For a tile and a few taps, the
// columns' gradient is the product of grad_output and the weight. It meets the samples once: their products are the
// gradients of mask and positions; then it is added into the planes of grad_input. The samples times grad_output are
// the gradient of the weight. grad_output is laid out both ways for that, for the images that are worked on.
//
// Images lie in planes (NOTE [ CPU kernels ]), here of groups that share everything: the parameters of the positions,
// the mask and the weight. So a plane has one of each.
//
// Results do not depend on the number of threads. Only memory does: planes exist for as many chunks as there are
// threads to work on them.
#pragma once

#include <cstdint>

#include "../../params.h"
#include "kernels.h"

namespace ddu::cpu {

// result = left * right, [rows, columns] of [rows, inner] and [inner, columns], plus what it was if `add`. Each is
// row-major, with its pitch.
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

// How a call is cut.
struct Convolution {
  UnfoldParams window;  // its groups are those of the positions
  UnfoldParams shared;  // the same, of the groups that share everything
  Layout planes;
  int64_t groups;
  int64_t mask_groups;   // 0: no mask
  int64_t out_channels;  // of all groups
  bool weight_per_image;
  // Forward.
  int64_t tile;  // positions
  int64_t taps;  // at a time
  // Backward: tiles of kTile.
  int64_t chunk_planes;  // of a chunk, at most
  int64_t chunks;        // of an image
  int64_t chunk_taps;    // at a time
  int64_t bands;

  int64_t channels_in() const { return window.channels / groups; }  // of a group
  int64_t channels_out() const { return out_channels / groups; }
  int64_t chunks_per_shared() const { return ceil_div(planes.planes, chunk_planes); }
  // Of the weight of all outputs of a group for a chunk, or its gradient: [channels_out, taps, lanes of the chunk].
  int64_t chunk_weights() const { return channels_out() * taps_of(window) * chunk_planes * planes.lanes; }
  int64_t tiles() const { return ceil_div(positions_of(window), kTile); }
};

// A chunk of channels: planes of one group that shares everything.
struct Chunk {
  int64_t shared;       // the group
  int64_t first_plane;  // in it
  int64_t planes;
  int64_t group;          // of the weight
  int64_t lanes;          // with those of its last plane that are no channels
  int64_t first_channel;  // in the weight's group
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

// Images are numbered from the first of those that are worked on.
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

// Chunks are numbered through all images; those that are worked on begin with first_chunk. Pointers to what is not
// needed are null.
template <class scalar_t, class T>
struct ConvolveBackward {
  int64_t first_image;  // of those that are worked on, of all
  int64_t sets;         // of sums of the weight's gradient: an image adds to the one that its number gives
  int64_t first_chunk;
  int64_t first_plane;  // of first_chunk, of all images
  int64_t set;          // elements of the planes of all chunks that are worked on
  const T* planes;
  PositionsView<scalar_t, T> positions;
  Strided<const scalar_t*> mask;
  const T* weight;         // [images or 1, chunks, chunk_weights]
  const T* grad_rows;      // [images, tiles, kTile, out_channels]
  const T* grad_channels;  // [images, tiles, out_channels, kTile]
  T* image;                // [bands, planes], made zero by the task
  T* weight_sums;          // [sets, bands, chunks, chunk_weights], added to
  T* position_sums;        // [chunks worked on, positions_per_group, parameters, L]
  T* mask_sums;            // [chunks worked on, taps, L]
  Term terms[kMaxAxes];    // derivatives by the parameters, the bases of all: math/positions.h
  Product<T> product;
};

// As Kernels: each function does the tasks [begin, end).
template <class scalar_t, class T>
struct ConvolutionKernels {
  // A task is a row of a plane, of which `planes` has those from row `first_row` on.
  void (*pack)(
      const Convolution& c, Strided<const scalar_t*> image, T* planes, int64_t first_row, int64_t begin, int64_t end);

  // A task is a row of the image, for all lanes of a plane; the sum of `copies` sets of planes, from `first_plane` on.
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

  // A product for where there is no better one.
  Product<T> product;
};

template <class scalar_t, class T>
const ConvolutionKernels<scalar_t, T>& convolution_kernels();

}  // namespace ddu::cpu
