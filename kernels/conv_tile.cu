#include "kernels/conv_tile.h"

#include "kernels/core/dropout.h"
#include "kernels/core/gemm.h"
#include "kernels/core/reduce.h"

// A block of 8 warps has a tile of 8 x 32 pixels, a warp a row of it. The one thread of the fast execution takes tiles
// of a single row, of which there are 8 in a strip.
namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// Before a loop whose rounds nvcc shall not run at once: beside the sums there are no registers for that.
#if defined(__CUDACC__)
#define TILE_ONE_BY_ONE _Pragma("unroll 1")
#else
#define TILE_ONE_BY_ONE
#endif

// Blocks of the gradient that a multiprocessor takes at most, by their shared memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kGradientBlocks = 1;
#else
constexpr int kGradientBlocks = 2;
#endif

constexpr bool kHost = kWarp == 1;
constexpr int kThreads = 256, kWarps = kHost ? 1 : kThreads / kWarp;
constexpr int kRows = kHost ? 1 : kTileStrip, kColumns = 32;  // of a tile
constexpr int kChunk = 32;                                    // channels that an epilogue handles at once ...
constexpr int kStagePitch = kChunk + 8;                       // ... and the pitch of its staging area
constexpr int kHeld = kHost ? 4 : 1;                          // vectors of a chunk that a thread has sums of
using V = Vec<8>;
using Pixel = Pack<8, 1>;  // V, for the states of reduce.h

#if REGOLITH_MMA
template <class T, int kPixels, int kN>
using PixelSums = TileSums<T, kPixels, kN, kThreads, kWarps>;
#else
template <class T, int kPixels, int kN>
using PixelSums = TileSums<T, kPixels, kN, kThreads>;
#endif

// A rectangle of an image, that may stick out of it.
struct Window {
  int n, h0, w0, rows, columns;
  // f(place, pixel of the image, c): place, the number of the pixel in the window; pixel, -1 outside the image; and 8
  // channels from c on. A thread gets the same ones in each call.
  template <class F>
  __device__ __forceinline__ void each(int H, int W, int C, F&& f) const {
    const int vectors = C / 8, count = rows * columns * vectors;
    TILE_ONE_BY_ONE
    for (int i = thread_rank(); i < count; i += block_threads()) {
      const int place = i / vectors, c = (i - place * vectors) * 8, row = place / columns;
      const int h = h0 + row, w = w0 + place - row * columns;
      f(place, h >= 0 && h < H && w >= 0 && w < W ? h * W + w : -1, c);
    }
  }
};

// The pixels of image n, from channel 0 on. What is read beyond the last of its channels is zero.
template <class T>
struct Image {
  T* data;
  int pitch, channels;
  bool vectors;  // all 8 channels of one may be copied at once
  __device__ __forceinline__ Image(const TensorView& m, int n)
      : data(m.as<T>() + static_cast<int64_t>(n) * m.H * m.W * m.pitch),
        pitch(m.pitch),
        channels(m.C),
        vectors(m.C % 8 == 0 && m.pitch % 8 == 0 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0) {}
  __device__ __forceinline__ T* at(int pixel, int c) const { return data + static_cast<int64_t>(pixel) * pitch + c; }
  __device__ __forceinline__ V read(int pixel, int c) const {
    const T* const p = at(pixel, c);
    if (vectors) return c < channels ? load<V>(p) : V(0);
    V v(0);
    REGOLITH_UNROLL
    for (int l = 0; l < 8; ++l)
      if (c + l < channels) v.set(l, static_cast<float>(p[l]));
    return v;
  }
  __device__ __forceinline__ void write(int pixel, int c, const V& v) const {
    T* const p = at(pixel, c);
    if (vectors) return store(p, v);
    REGOLITH_UNROLL
    for (int l = 0; l < 8; ++l)
      if (c + l < channels) p[l] = static_cast<T>(v[l]);
  }
};

// Begins to copy 8 channels, of which `count` are there: the others become zeros. vectors: of them there are all or
// none.
template <class T>
__device__ __forceinline__ void copy_channels(T* to, const T* from, int count, bool vectors) {
  if (count <= 0)
    store(to, V(0));
  else if (vectors)
    copy_async(to, from);
  else
    for (int l = 0; l < 8; ++l) to[l] = l < count ? from[l] : T(0.0f);
}

// Begins to copy a window into a tile (pixels, C) of this pitch; zeros outside the image.
template <class T>
__device__ __forceinline__ void copy_window(const TensorView& m, const Window& window, T* tile, int pitch) {
  const Image<const T> image(m, window.n);
  window.each(m.H, m.W, tile_channels(m.C), [&](int place, int pixel, int c) {
    copy_channels(tile + place * pitch + c, image.at(pixel, c), pixel < 0 ? 0 : m.C - c, image.vectors);
  });
}

// Channels of a map that a block has.
struct Slice {
  int all, first, width;
  __device__ __forceinline__ Slice(int channels, int most, int number)
      : all(channels), first(number * most), width(channels - first < most ? channels - first : most) {}
  template <class T>
  __device__ __forceinline__ TensorView of(TensorView m) const {
    if (m) m.data = m.as<T>() + first, m.C = width;
    return m;
  }
};

