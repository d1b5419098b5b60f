// The fast host's half of attention_gate.cu, in which a block is one thread and goes over its pixels a tile at a time.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "kernels/attention_gate.h"
#include "kernels/core/collectives.h"
#include "kernels/core/math.h"
#include "kernels/core/register_tile.h"
#include "kernels/core/thread_tile.h"
#include "kernels/core/tile_products.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

inline constexpr int kPanel = 2 * kL;           // columns of a panel of weights
inline constexpr int kRows = kL == 16 ? 8 : 4;  // pixels, or channels, of a register tile
template <class T>
inline constexpr bool kMayTile = REGOLITH_TILES == 1 && std::is_same_v<T, bf16>;
template <class T>
inline constexpr int kRowBlock = kMayTile<T> ? kTileRows : 16;  // a multiple of kRows and of kL
// Of a tile: with a panel of weights it stays in the first cache. In the processor's tiles, which load and store the
// sums of weights' gradients once for each, more.
template <class T>
inline constexpr int kPixels = kMayTile<T> ? 64 : 32;

constexpr int padded(int C) { return (C + kPanel - 1) / kPanel * kPanel; }

// Channels as the products see them: those of x and those of g padded to whole panels, side by side; Ci likewise.
struct Padded {
  int Cx, K, N;
  Padded(int x, int g, int Ci) : Cx(padded(x)), K(Cx + padded(g)), N(padded(Ci)) {}
};

// packed: panels of N columns of (K, N), then panels of K columns of (N, K): theta and phi side by side.
template <class T>
__global__ void pack(AttentionGatePack w) {
  using S = typename Factor<T>::Element;
  constexpr int D = Factor<T>::depth;
  const Padded o(w.Cx, w.Cg, w.Ci);
  const auto value = [&](int n, int k) {
    const bool of_x = k < o.Cx;
    const int c = of_x ? k : k - o.Cx, C = of_x ? w.Cx : w.Cg;
    const T* kernel = static_cast<const T*>(of_x ? w.theta : w.phi);
    return n < w.Ci && c < C ? static_cast<S>(static_cast<float>(kernel[n * C + c])) : S(0.0f);
  };
  for (int j = blockIdx.x * kPanel; j < o.N + o.K; j += gridDim.x * kPanel) {
    const bool forward = j < o.N;
    const int depth = forward ? o.K : o.N, first = forward ? j : j - o.N;
    S* to = static_cast<S*>(w.packed) + (forward ? 0 : static_cast<ptrdiff_t>(o.K) * o.N) +
            static_cast<ptrdiff_t>(first) * depth;
    for (int d = 0; d < depth; d += D)
      for (int i = 0; i < kPanel; ++i)
        for (int e = 0; e < D; ++e) *to++ = forward ? value(first + i, d + e) : value(d + e, first + i);
  }
}

// n channels (of kL or, where L is 1, fewer) to and from a vector, whose other lanes are zero.
template <int L, class T>
__forceinline__ Vec<kL> read(const T* p, int n) {
  if constexpr (L > 1) return load<Vec<kL>>(p);
  Vec<kL> v(0);
  for (int i = 0; i < kL && i < n; ++i) v.set(i, static_cast<float>(p[i]));
  return v;
}
template <int L, class T>
__forceinline__ void write(T* p, const Vec<kL>& v, int n) {
  if constexpr (L > 1) return store(p, v);
  for (int i = 0; i < kL && i < n; ++i) p[i] = static_cast<T>(v[i]);
}

// The channels of `count` pixels of a map, zero up to `width` channels, as rows of `pitch` factors.
template <int L, class T, class S>
__forceinline__ void stage(const TensorView& map, int64_t p0, int count, int width, S* to, int pitch) {
  for (int m = 0; m < count; ++m) {
    const T* from = map.as<const T>() + (p0 + m) * map.pitch;
    S* row = to + static_cast<ptrdiff_t>(m) * pitch;
    int c = 0;
    for (; c + L <= map.C; c += L) {
      if constexpr (std::is_same_v<T, S>) {
        std::memcpy(row + c, from + c, L * sizeof(T));
      } else {
        store(row + c, load<Vec<L>>(from + c));
      }
    }
    for (; c < width; ++c) row[c] = S(0.0f);
  }
}

