#include "kernels/attention_gate.h"

#include "kernels/channel_sum.h"
#include "kernels/core/columns.h"
#include "kernels/core/crew.h"
#include "kernels/core/launch.h"
#include "kernels/core/math.h"
#include "kernels/core/tile_product.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// What the kernels of backward take.
struct Backward {
  const float* psi;
  const float* a;
  Map x, g, dy, dx, dg;
  bool accumulate_dx, accumulate_dg;
  int Ci;
  int64_t each;
  float* weights;  // partial sums: (parts, Ci * (Cx + Cg)) of dtheta and dphi
  float* vectors;  // (blocks, Ci + 1) of dpsi and dbias
};

#if REGOLITH_MMA

__device__ __forceinline__ float relu(float v) { return v < 0 ? 0.0f : v; }  // NaN stays

// The input whose channels a loop over x and g has come to.
template <class T>
struct Part {
  const T* pixels;
  const T* kernel;  // (Ci, C)
  int pitch, C;
};
template <class T>
__device__ __forceinline__ Part<T> part_of(int which, const Map& x, const Map& g, const T* theta, const T* phi) {
  return which == 0 ? Part<T>{x.as<const T>(), theta, x.pitch, x.C} : Part<T>{g.as<const T>(), phi, g.pitch, g.C};
}

// q, before its ReLU, of pixels p0 and on, channels n0 and on.
template <class T, int L>
__device__ __forceinline__ TileProduct<T> project(const Map& x, const Map& g, const T* theta, const T* phi, int Ci,
                                                  int64_t p0, int64_t pixels, int n0, T* tile, T* weights) {
  TileProduct<T> q;
  for (int which = 0; which < 2; ++which) {
    const Part<T> in = part_of(which, x, g, theta, phi);
    for (int k = 0; k < in.C; k += kTile) {
      sync_block();  // the tiles may still be read
      stage_tile<L>(in.pixels + p0 * in.pitch + k, in.pitch, pixels - p0, in.C - k, tile);
      stage_tile<L>(in.kernel + static_cast<int64_t>(n0) * in.C + k, in.C, Ci - n0, in.C - k, weights);
      sync_block();
      q.template add<false, true>(tile, kTilePitch<T>, weights, kTilePitch<T>);
    }
  }
  return q;
}

template <class T, int L>
__global__ void __launch_bounds__(kTileThreads)
    gate(Map x, Map g, const T* theta, const T* phi, const float* psi, const float* bias, int Ci, Map y, float* a) {
  using V = Vec<L>;
  Shared shared;
  T* tile = shared.take<T>(kTileElements<T>);
  T* weights = shared.take<T>(kTileElements<T>);
  float* gates = shared.take<float>(kTile);
  const int64_t pixels = x.pixels();
  for (int64_t p0 = static_cast<int64_t>(blockIdx.x) * kTile; p0 < pixels;
       p0 += static_cast<int64_t>(gridDim.x) * kTile) {
    constexpr int R = TileProduct<T>::rows;
    float logit[R] = {};
    for (int n0 = 0; n0 < Ci; n0 += kTile) {
      const TileProduct<T> q = project<T, L>(x, g, theta, phi, Ci, p0, pixels, n0, tile, weights);
      q.for_each([&](int i, int n, float v) {
        if (n0 + n < Ci) logit[i] += relu(v) * psi[n0 + n];
      });
    }
    const TileProduct<T> where;
    for (int i = 0; i < R; ++i) {
      const float sum = TileProduct<T>::row_sum(logit[i]);
      if (!TileProduct<T>::leads_row()) continue;
      const int m = where.row(i);
      gates[m] = 1 / (1 + expf(-(sum + bias[0])));
      if (p0 + m < pixels) a[p0 + m] = gates[m];
    }
    sync_block();
    const int vectors = x.C / L, count = static_cast<int>(pixels - p0 < kTile ? pixels - p0 : kTile);
    for (int i = thread_rank(); i < count * vectors; i += block_threads()) {
      const int m = i / vectors, c = i % vectors * L;
      store(y.as<T>() + (p0 + m) * y.pitch + c, load<V>(x.as<const T>() + (p0 + m) * x.pitch + c) * V(gates[m]));
    }
  }
}