// The weights (K, taps, channels of the slice) into a tile of this pitch, whose taps have `filled` channels.
template <class T>
__device__ __forceinline__ void copy_weights(const T* from, int K, int taps, const Slice& in, int filled, T* tile,
                                             int pitch) {
  const int vectors = filled / 8;
  for (int i = thread_rank(); i < tile_channels(K) * taps * vectors; i += block_threads()) {
    const int row = i / vectors, c = (i - row * vectors) * 8, k = row / taps;
    copy_channels(tile + k * pitch + (row - k * taps) * filled + c, from + row * in.all + in.first + c,
                  k < K ? in.width - c : 0, in.all % 8 == 0);
  }
}

// Copies the coefficients of a sample, `rows` of the slice's channels, to shared memory, as rows of `filled`.
__device__ __forceinline__ void copy_coefficients(const float* from, bool per_image, int n, int rows, const Slice& in,
                                                  int filled, float* to) {
  from += (per_image ? static_cast<int64_t>(n) * rows * in.all : 0) + in.first;
  for (int i = thread_rank(); i < rows * filled; i += block_threads()) {
    const int row = i / filled, c = i - row * filled;
    to[i] = c < in.width ? from[row * in.all + c] : 0;
  }
}

// A norm, from coefficients in shared memory whose first rows of C are mean, scale and beta.
struct Affine {
  const float *mean, *scale, *beta;
  __device__ __forceinline__ Affine(const float* coefficients, int C)
      : mean(coefficients), scale(mean + C), beta(scale + C) {}
  __device__ __forceinline__ V centred(const V& x, int c) const { return x - load<V>(mean + c); }
  __device__ __forceinline__ V of_centred(const V& d, int c) const {
    return fma(d, load<V>(scale + c), load<V>(beta + c));
  }
  __device__ __forceinline__ V operator()(const V& x, int c) const { return of_centred(centred(x, c), c); }
};
__device__ __forceinline__ V where_positive(const V& gate, const V& x) { return select(gate > V(0), x, V(0)); }

// v times the factors of dropout of 8 channels of image n from c on. Made where it is used, for it takes registers.
template <bool kDrops>
class Drop {
 public:
  __device__ __forceinline__ Drop(const DropoutNumbers& k, int n, int channels)
      : factors_(k), drops_(k.threshold != 0), spatial_(k.spatial), C_(channels) {
    factors_.sample(n);
  }
  __device__ __forceinline__ V operator()(const V& v, int pixel, int c) {
    return kDrops && drops_ ? v * factors_.template at<8>((spatial_ ? 0 : static_cast<int64_t>(pixel) * C_) + c) : v;
  }

 private:
  DropoutFactors<> factors_;
  bool drops_, spatial_;
  int C_;
};

// Calls f(held, v, pixel) for the vectors of a warp's staging area (kPixels, kChunk) that this thread has: v of 4, the
// same ones for all pixels; held numbers them.
template <int kPixels, class F>
__device__ __forceinline__ void each_staged(F&& f) {
  REGOLITH_UNROLL
  for (int held = 0; held < kHeld; ++held) {
    const int v = kHost ? held : lane() % 4;
    TILE_ONE_BY_ONE
    for (int pixel = kHost ? 0 : lane() / 4; pixel < kPixels; pixel += kHost ? 1 : kWarp / 4) f(held, v, pixel);
  }
}

__device__ __forceinline__ Pixel shuffle_xor(const Pixel& x, int mask) {
  Pixel y;
  REGOLITH_UNROLL
  for (int l = 0; l < 8; ++l) y.v[0].set(l, kernels::REGOLITH_EXECUTION::shuffle_xor(x.v[0][l], mask));
  return y;
}
// Merges the states of the lanes that have the same channels into those of lanes 0 to 3.
__device__ __forceinline__ void merge_lanes(Moments<Pixel>& m) {
  for (int mask = 4; mask < kWarp; mask *= 2) {
    const Pixel mean = shuffle_xor(m.mean, mask), m2 = shuffle_xor(m.m2, mask);
    m.merge(mean, m2, kernels::REGOLITH_EXECUTION::shuffle_xor(m.count, mask));
  }
}
__device__ __forceinline__ void merge_lanes(Sums<Pixel, 2>& s) {
  for (int mask = 4; mask < kWarp; mask *= 2)
    for (int i = 0; i < 2; ++i) s[i] += shuffle_xor(s[i], mask);
}