// Stages x and g of the tile, and zeros after its last pixel up to a whole number of kRowBlock<T>, which it returns.
template <int L, class T, class S>
__forceinline__ int stage_inputs(const TensorView& x, const TensorView& g, const Padded& o, int64_t p0, int count,
                                 S* tile) {
  stage<L, T>(x, p0, count, o.Cx, tile, o.K);
  stage<L, T>(g, p0, count, o.K - o.Cx, tile + o.Cx, o.K);
  const int rows = (count + kRowBlock<T> - 1) / kRowBlock<T> * kRowBlock<T>;
  std::fill(tile + count * o.K, tile + rows * o.K, S(0.0f));
  return rows;
}

// a (rows, K) times a panel of weights (K / depth, kPanel, depth): finish(row, left half, right half).
template <class T, class Finish>
__forceinline__ void panel_product([[maybe_unused]] const Tiles& tiles, int rows, const typename Factor<T>::Element* a,
                                   int K, const typename Factor<T>::Element* panel, Finish&& finish) {
  using F = Factor<T>;
#if REGOLITH_TILES
  if constexpr (kMayTile<T>) {
    static_assert(kPanel == kTileColumns);
    if (tiles) {
      alignas(64) float sums[kTileRows * kPanel];
      for (int m = 0; m < rows; m += kTileRows) {
        Tiles::clear();
        const T *row = a + static_cast<ptrdiff_t>(m) * K, *w = panel;
        for (int k = 0; k < K; k += kTileDepth, w += kTileDepth * kPanel)
          Tiles::add(row + k, row + k + 16 * K, K * 2, w, w + kPanel, kPanel * 4);
        Tiles::store(sums, kPanel);
        for (int r = 0; r < kTileRows; ++r)
          finish(m + r, load<Vec<kL>>(sums + r * kPanel), load<Vec<kL>>(sums + r * kPanel + kL));
      }
      return;
    }
  }
#endif
  const int words = K / F::depth;
  for (int m = 0; m < rows; m += kRows) {
    RegisterTile<F, kRows, 2> tile(Zero{});
    tile.add(
        F::words(a) + static_cast<ptrdiff_t>(m) * words, [&](int r) { return r * words; }, 1, F::words(panel), kPanel,
        words);
    tile.each([&](int r, const Vec<kL>(&v)[2]) { finish(m + r, v[0], v[1]); });
  }
}

// from (rows, columns) as words of neighbouring rows, (rows / depth, columns); columns are whole vectors.
template <class T>
void group_rows(const typename Factor<T>::Element* from, int rows, int columns, typename Factor<T>::Word* to) {
  constexpr int D = Factor<T>::depth;
  for (int r = 0; r < rows; r += D, from += D * columns, to += columns)
    if constexpr (D > 1) Factor<T>::pack(from, from + columns, columns, to);
}

#if REGOLITH_TILES
// from (rows, columns) to (columns, rows), words; rows and columns are whole vectors.
inline void transpose_words(const uint32_t* from, int rows, int columns, uint32_t* to) {
  for (int r = 0; r < rows; r += kL)
    for (int c = 0; c < columns; c += kL) {
      Vec<kL> v[kL];
      REGOLITH_UNROLL
      for (int i = 0; i < kL; ++i) std::memcpy(&v[i], from + static_cast<ptrdiff_t>(r + i) * columns + c, sizeof v[i]);
      transpose_lanes<kL / 2>(v);
      REGOLITH_UNROLL
      for (int i = 0; i < kL; ++i) std::memcpy(to + static_cast<ptrdiff_t>(c + i) * rows + r, &v[i], sizeof v[i]);
    }
}
#endif

