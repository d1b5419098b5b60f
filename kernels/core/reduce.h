// Reductions: one over the pixels of a block, one over the partial results of blocks. Both add in an order that the
// shape and the number of blocks determine, never the timing.
//
// A State is what a thread accumulates for a pack of channels. It has `floats`, the size of its saved form (a multiple
// of 4, or anything for packs of one channel), save(float*) and merge(const float*).
#pragma once

#include <algorithm>

#include "kernels/core/launch.h"
#include "kernels/core/shared.h"
#include "kernels/core/thread_tile.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// State of N sums a channel.
template <class P, int N = 1>
struct Sums {
  static constexpr int floats = N * P::size;
  P sum[N];
  __device__ __forceinline__ Sums() {
    for (P& s : sum) s = P(0);
  }
  __device__ __forceinline__ P& operator[](int i) { return sum[i]; }
  __device__ __forceinline__ void save(float* at) const {
    for (int i = 0; i < N; ++i) store_pack(at + i * P::size, sum[i]);
  }
  __device__ __forceinline__ void merge(const float* at) {
    for (int i = 0; i < N; ++i) sum[i] += load_pack<P>(at + i * P::size);
  }
};

// State of the mean and the sum of squared deviations of `count` values a channel (Chan, Golub, LeVeque 1979).
template <class P>
struct Moments {
  static constexpr int floats = 2 * P::size + (P::size % 4 == 0 ? 4 : 1);
  P mean = P(0), m2 = P(0);
  float count = 0;
  __device__ __forceinline__ void merge(const P& other_mean, const P& other_m2, float other_count) {
    if (other_count == 0) return;
    const float all = count + other_count, weight = other_count / all;
    const P d = other_mean - mean;
    mean = fma(d, P(weight), mean);
    m2 = fma(d * d, P(count * weight), m2 + other_m2);
    count = all;
  }
  __device__ __forceinline__ void save(float* at) const {
    store_pack(at, mean);
    store_pack(at + P::size, m2);
    at[2 * P::size] = count;
  }
  __device__ __forceinline__ void merge(const float* at) {
    merge(load_pack<P>(at), load_pack<P>(at + P::size), at[2 * P::size]);
  }
};

// Reduces the states of the threads of each column, pairwise, into that of its row 0. All threads of the block call it.
// `scratch`: reduce_scratch<State>() floats of shared memory.
template <class State>
__device__ __forceinline__ void reduce_rows(const ThreadTile& tile, State& mine, float* scratch) {
  for (int left = tile.rows; left > 1;) {
    const int half = (left + 1) / 2;
    sync_block();  // the scratch may still be read
    if (tile.row >= half && tile.row < left) {
      mine.save(scratch + ((tile.row - half) * tile.columns + tile.column) * State::floats);
    }
    sync_block();
    if (tile.row < left - half) mine.merge(scratch + (tile.row * tile.columns + tile.column) * State::floats);
    left = half;
  }
}
// For blocks of `threads` threads on a GPU and maps of at least `packs` packs a pixel.
template <class State>
REGOLITH_HOST_DEVICE constexpr size_t reduce_scratch(int threads, int packs) {
  if (kWarp == 1) return 0;
  const int columns = threads < packs ? threads : packs, rows = threads / columns;
  return rows == 1 ? 0 : static_cast<size_t>((rows + 1) / 2) * columns * State::floats;
}

// Reduces the pixels of `range`, `block` of them at a time (cache_block<T>, or all). Each thread calls
// accumulate(state, c, first, last, step) for the pixels and channels that it owns, as in for_each_tile; then one
// thread per column gets the sum by finish(state, c, done), `done` being the pixels of earlier calls for these
// channels. An empty range gives an empty state. All threads of the block call it.
template <class P, class State, class Accumulate, class Finish>
__device__ __forceinline__ void block_reduce(Range range, int64_t block, int C, float* scratch, Accumulate&& accumulate,
                                             Finish&& finish) {
  const int packs = C / P::size;
  const ThreadTile tile(packs);
  int64_t begin = range.begin;
  do {
    const int64_t end = begin + block < range.end ? begin + block : range.end;
    for (int first = 0; first < packs; first += tile.columns) {
      const int u = first + tile.column;
      State state;
      if (tile.row < tile.rows && u < packs) accumulate(state, u * P::size, begin + tile.row, end, tile.rows);
      reduce_rows(tile, state, scratch);
      if (tile.row == 0 && u < packs) finish(state, u * P::size, begin - range.begin);
    }
    begin += block;
  } while (begin < range.end);
}