// The tiles of the strips that a block has: unit blockIdx.x / slices, then every gridDim.x / slices-th. So the blocks
// that differ in their slice alone are neighbours, and read the same pixels at the same time.
struct Tiles {
  int per_row, per_strip, strips, units, step;
  __device__ __forceinline__ Tiles(const TensorView& m, int slices)
      : per_row((m.W + kColumns - 1) / kColumns),
        per_strip(per_row * (kTileStrip / kRows)),
        strips(tile_strips(m.H)),
        units(m.N * strips),
        step(static_cast<int>(gridDim.x) / slices) {}
};
struct Tile {
  int unit, index = 0;  // of the unit
  __device__ __forceinline__ explicit Tile(int first) : unit(first) {}
  __device__ __forceinline__ void advance(const Tiles& all) {
    if (++index == all.per_strip) index = 0, unit += all.step;
  }
  __device__ __forceinline__ int n(const Tiles& all) const { return unit / all.strips; }
  __device__ __forceinline__ int h(const Tiles& all) const {
    return unit % all.strips * kTileStrip + index / all.per_row * kRows;
  }
  __device__ __forceinline__ int w(const Tiles& all) const { return index % all.per_row * kColumns; }
};

// What a thread has of the moments of a chunk: of vector v, about its first pixel.
struct ChunkMoments {
  V shift, sum, squares;
  int count = 0;
  __device__ __forceinline__ void clear() { count = 0, sum = squares = V(0), shift = V(0); }
  __device__ __forceinline__ void add(const V& value) {
    if (count == 0) shift = value;
    ++count;
    const V d = value - shift;
    sum += d;
    squares = fma(d, d, squares);
  }
  __device__ __forceinline__ Moments<Pixel> moments() const {
    Moments<Pixel> m;
    if (count == 0) return m;
    m.count = static_cast<float>(count);
    const V mean = sum * V(1 / m.count);
    m.mean.v[0] = shift + mean;
    m.m2.v[0] = max(V(0), squares - sum * mean);
    return m;
  }
};

template <class T>
struct ForwardShared {
  int border, pitch, weights_pitch;
  T *weights, *tile, *second, *stage;  // (K, taps, C), (border pixels, C) twice, (warps, 32 pixels, kChunk)
  float *coefficients, *moments;       // (3, C), (warps, 2, K)
  float* counts;                       // (warps)
  template <class A>
  REGOLITH_HOST_DEVICE ForwardShared(A& a, int C, int K, int kK, const TileWindow& window, int stages)
      : border((kRows + window.R - 1) * (kColumns + window.S - 1)),
        pitch(tile_channels(C) + 8),
        weights_pitch(window.R * window.S * tile_channels(C) + 8) {
    a.take(weights, static_cast<size_t>(kK) * weights_pitch);
    a.take(tile, static_cast<size_t>(border) * pitch);
    a.take(second, stages == 2 ? static_cast<size_t>(border) * pitch : 0);
    a.take(stage, static_cast<size_t>(kWarps) * kColumns * kStagePitch);
    a.take(coefficients, 3 * tile_channels(C));
    a.take(moments, static_cast<size_t>(kWarps) * 2 * tile_channels(K));
    a.take(counts, kWarps);
  }
};

