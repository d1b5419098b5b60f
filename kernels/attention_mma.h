// Attention through tensor cores, for bf16 and fp16: a warp owns 16 rows of scores, which never leave its registers.
// D: channels of a head, rounded up to 32, 64 or 128; the rest of a tile's rows is zero.
#pragma once

#include <cmath>

#include "kernels/attention_common.h"
#include "kernels/core/gemm.h"

#if REGOLITH_MMA
namespace regolith::kernels::REGOLITH_EXECUTION {
namespace attention {

inline constexpr int kMmaThreads = 128;
inline constexpr int kOwn = 64;   // rows of a block, 16 a warp: queries in forward and for dq, else keys
inline constexpr int kPass = 32;  // rows of the tiles that are gone through
template <class T, int N>
using ScoreSums = TileSums<T, kOwn, N, kMmaThreads, kMmaThreads / kWarp>;

// `rows` positions of a head from `first` on, as a tile; zero beyond the last position and the last channel.
template <int D, class T>
__device__ __forceinline__ void load_tile(const Head<const T>& map, int first, int rows, int d, T* tile) {
  stage_tile<8>(tile, tile_pitch<T>(D), rows, D, d, [&](int r) { return map.row(first + r); });
}

// Writes c * by[r] to the positions of a head from `first` on, by way of a tile.
template <class T, int D>
__device__ __forceinline__ void store_rows(ScoreSums<T, D>& c, const float (&by)[2], T* tile, int first, int d,
                                           const Head<T>& map) {
  constexpr int pitch = tile_pitch<T>(D);
  sync_block();
  c.each(D, [&](int r, int n, float sum) { tile[c.row(r) * pitch + n] = static_cast<T>(sum * by[r]); });
  sync_block();
  write_tile<8>(tile, pitch, kOwn, d, [&](int r) { return map.row(first + r); });
}

}  // namespace attention

// The tiles of a kernel: two of the block's own rows (forward: one), and two of those that are gone through.
template <class T, int D>
struct AttentionTiles {
  T *own[2], *pass[2];    // (kOwn, D), (kPass, D)
  float *lse, *products;  // (kPass), of the queries that are gone through
  template <class A>
  REGOLITH_HOST_DEVICE AttentionTiles(A& a, bool forward) {
    using namespace attention;
    a.take(own[0], tile_elements<T>(kOwn, D));
    a.take_each(tile_elements<T>(kPass, D), pass[0], pass[1]);
    if (forward) return;
    a.take(own[1], tile_elements<T>(kOwn, D));
    a.take_each(kPass, lse, products);
  }
};

template <class T, int D>
__global__ void __launch_bounds__(attention::kMmaThreads, D > 64 ? 2 : 4)
    attend_mma(const T* qkv, T* y, float* lse, Attention g) {
  using namespace attention;
  constexpr int pitch = tile_pitch<T>(D);
  const int first = static_cast<int>(blockIdx.x) * kOwn;
  const auto tiles = take_shared<AttentionTiles<T, D>>(true);
  T *const q = tiles.own[0], *const k = tiles.pass[0], *const v = tiles.pass[1];
  load_tile<D>(g.of_qkv(qkv, 0), first, kOwn, g.d, q);
  ScoreSums<T, D> o;
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};  // of the thread's rows; total by lanes
  for (int k0 = 0; k0 < g.positions; k0 += kPass) {
    sync_block();
    load_tile<D>(g.of_qkv(qkv, 1), k0, kPass, g.d, k);
    load_tile<D>(g.of_qkv(qkv, 2), k0, kPass, g.d, v);
    sync_block();
    ScoreSums<T, kPass> s;  // (queries, keys)
    s.template add<false, true>(q, pitch, k, pitch, D, kPass);
    float peak[2] = {most[0], most[1]}, shrink[2];
    s.each(kPass, [&](int r, int n, float& x) {
      x = k0 + n < g.positions ? x * g.scale : -INFINITY;
      peak[r] = x > peak[r] ? x : peak[r];
    });
    for (int r = 0; r < 2; ++r) {
      peak[r] = s.over_row(peak[r], [](float a, float b) { return a > b ? a : b; });
      shrink[r] = expf(most[r] - peak[r]);
      most[r] = peak[r];
      total[r] *= shrink[r];
    }
    s.each(kPass, [&](int r, int, float& x) {
      x = expf(x - most[r]);
      total[r] += x;
    });
    o.each(D, [&](int r, int, float& x) { x *= shrink[r]; });
    o.add_product(s, v, pitch);
  }
  float by[2];
  for (int r = 0; r < 2; ++r) {
    total[r] = o.row_sum(total[r]);
    by[r] = 1 / total[r];
    const int p = first + o.row(r);
    if (o.leads_row() && p < g.positions) lse[g.row() + p] = most[r] + logf(total[r]);
  }
  store_rows(o, by, q, first, g.d, g.of_y(y));
}

