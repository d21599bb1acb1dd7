// SPDX-License-Identifier: MIT
// What the taps of a tile of output positions add to the image, sorted by pixel. For nvcc only.

// NOTE [ Additions ]
// A tap adds its share to the sums of four pixels (eight with three axes), in every channel. Windows of neighbouring
// positions overlap, so most pixels of a tile get many shares, and additions in memory are what such a kernel would
// wait for. Therefore a block first sorts the shares of a tile of positions by pixel, in shared memory, and then adds
// up each pixel's in registers and writes the sum once. Where a share comes from does not depend on the channel, so the
// lists serve all channels of a group.
//
// There is a list for each pixel of a box around the tile's taps, of kMostPixels pixels at most. They are made by a
// counting sort whose key is the pixel. Shares of pixels outside the box, if windows are far apart, are lists of their
// own. The order within a list is not fixed, nor is that of the sums in memory.
#pragma once

#include <algorithm>
#include <limits>

#include "windows.h"

namespace ddu::cuda {

// ---- tiles of output positions

// The output grid, divided into tiles whose extents are powers of two.
struct Tiles {
  int log2[kMaxAxes];  // of a tile's extent
  int count[kMaxAxes];

  DDU_HOST_DEVICE int total() const { return count[0] * count[1] * count[2]; }
};

// Tiles of 2^log2_positions positions, shaped so that there are few and their windows cover few pixels.
inline Tiles tiles_of(const UnfoldParams& p, int log2_positions) {
  Tiles best = {};
  double least = std::numeric_limits<double>::infinity();
  for (int d = 0; d <= log2_positions; ++d) {
    for (int h = 0; h + d <= log2_positions; ++h) {
      const Tiles t = {{d, h, log2_positions - d - h}, {}};
      Tiles tiles = t;
      double cost = 1;
      bool possible = true;
      for (int a = 0; a < kMaxAxes; ++a) {
        const auto& axis = p.axis[a];
        const int64_t extent = int64_t(1) << t.log2[a];
        possible = possible && (a >= p.first_axis() || extent == 1);
        tiles.count[a] = static_cast<int>(ceil_div<int64_t>(axis.out_size, extent));
        cost *= static_cast<double>(tiles.count[a]) *
            static_cast<double>(extent * axis.stride + axis.dilation * (axis.kernel - 1));
      }
      if (possible && cost < least) {
        least = cost;
        best = tiles;
      }
    }
  }
  return best;
}

// Output position number `local` of a tile; -1 past the end of the grid.
template <int kAxes>
__device__ __forceinline__ int position_in_tile(
    const Windows& w, const Tiles& tiles, int tile, int local, int (&index)[kAxes]) {
  constexpr int kFirst = kMaxAxes - kAxes;
  bool inside = true;
#pragma unroll
  for (int a = kAxes - 1; a >= 0; --a) {
    const int count = tiles.count[kFirst + a];
    const int of_axis = a == 0 ? tile : tile % count;
    tile = a == 0 ? 0 : tile / count;
    index[a] = (of_axis << tiles.log2[kFirst + a]) + (local & ((1 << tiles.log2[kFirst + a]) - 1));
    local >>= tiles.log2[kFirst + a];
    inside = inside && index[a] < w.axis[kFirst + a].out_size;
  }
  int position = 0;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    index[a] = inside ? index[a] : 0;
    position = position * w.axis[kFirst + a].out_size + index[a];
  }
  return inside ? position : -1;
}

// ---- lists

constexpr int kMostPixels = 1024;

// A tap of a position, and where it adds to the image.
template <int kAxes>
struct Spot {
  int pixel[kAxes];
  unsigned inside;  // bit c: whether to add to corner c
  float weight[1 << kAxes];
};

// An Entry is what one corner of a spot adds: {what the kernel needs to find it again, its weight}.
template <int kAxes, int kThreads, class Entry>
class PixelLists {
  static constexpr int kFirst = kMaxAxes - kAxes;
  static constexpr int kCorners = 1 << kAxes;
  static constexpr int kKeysPerThread = kMostPixels / kThreads;
  static constexpr int kWarps = kThreads / 32;
  static_assert(kMostPixels % kThreads == 0 && kWarps <= 32);

 public:
  // The layout in shared memory.
  struct Memory {
    int low[kAxes], high[kAxes];  // of the box
    int apart;                    // number of entries outside it
    int sums[kWarps];
    alignas(16) int first[kMostPixels + 1];  // the first of a pixel's entries
  };
  static constexpr int kMemoryBytes = (static_cast<int>(sizeof(Memory)) + 15) / 16 * 16;
  static constexpr int64_t bytes(int64_t spots) {
    return kMemoryBytes + spots * kCorners * static_cast<int64_t>(sizeof(Entry) + sizeof(int));
  }

  // Has room for at most `spots` spots.
  __device__ __forceinline__ PixelLists(char* memory, int spots)
      : m_(*reinterpret_cast<Memory*>(memory)),
        entries_(reinterpret_cast<Entry*>(memory + kMemoryBytes)),
        pixel_(reinterpret_cast<int*>(entries_ + spots * kCorners)),
        room_(spots * kCorners) {}

