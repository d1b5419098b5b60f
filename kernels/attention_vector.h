// Attention through vectors: fp32 maps everywhere, and bf16 on the fast host, in pairs where the processor multiplies
// those. Tiles of q, k, v stand in shared memory as factors; every product of theirs is one loop, C(rows, columns) +=
// A(rows, depth) B(depth, columns), in which a thread owns kM rows of kQ vectors of columns. Lanes are queries in
// forward and for dq, keys for dk and dv, so that softmax never looks across lanes. Pairs are multiplied as by tensor
// cores, P and dS rounded to bf16.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/attention_common.h"
#include "kernels/core/math.h"
#include "kernels/core/register_tile.h"
#include "kernels/core/thread_tile.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace attention {

inline constexpr bool kHost = kWarp == 1;
inline constexpr int kVectorThreads = 64;
inline constexpr int kColumns = kHost ? 4 * kL : 32;  // of a tile whose lanes they are
inline constexpr int kRows = 32;                      // of the tiles that are gone through
inline constexpr int kM = kHost && kL == 16 ? 8 : 4;  // with kQ: the registers that the execution has
inline constexpr int kQ = kHost ? 2 : 1;
inline constexpr int kOwned = kHost ? kColumns / kL : 1;  // vectors of columns of a thread, where each has some rows
inline constexpr int kLoad = kHost ? 8 : kL;              // channels that are read at once

// d rounded up to whole vectors, where channels are lanes.
REGOLITH_HOST_DEVICE constexpr int whole(int d) { return (d + kL - 1) / kL * kL; }
// Words from row to row of a tile, whose banks differ for neighbouring rows.
REGOLITH_HOST_DEVICE constexpr int pitch_of(int words) { return words + 4; }

// `rows` positions from `first` on at out[row * pitch + word], words along the channels; zero beyond the last position.
template <class F, class T>
__device__ __forceinline__ void load_rows(const Head<const T>& map, int first, int rows, int d, typename F::Word* out,
                                          int pitch) {
  using V = Vec<kLoad>;
  const ThreadTile tile(d / kLoad);
  for (int r = tile.row; r < rows && tile.row < tile.rows; r += tile.rows) {
    const T* in = map.row(first + r);
    for (int c = tile.column * kLoad; c < d; c += tile.columns * kLoad) {
      typename F::Word* to = out + r * pitch + c / F::depth;
      if constexpr (F::depth == 1)
        store(to, in != nullptr ? load<V>(in + c) : V(0));
      else if (in != nullptr)
        std::memcpy(to, in + c, kLoad * sizeof(T));
      else
        std::memset(to, 0, kLoad * sizeof(T));
    }
  }
}

// The same at out[row / depth * pitch + channel], words along the positions.
template <class F, class T>
__device__ __forceinline__ void load_groups(const Head<const T>& map, int first, int rows, int d, typename F::Word* out,
                                            int pitch) {
  if constexpr (F::depth == 1) {
    load_rows<F>(map, first, rows, d, out, pitch);
  } else {
    for (int r = 0; r < rows; r += F::depth)
      F::pack(map.row(first + r), map.row(first + r + 1), d, out + r / F::depth * pitch);
  }
}

// kColumns positions at out[word * kColumns + position], words along the channels.
template <class F, class T>
__device__ __forceinline__ void load_transposed(const Head<const T>& map, int first, int d, typename F::Word* out) {
  using V = Vec<kLoad>;
  for (int i = thread_rank(); i < kColumns * (d / kLoad); i += block_threads()) {
    const int r = i % kColumns, c = i / kColumns * kLoad;
    const T* in = map.row(first + r);
    typename F::Word* to = out + c / F::depth * kColumns + r;
    if constexpr (F::depth == 1) {
      const V v = in != nullptr ? load<V>(in + c) : V(0);
      for (int l = 0; l < kLoad; ++l) to[l * kColumns] = v[l];
    } else {
      for (int l = 0; l < kLoad / F::depth; ++l) to[l * kColumns] = in != nullptr ? F::words(in + c)[l] : 0;
    }
  }
}