template <class T, int kK>
__global__ void __launch_bounds__(kThreads, kK <= 32 ? 2 : 1)
    conv_tile(TileForward k, DropoutNumbers numbers, int stages) {
  constexpr int kChunks = kK / kChunk;
  const int slices = tile_slices(k.y.C, kK), block = static_cast<int>(blockIdx.x) / slices;
  const Slice in_all(k.x.C, k.x.C, 0), of_y(k.y.C, kK, static_cast<int>(blockIdx.x) % slices);
  const TensorView &x = k.x, y = of_y.of<T>(k.y);
  const int C = tile_channels(x.C), K = of_y.width, filled = tile_channels(k.y.C < kK ? k.y.C : kK);
  const int R = k.window.R, S = k.window.S, columns = kColumns + S - 1;
  const auto s = take_shared<ForwardShared<T>>(C, filled, kK, k.window, stages);
  const Tiles tiles(y, slices);
  const auto window = [&](const Tile& t) {
    return Window{t.n(tiles), t.h(tiles) - k.window.pad[0], t.w(tiles) - k.window.pad[1], kRows + R - 1, columns};
  };
  ChunkMoments moments[kChunks][kHeld];
  T* const stage = s.stage + warp_rank() * kColumns * kStagePitch;
  copy_weights(static_cast<const T*>(k.w) + static_cast<int64_t>(of_y.first) * R * S * x.C, K, R * S, in_all, C,
               s.weights, s.weights_pitch);
  Tile t(block);
  T *tile = s.tile, *other = stages == 2 ? s.second : s.tile;
  if (t.unit < tiles.units) copy_window<T>(x, window(t), tile, s.pitch);
  commit_copies();
  while (t.unit < tiles.units) {
    const Window in = window(t);
    wait_for_copies<0>();
    if (k.norm.coefficients != nullptr) {
      if (t.index == 0) {
        copy_coefficients(k.norm.coefficients, k.norm.per_image, in.n, 3, in_all, C, s.coefficients);
        sync_block();
      }
      const Affine affine(s.coefficients, C);
      const V least(k.norm.relu ? 0.0f : -INFINITY);
      Drop<true> drop(numbers, in.n, x.C);
      in.each(x.H, x.W, C, [&](int place, int pixel, int c) {  // what this thread has copied
        T* const p = tile + place * s.pitch + c;
        if (pixel >= 0) store(p, drop(max(least, affine(load<V>(p), c)), pixel, c));
      });
    }
    sync_block();
    Tile next = t;
    next.advance(tiles);
    const auto copy_next = [&] {
      if (next.unit < tiles.units) copy_window<T>(x, window(next), other, s.pitch);
      commit_copies();
    };
    if (stages == 2) copy_next();

    PixelSums<T, kRows * kColumns, kK> sums;
    for (int r = 0; r < R; ++r) {
      for (int q = 0; q < S; ++q) {
        // TileSums has rows of pixels one after the other: a warp's begins at the tile's columns times its number.
        const T* const a = tile + (r * columns + q + warp_rank() * (S - 1)) * s.pitch;
        sums.template add<false, true>(a, s.pitch, s.weights + (r * S + q) * C, s.weights_pitch, C, K);
      }
    }

    const Image<T> out(y, in.n);
    const int p = t.h(tiles) + warp_rank(), q0 = t.w(tiles);
    if (t.index == 0) {
      REGOLITH_UNROLL
      for (int chunk = 0; chunk < kChunks; ++chunk)
        for (int held = 0; held < kHeld; ++held) moments[chunk][held].clear();
    }
    REGOLITH_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (chunk * kChunk >= K) continue;
      sync_warp();  // the staging area may still be read
      sums.each(K, [&](int r, int n, float v) {
        if (n / kChunk != chunk) return;
        if (k.bias != nullptr && n < K) v += k.bias[of_y.first + n];
        if (k.relu) v = v < 0 ? 0.0f : v;
        stage[(sums.row(r) - warp_rank() * kColumns) * kStagePitch + n % kChunk] = T(v);
      });
      sync_warp();
      each_staged<kColumns>([&](int held, int v, int pixel) {
        const int c = chunk * kChunk + v * 8, q = q0 + pixel;
        if (c >= K || p >= y.H || q >= y.W) return;
        const V value = load<V>(stage + pixel * kStagePitch + v * 8);
        out.write(p * y.W + q, c, value);
        if (k.moments != nullptr) moments[chunk][held].add(value);
      });
    }
    if (k.moments != nullptr && t.index == tiles.per_strip - 1) {
      REGOLITH_UNROLL
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        REGOLITH_UNROLL
        for (int held = 0; held < kHeld; ++held) {
          const int c = chunk * kChunk + (kHost ? held : lane() % 4) * 8;
          Moments<Pixel> m = moments[chunk][held].moments();
          merge_lanes(m);
          if (c >= K || lane() / 4 != 0) continue;
          store_pack(s.moments + warp_rank() * 2 * filled + c, m.mean);
          store_pack(s.moments + (warp_rank() * 2 + 1) * filled + c, m.m2);
          if (c == 0) s.counts[warp_rank()] = m.count;  // of all channels the same
        }
      }
      sync_block();
      for (int c = thread_rank(); c < K; c += block_threads()) {
        Moments<Pack<1, 1>> m;
        for (int w = 0; w < kWarps; ++w) {
          const float* const of_warp = s.moments + w * 2 * filled + c;
          m.merge(Pack<1, 1>(of_warp[0]), Pack<1, 1>(of_warp[filled]), s.counts[w]);
        }
        float* const to = k.moments + static_cast<int64_t>(t.unit) * 2 * of_y.all + of_y.first + c;
        to[0] = m.mean.v[0][0];
        to[of_y.all] = m.m2.v[0][0];
      }
    }
    if (stages == 1) {
      sync_block();  // the tile has been read
      copy_next();
    }
    T* const read = tile;
    tile = other, other = read;
    t = next;
  }
}

template <int kTaps>
constexpr int kSideOf = kTaps == 9   ? 3
                        : kTaps == 4 ? 2
                                     : 1;  // of the square window

// Sums of dw over the pixels of the block's tiles. A warp has 16 output channels, a share of the input channels, and
// all taps, or half of them where else the warps had too few input channels each.
#if REGOLITH_MMA
template <class T, int kTaps, int kK, int kC>
class WeightSums {
  static constexpr int kOutputWarps = kK / 16;
  static constexpr int kGroups = kC == 32 && kOutputWarps == 2 && kTaps > 1 ? 2 : 1;  // of warps, that divide the taps
  static constexpr int kOwn = (kTaps + kGroups - 1) / kGroups;
  static constexpr int kInputWarps = kWarps / kOutputWarps / kGroups;
  static constexpr int kVectors = kC / 8 / kInputWarps;  // of 8 input channels, of a warp

