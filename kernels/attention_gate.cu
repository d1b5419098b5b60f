#include "kernels/attention_gate.h"

#include "kernels/attention_gate_fast.h"
#include "kernels/core/columns.h"
#include "kernels/core/launch.h"
#include "kernels/core/reduce.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

#if REGOLITH_MMA

// Of a multiprocessor: leaves the FMA tile as many registers as it wants, and hides more of what memory takes in bf16.
template <class T>
inline constexpr int kBlocks = sizeof(T) == 4 ? 4 : 6;

__device__ __forceinline__ float relu(float v) { return v < 0 ? 0.0f : v; }  // NaN stays

// The input whose channels a loop over x and g has come to.
template <class T>
struct Part {
  const T* pixels;
  const T* kernel;  // (Ci, C)
  int pitch, C;
};
template <class T>
__device__ __forceinline__ Part<T> part_of(int which, const TensorView& x, const TensorView& g, const T* theta,
                                           const T* phi) {
  return which == 0 ? Part<T>{x.as<const T>(), theta, x.pitch, x.C} : Part<T>{g.as<const T>(), phi, g.pitch, g.C};
}

// q, before its ReLU, of pixels p0 and on, channels n0 and on.
template <class T, int L>
__device__ __forceinline__ TileProduct<T> project(const TensorView& x, const TensorView& g, const T* theta,
                                                  const T* phi, int Ci, int64_t p0, int64_t pixels, int n0, T* tile,
                                                  T* weights) {
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
__global__ void __launch_bounds__(kTileThreads, kBlocks<T>)
    gate(TensorView x, TensorView g, const T* theta, const T* phi, const float* psi, const float* bias, int Ci,
         TensorView y, float* a) {
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
    for (int i = 0; i < R; ++i) {
      const float sum = TileProduct<T>::row_sum(logit[i]);
      if (!TileProduct<T>::leads_row()) continue;
      const int m = TileProduct<T>::row(i);
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
__global__ void __launch_bounds__(kTileThreads, kBlocks<T>)
    gate_backward(Backward o, const T* theta, const T* phi, T* dq) {
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
      const TensorView d = which == 0 ? o.dx : o.dg;
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
__global__ void __launch_bounds__(kTileThreads, kBlocks<T>) gate_weight_gradient(Backward o, const T* dq) {
  Shared shared;
  T* rows = shared.take<T>(kTileElements<T>);
  T* columns = shared.take<T>(kTileElements<T>);
  const int Ci = o.Ci, n_tiles = (Ci + kTile - 1) / kTile, x_tiles = (o.x.C + kTile - 1) / kTile;
  const int n0 = static_cast<int>(blockIdx.x) % n_tiles * kTile, t = static_cast<int>(blockIdx.x) / n_tiles;
  const bool of_x = t < x_tiles;
  const TensorView& in = of_x ? o.x : o.g;
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

#endif

void check(const char* kernel, const TensorView& x, const TensorView& g, int Ci) {
  const auto size = [](const TensorView& m) {
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
      sum_partials(stream, {from, count, stride, size}, to, k.accumulate_grads);
    };
    add_up(b.weights, layout.parts, layout.weights, n, k.dtheta);
    add_up(b.weights + n, layout.parts, layout.weights, layout.weights - n, k.dphi);
    add_up(b.vectors, vectors, w.Ci + 1, w.Ci, k.dpsi);
    add_up(b.vectors + w.Ci, vectors, w.Ci + 1, 1, k.dbias);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
