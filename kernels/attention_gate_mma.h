// The half of attention_gate.cu for GPUs and the checked execution: a block goes over the pixels in tiles of kTile by
// kTile, a warp having 16 rows of each.
#pragma once

#include "kernels/attention_gate.h"
#include "kernels/core/gemm.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

inline constexpr int kTile = 64, kGateThreads = 128;
template <class T>
inline constexpr int kPitch = tile_pitch<T>(kTile);
template <class T>
using GateSums = TileSums<T, kTile, kTile, kGateThreads, kGateThreads / kWarp>;

// Of a multiprocessor: leaves the FMA tile as many registers as it wants, and hides more of what memory takes in bf16.
template <class T>
inline constexpr int kBlocks = sizeof(T) == 4 ? 4 : 6;
template <class T>
inline constexpr int kBackwardBlocks = sizeof(T) == 4 ? 4 : 5;  // what shared memory allows with 128 channels of q

__device__ __forceinline__ float relu(float v) { return v < 0 ? 0.0f : v; }  // NaN stays

// Copies rows x columns (at most kTile of each) of a matrix into a tile and fills the rest of it with zeros.
template <int L, class T>
__device__ __forceinline__ void stage(const T* from, int pitch, int64_t rows, int columns, T* tile) {
  const int there = rows < kTile ? static_cast<int>(rows) : kTile;
  stage_tile<L>(tile, kPitch<T>, kTile, kTile, columns, [&](int r) { return r < there ? from + r * pitch : nullptr; });
}

// q, before its ReLU, of pixels p0 and on, channels n0 and on.
template <class T, int L>
__device__ __forceinline__ GateSums<T> project(const TensorView& x, const TensorView& g, const AttentionGateWeights& w,
                                               int64_t p0, int n0, T* tile, T* weights) {
  GateSums<T> q;
  for (int which = 0; which < 2; ++which) {
    const TensorView in = which == 0 ? x : g;
    const T* kernel = static_cast<const T*>(which == 0 ? w.theta : w.phi);  // (Ci, C)
    for (int k = 0; k < in.C; k += kTile) {
      sync_block();  // the tiles may still be read
      stage<L>(in.as<const T>() + p0 * in.pitch + k, in.pitch, x.pixels() - p0, in.C - k, tile);
      stage<L>(kernel + static_cast<int64_t>(n0) * in.C + k, in.C, w.Ci - n0, in.C - k, weights);
      sync_block();
      q.template add<false, true>(tile, kPitch<T>, weights, kPitch<T>, kTile, kTile);
    }
  }
  return q;
}

template <class T>
struct GateShared {
  T *tile, *weights;  // (pixels, channels), (channels of q, channels)
  float* gates;       // (pixels)
  template <class A>
  REGOLITH_HOST_DEVICE explicit GateShared(A& a) {
    a.take_each(tile_elements<T>(kTile, kTile), tile, weights);
    a.take(gates, kTile);
  }
};

template <class T, int L>
__global__ void __launch_bounds__(kGateThreads, kBlocks<T>) gate(AttentionGateForward k) {
  using V = Vec<L>;
  const TensorView &x = k.x, &y = k.y;
  const AttentionGateWeights& w = k.weights;
  const auto s = take_shared<GateShared<T>>();
  const int64_t pixels = x.pixels();
  for (int64_t p0 = static_cast<int64_t>(blockIdx.x) * kTile; p0 < pixels;
       p0 += static_cast<int64_t>(gridDim.x) * kTile) {
    float logit[GateSums<T>::rows] = {};
    for (int n0 = 0; n0 < w.Ci; n0 += kTile) {
      GateSums<T> q = project<T, L>(x, k.g, w, p0, n0, s.tile, s.weights);
      q.each(kTile, [&](int r, int n, float v) {
        if (n0 + n < w.Ci) logit[r] += relu(v) * w.psi[n0 + n];
      });
    }
    for (int r = 0; r < GateSums<T>::rows; ++r) {
      const float sum = GateSums<T>::row_sum(logit[r]);
      if (!GateSums<T>::leads_row()) continue;
      const int m = GateSums<T>::row(r);
      s.gates[m] = 1 / (1 + expf(-(sum + w.bias[0])));
      if (p0 + m < pixels) k.a[p0 + m] = s.gates[m];
    }
    sync_block();
    const int vectors = x.C / L, count = static_cast<int>(pixels - p0 < kTile ? pixels - p0 : kTile);
    for (int i = thread_rank(); i < count * vectors; i += block_threads()) {
      const int m = i / vectors, c = i % vectors * L;
      store(y.as<T>() + (p0 + m) * y.pitch + c, load<V>(x.as<const T>() + (p0 + m) * x.pitch + c) * V(s.gates[m]));
    }
  }
}

