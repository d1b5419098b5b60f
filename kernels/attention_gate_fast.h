// A part of attention_gate.cu: what both of its halves take, and the fast host's half, in which a block is one thread
// and goes over its pixels a tile at a time.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/core/collectives.h"
#include "kernels/core/math.h"
#include "kernels/core/tensor_view.h"
#include "kernels/core/thread_tile.h"
#include "kernels/core/tile_product.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// What the kernels of backward take.
struct Backward {
  const float* psi;
  const float* a;
  TensorView x, g, dy, dx, dg;
  bool accumulate_dx, accumulate_dg;
  int Ci;
  int64_t each;
  float* weights;  // partial sums: (parts, Ci * (Cx + Cg)) of dtheta and dphi
  float* vectors;  // (blocks, Ci + 1) of dpsi and dbias
};

#if !REGOLITH_MMA

constexpr int padded(int C) { return (C + kPanel - 1) / kPanel * kPanel; }

// Channels as the products see them: those of x and those of g padded to whole panels, side by side; Ci likewise.
struct Padded {
  int Cx, K, N;
  Padded(int x, int g, int Ci) : Cx(padded(x)), K(Cx + padded(g)), N(padded(Ci)) {}
};

// packed: panels of N columns of (K, N), then panels of K columns of (N, K): theta and phi side by side.
template <class T>
__global__ void pack(const T* theta, const T* phi, int Cx, int Cg, int Ci, typename Factor<T>::Stored* packed) {
  using S = typename Factor<T>::Stored;
  constexpr int D = Factor<T>::depth;
  const Padded o(Cx, Cg, Ci);
  const auto value = [&](int n, int k) {
    const bool of_x = k < o.Cx;
    const int c = of_x ? k : k - o.Cx, C = of_x ? Cx : Cg;
    return n < Ci && c < C ? static_cast<S>(static_cast<float>((of_x ? theta : phi)[n * C + c])) : S(0.0f);
  };
  for (int j = blockIdx.x * kPanel; j < o.N + o.K; j += gridDim.x * kPanel) {
    const bool forward = j < o.N;
    const int depth = forward ? o.K : o.N, first = forward ? j : j - o.N;
    S* to = packed + (forward ? 0 : static_cast<ptrdiff_t>(o.K) * o.N) + static_cast<ptrdiff_t>(first) * depth;
    for (int d = 0; d < depth; d += D)
      for (int i = 0; i < kPanel; ++i)
        for (int e = 0; e < D; ++e) *to++ = forward ? value(first + i, d + e) : value(d + e, first + i);
  }
}

inline constexpr int kPixels = 32;  // of a tile: with a panel of weights it stays in the first cache

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
        copy_elements<L>(row + c, from + c);
      } else {
        store(row + c, load<Vec<L>>(from + c));
      }
    }
    for (; c < width; ++c) row[c] = S(0.0f);
  }
}

// Stages x and g of the tile, and zeros after its last pixel up to a whole number of kRowBlock, which it returns.
template <int L, class T, class S>
__forceinline__ int stage_inputs(const TensorView& x, const TensorView& g, const Padded& o, int64_t p0, int count,
                                 S* tile) {
  stage<L, T>(x, p0, count, o.Cx, tile, o.K);
  stage<L, T>(g, p0, count, o.K - o.Cx, tile + o.Cx, o.K);
  const int rows = (count + kRowBlock - 1) / kRowBlock * kRowBlock;
  std::fill(tile + count * o.K, tile + rows * o.K, S(0.0f));
  return rows;
}