// Writes in[c * kColumns + row] * by(row) to the positions from `first` on.
template <class T, class By>
__device__ __forceinline__ void store_transposed(const float* in, int first, int d, const Head<T>& map, By&& by) {
  for (int i = thread_rank(); i < kColumns * (d / kLoad); i += block_threads()) {
    const int r = i % kColumns, c = i / kColumns * kLoad;
    T* to = map.row(first + r);
    if (to == nullptr) continue;
    Vec<kLoad> v;
    for (int l = 0; l < kLoad; ++l) v.set(l, in[(c + l) * kColumns + r]);
    store(to + c, v * Vec<kLoad>(by(r)));
  }
}

// c(rows, columns) = start(c, column) + a(rows, words) b(words, columns); a is a[row * pitch + i], or
// a[i * pitch + row] if kTransposed; b and c are contiguous. rows % kM == 0, columns % (kL * Q) == 0.
template <class F, int Q, bool kTransposed, class Start>
__device__ __forceinline__ void product(const typename F::Word* a, int pitch, const typename F::Word* b, float* c,
                                        int rows, int columns, int words, Start&& start) {
  const int units = columns / (kL * Q);
  for (int u = thread_rank(); u < rows / kM * units; u += block_threads()) {
    const int row = u / units * kM, column = u % units * kL * Q;
    float* out = c + row * columns + column;
    RegisterTile<F, kM, Q> tile([&](int m, int j) { return start(out + m * columns + j * kL, column + j * kL); });
    tile.add(
        kTransposed ? a + row : a + row * pitch, [&](int m) { return kTransposed ? m : m * pitch; },
        kTransposed ? pitch : 1, b + column, columns, words);
    tile.store_to(out, columns);
  }
}
struct FromZero {
  __device__ __forceinline__ Vec<kL> operator()(const float*, int) const { return Vec<kL>(0); }
};
struct OnTop {
  bool first;  // nothing stands there yet
  __device__ __forceinline__ Vec<kL> operator()(const float* c, int) const {
    return first ? Vec<kL>(0) : load<Vec<kL>>(c);
  }
};
// Rows of a tile that hold positions, rounded up to what a product takes.
__device__ __forceinline__ int used(int rows) { return (rows + kM - 1) / kM * kM; }

}  // namespace attention

template <class T>
struct AttendShared {
  using F = Factor<T>;
  using Word = typename F::Word;
  int pitch, group_pitch;
  Word* q;        // (d / depth, queries)
  float* o;       // (d, queries)
  float* s;       // (keys, queries)
  Word* p;        // (keys / depth, queries): takes the place of s, where depth is 1
  Word* k;        // (keys, d / depth)
  Word* v;        // (keys / depth, d)
  float* most;    // (2, queries): of a query's scores before this tile, and with it
  float* shrink;  // (queries): by which a new maximum scales what was summed
  float* total;   // (rows of threads, queries): sums of exponentials
  float* peak;    // (rows of threads, queries): maxima of a tile
  template <class A>
  REGOLITH_HOST_DEVICE AttendShared(A& a, int d)
      : pitch(attention::pitch_of(d / F::depth)), group_pitch(attention::pitch_of(d)) {
    using namespace attention;
    const int rows = kHost ? 1 : kVectorThreads / (kColumns / kL);
    a.take(q, d / F::depth * kColumns);
    a.take(o, d * kColumns);
    a.take(s, kRows * kColumns);
    a.take(k, kRows * pitch);
    a.take(v, kRows / F::depth * group_pitch);
    a.take(most, 2 * kColumns);
    a.take(shrink, kColumns);
    a.take(total, rows * kColumns);
    a.take(peak, rows * kColumns);
    if constexpr (F::depth == 1)
      p = s;
    else
      a.take(p, kRows / F::depth * kColumns);
  }
};