 public:
  // dy: the tile with its border, (kRows + R - 1, columns); x: (kRows, kColumns).
  __device__ __forceinline__ void add(const T* dy, int dy_pitch, int columns, const T* x, int x_pitch, int, int) {
    const int k = warp_rank() % kOutputWarps * 16, c = first_input();
    constexpr int kSide = kSideOf<kTaps>;
    for (int row = 0; row < kRows; ++row) {
      TILE_ONE_BY_ONE
      for (int q = 0; q < kColumns; q += 16) {
        MmaB<T> right[kVectors];
        REGOLITH_UNROLL
        for (int j = 0; j < kVectors; ++j) right[j] = load_b(x + (row * kColumns + q) * x_pitch + c + 8 * j, x_pitch);
        const T* const corner = dy + ((row + kSide - 1) * columns + q + kSide - 1) * dy_pitch + k;
        REGOLITH_UNROLL
        for (int i = 0; i < kOwn; ++i) {
          const int tap = first_tap() + i;
          if (kTaps % kGroups != 0 && tap >= kTaps) continue;
          const MmaA<T> left = load_a_transposed(corner - (tap / kSide * columns + tap % kSide) * dy_pitch, dy_pitch);
          REGOLITH_UNROLL
          for (int j = 0; j < kVectors; ++j) mma_16x8x16(sums_[i][j], left, right[j]);
        }
      }
    }
  }
  // f(k, tap, c, sum)
  template <class F>
  __device__ __forceinline__ void each(int, int, F&& f) {
    REGOLITH_UNROLL
    for (int i = 0; i < kOwn; ++i) REGOLITH_UNROLL
    for (int j = 0; j < kVectors; ++j) REGOLITH_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int tap = first_tap() + i;
      if (kTaps % kGroups != 0 && tap >= kTaps) continue;
      f(warp_rank() % kOutputWarps * 16 + mma_row(e), tap, first_input() + 8 * j + mma_column(e), sums_[i][j].v[e]);
    }
  }

 private:
  static __device__ __forceinline__ int first_tap() { return warp_rank() / (kWarps / kGroups) * kOwn; }
  static __device__ __forceinline__ int first_input() {
    return warp_rank() / kOutputWarps % kInputWarps * (8 * kVectors);
  }
  MmaC sums_[kOwn][kVectors];
};
#else
template <class T, int kTaps, int kK, int kC>
class WeightSums {
 public:
  void add(const T* dy, int dy_pitch, int columns, const T* x, int x_pitch, int K, int C) {
    constexpr int kSide = kSideOf<kTaps>;
    for (int q = 0; q < kColumns; ++q) {
      for (int tap = 0; tap < kTaps; ++tap) {
        const T* const from = dy + ((kSide - 1 - tap / kSide) * columns + q + kSide - 1 - tap % kSide) * dy_pitch;
        for (int k = 0; k < K; ++k) {
          const V g(static_cast<float>(from[k]));
          float* const to = sums_ + (k * kTaps + tap) * kC;
          for (int c = 0; c < C; c += 8) store(to + c, fma(g, load<V>(x + q * x_pitch + c), load<V>(to + c)));
        }
      }
    }
  }
  template <class F>
  void each(int K, int C, F&& f) {
    for (int k = 0; k < K; ++k)
      for (int tap = 0; tap < kTaps; ++tap)
        for (int c = 0; c < C; ++c) f(k, tap, c, sums_[(k * kTaps + tap) * kC + c]);
  }

 private:
  float sums_[kK * kTaps * kC] = {};
};
#endif

template <class T>
struct BackwardShared {
  int border, dy_pitch, x_pitch, weights_pitch;
  T *weights, *dy, *y;                    // (K, taps, C), (border pixels, K), the same of y where few
  T *x, *stage;                           // (pixels, C), (warps, 16 or 32 pixels, kChunk)
  float *coefficients, *gradient, *sums;  // (3, C), (5 + 2, K), (warps, 2, C)
  template <class A>
  REGOLITH_HOST_DEVICE BackwardShared(A& a, int C, int K, int kK, int kC, const TileWindow& window, bool reads_y)
      : border((kRows + window.R - 1) * (kColumns + window.S - 1)),
        dy_pitch(kK + 8),
        x_pitch(kC + 8),
        weights_pitch(window.R * window.S * tile_channels(C) + 8) {
    a.take(weights, static_cast<size_t>(kK) * weights_pitch);
    a.take(dy, static_cast<size_t>(border) * dy_pitch);
    a.take(y, reads_y && kK <= 64 ? static_cast<size_t>(border) * dy_pitch : 0);
    a.take(x, static_cast<size_t>(kRows) * kColumns * x_pitch);
    a.take(stage, static_cast<size_t>(kWarps) * (kHost ? 32 : 16) * kStagePitch);
    a.take(coefficients, 3 * tile_channels(C));
    a.take(gradient, 7 * tile_channels(K));
    a.take(sums, static_cast<size_t>(kWarps) * 2 * tile_channels(C));
  }
};