template <int Bit, int... I>
__forceinline__ Vec<kL> fold_pair(const Vec<kL>& a, const Vec<kL>& b, std::integer_sequence<int, I...>) {
  Vec<kL> r;  // lanes without the bit go on with a, those with it with b
  r.v = __builtin_shufflevector(a.v, b.v, (I & Bit ? kL + I : I)...) +
        __builtin_shufflevector(a.v, b.v, (I & Bit ? kL + (I ^ Bit) : I ^ Bit)...);
  return r;
}
template <int Bit>
__forceinline__ void fold_lanes(Vec<kL>* rows) {
  if constexpr (Bit > 0) {
    REGOLITH_UNROLL
    for (int i = 0; i < Bit; ++i)
      rows[i] = fold_pair<Bit>(rows[i], rows[i + Bit], std::make_integer_sequence<int, kL>{});
    fold_lanes<Bit / 2>(rows);
  }
}
// Lane i is the sum of the lanes of row i of (kL, kL) floats.
__forceinline__ Vec<kL> sum_lanes_of_rows(const float* rows) {
  Vec<kL> v[kL];
  REGOLITH_UNROLL
  for (int i = 0; i < kL; ++i) v[i] = load<Vec<kL>>(rows + i * kL);
  fold_lanes<kL / 2>(v);
  return v[0];
}

template <class T>
struct GateShared {
  typename Factor<T>::Element* tile;  // (pixels, K): x and g
  float* psi;                         // (N), zero beyond Ci
  float* partial;                     // (pixels, kL): lanes of the logits
  float* gates;                       // (pixels)
  template <class A>
  GateShared(A& a, const Padded& o) {
    a.take(tile, kPixels<T> * o.K);
    a.take(psi, o.N);
    a.take(partial, kPixels<T> * kL);
    a.take(gates, kPixels<T>);
  }
};

template <class T, int L>
__global__ void REGOLITH_FLAT gate(AttentionGateForward k) {
  using V = Vec<kL>;
  const TensorView &x = k.x, &y = k.y;
  const auto* packed = static_cast<const typename Factor<T>::Element*>(k.weights.packed);
  const Padded o(x.C, k.g.C, k.weights.Ci);
  const auto s = take_shared<GateShared<T>>(o);
  std::fill(std::copy_n(k.weights.psi, k.weights.Ci, s.psi), s.psi + o.N, 0.0f);
  const Tiles tiles;
  const Range range = block_range(x.pixels(), kPixels<T>);
  for (int64_t p0 = range.begin; p0 < range.end; p0 += kPixels<T>) {
    const int count = static_cast<int>(std::min<int64_t>(kPixels<T>, range.end - p0));
    const int rows = stage_inputs<L, T>(x, k.g, o, p0, count, s.tile);
    for (int n = 0; n < o.N; n += kPanel) {
      const V left = load<V>(s.psi + n), right = load<V>(s.psi + n + kL);
      panel_product<T>(tiles, rows, s.tile, o.K, packed + static_cast<ptrdiff_t>(n) * o.K,
                       [&](int m, const V& q0, const V& q1) {
                         float* at = s.partial + m * kL;
                         const V sum = fma(max(V(0), q0), left, max(V(0), q1) * right);
                         store(at, n == 0 ? sum : sum + load<V>(at));
                       });
    }
    for (int m = 0; m < rows; m += kL) {
      const V logit = sum_lanes_of_rows(s.partial + m * kL) + V(k.weights.bias[0]);
      store(s.gates + m, V(1) / (V(1) + exp(V(0) - logit)));
    }
    std::copy_n(s.gates, count, k.a + p0);
    for (int m = 0; m < count; ++m) {
      const V scale(s.gates[m]);
      T* out = y.as<T>() + (p0 + m) * y.pitch;
      for (int c = 0; c < x.C; c += kL) write<L>(out + c, load<V>(s.tile + m * o.K + c) * scale, x.C - c);
    }
  }
}