// Block: kColumns queries (x) of a head (y) of an image (z).
template <class T>
__global__ REGOLITH_FLAT void __launch_bounds__(attention::kVectorThreads, 8)
    attend(const T* qkv, T* y, float* lse, Attention g) {
  using namespace attention;
  using F = Factor<T>;
  using V = Vec<kL>;
  const int first = static_cast<int>(blockIdx.x) * kColumns;
  const ThreadTile threads(kColumns / kL);
  const auto t = take_shared<AttendShared<T>>(g.d);
  load_transposed<F>(g.of_qkv(qkv, 0), first, g.d, t.q);
  for (int k0 = 0; k0 < g.positions; k0 += kRows) {
    const int keys = g.left_from(k0, kRows), rows = used(keys);
    load_rows<F>(g.of_qkv(qkv, 1), k0, rows, g.d, t.k, t.pitch);
    load_groups<F>(g.of_qkv(qkv, 2), k0, rows, g.d, t.v, t.group_pitch);
    sync_block();
    product<F, kQ, false>(t.k, t.pitch, t.q, t.s, rows, kColumns, g.d / F::depth, FromZero{});
    sync_block();
    const int own = threads.column * kL;
    V m[kOwned];
    for (V& each : m) each = V(-INFINITY);
    for (int r = threads.row; r < keys; r += threads.rows)
      for (int j = 0; j < kOwned; ++j) m[j] = max(m[j], load<V>(t.s + r * kColumns + own + j * kL));
    for (int j = 0; j < kOwned; ++j) store(t.peak + threads.row * kColumns + own + j * kL, m[j] * V(g.scale));
    sync_block();
    V sum[kOwned];
    for (int j = 0; j < kOwned; ++j) {
      const int c = own + j * kL;
      const V before = k0 == 0 ? V(-INFINITY) : load<V>(t.most + k0 / kRows % 2 * kColumns + c);
      m[j] = before;
      for (int r = 0; r < threads.rows; ++r) m[j] = max(m[j], load<V>(t.peak + r * kColumns + c));
      const V by = exp(before - m[j]);
      sum[j] = k0 == 0 ? V(0) : load<V>(t.total + threads.row * kColumns + c) * by;
      if (threads.row > 0) continue;
      store(t.most + (k0 / kRows + 1) % 2 * kColumns + c, m[j]);
      store(t.shrink + c, by);
    }
    for (int r = threads.row * F::depth; r < rows; r += threads.rows * F::depth) {
      for (int j = 0; j < kOwned; ++j) {
        V p[F::depth];
        for (int i = 0; i < F::depth; ++i) {
          const V score = load<V>(t.s + (r + i) * kColumns + own + j * kL);
          p[i] = r + i < keys ? exp(fma(score, V(g.scale), V(0) - m[j])) : V(0);
        }
        sum[j] += F::depth == 1 ? p[0] : p[0] + p[F::depth - 1];
        F::store_words(t.p + r / F::depth * kColumns + own + j * kL, p);
      }
    }
    for (int j = 0; j < kOwned; ++j) store(t.total + threads.row * kColumns + own + j * kL, sum[j]);
    sync_block();
    product<F, kQ, true>(
        t.v, t.group_pitch, t.p, t.o, g.d, kColumns, rows / F::depth,
        [&](const float* at, int column) { return k0 == 0 ? V(0) : load<V>(at) * load<V>(t.shrink + column); });
    sync_block();
  }
  const int tiles = (g.positions + kRows - 1) / kRows;
  const auto sum_of = [&](int r) {
    float sum = t.total[r];
    for (int i = 1; i < threads.rows; ++i) sum += t.total[i * kColumns + r];
    return sum;
  };
  store_transposed(t.o, first, g.d, g.of_y(y), [&](int r) { return 1 / sum_of(r); });
  for (int r = thread_rank(); r < kColumns && first + r < g.positions; r += block_threads())
    lse[g.row() + first + r] = t.most[tiles % 2 * kColumns + r] + logf(sum_of(r));
}