// partial: (blocks, K, taps, C).
template <class T, int kTaps, int kK, int kC, bool kDrops>
__global__ void __launch_bounds__(kThreads, kK == 32 && kC == 32 && !kDrops ? kGradientBlocks : 1)
    conv_tile_gradient(TileBackward k, DropoutNumbers numbers, DropoutNumbers gradient_numbers, float* partial) {
  constexpr int kSide = kSideOf<kTaps>, columns = kColumns + kSide - 1;
  constexpr int kPart = kHost ? 32 : 16;  // pixels of a warp at once
  constexpr bool kSqueezes = kDrops && kTaps * kK * kC < kTileSqueezed;
  constexpr bool kSlices = kC == 64 || kK == 128;  // else one has all inputs: see tile_input_slice()
  const int slices = kSlices ? tile_slices(k.x.C, kC) : 1, block = static_cast<int>(blockIdx.x) / slices;
  const Slice all_of_y(k.dy.C, k.dy.C, 0), of_x(k.x.C, kC, kSlices ? static_cast<int>(blockIdx.x) % slices : 0);
  const TensorView x = of_x.of<T>(k.x), &dy = k.dy;
  const int C = of_x.width, K = dy.C, filled = tile_channels(k.x.C < kC ? k.x.C : kC), outputs = tile_channels(K);
  const bool reads_y = k.gradient.coefficients != nullptr;
  const auto s = take_shared<BackwardShared<T>>(filled, outputs, kK, kC, k.window, reads_y);
  const Tiles tiles(x, slices);
  T* const stage = s.stage + warp_rank() * kPart * kStagePitch;
  WeightSums<T, kTaps, kK, kC> dw;
  if (k.dx) copy_weights(static_cast<const T*>(k.w), K, kTaps, of_x, filled, s.weights, s.weights_pitch);
  for (Tile t(block); t.unit < tiles.units; t.advance(tiles)) {
    const int n = t.n(tiles), h0 = t.h(tiles), w0 = t.w(tiles);
    const Window in{n, h0, w0, kRows, kColumns};
    const Window out{n, h0 + k.window.pad[0] - (kSide - 1), w0 + k.window.pad[1] - (kSide - 1), kRows + kSide - 1,
                     columns};
    sync_block();  // the tiles before have been read
    copy_window<T>(dy, out, s.dy, s.dy_pitch);
    if (kK <= 64 && reads_y) copy_window<T>(k.gradient.x, out, s.y, s.dy_pitch);
    if (k.dw != nullptr || k.norm.coefficients != nullptr) copy_window<T>(x, in, s.x, s.x_pitch);
    commit_copies();
    if (t.index == 0) {
      if (k.norm.coefficients != nullptr)
        copy_coefficients(k.norm.coefficients, k.norm.per_image, n, 3, of_x, filled, s.coefficients);
      if (reads_y)
        copy_coefficients(k.gradient.coefficients, k.gradient.per_image, n, 5, all_of_y, outputs, s.gradient);
      if (kSqueezes && k.gradient.squeeze != nullptr)
        copy_coefficients(k.gradient.squeeze, true, n, 2, all_of_y, outputs, s.gradient + 5 * outputs);
      for (int i = thread_rank(); i < kWarps * 2 * filled; i += block_threads()) s.sums[i] = 0;
      sync_block();
    }
    wait_for_copies<0>();
    if (reads_y) {
      const Affine affine(s.gradient, outputs);
      const float *slope = s.gradient + 3 * outputs, *offset = slope + outputs, *squeeze = offset + outputs;
      const bool saved = static_cast<bool>(k.gradient.y), masks = k.gradient.relu && !saved;
      if (saved) {  // first, for all at once takes too many registers
        const Image<const T> y(k.gradient.y, n);
        out.each(dy.H, dy.W, outputs, [&](int place, int pixel, int c) {
          T* const p = s.dy + place * s.dy_pitch + c;
          if (pixel >= 0) store(p, where_positive(y.read(pixel, c), load<V>(p) * V(gradient_numbers.scale)));
        });
      }
      const bool squeezed = kSqueezes && k.gradient.squeeze != nullptr;
      if (squeezed) {  // likewise
        Drop<kDrops> drop(gradient_numbers, n, K);
        out.each(dy.H, dy.W, outputs, [&](int place, int pixel, int c) {
          T* const p = s.dy + place * s.dy_pitch + c;
          if (pixel >= 0)
            store(p, fma(load<V>(squeeze + c), drop(load<V>(p), pixel, c), load<V>(squeeze + outputs + c)));
        });
      }
      const Image<const T> raw(k.gradient.x, n);
      Drop<kDrops> drop(gradient_numbers, n, K);
      out.each(dy.H, dy.W, outputs, [&](int place, int pixel, int c) {
        if (pixel < 0) return;
        T* const p = s.dy + place * s.dy_pitch + c;
        const V d = affine.centred(kK <= 64 ? load<V>(s.y + place * s.dy_pitch + c) : raw.read(pixel, c), c);
        V g = load<V>(p);
        if (masks) g = where_positive(affine.of_centred(d, c), g);
        if (!saved && !squeezed) g = drop(g, pixel, c);
        store(p, fma(load<V>(affine.scale + c), g, fma(load<V>(slope + c), d, load<V>(offset + c))));
      });
    }
    const Affine affine(s.coefficients, filled);
    const bool normed = k.norm.coefficients != nullptr, sums_end = k.sums != nullptr && t.index == tiles.per_strip - 1;
    sync_block();
    if (k.dx) {
      const Image<T> dx(of_x.of<T>(k.dx), n);
      const int h = h0 + warp_rank();
      float* const of_warp = s.sums + warp_rank() * 2 * filled;
      for (int part = 0; part < kColumns; part += kPart) {
        for (int c0 = 0; c0 < C; c0 += kChunk) {
          const int width = C - c0 < kChunk ? C - c0 : kChunk;
          PixelSums<T, kPart * kWarps, kChunk> g;
          TILE_ONE_BY_ONE
          for (int r = 0; r < kSide; ++r) {
            TILE_ONE_BY_ONE
            for (int q = 0; q < kSide; ++q) {
              const int at = (kSide - 1 - r) * columns + kSide - 1 - q + part + warp_rank() * (columns - kPart);
              g.template add<false, false>(s.dy + at * s.dy_pitch, s.dy_pitch,
                                           s.weights + (r * kSide + q) * filled + c0, s.weights_pitch, outputs, width);
            }
          }
          sync_warp();  // the staging area may still be read
          g.each(width,
                 [&](int r, int c, float v) { stage[(g.row(r) - warp_rank() * kPart) * kStagePitch + c] = T(v); });
          sync_warp();
          Drop<kDrops> drop(numbers, n, of_x.all);
          Sums<Pixel, 2> sums[kHeld];
          each_staged<kPart>([&](int held, int v, int pixel) {
            const int c = c0 + v * 8, w = w0 + part + pixel, at = h * x.W + w;
            if (v * 8 >= width || h >= x.H || w >= x.W) return;
            T* const staged = stage + pixel * kStagePitch + v * 8;
            V value = load<V>(staged);
            if (k.accumulate_dx) value += dx.read(at, c);
            if (k.sums != nullptr) {
              const V d = affine.centred(load<V>(s.x + (warp_rank() * kColumns + part + pixel) * s.x_pitch + c), c);
              if (k.norm.relu) value = where_positive(affine.of_centred(d, c), value);
              store(staged, drop(value, at, of_x.first + c));
              value = load<V>(staged);  // as it will be read
              sums[held][0].v[0] += value;
              sums[held][1].v[0] = fma(value, d, sums[held][1].v[0]);
            }
            dx.write(at, c, value);
          });
          if (k.sums == nullptr) continue;
          REGOLITH_UNROLL
          for (int held = 0; held < kHeld; ++held) {
            const int c = c0 + (kHost ? held : lane() % 4) * 8;
            merge_lanes(sums[held]);
            if (c >= C || lane() / 4 != 0) continue;
            store(of_warp + c, load<V>(of_warp + c) + sums[held][0].v[0]);
            store(of_warp + filled + c, load<V>(of_warp + filled + c) + sums[held][1].v[0]);
          }
        }
      }
    }
    if (normed) {
      sync_block();  // x has been read as it was
      const V least(k.norm.relu ? 0.0f : -INFINITY);
      Drop<kDrops> drop(numbers, n, of_x.all);
      in.each(x.H, x.W, filled, [&](int place, int pixel, int c) {
        T* const p = s.x + place * s.x_pitch + c;
        if (pixel >= 0) store(p, drop(max(least, affine(load<V>(p), c)), pixel, of_x.first + c));
      });
      if (sums_end) {
        for (int c = thread_rank(); c < 2 * filled; c += block_threads()) {
          float sum = s.sums[c];
          for (int w = 1; w < kWarps; ++w) sum += s.sums[w * 2 * filled + c];
          const int row = c / filled, in_row = c - row * filled;
          if (in_row < C) k.sums[(int64_t{2} * t.unit + row) * of_x.all + of_x.first + in_row] = sum;
        }
      }
      sync_block();
    }
    if (k.dw != nullptr) dw.add(s.dy, s.dy_pitch, columns, s.x, s.x_pitch, K, C);
  }
  if (k.dw == nullptr) return;
  partial += static_cast<int64_t>(block) * K * kTaps * of_x.all + of_x.first;
  dw.each(K, C, [&](int out, int tap, int in, float sum) {
    if (out < K && in < C) partial[(out * kTaps + tap) * of_x.all + in] = sum;
  });
}