  // Sorts the spots of all threads, `kSpots` of each. The entries of a thread's spot s begin with source(s). Afterwards
  // all threads can see the lists.
  template <int kSpots, class Source>
  __device__ __forceinline__ void build(const Windows& w, const Spot<kAxes> (&spot)[kSpots], const Source& source) {
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32;
    const int warp = thread / 32;
    constexpr int kLeast = std::numeric_limits<int>::min() / 2;
    constexpr int kMost = std::numeric_limits<int>::max() / 2;
    __syncthreads();
    for (int key = thread; key < kMostPixels; key += kThreads) {
      m_.first[key] = 0;
    }
    if (thread < kAxes) {
      m_.low[thread] = kMost;
      m_.high[thread] = kLeast;
    }
    if (thread == 0) {
      m_.apart = 0;
    }
    __syncthreads();
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      int low = kMost;
      int high = kLeast;
#pragma unroll
      for (int s = 0; s < kSpots; ++s) {
        low = spot[s].inside != 0 ? min(low, spot[s].pixel[a]) : low;
        high = spot[s].inside != 0 ? max(high, spot[s].pixel[a]) : high;
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        low = min(low, __shfl_xor_sync(~0u, low, step));
        high = max(high, __shfl_xor_sync(~0u, high, step));
      }
      if (lane == 0) {
        atomicMin(&m_.low[a], low);
        atomicMax(&m_.high[a], high);
      }
    }
    __syncthreads();
    int low[kAxes];
    int extent[kAxes];
    int volume = 1;
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      low[a] = m_.low[a];
      extent[a] = min(max(m_.high[a] - low[a] + 2, 0), 2 * kMostPixels);
    }
    bool whole = true;  // whether all corners are in the box
    while (true) {
      int64_t product = 1;
      int largest = 0;
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        product *= extent[a];
        largest = max(largest, extent[a]);
      }
      if (product <= kMostPixels) {
        volume = static_cast<int>(product);
        break;
      }
      whole = false;
      bool halved = false;
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        if (!halved && extent[a] == largest) {  // to its middle half
          low[a] += extent[a] / 4;
          extent[a] = (extent[a] + 1) / 2;
          halved = true;
        }
      }
    }
    pixels_ = volume;

    // The step from one pixel to the next along an axis, in keys and in the image.
    int key_step[kAxes];
    int pixel_step[kAxes];
    int keys = 1;
    int pixels = 1;
#pragma unroll
    for (int a = kAxes - 1; a >= 0; --a) {
      key_step[a] = keys;
      pixel_step[a] = pixels;
      keys *= extent[a];
      pixels *= w.axis[kFirst + a].size;
    }
    const auto after = [](int c, int a) { return (c & axis_bit(kFirst + a)) != 0 ? 1 : 0; };
    constexpr int kRankBits = 20;
    constexpr unsigned kApart = ~0u;
    unsigned place[kSpots][kCorners];  // key and rank
#pragma unroll
    for (int s = 0; s < kSpots; ++s) {
      int key = 0;
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        key += (spot[s].pixel[a] - low[a]) * key_step[a];
      }
#pragma unroll
      for (int c = 0; c < kCorners; ++c) {
        place[s][c] = kApart;
        int at = key;
        bool here = (spot[s].inside >> c & 1) != 0;
#pragma unroll
        for (int a = 0; a < kAxes; ++a) {
          at += after(c, a) * key_step[a];
          here = here &&
              (whole ||
               static_cast<unsigned>(spot[s].pixel[a] + after(c, a) - low[a]) < static_cast<unsigned>(extent[a]));
        }
        if (here) {
          place[s][c] = static_cast<unsigned>(at) << kRankBits | static_cast<unsigned>(atomicAdd(&m_.first[at], 1));
        }
      }
    }
    __syncthreads();
    int count[kKeysPerThread];
    int sum = 0;
#pragma unroll
    for (int k = 0; k < kKeysPerThread; ++k) {
      count[k] = m_.first[thread * kKeysPerThread + k];
      sum += count[k];
    }
    int before = sum;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, before, step);
      before += lane >= step ? other : 0;
    }
    if (lane == 31) {
      m_.sums[warp] = before;
    }
    before -= sum;
    __syncthreads();
#pragma unroll
    for (int other = 0; other < kWarps; ++other) {
      before += other < warp ? m_.sums[other] : 0;
    }
#pragma unroll
    for (int k = 0; k < kKeysPerThread; ++k) {
      m_.first[thread * kKeysPerThread + k] = before;
      before += count[k];
    }
    if (thread == kThreads - 1) {
      m_.first[kMostPixels] = before;
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kSpots; ++s) {
      int first = 0;
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        first += spot[s].pixel[a] * pixel_step[a];
      }
#pragma unroll
      for (int c = 0; c < kCorners; ++c) {
        if ((spot[s].inside >> c & 1) != 0) {
          int pixel = first;
#pragma unroll
          for (int a = 0; a < kAxes; ++a) {
            pixel += after(c, a) * pixel_step[a];
          }
          const int at = !whole && place[s][c] == kApart
              ? room_ - 1 - atomicAdd(&m_.apart, 1)
              : m_.first[place[s][c] >> kRankBits] + static_cast<int>(place[s][c] & ((1u << kRankBits) - 1));
          Entry entry = source(s);
          entry.weight = spot[s].weight[c];
          entries_[at] = entry;
          pixel_[at] = pixel;
        }
      }
    }
    __syncthreads();
  }

  // Calls visit(pixel in the image, its entries, their number) for every `rows`-th list from `row` on.
  template <class Visit>
  __device__ __forceinline__ void for_pixels(int row, int rows, const Visit& visit) const {
    for (int key = row; key < pixels_; key += rows) {
      const int first = m_.first[key];
      const int count = m_.first[key + 1] - first;
      if (count > 0) {
        visit(pixel_[first], entries_ + first, count);
      }
    }
    for (int i = row; i < m_.apart; i += rows) {
      visit(pixel_[room_ - 1 - i], entries_ + (room_ - 1 - i), 1);
    }
  }

 private:
  Memory& m_;
  Entry* entries_;
  int* pixel_;  // of each entry
  int room_;
  int pixels_ = 0;  // of the box
};

}  // namespace ddu::cuda