// All of backward but dtheta and dphi, for which it leaves dq (pixels, Ci).
template <class T, int L>
__global__ void __launch_bounds__(kTileThreads) gate_backward(Backward o, const T* theta, const T* phi, T* dq) {
  using V = Vec<L>;
  constexpr int kOutPitch = kTile + 4;
  const int Ci = o.Ci, q_pitch = (Ci + kTile - 1) / kTile * kTile + kTilePitch<T> - kTile;
  Shared shared;
  float* out = shared.take<float>(kTile * kOutPitch);
  T* tile = reinterpret_cast<T*>(out);  // while q is computed
  T* weights = shared.take<T>(kTileElements<T>);
  T* q = shared.take<T>(kTile * q_pitch);
  float* dlogit = shared.take<float>(kTile);
  const int64_t pixels = o.x.pixels();
  constexpr int kColumns = kGateChannels / kTileThreads + 1;
  float sums[kColumns] = {};  // of dpsi; and of dbias, as of a column more
  for (int64_t p0 = static_cast<int64_t>(blockIdx.x) * kTile; p0 < pixels;
       p0 += static_cast<int64_t>(gridDim.x) * kTile) {
    const int count = static_cast<int>(pixels - p0 < kTile ? pixels - p0 : kTile);
    for (int m = warp_rank(); m < kTile; m += warps()) {
      float da = 0;
      for (int c = lane() * L; m < count && c < o.x.C; c += kWarp * L)
        da += sum_lanes(load<V>(o.dy.as<const T>() + (p0 + m) * o.dy.pitch + c) *
                        load<V>(o.x.as<const T>() + (p0 + m) * o.x.pitch + c));
      da = warp_sum(da);
      if (lane() == 0) dlogit[m] = m < count ? da * o.a[p0 + m] * (1 - o.a[p0 + m]) : 0.0f;
    }
    for (int n0 = 0; n0 < Ci; n0 += kTile) {
      const TileProduct<T> v = project<T, L>(o.x, o.g, theta, phi, Ci, p0, pixels, n0, tile, weights);
      v.for_each([&](int i, int n, float value) { q[v.row(i) * q_pitch + n0 + n] = T(relu(value)); });
    }
    sync_block();
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int j = 0; j < kColumns; ++j) {  // a thread owns columns of q, and turns them into dq
      const int n = thread_rank() + j * kTileThreads;
      if (n > Ci) break;
      const float psi = n < Ci ? o.psi[n] : 0.0f;
      for (int m = 0; m < kTile; ++m) {
        if (n == Ci) {
          sums[j] += dlogit[m];
          continue;
        }
        T& at = q[m * q_pitch + n];
        const float value = static_cast<float>(at);
        sums[j] += value * dlogit[m];
        at = T(value > 0 ? psi * dlogit[m] : 0.0f);
      }
    }
    sync_block();
    for (int i = thread_rank(); i < count * (Ci / L); i += block_threads()) {
      const int m = i / (Ci / L), n = i % (Ci / L) * L;
      copy_elements<L>(dq + (p0 + m) * Ci + n, q + m * q_pitch + n);
    }
    for (int which = 0; which < 2; ++which) {
      const Map d = which == 0 ? o.dx : o.dg;
      if (!d) continue;
      const T* kernel = which == 0 ? theta : phi;
      const bool accumulate = which == 0 ? o.accumulate_dx : o.accumulate_dg;
      for (int c0 = 0; c0 < d.C; c0 += kTile) {
        TileProduct<T> v;
        for (int k = 0; k < Ci; k += kTile) {
          sync_block();
          stage_tile<L>(kernel + static_cast<int64_t>(k) * d.C + c0, d.C, Ci - k, d.C - c0, weights);
          sync_block();
          v.template add<false, false>(q + k, q_pitch, weights, kTilePitch<T>);
        }
        v.for_each([&](int i, int n, float value) { out[v.row(i) * kOutPitch + n] = value; });
        sync_block();
        const int vectors = (d.C - c0 < kTile ? d.C - c0 : kTile) / L;
        for (int i = thread_rank(); i < count * vectors; i += block_threads()) {
          const int m = i / vectors, c = i % vectors * L;
          V sum(0);
          for (int l = 0; l < L; ++l) sum.set(l, out[m * kOutPitch + c + l]);
          if (which == 0) sum = fma(load<V>(o.dy.as<const T>() + (p0 + m) * o.dy.pitch + c0 + c), V(o.a[p0 + m]), sum);
          T* to = d.as<T>() + (p0 + m) * d.pitch + c0 + c;
          if (accumulate) sum += load<V>(to);
          store(to, sum);
        }
      }
    }
  }
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int j = 0; j < kColumns; ++j) {
    const int n = thread_rank() + j * kTileThreads;
    if (n <= Ci) o.vectors[static_cast<int64_t>(blockIdx.x) * (Ci + 1) + n] = sums[j];
  }
}