void expect(const char* kernel, bool holds, const char* what) {
  if (!holds) throw KernelError(std::string(kernel) + ": " + what);
}
void check(const char* kernel, const TensorView& x, const TensorView& y, const TileWindow& window,
           const NormOnLoad& norm) {
  const std::string refusal = tile_refusal(x.C, y.C, window.R, window.S);
  if (!refusal.empty()) throw KernelError(std::string(kernel) + ": " + refusal);
  expect(kernel, x.dtype == y.dtype && x.dtype != DType::f32, "takes maps of bf16 or fp16");
  expect(kernel, x.N == y.N && x.pixels() > 0 && y.pixels() > 0, "x and y must have as many images");
  expect(kernel, norm.coefficients == nullptr || x.C % 8 == 0, "a norm on load has a multiple of 8 channels");
  expect(kernel, norm.dropout.rate >= 0 && norm.dropout.rate < 1, "the rate of dropout must be in [0, 1)");
}
bool same_shape(const TensorView& a, const TensorView& b) {
  return a.N == b.N && a.H == b.H && a.W == b.W && a.C == b.C && a.dtype == b.dtype;
}

template <class F>
void with_half_type(DType t, const char* kernel, F&& f) {
  if constexpr (kExecution == Execution::fast) {
    if (t == DType::bf16) return f(bf16{});
    throw KernelError(std::string(kernel) + ": takes bf16 on the CPU, not " + std::string(name_of(t)));
  } else {
    if (t == DType::bf16) return f(bf16{});
    f(fp16{});
  }
}