// Of a gradient's block: `own` are the positions whose gradient it has, keys or queries, `pass` those it goes through.
template <class T, bool kOfKeys>
struct GradientShared {
  using F = Factor<T>;
  using Word = typename F::Word;
  int pitch, group_pitch;
  Word *own, *own_dout;             // (d / depth, own): k and v, or q and dout
  float *down, *dv;                 // (d, own): dk and dv, or dq alone
  float *s, *ds;                    // (pass, own)
  Word *pass, *pass_dout;           // (pass, d / depth): q and dout, or k and v
  Word *p, *slope;                  // (pass / depth, own), of P and dS: take the place of s and ds, where depth is 1
  typename F::Element* slope_rows;  // (pass, own), of dS: likewise
  Word *groups, *dout_groups;       // (pass / depth, d): the same as `pass` and `pass_dout`, where depth is 1
  float *lse, *products;            // (own) of queries
  Word* keys;                       // (keys / depth, d), on the fast host
  float* dq;                        // (all queries, d), on the fast host
  template <class A>
  REGOLITH_HOST_DEVICE GradientShared(A& a, int d, int positions)
      : pitch(attention::pitch_of(d / F::depth)), group_pitch(attention::pitch_of(d)) {
    using namespace attention;
    a.take_each(d / F::depth * kColumns, own, own_dout);
    a.take(down, d * kColumns);
    a.take_each(kRows * kColumns, s, ds);
    a.take_each(kRows * pitch, pass, pass_dout);
    if constexpr (kOfKeys)
      a.take(dv, d * kColumns);
    else
      a.take_each(kColumns, lse, products);
    if constexpr (F::depth == 1) {
      p = s, slope = slope_rows = ds, groups = pass, dout_groups = pass_dout;
    } else {
      a.take_each(kRows / F::depth * kColumns, p, slope);
      a.take(slope_rows, kRows * kColumns);
      a.take_each(kRows / F::depth * group_pitch, groups, dout_groups);
    }
    if constexpr (kHost) {
      a.take(keys, kColumns / F::depth * whole(d));
      a.take(dq, static_cast<size_t>(positions + kRows) * whole(d));
    }
  }
};