// The gradients of a block's own keys (dk, dv) or queries (dq), which goes through the queries or the keys.
template <class T, int D, bool kOfKeys>
__global__ void __launch_bounds__(attention::kMmaThreads, D > 64 ? 2 : 4)
    gradient_mma(const T* qkv, const T* dy, const float* lse, const float* products, T* dqkv, Attention g) {
  using namespace attention;
  constexpr int pitch = tile_pitch<T>(D);
  const int first = static_cast<int>(blockIdx.x) * kOwn;
  const auto tiles = take_shared<AttentionTiles<T, D>>(false);
  T *const own = tiles.own[0], *const own_dout = tiles.own[1];      // k and v, or q and dout
  T *const pass = tiles.pass[0], *const pass_dout = tiles.pass[1];  // q and dout, or k and v
  lse += g.row();
  products += g.row();
  const auto load_queries = [&](int from, int rows, T* q, T* dout) {
    load_tile<D>(g.of_qkv(qkv, 0), from, rows, g.d, q);
    load_tile<D>(g.of_y(dy), from, rows, g.d, dout);
  };
  const auto load_keys = [&](int from, int rows, T* k, T* v) {
    load_tile<D>(g.of_qkv(qkv, 1), from, rows, g.d, k);
    load_tile<D>(g.of_qkv(qkv, 2), from, rows, g.d, v);
  };
  kOfKeys ? load_keys(first, kOwn, own, own_dout) : load_queries(first, kOwn, own, own_dout);
  ScoreSums<T, D> down, dv;       // dk and dv, or dq alone
  float l[2] = {}, mean[2] = {};  // of the thread's queries
  for (int r = 0; r < 2 && !kOfKeys; ++r) {
    const int p = first + down.row(r);
    l[r] = p < g.positions ? lse[p] : 0;
    mean[r] = p < g.positions ? products[p] : 0;
  }
  for (int p0 = 0; p0 < g.positions; p0 += kPass) {
    sync_block();
    kOfKeys ? load_queries(p0, kPass, pass, pass_dout) : load_keys(p0, kPass, pass, pass_dout);
    for (int r = thread_rank(); r < kPass && kOfKeys; r += block_threads()) {
      const bool there = p0 + r < g.positions;
      tiles.lse[r] = there ? lse[p0 + r] : INFINITY;  // P = 0 beyond
      tiles.products[r] = there ? products[p0 + r] : 0;
    }
    sync_block();
    ScoreSums<T, kPass> p, ds;  // (own, pass)
    p.template add<false, true>(own, pitch, pass, pitch, D, kPass);
    p.each(kPass, [&](int r, int n, float& x) {
      x = kOfKeys || p0 + n < g.positions ? expf(x * g.scale - (kOfKeys ? tiles.lse[n] : l[r])) : 0;
    });
    if constexpr (kOfKeys) dv.add_product(p, pass_dout, pitch);
    ds.template add<false, true>(own_dout, pitch, pass_dout, pitch, D, kPass);
    ds.multiply(p, [&](int r, int n) { return kOfKeys ? tiles.products[n] : mean[r]; });
    down.add_product(ds, pass, pitch);
  }
  store_rows(down, {g.scale, g.scale}, own, first, g.d, g.of_qkv(dqkv, kOfKeys ? 1 : 0));
  if constexpr (kOfKeys) store_rows(dv, {1, 1}, own_dout, first, g.d, g.of_qkv(dqkv, 2));
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
#endif