template <class T, int L>
__global__ void REGOLITH_FLAT gate(TensorView x, TensorView g, const typename Factor<T>::Stored* packed,
                                   const float* psi, const float* bias, int Ci, TensorView y, float* a) {
  using S = typename Factor<T>::Stored;
  using V = Vec<kL>;
  const Padded o(x.C, g.C, Ci);
  Shared shared;
  S* tile = shared.take<S>(kPixels * o.K);
  float* psi_padded = shared.take<float>(o.N);
  float* partial = shared.take<float>(kPixels * kL);  // lanes of the logits
  float* gates = shared.take<float>(kPixels);
  std::fill(std::copy(psi, psi + Ci, psi_padded), psi_padded + o.N, 0.0f);
  const Range range = block_range(x.pixels(), kPixels);
  for (int64_t p0 = range.begin; p0 < range.end; p0 += kPixels) {
    const int count = static_cast<int>(std::min<int64_t>(kPixels, range.end - p0));
    const int rows = stage_inputs<L, T>(x, g, o, p0, count, tile);
    for (int n = 0; n < o.N; n += kPanel) {
      const V left = load<V>(psi_padded + n), right = load<V>(psi_padded + n + kL);
      for (int m = 0; m < rows; m += kRows) {
        panel_product<T>(tile + m * o.K, o.K, o.K, packed + static_cast<ptrdiff_t>(n) * o.K,
                         [&](int r, const V& q0, const V& q1) {
                           float* at = partial + (m + r) * kL;
                           const V sum = fma(max(V(0), q0), left, max(V(0), q1) * right);
                           store(at, n == 0 ? sum : sum + load<V>(at));
                         });
      }
    }
    for (int m = 0; m < rows; m += kL) {
      const V logit = sum_lanes_of_rows(partial + m * kL) + V(bias[0]);
      store(gates + m, V(1) / (V(1) + exp(V(0) - logit)));
    }
    std::copy(gates, gates + count, a + p0);
    for (int m = 0; m < count; ++m) {
      const V scale(gates[m]);
      T* out = y.as<T>() + (p0 + m) * y.pitch;
      for (int c = 0; c < x.C; c += kL) write<L>(out + c, load<V>(tile + m * o.K + c) * scale, x.C - c);
    }
  }
}

