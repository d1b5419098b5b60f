// Attention of bf16 maps on the fast host, where the processor multiplies pairs of bf16: the loops of
// attention_vector.h, with P and dS rounded to bf16 between the products, as tensor cores have it.
#pragma once

#include "kernels/attention_vector.h"
#include "kernels/core/pairs.h"

#if REGOLITH_PAIRS
namespace regolith::kernels::REGOLITH_EXECUTION {
namespace attention {

// Rows first..first+rows of a head's map as words along its channels, out[row * pitch + c / 2]; zero beyond the last
// position.
inline void load_word_rows(const bf16* map, int map_pitch, int first, int rows, int positions, int d, uint32_t* out,
                           int pitch) {
  for (int r = 0; r < rows; ++r) {
    if (first + r < positions)
      std::memcpy(out + r * pitch, map + static_cast<int64_t>(first + r) * map_pitch, d * sizeof(bf16));
    else
      std::fill(out + r * pitch, out + r * pitch + d / 2, 0u);
  }
}

// The same at out[c / 2 * kColumns + row].
inline void load_word_columns(const bf16* map, int map_pitch, int first, int positions, int d, uint32_t* out) {
  for (int r = 0; r < kColumns; ++r) {
    for (int c = 0; c < d; c += 2) {
      uint32_t word = 0;
      if (first + r < positions) std::memcpy(&word, map + static_cast<int64_t>(first + r) * map_pitch + c, sizeof word);
      out[c / 2 * kColumns + r] = word;
    }
  }
}

// Rows as words along the positions, out[row / 2 * pitch + c]; rows is even.
inline void load_row_pairs(const bf16* map, int map_pitch, int first, int rows, int positions, int d, uint32_t* out,
                           int pitch) {
  for (int r = 0; r < rows; r += 2) {
    const bf16 *low = map + static_cast<int64_t>(first + r) * map_pitch, *high = low + map_pitch;
    uint32_t* to = out + r / 2 * pitch;
    if (first + r + 1 < positions) {
      for (int c = 0; c < d; ++c) to[c] = low[c].bits | static_cast<uint32_t>(high[c].bits) << 16;
    } else {
      for (int c = 0; c < d; ++c) to[c] = first + r < positions ? low[c].bits : 0u;
    }
  }
}

// As product(), of words; `words` is half the depth.
template <int Q, bool kTransposed, class Start>
__forceinline__ void pair_product(const uint32_t* a, int pitch, const uint32_t* b, float* c, int rows, int columns,
                                  int words, Start&& start) {
  using V = Vec<kL>;
  for (int row = 0; row < rows; row += kM) {
    const uint32_t* in = kTransposed ? a + row : a + row * pitch;
    for (int column = 0; column < columns; column += kL * Q) {
      float* out = c + row * columns + column;
      V sum[kM][Q];
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m)
        for (int j = 0; j < Q; ++j) sum[m][j] = start(out + m * columns + j * kL, column + j * kL);
      for (int i = 0; i < words; ++i) {
        Words right[Q];
        for (int j = 0; j < Q; ++j) right[j] = load_words(b + i * columns + column + j * kL);
#pragma GCC unroll 8
        for (int m = 0; m < kM; ++m) {
          const uint32_t left = kTransposed ? in[i * pitch + m] : in[m * pitch + i];
          for (int j = 0; j < Q; ++j) sum[m][j] = dot(left, right[j], sum[m][j]);
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m)
        for (int j = 0; j < Q; ++j) store(out + m * columns + j * kL, sum[m][j]);
    }
  }
}

}  // namespace attention

// Block: kColumns queries (x) of a head (y) of an image (z).
inline REGOLITH_FLAT void attend_pairs(const bf16* qkv, bf16* y, float* lse, Attention g) {
  using namespace attention;
  using V = Vec<kL>;
  constexpr int n = kColumns / kL;
  const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x) * kColumns, half = g.d / 2;
  Shared shared;
  uint32_t* q = shared.take<uint32_t>(half * kColumns);       // (d / 2, queries)
  float* o = shared.take<float>(g.d * kColumns);              // (d, queries)
  float* s = shared.take<float>(kRows * kColumns);            // (keys, queries)
  uint32_t* p = shared.take<uint32_t>(kRows / 2 * kColumns);  // (keys / 2, queries)
  uint32_t* k = shared.take<uint32_t>(kRows * half);          // (keys, d / 2)
  uint32_t* v = shared.take<uint32_t>(kRows / 2 * g.d);       // (keys / 2, d)
  float* shrink = shared.take<float>(kColumns);
  qkv += static_cast<int64_t>(blockIdx.z) * g.positions * g.qkv_pitch + head * g.d;
  load_word_columns(qkv, g.qkv_pitch, first, g.positions, g.d, q);
  V most[n], total[n];
  for (int j = 0; j < n; ++j) most[j] = V(-INFINITY), total[j] = V(0);
  for (int k0 = 0; k0 < g.positions; k0 += kRows) {
    const int keys = g.positions - k0 < kRows ? g.positions - k0 : kRows, rows = used(k0, g.positions);
    load_word_rows(qkv + g.C, g.qkv_pitch, k0, rows, g.positions, g.d, k, half);
    load_row_pairs(qkv + 2 * g.C, g.qkv_pitch, k0, rows, g.positions, g.d, v, g.d);
    pair_product<kQ, false>(k, half, q, s, rows, kColumns, half, FromZero{});
    V peak[n];
    for (int j = 0; j < n; ++j) peak[j] = V(-INFINITY);
    for (int r = 0; r < keys; ++r)
      for (int j = 0; j < n; ++j) peak[j] = max(peak[j], load<V>(s + r * kColumns + j * kL));
    for (int j = 0; j < n; ++j) {
      const V m = max(most[j], peak[j] * V(g.scale)), by = exp(most[j] - m);
      most[j] = m;
      total[j] = total[j] * by;
      store(shrink + j * kL, by);
    }
    for (int r = 0; r < rows; r += 2) {
      for (int j = 0; j < n; ++j) {
        const float* at = s + r * kColumns + j * kL;
        const V shift = V(0) - most[j];
        const V low = r < keys ? exp(fma(load<V>(at), V(g.scale), shift)) : V(0);
        const V high = r + 1 < keys ? exp(fma(load<V>(at + kColumns), V(g.scale), shift)) : V(0);
        total[j] += low + high;
        store_words(p + r / 2 * kColumns + j * kL, to_words(low, high));
      }
    }
    pair_product<kQ, true>(v, g.d, p, o, g.d, kColumns, rows / 2, [&](const float* at, int column) {
      return k0 == 0 ? V(0) : load<V>(at) * load<V>(shrink + column);
    });
  }
  float *sums = s, *peaks = s + kColumns;
  for (int j = 0; j < n; ++j) {
    store(sums + j * kL, total[j]);
    store(peaks + j * kL, most[j]);
  }
  y += static_cast<int64_t>(blockIdx.z) * g.positions * g.y_pitch + head * g.d;
  store_transposed(o, first, g.positions, g.d, y, g.y_pitch, [&](int r) { return 1 / sums[r]; });
  for (int r = 0; r < kColumns && first + r < g.positions; ++r) lse[g.row(head) + first + r] = peaks[r] + logf(sums[r]);
}
inline size_t attend_pairs_bytes(int d) {
  using namespace attention;
  return shared_bytes<float>(d / 2 * kColumns) + shared_bytes<float>(d * kColumns) +
         shared_bytes<float>(kRows * kColumns) + shared_bytes<float>(kRows / 2 * kColumns) +
         2 * shared_bytes<float>(kRows / 2 * d) + shared_bytes<float>(kColumns);
}