// Block: kColumns keys or queries (x) of a head (y) of an image (z), whose gradients it has; on the fast host all keys
// of it, and dq as well.
template <class T, bool kOfKeys>
__global__ REGOLITH_FLAT void __launch_bounds__(attention::kVectorThreads, 8)
    gradient(const T* qkv, const T* dy, const float* lse, const float* D, T* dqkv, Attention g) {
  using namespace attention;
  using F = Factor<T>;
  using V = Vec<kL>;
  const int wide = whole(g.d), words = g.d / F::depth;
  const ThreadTile threads(kColumns / kL);
  const auto t = take_shared<GradientShared<T, kOfKeys>>(g.d, g.positions);
  lse += g.row();
  D += g.row();
  const Head<const T> q = g.of_qkv(qkv, 0), k = g.of_qkv(qkv, 1), v = g.of_qkv(qkv, 2), dout = g.of_y(dy);
  const Head<const T> own = kOfKeys ? k : q, own_dout = kOfKeys ? v : dout;
  const Head<const T> pass = kOfKeys ? q : k, pass_dout = kOfKeys ? dout : v;
  if (kHost && wide > g.d) std::fill(t.keys, t.keys + kColumns / F::depth * wide, typename F::Word(0));
  const int last = kHost ? g.positions : static_cast<int>(blockIdx.x + 1) * kColumns;
  for (int first = static_cast<int>(blockIdx.x) * kColumns; first < last; first += kColumns) {
    const int there = g.left_from(first, kColumns);
    load_transposed<F>(own, first, g.d, t.own);
    load_transposed<F>(own_dout, first, g.d, t.own_dout);
    if constexpr (kHost) load_groups<F>(k, first, kColumns, g.d, t.keys, wide);
    for (int r = thread_rank(); !kOfKeys && r < kColumns; r += block_threads()) {
      t.lse[r] = r < there ? lse[first + r] : 0;
      t.products[r] = r < there ? D[first + r] : 0;
    }
    for (int p0 = 0; p0 < g.positions; p0 += kRows) {
      const int passing = g.left_from(p0, kRows), rows = used(passing);
      load_rows<F>(pass, p0, rows, g.d, t.pass, t.pitch);
      load_rows<F>(pass_dout, p0, rows, g.d, t.pass_dout, t.pitch);
      if constexpr (F::depth > 1) {
        load_groups<F>(pass, p0, rows, g.d, t.groups, t.group_pitch);
        load_groups<F>(pass_dout, p0, rows, g.d, t.dout_groups, t.group_pitch);
      }
      sync_block();
      product<F, kQ, false>(t.pass, t.pitch, t.own, t.s, rows, kColumns, words, FromZero{});
      product<F, kQ, false>(t.pass_dout, t.pitch, t.own_dout, t.ds, rows, kColumns, words, FromZero{});
      sync_block();
      for (int r = threads.row * F::depth; r < rows; r += threads.rows * F::depth) {
        float l[F::depth] = {}, mean[F::depth] = {};
        for (int i = 0; kOfKeys && i < F::depth && r + i < passing; ++i)
          l[i] = lse[p0 + r + i], mean[i] = D[p0 + r + i];
        for (int c = threads.column * kL; c < kColumns; c += threads.columns * kL) {
          V probability[F::depth], slope[F::depth];
          for (int i = 0; i < F::depth; ++i) {
            const int at = (r + i) * kColumns + c;
            const bool real = r + i < passing;
            const V shift = kOfKeys ? V(l[i]) : load<V>(t.lse + c),
                    less = kOfKeys ? V(mean[i]) : load<V>(t.products + c);
            probability[i] = real ? exp(fma(load<V>(t.s + at), V(g.scale), V(0) - shift)) : V(0);
            slope[i] = real ? probability[i] * (load<V>(t.ds + at) - less) * V(g.scale) : V(0);
            if constexpr (F::depth > 1) store(t.slope_rows + at, slope[i]);
          }
          if constexpr (kOfKeys) F::store_words(t.p + r / F::depth * kColumns + c, probability);
          F::store_words(t.slope + r / F::depth * kColumns + c, slope);
        }
        // A key beyond the last has no gradient, whatever its P: a pair of dq's product may hold one.
        for (int i = 0; i < F::depth && there % F::depth != 0; ++i)
          t.slope_rows[(r + i) * kColumns + there] = typename F::Element(0.0f);
      }
      sync_block();
      const OnTop on_top{p0 == 0};
      if constexpr (kOfKeys)
        product<F, kQ, true>(t.dout_groups, t.group_pitch, t.p, t.dv, g.d, kColumns, rows / F::depth, on_top);
      product<F, kQ, true>(t.groups, t.group_pitch, t.slope, t.down, g.d, kColumns, rows / F::depth, on_top);
      if constexpr (kHost) {
        const auto add_dq = [&]<int Q>() {
          product<F, Q, false>(F::words(t.slope_rows), kColumns / F::depth, t.keys, t.dq + p0 * wide, rows, wide,
                               (there + F::depth - 1) / F::depth, OnTop{first == 0});
        };
        wide % (2 * kL) == 0 ? add_dq.template operator()<2>() : add_dq.template operator()<1>();
      }
      sync_block();
    }
    const auto one = [](int) { return 1.0f; };
    store_transposed(t.down, first, g.d, g.of_qkv(dqkv, kOfKeys ? 1 : 0), one);
    if constexpr (kOfKeys) store_transposed(t.dv, first, g.d, g.of_qkv(dqkv, 2), one);
  }
  if constexpr (kHost) {
    for (int p = 0; p < g.positions; ++p)
      for (int c = 0; c < g.d; c += kLoad) store(g.of_qkv(dqkv, 0).row(p) + c, load<Vec<kLoad>>(t.dq + p * wide + c));
  }
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