template <class T>
struct GateBackwardShared {
  using F = Factor<T>;
  typename F::Element *tile, *dq;             // (pixels, K): x and g; (pixels, N)
  typename F::Word *tile_groups, *dq_groups;  // the same as words of neighbouring pixels
  typename F::Word* dq_turned = nullptr;      // (N, words of pixels)
  float *psi, *dpsi;                          // (N)
  float* partial;                             // (pixels, kL)
  float* dlogit;                              // (pixels)
  float* sums;                                // (N, K): dtheta and dphi, side by side
  template <class A>
  GateBackwardShared(A& a, const Padded& o) {
    a.take(tile, kPixels<T> * o.K);
    a.take(dq, kPixels<T> * o.N);
    if constexpr (F::depth == 1) {
      tile_groups = tile, dq_groups = dq;
    } else {
      a.take(tile_groups, kPixels<T> / F::depth * o.K);
      a.take(dq_groups, kPixels<T> / F::depth * o.N);
    }
    if constexpr (kMayTile<T>) a.take(dq_turned, kPixels<T> / F::depth * o.N);
    a.take_each(o.N, psi, dpsi);
    a.take(partial, kPixels<T> * kL);
    a.take(dlogit, kPixels<T>);
    a.take(sums, static_cast<size_t>(o.N) * o.K);
  }
};

// sums (N, K) += dq^T (N, pixels) by tile (pixels, K)
template <class T>
__forceinline__ void add_weight_sums([[maybe_unused]] const Tiles& tiles, int rows, const Padded& o,
                                     const GateBackwardShared<T>& s) {
  using F = Factor<T>;
#if REGOLITH_TILES
  if constexpr (kMayTile<T>) {
    if (tiles) {
      const int words = rows / F::depth;
      transpose_words(s.dq_groups, words, o.N, s.dq_turned);
      for (int n = 0; n < o.N; n += kTileRows) {
        for (int k = 0; k < o.K; k += kTileColumns) {
          float* to = s.sums + static_cast<ptrdiff_t>(n) * o.K + k;
          Tiles::load(to, o.K);
          for (int w = 0; w < words; w += kTileDepth / F::depth) {
            const auto* a = s.dq_turned + static_cast<ptrdiff_t>(n) * words + w;
            const auto* b = s.tile_groups + static_cast<ptrdiff_t>(w) * o.K + k;
            Tiles::add(a, a + 16 * words, words * 4, b, b + 16, o.K * 4);
          }
          Tiles::store(to, o.K);
        }
      }
      return;
    }
  }
#endif
  for (int n = 0; n < o.N; n += kRows) {
    for (int k = 0; k < o.K; k += kPanel) {
      float* to = s.sums + static_cast<ptrdiff_t>(n) * o.K + k;
      RegisterTile<F, kRows, 2> sums(Stored{to, o.K});
      sums.add(
          s.dq_groups + n, [](int i) { return i; }, o.N, s.tile_groups + k, o.K, rows / F::depth);
      sums.store_to(to, o.K);
    }
  }
}