// Block: a head (y) of an image (z).
inline REGOLITH_FLAT void gradient_pairs(const bf16* qkv, const bf16* dy, const float* lse, const float* D, bf16* dqkv,
                                         Attention g) {
  using namespace attention;
  using V = Vec<kL>;
  const int head = static_cast<int>(blockIdx.y), half = g.d / 2, wide = whole(g.d);
  Shared shared;
  uint32_t* k = shared.take<uint32_t>(half * kColumns);  // (d / 2, keys)
  uint32_t* v = shared.take<uint32_t>(half * kColumns);
  uint32_t* keys = shared.take<uint32_t>(kColumns / 2 * wide);  // (keys / 2, d)
  float* dk = shared.take<float>(g.d * kColumns);               // (d, keys)
  float* dv = shared.take<float>(g.d * kColumns);
  float* s = shared.take<float>(kRows * kColumns);  // (queries, keys)
  float* ds = shared.take<float>(kRows * kColumns);
  uint32_t* p = shared.take<uint32_t>(kRows / 2 * kColumns);                        // (queries / 2, keys)
  uint32_t* slope = shared.take<uint32_t>(kRows / 2 * kColumns);                    // (queries / 2, keys), of dS
  bf16* slope_rows = shared.take<bf16>(kRows * kColumns);                           // (queries, keys), of dS
  uint32_t* q = shared.take<uint32_t>(kRows * half);                                // (queries, d / 2)
  uint32_t* dout = shared.take<uint32_t>(kRows * half);                             // (queries, d / 2)
  uint32_t* q_pairs = shared.take<uint32_t>(kRows / 2 * g.d);                       // (queries / 2, d)
  uint32_t* dout_pairs = shared.take<uint32_t>(kRows / 2 * g.d);                    // (queries / 2, d)
  float* dq = shared.take<float>(static_cast<size_t>(g.positions + kRows) * wide);  // (queries, d)
  const int64_t image = static_cast<int64_t>(blockIdx.z) * g.positions;
  qkv += image * g.qkv_pitch + head * g.d;
  dqkv += image * g.qkv_pitch + head * g.d;
  dy += image * g.y_pitch + head * g.d;
  lse += g.row(head);
  D += g.row(head);
  std::fill(keys, keys + kColumns / 2 * wide, 0u);
  for (int first = 0; first < g.positions; first += kColumns) {
    load_word_columns(qkv + g.C, g.qkv_pitch, first, g.positions, g.d, k);
    load_word_columns(qkv + 2 * g.C, g.qkv_pitch, first, g.positions, g.d, v);
    load_row_pairs(qkv + g.C, g.qkv_pitch, first, kColumns, g.positions, g.d, keys, wide);
    const int there = g.positions - first < kColumns ? g.positions - first : kColumns;
    for (int q0 = 0; q0 < g.positions; q0 += kRows) {
      const int queries = g.positions - q0 < kRows ? g.positions - q0 : kRows, rows = used(q0, g.positions);
      load_word_rows(qkv, g.qkv_pitch, q0, rows, g.positions, g.d, q, half);
      load_word_rows(dy, g.y_pitch, q0, rows, g.positions, g.d, dout, half);
      load_row_pairs(qkv, g.qkv_pitch, q0, rows, g.positions, g.d, q_pairs, g.d);
      load_row_pairs(dy, g.y_pitch, q0, rows, g.positions, g.d, dout_pairs, g.d);
      pair_product<kQ, false>(q, half, k, s, rows, kColumns, half, FromZero{});
      pair_product<kQ, false>(dout, half, v, ds, rows, kColumns, half, FromZero{});
      for (int r = 0; r < rows; r += 2) {
        for (int c = 0; c < kColumns; c += kL) {
          V probability[2], gradient[2];
          for (int i = 0; i < 2; ++i) {
            const int at = (r + i) * kColumns + c;
            const bool real = r + i < queries;
            probability[i] = real ? exp(fma(load<V>(s + at), V(g.scale), V(-lse[q0 + r + i]))) : V(0);
            gradient[i] = real ? probability[i] * (load<V>(ds + at) - V(D[q0 + r + i])) * V(g.scale) : V(0);
            store(slope_rows + at, gradient[i]);
          }
          store_words(p + r / 2 * kColumns + c, to_words(probability[0], probability[1]));
          store_words(slope + r / 2 * kColumns + c, to_words(gradient[0], gradient[1]));
        }
        // Keys beyond the last have no gradient, whatever their P: a pair may hold one.
        for (int c = there; c < kColumns; ++c) slope_rows[r * kColumns + c] = slope_rows[(r + 1) * kColumns + c] = {};
      }
      pair_product<kQ, true>(dout_pairs, g.d, p, dv, g.d, kColumns, rows / 2, OnTop{q0 == 0});
      pair_product<kQ, true>(q_pairs, g.d, slope, dk, g.d, kColumns, rows / 2, OnTop{q0 == 0});
      const auto* slopes = reinterpret_cast<const uint32_t*>(slope_rows);
      if (wide % (2 * kL) == 0)
        pair_product<2, false>(slopes, kColumns / 2, keys, dq + q0 * wide, rows, wide, (there + 1) / 2,
                               OnTop{first == 0});
      else
        pair_product<1, false>(slopes, kColumns / 2, keys, dq + q0 * wide, rows, wide, (there + 1) / 2,
                               OnTop{first == 0});
    }
    const auto one = [](int) { return 1.0f; };
    store_transposed(dk, first, g.positions, g.d, dqkv + g.C, g.qkv_pitch, one);
    store_transposed(dv, first, g.positions, g.d, dqkv + 2 * g.C, g.qkv_pitch, one);
  }
  for (int i = 0; i < g.positions; ++i)
    for (int c = 0; c < g.d; c += 8)
      store(dqkv + static_cast<int64_t>(i) * g.qkv_pitch + c, load<Vec<8>>(dq + i * wide + c));
}
inline size_t gradient_pairs_bytes(int d, int positions) {
  using namespace attention;
  return 2 * shared_bytes<float>(d / 2 * kColumns) + shared_bytes<float>(kColumns / 2 * whole(d)) +
         2 * shared_bytes<float>(d * kColumns) + 2 * shared_bytes<float>(kRows * kColumns) +
         2 * shared_bytes<float>(kRows / 2 * kColumns) + shared_bytes<bf16>(kRows * kColumns) +
         4 * shared_bytes<float>(kRows / 2 * d) +
         shared_bytes<float>(static_cast<size_t>(positions + kRows) * whole(d));
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
#endif