// A block sums a tile of dtheta or dphi (blockIdx.x: tiles of Ci times tiles of Cx, then of Cg) over a part of the
// pixels (blockIdx.y).
template <class T, int L>
__global__ void __launch_bounds__(kTileThreads) gate_weight_gradient(Backward o, const T* dq) {
  Shared shared;
  T* rows = shared.take<T>(kTileElements<T>);
  T* columns = shared.take<T>(kTileElements<T>);
  const int Ci = o.Ci, n_tiles = (Ci + kTile - 1) / kTile, x_tiles = (o.x.C + kTile - 1) / kTile;
  const int n0 = static_cast<int>(blockIdx.x) % n_tiles * kTile, t = static_cast<int>(blockIdx.x) / n_tiles;
  const bool of_x = t < x_tiles;
  const Map& in = of_x ? o.x : o.g;
  const int c0 = (of_x ? t : t - x_tiles) * kTile;
  const int64_t begin = o.each * blockIdx.y, last = begin + o.each, pixels = o.x.pixels();
  const int64_t end = last < pixels ? last : pixels;
  TileProduct<T> sum;
  for (int64_t p = begin; p < end; p += kTile) {
    sync_block();
    stage_tile<L>(dq + p * Ci + n0, Ci, end - p, Ci - n0, rows);
    stage_tile<L>(in.as<const T>() + p * in.pitch + c0, in.pitch, end - p, in.C - c0, columns);
    sync_block();
    sum.template add<true, false>(rows, kTilePitch<T>, columns, kTilePitch<T>);
  }
  float* out = o.weights + static_cast<int64_t>(blockIdx.y) * Ci * (o.x.C + o.g.C) + (of_x ? 0 : Ci * o.x.C);
  sum.for_each([&](int i, int c, float v) {
    const int n = n0 + sum.row(i);
    if (n < Ci && c0 + c < in.C) out[n * in.C + c0 + c] = v;
  });
}