// Over part blockIdx.x of image blockIdx.y, whose parts have `each` pixels: calls term(sums, pixel, c) for each of its
// pixels, counted through the batch, and stores the N sums of each channel in partials (parts, images, N, C). All
// threads of the block call it. A GPU takes kAtOnce pixels at once; 1 where term() stores, which no load may pass.
template <class P, int N, int kAtOnce = 4, class Term>
__device__ __forceinline__ void sum_part(int64_t image_pixels, int64_t each, int C, float* partials, float* scratch,
                                         Term&& term) {
  const int64_t image = blockIdx.y * image_pixels, begin = image + blockIdx.x * each, whole = image + image_pixels;
  const Range part{begin, begin + each < whole ? begin + each : whole};
  float* const out = partials + (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * N * C;
  block_reduce<P, Sums<P, N>>(
      part, each, C, scratch,
      [&](Sums<P, N>& sums, int c, int64_t first, int64_t last, int step) {
#if defined(__CUDACC__)
#pragma unroll kAtOnce
#endif
        for (int64_t p = first; p < last; p += step) term(sums, p, c);
      },
      [&](Sums<P, N>& sums, int c, int64_t) {
        for (int i = 0; i < N; ++i) store_pack(out + i * C + c, sums[i]);
      });
}

// Partial results of blocks: the sum of element i of image s is that of data[p * stride + s * image + i] over p <
// parts.
struct Partials {
  const float* data;
  int parts;
  int64_t stride;
  int64_t n;  // elements of an image
  int64_t image = 0;
};
inline constexpr int kPartialThreads = 256;

// Calls finish(image, i, sum) with the sum, a Pack<L, 1>, of elements i to i + L, for all of them. `columns`
// neighbouring packs are a tile of the block, whose rows divide the parts.
template <int L, class Finish>
__global__ void __launch_bounds__(kPartialThreads) reduce_partials(Partials k, int columns, Finish finish) {
  using P = Pack<L, 1>;
  Shared shared;
  float* scratch = shared.take<float>(reduce_scratch<Sums<P>>(kPartialThreads, columns));
  const ThreadTile tile(columns);
  const Range r = block_range(k.n / L, columns);
  const float* const from = k.data + blockIdx.y * k.image;
  for (int64_t base = r.begin; base < r.end; base += tile.columns) {
    const int64_t i = (base + tile.column) * L;
    Sums<P> sums;
    if (i < k.n)
      for (int p = tile.row; p < k.parts; p += tile.rows) sums[0] += load_pack<P>(from + p * k.stride + i);
    reduce_rows(tile, sums, scratch);
    if (tile.row == 0 && i < k.n) finish(static_cast<int>(blockIdx.y), i, sums[0]);
  }
}
template <int L, class Finish>
void launch_partials(Stream& stream, const char* name, int images, const Partials& k, int columns,
                     const Finish& finish) {
  launch(stream, name, {blocks_for(stream, k.n / L, columns), static_cast<unsigned>(images)}, {kPartialThreads},
         shared_bytes<float>(reduce_scratch<Sums<Pack<L, 1>>>(kPartialThreads, columns)), reduce_partials<L, Finish>, k,
         columns, finish);
}

// out[i] = the sum of element i of one image, or adds it, now or later (Stream::pending). out: null, or not wanted.
void sum_partials(Stream& stream, const Partials& k, float* out, bool accumulate);

// y = scale * the sums of each image's partials (parts, N, C), or adds them. y: (N, 1, 1, C).
template <class T>
struct StoreImageSums {
  TensorView y;
  float scale;
  bool accumulate;
  template <class P>
  __device__ __forceinline__ void operator()(int, int64_t i, const P& sum) const {
    T* const out = y.as<T>() + i / y.C * y.pitch + i % y.C;
    store_pack(out, sum * P(scale), accumulate);
  }
};
template <class T, int L>
void finish_image_sums(Stream& stream, const float* partials, int parts, float scale, const TensorView& y,
                       bool accumulate) {
  const int64_t n = static_cast<int64_t>(y.N) * y.C;
  launch_partials<L>(stream, "add_image_parts", 1, {partials, parts, n, n}, kPartialThreads,
                     StoreImageSums<T>{y, scale, accumulate});
}

// Blocks that the pixels of each of `samples` samples are divided among, none of them empty.
inline unsigned sample_blocks(const Stream& stream, int samples, int64_t pixels, int waves, unsigned most) {
  const int64_t wanted = std::max<int64_t>(1, blocks_for(stream, pixels * samples, 64, waves) / samples);
  const int64_t blocks = std::min<int64_t>({wanted, pixels, most});
  const int64_t each = (pixels + blocks - 1) / blocks;
  return static_cast<unsigned>((pixels + each - 1) / each);
}
// For a pass that writes maps, and for one that leaves partial results: at most 512 of these in all, so that the
// workspace does not depend on the machine.
inline unsigned writing_blocks(const Stream& stream, int samples, int64_t pixels) {
  return sample_blocks(stream, samples, pixels, kWarp == 1 ? 4 : 8, 65535);
}
inline int most_partials(int samples) { return std::max(1, 512 / samples); }
inline unsigned summing_blocks(const Stream& stream, int samples, int64_t pixels) {
  return sample_blocks(stream, samples, pixels, 4, static_cast<unsigned>(most_partials(samples)));
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