template <class T>
struct GateBackwardShared {
  int q_pitch;
  float* out;     // (pixels, kOutPitch): a tile of dx or dg
  T* tile;        // in its place while q is computed: (pixels, channels)
  T* weights;     // (channels of q, channels)
  T* q;           // (pixels, Ci): q, then dq
  float* dlogit;  // (pixels)
  static constexpr int kOutPitch = kTile + 4;
  template <class A>
  REGOLITH_HOST_DEVICE GateBackwardShared(A& a, int Ci) : q_pitch(tile_pitch<T>((Ci + kTile - 1) / kTile * kTile)) {
    a.take(out, kTile * kOutPitch);
    tile = reinterpret_cast<T*>(out);
    a.take(weights, tile_elements<T>(kTile, kTile));
    a.take(q, kTile * q_pitch);
    a.take(dlogit, kTile);
  }
};

// All of backward but dtheta and dphi, for which it leaves dq (pixels, Ci).
template <class T, int L>
__global__ void __launch_bounds__(kGateThreads, kBackwardBlocks<T>)
    gate_backward(AttentionGateBackward o, AttentionGateWorkspace workspace) {
  using V = Vec<L>;
  const int Ci = o.weights.Ci;
  const auto s = take_shared<GateBackwardShared<T>>(Ci);
  const int out_pitch = s.kOutPitch;
  T* dq = workspace.dq<T>(o.workspace);
  const int64_t pixels = o.x.pixels();
  constexpr int kColumns = kGateChannels / kGateThreads + 1;
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
      if (lane() == 0) s.dlogit[m] = m < count ? da * o.a[p0 + m] * (1 - o.a[p0 + m]) : 0.0f;
    }
    for (int n0 = 0; n0 < Ci; n0 += kTile) {
      GateSums<T> v = project<T, L>(o.x, o.g, o.weights, p0, n0, s.tile, s.weights);
      v.each(kTile, [&](int r, int n, float value) { s.q[v.row(r) * s.q_pitch + n0 + n] = T(relu(value)); });
    }
    sync_block();
    REGOLITH_UNROLL
    for (int j = 0; j < kColumns; ++j) {  // a thread owns columns of q, and turns them into dq
      const int n = thread_rank() + j * kGateThreads;
      if (n > Ci) break;
      const float psi = n < Ci ? o.weights.psi[n] : 0.0f;
      for (int m = 0; m < kTile; ++m) {
        if (n == Ci) {
          sums[j] += s.dlogit[m];
          continue;
        }
        T& at = s.q[m * s.q_pitch + n];
        const float value = static_cast<float>(at);
        sums[j] += value * s.dlogit[m];
        at = T(value > 0 ? psi * s.dlogit[m] : 0.0f);
      }
    }
    sync_block();
    write_tile<L>(s.q, s.q_pitch, count, Ci, [&](int m) { return dq + (p0 + m) * Ci; });
    for (int which = 0; which < 2; ++which) {
      const TensorView d = which == 0 ? o.dx : o.dg;
      if (!d) continue;
      const T* kernel = static_cast<const T*>(which == 0 ? o.weights.theta : o.weights.phi);
      const bool accumulate = which == 0 ? o.accumulate_dx : o.accumulate_dg;
      for (int c0 = 0; c0 < d.C; c0 += kTile) {
        GateSums<T> v;
        for (int k = 0; k < Ci; k += kTile) {
          sync_block();
          stage<L>(kernel + static_cast<int64_t>(k) * d.C + c0, d.C, Ci - k, d.C - c0, s.weights);
          sync_block();
          v.template add<false, false>(s.q + k, s.q_pitch, s.weights, kPitch<T>, kTile, kTile);
        }
        v.each(kTile, [&](int r, int n, float value) { s.out[v.row(r) * out_pitch + n] = value; });
        sync_block();
        const int vectors = (d.C - c0 < kTile ? d.C - c0 : kTile) / L;
        for (int i = thread_rank(); i < count * vectors; i += block_threads()) {
          const int m = i / vectors, c = i % vectors * L;
          V sum(0);
          for (int l = 0; l < L; ++l) sum.set(l, s.out[m * out_pitch + c + l]);
          if (which == 0) sum = fma(load<V>(o.dy.as<const T>() + (p0 + m) * o.dy.pitch + c0 + c), V(o.a[p0 + m]), sum);
          T* to = d.as<T>() + (p0 + m) * d.pitch + c0 + c;
          if (accumulate) sum += load<V>(to);
          store(to, sum);
        }
      }
    }
  }
  REGOLITH_UNROLL
  for (int j = 0; j < kColumns; ++j) {
    const int n = thread_rank() + j * kGateThreads;
    if (n <= Ci) workspace.vector_sums(o.workspace, blockIdx.x, Ci)[n] = sums[j];
  }
}