#else  // the fast host

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
__forceinline__ void stage(const Map& map, int64_t p0, int count, int width, S* to, int pitch) {
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
__forceinline__ int stage_inputs(const Map& x, const Map& g, const Padded& o, int64_t p0, int count, S* tile) {
  stage<L, T>(x, p0, count, o.Cx, tile, o.K);
  stage<L, T>(g, p0, count, o.K - o.Cx, tile + o.Cx, o.K);
  const int rows = (count + kRowBlock - 1) / kRowBlock * kRowBlock;
  std::fill(tile + count * o.K, tile + rows * o.K, S(0.0f));
  return rows;
}

template <class T, int L>
__global__ void REGOLITH_FLAT gate(Map x, Map g, const typename Factor<T>::Stored* packed, const float* psi,
                                   const float* bias, int Ci, Map y, float* a) {
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
      const Map& d = of_x ? b.dx : b.dg;
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

void check(const char* kernel, const Map& x, const Map& g, int Ci) {
  const auto size = [](const Map& m) {
    return std::to_string(m.N) + "x" + std::to_string(m.H) + "x" + std::to_string(m.W);
  };
  if (x.N != g.N || x.H != g.H || x.W != g.W)
    throw KernelError(std::string(kernel) + ": x of " + size(x) + " pixels and g of " + size(g) +
                      "; expected the same N, H, W");
  if (Ci < 1 || Ci > kGateChannels)
    throw KernelError(std::string(kernel) + ": " + std::to_string(Ci) + " intermediate channels; expected 1 to " +
                      std::to_string(kGateChannels));
}

}  // namespace

void attention_gate_pack([[maybe_unused]] Stream& stream, [[maybe_unused]] const AttentionGatePack& k) {
#if !REGOLITH_MMA
  with_float_type(k.dtype, "attention_gate_pack", [&](auto t) {
    using T = decltype(t);
    const Padded o(k.Cx, k.Cg, k.Ci);
    launch(stream, "attention_gate_pack", {static_cast<unsigned>((o.N + o.K) / kPanel)}, {1}, 0, pack<T>,
           static_cast<const T*>(k.theta), static_cast<const T*>(k.phi), k.Cx, k.Cg, k.Ci,
           static_cast<typename Factor<T>::Stored*>(k.packed));
  });
#endif
}

void attention_gate_forward(Stream& stream, const AttentionGateForward& k) {
  const AttentionGateWeights& w = k.weights;
  check("attention_gate_forward", k.x, k.g, w.Ci);
  with_float_type(k.y.dtype, "attention_gate_forward", [&](auto t) {
    using T = decltype(t);
    const T *theta = static_cast<const T*>(w.theta), *phi = static_cast<const T*>(w.phi);
    with_lanes<T>({k.x, k.g, k.y, row_map(theta, k.x.C), row_map(phi, k.g.C)}, [&](auto lanes) {
      constexpr int L = lanes;
#if REGOLITH_MMA
      const size_t bytes = 2 * shared_bytes<T>(kTileElements<T>) + shared_bytes<float>(kTile);
      launch(stream, "attention_gate", {blocks_for(stream, k.x.pixels(), kTile, 16)}, {kTileThreads}, bytes, gate<T, L>,
             k.x, k.g, theta, phi, w.psi, w.bias, w.Ci, k.y, k.a);
#else
      using S = typename Factor<T>::Stored;
      const Padded o(k.x.C, k.g.C, w.Ci);
      const size_t bytes = shared_bytes<S>(kPixels * o.K) + shared_bytes<float>(o.N) +
                           shared_bytes<float>(kPixels * kL) + shared_bytes<float>(kPixels);
      launch(stream, "attention_gate", {blocks_for(stream, k.x.pixels(), kPixels)}, {1}, bytes, gate<T, L>, k.x, k.g,
             static_cast<const S*>(w.packed), w.psi, w.bias, w.Ci, k.y, k.a);
#endif
    });
  });
}

void attention_gate_backward(Stream& stream, const AttentionGateBackward& k) {
  const AttentionGateWeights& w = k.weights;
  check("attention_gate_backward", k.x, k.g, w.Ci);
  const AttentionGateWorkspace layout(k.x, k.g, w.Ci);
  unsigned char* workspace = static_cast<unsigned char*>(k.workspace);
  const Backward b{.psi = w.psi,
                   .a = k.a,
                   .x = k.x,
                   .g = k.g,
                   .dy = k.dy,
                   .dx = k.dx,
                   .dg = k.dg,
                   .accumulate_dx = k.accumulate_dx,
                   .accumulate_dg = k.accumulate_dg,
                   .Ci = w.Ci,
                   .each = layout.each,
                   .weights = reinterpret_cast<float*>(workspace),
                   .vectors = reinterpret_cast<float*>(workspace + layout.vectors_at)};
  const unsigned parts = static_cast<unsigned>(layout.parts);
  with_float_type(k.dy.dtype, "attention_gate_backward", [&](auto t) {
    using T = decltype(t);
    const T *theta = static_cast<const T*>(w.theta), *phi = static_cast<const T*>(w.phi);
    const auto maps = {k.x, k.g, k.dy, k.dx, k.dg, row_map(theta, k.x.C), row_map(phi, k.g.C), row_map(theta, w.Ci)};
#if REGOLITH_MMA
    T* dq = reinterpret_cast<T*>(workspace + layout.dq_at);
    with_lanes<T>(maps, [&](auto lanes) {
      constexpr int L = lanes;
      const int q_pitch = (w.Ci + kTile - 1) / kTile * kTile + kTilePitch<T> - kTile;
      const size_t bytes = shared_bytes<float>(kTile * (kTile + 4)) + shared_bytes<T>(kTileElements<T>) +
                           shared_bytes<T>(kTile * q_pitch) + shared_bytes<float>(kTile);
      launch(stream, "attention_gate_backward", {static_cast<unsigned>(layout.blocks)}, {kTileThreads}, bytes,
             gate_backward<T, L>, b, theta, phi, dq);
      const auto tiles = [](int C) { return static_cast<unsigned>((C + kTile - 1) / kTile); };
      launch(stream, "attention_gate_weight_gradient", {tiles(w.Ci) * (tiles(k.x.C) + tiles(k.g.C)), parts},
             {kTileThreads}, 2 * shared_bytes<T>(kTileElements<T>), gate_weight_gradient<T, L>, b, dq);
    });
    const int vectors = layout.blocks;
#else
    using S = typename Factor<T>::Stored;
    with_lanes<T>(maps, [&](auto lanes) {
      const Padded o(k.x.C, k.g.C, w.Ci);
      const size_t floats = static_cast<size_t>(o.N) * o.K;
      const size_t bytes = 2 * (shared_bytes<S>(kPixels * o.K) + shared_bytes<S>(kPixels * o.N)) +
                           2 * shared_bytes<float>(o.N) + shared_bytes<float>(kPixels * kL) +
                           shared_bytes<float>(kPixels) + shared_bytes<float>(floats);
      launch(stream, "attention_gate_backward", {parts}, {1}, bytes, gate_backward<T, lanes>, b,
             static_cast<const S*>(w.packed));
    });
    const int vectors = layout.parts;
#endif
    const int64_t n = static_cast<int64_t>(w.Ci) * k.x.C;
    const auto add_up = [&](const float* from, int count, int64_t stride, int64_t size, float* to) {
      sum_partials(stream, {from, count, stride, size, to, k.accumulate_grads});
    };
    add_up(b.weights, layout.parts, layout.weights, n, k.dtheta);
    add_up(b.weights + n, layout.parts, layout.weights, layout.weights - n, k.dphi);
    add_up(b.vectors, vectors, w.Ci + 1, w.Ci, k.dpsi);
    add_up(b.vectors + w.Ci, vectors, w.Ci + 1, 1, k.dbias);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