template <class T, int kTaps, int kK, int kC>
void launch_backward(Stream& stream, const TileBackward& k) {
  constexpr bool kTwice = kK == 32 && kC == 32;  // without these there are registers for two blocks
  const bool drops = !kTwice || k.norm.dropout || k.gradient.squeeze || (k.gradient.dropout && !k.gradient.y);
  const int C = k.x.C, K = k.dy.C, blocks = tile_blocks(k.x.N, k.x.H, C, K, k.window.R, k.window.S);
  float* const partial = static_cast<float*>(k.workspace);
  launch(stream, "tile_backward", {static_cast<unsigned>(blocks * tile_slices(C, kC))}, {kThreads},
         shared_bytes_of<BackwardShared<T>>(std::min(C, kC), K, kK, kC, k.window, k.gradient.coefficients != nullptr),
         drops ? conv_tile_gradient<T, kTaps, kK, kC, true> : conv_tile_gradient<T, kTaps, kK, kC, !kTwice>, k,
         dropout_numbers(k.norm.dropout), dropout_numbers(k.gradient.dropout), partial);
  const int64_t n = static_cast<int64_t>(K) * kTaps * C;
  if (k.dw != nullptr) sum_partials(stream, {partial, blocks, n, n}, k.dw, k.accumulate_dw);
}

}  // namespace

void tile_forward(Stream& stream, const TileForward& k) {
  check("tile_forward", k.x, k.y, k.window, k.norm);
  with_half_type(k.x.dtype, "tile_forward", [&](auto t) {
    using T = decltype(t);
    const int C = k.x.C, K = k.y.C, kK = tile_output_slice(C, K, k.window.R, k.window.S), slices = tile_slices(K, kK);
    const auto bytes = [&](int stages) {
      return shared_bytes_of<ForwardShared<T>>(C, std::min(K, kK), kK, k.window, stages);
    };
    const int stages = kWarp > 1 && bytes(2) <= shared_limit(stream) ? 2 : 1;
    const int strips = k.y.N * tile_strips(k.y.H), most = stream.processors() * (kK == 32 ? 2 : 1) / slices;
    launch(stream, "tile_forward", {static_cast<unsigned>(std::min(strips, std::max(most, 1)) * slices)}, {kThreads},
           bytes(stages), kK == 32 ? conv_tile<T, 32> : conv_tile<T, 64>, k, dropout_numbers(k.norm.dropout), stages);
  });
}

void tile_backward(Stream& stream, const TileBackward& k) {
  check("tile_backward", k.x, k.dy, k.window, k.norm);
  expect("tile_backward", !k.dx || same_shape(k.dx, k.x), "dx must have the shape and the element type of x");
  expect("tile_backward", k.gradient.coefficients == nullptr || same_shape(k.gradient.x, k.dy),
         "what the norm behind read must have the shape and the element type of dy");
  expect("tile_backward", k.gradient.coefficients == nullptr || k.dy.C % 8 == 0,
         "the norm behind has a multiple of 8 channels");
  expect("tile_backward", k.gradient.squeeze == nullptr || tile_squeezes(k.x.C, k.dy.C, k.window.R, k.window.S),
         "weights of so many channels leave no registers for what a squeeze left");
  expect("tile_backward", k.sums == nullptr || (k.dx && k.norm.coefficients != nullptr),
         "sums are those of dx, for the norm before");
  with_half_type(k.x.dtype, "tile_backward", [&](auto t) {
    using T = decltype(t);
    const auto with_taps = [&](auto taps) {
      constexpr int kTaps = taps;
      const auto run = [&](auto outputs, auto inputs) { launch_backward<T, kTaps, outputs, inputs>(stream, k); };
      constexpr std::integral_constant<int, 32> k32;
      constexpr std::integral_constant<int, 64> k64;
      constexpr std::integral_constant<int, 96> k96;
      const int outputs = tile_outputs(k.dy.C), slice = tile_input_slice(k.x.C, k.dy.C, k.window.R, k.window.S);
      if (outputs == 128)
        return run(std::integral_constant<int, 128>{}, std::integral_constant < int, kTaps == 9 ? 32 : 64 > {});
      if (slice == 96) return run(k32, k96);
      if (slice == 32) return outputs == 64 ? run(k64, k32) : run(k32, k32);
      return outputs == 64 ? run(k64, k64) : run(k32, k64);
    };
    if (k.window.R == 3) return with_taps(std::integral_constant<int, 9>{});
    if (k.window.R == 2) return with_taps(std::integral_constant<int, 4>{});
    with_taps(std::integral_constant<int, 1>{});
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