template <class T>
struct GateWeightShared {
  T *rows, *columns;  // (pixels, channels of q), (pixels, channels)
  template <class A>
  REGOLITH_HOST_DEVICE explicit GateWeightShared(A& a) {
    a.take_each(tile_elements<T>(kTile, kTile), rows, columns);
  }
};

// A block sums a tile of dtheta or dphi (blockIdx.x: tiles of Ci times tiles of Cx, then of Cg) over a part of the
// pixels (blockIdx.y).
template <class T, int L>
__global__ void __launch_bounds__(kGateThreads, kBlocks<T>)
    gate_weight_gradient(AttentionGateBackward o, AttentionGateWorkspace workspace) {
  const auto s = take_shared<GateWeightShared<T>>();
  const T* dq = workspace.dq<T>(o.workspace);
  const int Ci = o.weights.Ci, n_tiles = (Ci + kTile - 1) / kTile, x_tiles = (o.x.C + kTile - 1) / kTile;
  const int n0 = static_cast<int>(blockIdx.x) % n_tiles * kTile, t = static_cast<int>(blockIdx.x) / n_tiles;
  const bool of_x = t < x_tiles;
  const TensorView in = of_x ? o.x : o.g;
  const int c0 = (of_x ? t : t - x_tiles) * kTile;
  const int64_t begin = workspace.each * blockIdx.y, last = begin + workspace.each, pixels = o.x.pixels();
  const int64_t end = last < pixels ? last : pixels;
  GateSums<T> sum;
  for (int64_t p = begin; p < end; p += kTile) {
    sync_block();
    stage<L>(dq + p * Ci + n0, Ci, end - p, Ci - n0, s.rows);
    stage<L>(in.as<const T>() + p * in.pitch + c0, in.pitch, end - p, in.C - c0, s.columns);
    sync_block();
    sum.template add<true, false>(s.rows, kPitch<T>, s.columns, kPitch<T>, kTile, kTile);
  }
  float* out = workspace.weight_sums(o.workspace, blockIdx.y) + (of_x ? 0 : Ci * o.x.C);
  sum.each(kTile, [&](int r, int c, float v) {
    const int n = n0 + sum.row(r);
    if (n < Ci && c0 + c < in.C) out[n * in.C + c0 + c] = v;
  });
}

}  // namespace
}  // namespace regolith::kernels::REGOLITH_EXECUTION