// A block takes a part of the pixels, and sums the gradients of all weights over it.
template <class T, int L>
__global__ void REGOLITH_FLAT gate_backward(AttentionGateBackward b, AttentionGateWorkspace w) {
  using F = Factor<T>;
  using V = Vec<kL>;
  const int Ci = b.weights.Ci;
  const auto* packed = static_cast<const typename F::Element*>(b.weights.packed);
  const Padded o(b.x.C, b.g.C, Ci);
  const auto s = take_shared<GateBackwardShared<T>>(o);
  std::fill(std::copy_n(b.weights.psi, Ci, s.psi), s.psi + o.N, 0.0f);
  std::fill_n(s.dpsi, o.N, 0.0f);
  std::fill_n(s.sums, static_cast<ptrdiff_t>(o.N) * o.K, 0.0f);
  V dbias(0);
  const Tiles tiles;
  const int64_t begin = w.each * blockIdx.x, end = std::min(begin + w.each, b.x.pixels());
  for (int64_t p0 = begin; p0 < end; p0 += kPixels<T>) {
    const int count = static_cast<int>(std::min<int64_t>(kPixels<T>, end - p0));
    const int rows = stage_inputs<L, T>(b.x, b.g, o, p0, count, s.tile);
    for (int m = 0; m < count; ++m) {
      const T* dy = b.dy.as<const T>() + (p0 + m) * b.dy.pitch;
      V da(0);
      for (int c = 0; c < b.x.C; c += kL) da = fma(read<L>(dy + c, b.x.C - c), load<V>(s.tile + m * o.K + c), da);
      store(s.partial + m * kL, da);
    }
    std::fill(s.partial + count * kL, s.partial + rows * kL, 0.0f);
    std::fill(std::copy_n(b.a + p0, count, s.dlogit), s.dlogit + rows, 0.0f);
    for (int m = 0; m < rows; m += kL) {
      const V a = load<V>(s.dlogit + m), d = sum_lanes_of_rows(s.partial + m * kL) * a * (V(1) - a);
      dbias += d;
      store(s.dlogit + m, d);
    }
    for (int n = 0; n < o.N; n += kPanel) {
      const V psi0 = load<V>(s.psi + n), psi1 = load<V>(s.psi + n + kL);
      V dpsi0 = load<V>(s.dpsi + n), dpsi1 = load<V>(s.dpsi + n + kL);
      panel_product<T>(tiles, rows, s.tile, o.K, packed + static_cast<ptrdiff_t>(n) * o.K,
                       [&](int m, const V& q0, const V& q1) {
                         const V d(s.dlogit[m]);
                         auto* to = s.dq + m * o.N + n;
                         dpsi0 = fma(max(V(0), q0), d, dpsi0);
                         dpsi1 = fma(max(V(0), q1), d, dpsi1);
                         store(to, select(q0 > V(0), psi0 * d, V(0)));
                         store(to + kL, select(q1 > V(0), psi1 * d, V(0)));
                       });
      store(s.dpsi + n, dpsi0);
      store(s.dpsi + n + kL, dpsi1);
    }
    group_rows<T>(s.tile, rows, o.K, s.tile_groups);
    group_rows<T>(s.dq, rows, o.N, s.dq_groups);
    add_weight_sums<T>(tiles, rows, o, s);
    for (int k = 0; k < o.K; k += kPanel) {
      const bool of_x = k < o.Cx;
      const TensorView& d = of_x ? b.dx : b.dg;
      if (!d) continue;
      const int first = of_x ? k : k - o.Cx;
      const bool accumulate = of_x ? b.accumulate_dx : b.accumulate_dg;
      panel_product<T>(tiles, rows, s.dq, o.N,
                       packed + static_cast<ptrdiff_t>(o.K) * o.N + static_cast<ptrdiff_t>(k) * o.N,
                       [&](int m, const V& d0, const V& d1) {
                         if (m >= count) return;
                         const V a(b.a[p0 + m]);
                         for (int half = 0; half < 2; ++half) {
                           const int c = first + half * kL, left = d.C - c;
                           if (left <= 0) continue;
                           V sum = half == 0 ? d0 : d1;
                           if (of_x) sum = fma(read<L>(b.dy.as<const T>() + (p0 + m) * b.dy.pitch + c, left), a, sum);
                           T* to = d.as<T>() + (p0 + m) * d.pitch + c;
                           if (accumulate) sum += read<L>(static_cast<const T*>(to), left);
                           write<L>(to, sum, left);
                         }
                       });
    }
  }
  float* out = w.weight_sums(b.workspace, blockIdx.x);
  for (int n = 0; n < Ci; ++n) {
    const float* row = s.sums + static_cast<ptrdiff_t>(n) * o.K;
    std::copy_n(row, b.x.C, out + n * b.x.C);
    std::copy_n(row + o.Cx, b.g.C, out + Ci * b.x.C + n * b.g.C);
  }
  float* vectors = w.vector_sums(b.workspace, blockIdx.x, Ci);
  std::copy_n(s.dpsi, Ci, vectors);
  vectors[Ci] = sum_lanes(dbias);
}

}  // namespace
}  // namespace regolith::kernels::REGOLITH_EXECUTION