// A block takes a part of the pixels, and sums the gradients of all weights over it.
template <class T, int L>
__global__ void REGOLITH_FLAT gate_backward(Backward b, const typename Factor<T>::Stored* packed) {
  using S = typename Factor<T>::Stored;
  using V = Vec<kL>;
  constexpr int D = Factor<T>::depth;
  const Padded o(b.x.C, b.g.C, b.Ci);
  Shared shared;
  S* tile = shared.take<S>(kPixels * o.K);
  S* dq = shared.take<S>(kPixels * o.N);
  S *tile_pairs = tile, *dq_pairs = dq;  // as outer_product reads them
  if constexpr (D == 2) {
    tile_pairs = shared.take<S>(kPixels * o.K);
    dq_pairs = shared.take<S>(kPixels * o.N);
  }
  float* psi = shared.take<float>(o.N);
  float* dpsi = shared.take<float>(o.N);
  float* partial = shared.take<float>(kPixels * kL);
  float* dlogit = shared.take<float>(kPixels);
  float* sums = shared.take<float>(static_cast<size_t>(o.N) * o.K);  // dtheta and dphi, side by side
  std::fill(std::copy(b.psi, b.psi + b.Ci, psi), psi + o.N, 0.0f);
  std::fill(dpsi, dpsi + o.N, 0.0f);
  std::fill(sums, sums + static_cast<ptrdiff_t>(o.N) * o.K, 0.0f);
  V dbias(0);
  const int64_t begin = b.each * blockIdx.x, end = std::min(begin + b.each, b.x.pixels());
  for (int64_t p0 = begin; p0 < end; p0 += kPixels) {
    const int count = static_cast<int>(std::min<int64_t>(kPixels, end - p0));
    const int rows = stage_inputs<L, T>(b.x, b.g, o, p0, count, tile);
    for (int m = 0; m < count; ++m) {
      const T* dy = b.dy.as<const T>() + (p0 + m) * b.dy.pitch;
      V da(0);
      for (int c = 0; c < b.x.C; c += kL) da = fma(read<L>(dy + c, b.x.C - c), load<V>(tile + m * o.K + c), da);
      store(partial + m * kL, da);
    }
    std::fill(partial + count * kL, partial + rows * kL, 0.0f);
    std::copy(b.a + p0, b.a + p0 + count, dlogit);
    std::fill(dlogit + count, dlogit + rows, 0.0f);
    for (int m = 0; m < rows; m += kL) {
      const V a = load<V>(dlogit + m), d = sum_lanes_of_rows(partial + m * kL) * a * (V(1) - a);
      dbias += d;
      store(dlogit + m, d);
    }
    for (int n = 0; n < o.N; n += kPanel) {
      const V psi0 = load<V>(psi + n), psi1 = load<V>(psi + n + kL);
      V dpsi0 = load<V>(dpsi + n), dpsi1 = load<V>(dpsi + n + kL);
      for (int m = 0; m < rows; m += kRows) {
        panel_product<T>(tile + m * o.K, o.K, o.K, packed + static_cast<ptrdiff_t>(n) * o.K,
                         [&](int r, const V& q0, const V& q1) {
                           const V d(dlogit[m + r]);
                           S* to = dq + (m + r) * o.N + n;
                           dpsi0 = fma(max(V(0), q0), d, dpsi0);
                           dpsi1 = fma(max(V(0), q1), d, dpsi1);
                           store(to, select(q0 > V(0), psi0 * d, V(0)));
                           store(to + kL, select(q1 > V(0), psi1 * d, V(0)));
                         });
      }
      store(dpsi + n, dpsi0);
      store(dpsi + n + kL, dpsi1);
    }
    if constexpr (D == 2) {
      interleave_rows(tile, rows, o.K, tile_pairs);
      interleave_rows(dq, rows, o.N, dq_pairs);
    }
    for (int n = 0; n < o.N; n += kRows)
      for (int k = 0; k < o.K; k += kPanel)
        outer_product<T>(dq_pairs + n * D, o.N * D, tile_pairs + k * D, o.K * D, rows / D,
                         sums + static_cast<ptrdiff_t>(n) * o.K + k, o.K);
    for (int k = 0; k < o.K; k += kPanel) {
      const bool of_x = k < o.Cx;
      const TensorView& d = of_x ? b.dx : b.dg;
      if (!d) continue;
      const int first = of_x ? k : k - o.Cx;
      const bool accumulate = of_x ? b.accumulate_dx : b.accumulate_dg;
      for (int m = 0; m < rows; m += kRows) {
        panel_product<T>(dq + m * o.N, o.N, o.N,
                         packed + static_cast<ptrdiff_t>(o.K) * o.N + static_cast<ptrdiff_t>(k) * o.N,
                         [&](int r, const V& d0, const V& d1) {
                           if (m + r >= count) return;
                           const V a(b.a[p0 + m + r]);
                           for (int half = 0; half < 2; ++half) {
                             const int c = first + half * kL, left = d.C - c;
                             if (left <= 0) continue;
                             V sum = half == 0 ? d0 : d1;
                             if (of_x)
                               sum = fma(read<L>(b.dy.as<const T>() + (p0 + m + r) * b.dy.pitch + c, left), a, sum);
                             T* to = d.as<T>() + (p0 + m + r) * d.pitch + c;
                             if (accumulate) sum += read<L>(static_cast<const T*>(to), left);
                             write<L>(to, sum, left);
                           }
                         });
      }
    }
  }
  float* out = b.weights + blockIdx.x * (static_cast<int64_t>(b.Ci) * (b.x.C + b.g.C));
  for (int n = 0; n < b.Ci; ++n) {
    const float* row = sums + static_cast<ptrdiff_t>(n) * o.K;
    std::copy(row, row + b.x.C, out + n * b.x.C);
    std::copy(row + o.Cx, row + o.Cx + b.g.C, out + b.Ci * b.x.C + n * b.g.C);
  }
  float* vectors = b.vectors + blockIdx.x * static_cast<int64_t>(b.Ci + 1);
  std::copy(dpsi, dpsi + b.Ci, vectors);
  vectors[b.Ci] = sum_lanes(dbias);
}

#endif

}  // namespace
}  // namespace regolith::kernels::REGOLITH_EXECUTION
