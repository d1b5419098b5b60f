// Attention through tensor cores, for bf16 and fp16: a warp owns 16 rows of scores, which never leave its registers.
// D: channels of a head, rounded up to 32, 64 or 128; the rest of a tile's rows is zero.
#pragma once

#include <cmath>

#include "kernels/attention_vector.h"
#include "kernels/core/mma.h"

#if REGOLITH_MMA
namespace regolith::kernels::REGOLITH_EXECUTION {
namespace attention {

inline constexpr int kMmaThreads = 128;
inline constexpr int kOwn = kMmaThreads / kWarp * 16;  // rows of a block: queries in forward and for dq, else keys
inline constexpr int kPass = 32;                       // rows of the tiles that are gone through

template <int D>
inline constexpr int kPitch = D + 8;  // of a tile's rows

// Rows first..first+rows of a head's map to a tile; zero beyond the last position and the last channel.
template <class T, int D>
__device__ __forceinline__ void load_tile(const T* map, int map_pitch, int first, int rows, int positions, int d,
                                          T* tile) {
  using V = Vec<8>;
  for (int i = thread_rank(); i < rows * (D / 8); i += block_threads()) {
    const int r = i / (D / 8), c = i % (D / 8) * 8;
    const bool there = first + r < positions && c < d;
    store(tile + r * kPitch<D> + c, there ? load<V>(map + static_cast<int64_t>(first + r) * map_pitch + c) : V(0));
  }
}

// C(16, 8 * n) = the 16 rows of a * the rows of b, transposed.
template <class T, int D, int n>
__device__ __forceinline__ void scores(const T* a, const T* b, MmaC (&c)[n]) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < D; i += 16) {
    const MmaA<T> left = load_a(a + i, kPitch<D>);
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int j = 0; j < n; ++j) mma_16x8x16(c[j], left, load_b_transposed(b + j * 8 * kPitch<D> + i, kPitch<D>));
  }
}

// C(16, D) += the products' sums p, rounded to T, * the rows of b.
template <class T, int D, int n>
__device__ __forceinline__ void weigh(const MmaC (&p)[n], const T* b, MmaC (&c)[D / 8]) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < n; i += 2) {
    const MmaA<T> left = to_a<T>(p[i], p[i + 1]);
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int j = 0; j < D / 8; ++j) mma_16x8x16(c[j], left, load_b(b + i * 8 * kPitch<D> + j * 8, kPitch<D>));
  }
}

// Writes a warp's c(16, D) * by[row >= 8] to rows first.. of a head's map, by way of 16 rows of a tile that no other
// warp uses.
template <class T, int D>
__device__ __forceinline__ void store_rows(const MmaC (&c)[D / 8], const float (&by)[2], T* tile, int first,
                                           int positions, int d, T* map, int map_pitch) {
  using V = Vec<8>;
  sync_warp();
  for (int j = 0; j < D / 8; ++j)
    for (int i = 0; i < 4; ++i)
      tile[mma_row(i) * kPitch<D> + j * 8 + mma_column(i)] = static_cast<T>(c[j].v[i] * by[i / 2]);
  sync_warp();
  for (int i = lane(); i < 16 * (d / 8); i += kWarp) {
    const int r = i / (d / 8), at = i % (d / 8) * 8;
    if (first + r < positions)
      store(map + static_cast<int64_t>(first + r) * map_pitch + at, load<V>(tile + r * kPitch<D> + at));
  }
}

template <class F>
__device__ __forceinline__ float over_row(float x, F&& f) {  // of the four lanes that hold a row
  for (int m = 1; m < 4; m *= 2) x = f(x, shuffle_xor(x, m));
  return x;
}

}  // namespace attention

template <class T, int D>
__global__ void __launch_bounds__(attention::kMmaThreads, D > 64 ? 2 : 4)
    attend_mma(const T* qkv, T* y, float* lse, Attention g) {
  using namespace attention;
  constexpr int n = kPass / 8, pitch = kPitch<D>;
  const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x) * kOwn, mine = warp_rank() * 16;
  Shared shared;
  T* q = shared.take<T>(kOwn * pitch);
  T* k = shared.take<T>(kPass * pitch);
  T* v = shared.take<T>(kPass * pitch);
  qkv += static_cast<int64_t>(blockIdx.z) * g.positions * g.qkv_pitch + head * g.d;
  load_tile<T, D>(qkv, g.qkv_pitch, first, kOwn, g.positions, g.d, q);
  MmaC o[D / 8];
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};  // of rows lane / 4 and lane / 4 + 8; total by lanes
  for (int k0 = 0; k0 < g.positions; k0 += kPass) {
    sync_block();
    load_tile<T, D>(qkv + g.C, g.qkv_pitch, k0, kPass, g.positions, g.d, k);
    load_tile<T, D>(qkv + 2 * g.C, g.qkv_pitch, k0, kPass, g.positions, g.d, v);
    sync_block();
    MmaC s[n];
    scores<T, D>(q + mine * pitch, k, s);
    float peak[2] = {most[0], most[1]};
    for (int j = 0; j < n; ++j) {
      for (int i = 0; i < 4; ++i) {
        const bool there = k0 + j * 8 + mma_column(i) < g.positions;
        const float x = s[j].v[i] = there ? s[j].v[i] * g.scale : -INFINITY;
        peak[i / 2] = x > peak[i / 2] ? x : peak[i / 2];
      }
    }
    float shrink[2];
    for (int r = 0; r < 2; ++r) {
      peak[r] = over_row(peak[r], [](float a, float b) { return a > b ? a : b; });
      shrink[r] = expf(most[r] - peak[r]);
      most[r] = peak[r];
      total[r] *= shrink[r];
    }
    for (int j = 0; j < n; ++j) {
      for (int i = 0; i < 4; ++i) {
        s[j].v[i] = expf(s[j].v[i] - most[i / 2]);
        total[i / 2] += s[j].v[i];
      }
    }
    for (int j = 0; j < D / 8; ++j)
      for (int i = 0; i < 4; ++i) o[j].v[i] *= shrink[i / 2];
    weigh<T, D>(s, v, o);
  }
  float by[2];
  for (int r = 0; r < 2; ++r) {
    total[r] = over_row(total[r], [](float a, float b) { return a + b; });
    by[r] = 1 / total[r];
    const int p = first + mine + lane() / 4 + r * 8;
    if (lane() % 4 == 0 && p < g.positions) lse[g.row(head) + p] = most[r] + logf(total[r]);
  }
  y += static_cast<int64_t>(blockIdx.z) * g.positions * g.y_pitch + head * g.d;
  store_rows<T, D>(o, by, q + mine * pitch, first + mine, g.positions, g.d, y, g.y_pitch);
}

template <class T, int D>
__global__ void __launch_bounds__(attention::kMmaThreads, D > 64 ? 2 : 4)
    query_gradient_mma(const T* qkv, const T* dy, const float* lse, const float* products, T* dqkv, Attention g) {
  using namespace attention;
  constexpr int n = kPass / 8, pitch = kPitch<D>;
  const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x) * kOwn, mine = warp_rank() * 16;
  Shared shared;
  T* q = shared.take<T>(kOwn * pitch);
  T* dout = shared.take<T>(kOwn * pitch);
  T* k = shared.take<T>(kPass * pitch);
  T* v = shared.take<T>(kPass * pitch);
  const int64_t image = static_cast<int64_t>(blockIdx.z) * g.positions;
  qkv += image * g.qkv_pitch + head * g.d;
  load_tile<T, D>(qkv, g.qkv_pitch, first, kOwn, g.positions, g.d, q);
  load_tile<T, D>(dy + image * g.y_pitch + head * g.d, g.y_pitch, first, kOwn, g.positions, g.d, dout);
  float l[2], mean[2];
  for (int r = 0; r < 2; ++r) {
    const int p = first + mine + lane() / 4 + r * 8;
    l[r] = p < g.positions ? lse[g.row(head) + p] : 0;
    mean[r] = p < g.positions ? products[g.row(head) + p] : 0;
  }
  MmaC dq[D / 8];
  for (int k0 = 0; k0 < g.positions; k0 += kPass) {
    sync_block();
    load_tile<T, D>(qkv + g.C, g.qkv_pitch, k0, kPass, g.positions, g.d, k);
    load_tile<T, D>(qkv + 2 * g.C, g.qkv_pitch, k0, kPass, g.positions, g.d, v);
    sync_block();
    MmaC s[n], ds[n];
    scores<T, D>(q + mine * pitch, k, s);
    scores<T, D>(dout + mine * pitch, v, ds);
    for (int j = 0; j < n; ++j) {
      for (int i = 0; i < 4; ++i) {
        const bool there = k0 + j * 8 + mma_column(i) < g.positions;
        ds[j].v[i] = there ? expf(s[j].v[i] * g.scale - l[i / 2]) * (ds[j].v[i] - mean[i / 2]) : 0;
      }
    }
    weigh<T, D>(ds, k, dq);
  }
  const float by[2] = {g.scale, g.scale};
  store_rows<T, D>(dq, by, q + mine * pitch, first + mine, g.positions, g.d, dqkv + image * g.qkv_pitch + head * g.d,
                   g.qkv_pitch);
}

template <class T, int D>
__global__ void __launch_bounds__(attention::kMmaThreads, D > 64 ? 2 : 4)
    key_gradient_mma(const T* qkv, const T* dy, const float* lse, const float* products, T* dqkv, Attention g) {
  using namespace attention;
  constexpr int n = kPass / 8, pitch = kPitch<D>;
  const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x) * kOwn, mine = warp_rank() * 16;
  Shared shared;
  T* k = shared.take<T>(kOwn * pitch);
  T* v = shared.take<T>(kOwn * pitch);
  T* q = shared.take<T>(kPass * pitch);
  T* dout = shared.take<T>(kPass * pitch);
  float* l = shared.take<float>(kPass);
  float* mean = shared.take<float>(kPass);
  const int64_t image = static_cast<int64_t>(blockIdx.z) * g.positions;
  qkv += image * g.qkv_pitch + head * g.d;
  dqkv += image * g.qkv_pitch + head * g.d;
  dy += image * g.y_pitch + head * g.d;
  load_tile<T, D>(qkv + g.C, g.qkv_pitch, first, kOwn, g.positions, g.d, k);
  load_tile<T, D>(qkv + 2 * g.C, g.qkv_pitch, first, kOwn, g.positions, g.d, v);
  MmaC dk[D / 8], dv[D / 8];
  for (int q0 = 0; q0 < g.positions; q0 += kPass) {
    sync_block();
    load_tile<T, D>(qkv, g.qkv_pitch, q0, kPass, g.positions, g.d, q);
    load_tile<T, D>(dy, g.y_pitch, q0, kPass, g.positions, g.d, dout);
    for (int r = thread_rank(); r < kPass; r += block_threads()) {
      const bool there = q0 + r < g.positions;
      l[r] = there ? lse[g.row(head) + q0 + r] : INFINITY;  // P = 0 beyond
      mean[r] = there ? products[g.row(head) + q0 + r] : 0;
    }
    sync_block();
    MmaC p[n];  // (keys, queries)
    scores<T, D>(k + mine * pitch, q, p);
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < 4; ++i) p[j].v[i] = expf(p[j].v[i] * g.scale - l[j * 8 + mma_column(i)]);
    weigh<T, D>(p, dout, dv);
    MmaC ds[n];
    scores<T, D>(v + mine * pitch, dout, ds);
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < 4; ++i) ds[j].v[i] = p[j].v[i] * (ds[j].v[i] - mean[j * 8 + mma_column(i)]);
    weigh<T, D>(ds, q, dk);
  }
  const float by[2] = {g.scale, g.scale}, one[2] = {1, 1};
  store_rows<T, D>(dk, by, k + mine * pitch, first + mine, g.positions, g.d, dqkv + g.C, g.qkv_pitch);
  store_rows<T, D>(dv, one, v + mine * pitch, first + mine, g.positions, g.d, dqkv + 2 * g.C, g.qkv_pitch);
}

// Bytes of `own` tiles of a block's rows and `pass` of those gone through.
template <class T, int D>
constexpr size_t mma_bytes(int own, int pass) {
  using namespace attention;
  return own * shared_bytes<T>(kOwn * kPitch<D>) + pass * shared_bytes<T>(kPass * kPitch<D>);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
#endif
