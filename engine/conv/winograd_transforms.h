// The transforms of F(m x m, r x r) and their adjoints: see winograd.h. Matrices as in Lavin and Gray's paper, at the
// points 0, 1, -1 and infinity for m + r - 1 = 4, and 0, 5/8, -5/8, 3/2, -3/2 and infinity for 6: the rounding of those
// is half that of the usual 1 and 2. Tiles are square, values of V, row by row.
#pragma once

#include <cstddef>

#include "engine/conv/winograd_products.h"

namespace regolith::winograd {

// The transforms along one axis, in place, values `s` apart: `input` B^T, `output` A^T, `weights` G; `spread` A and
// `gather` G^T.
template <int M, int R>
struct Axis;

// Four values, of inference alone.
template <>
struct Axis<2, 3> {
  static void input(V* d, int s) {
    const V a = d[0] - d[2 * s], b = d[s] + d[2 * s], c = d[2 * s] - d[s], e = d[s] - d[3 * s];
    d[0] = a, d[s] = b, d[2 * s] = c, d[3 * s] = e;
  }
  static void output(V* m, int s) {  // 4 -> 2
    m[0] = m[0] + m[s] + m[2 * s];
    m[s] = m[s] - m[2 * s] - m[3 * s];
  }
  static void weights(V* g, int s) {  // 3 -> 4
    const V last = g[2 * s], half = (g[0] + last) * V(0.5f), middle = g[s] * V(0.5f);
    g[3 * s] = last, g[s] = half + middle, g[2 * s] = half - middle;
  }
};

// Six values: F(4, 3) and F(5, 2).
template <int M, int R>
requires(M + R == 7) struct Axis<M, R> {
  static constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;
  static constexpr float at_0 = 1 / (a2 * b2), at_a = 1 / (2 * a2 * (a2 - b2)), at_b = 1 / (2 * b2 * (b2 - a2));

  static void input(V* d, int s) {
    const V even_a = fma(d[2 * s], V(-b2), d[4 * s]), odd_a = fma(d[s], V(-b2), d[3 * s]);
    const V even_b = fma(d[2 * s], V(-a2), d[4 * s]), odd_b = fma(d[s], V(-a2), d[3 * s]);
    d[0] = fma(d[0], V(a2 * b2), fma(d[2 * s], V(-a2 - b2), d[4 * s]));
    d[5 * s] = fma(d[s], V(a2 * b2), fma(d[3 * s], V(-a2 - b2), d[5 * s]));
    d[s] = fma(odd_a, V(a), even_a), d[2 * s] = fma(odd_a, V(-a), even_a);
    d[3 * s] = fma(odd_b, V(b), even_b), d[4 * s] = fma(odd_b, V(-b), even_b);
  }
  static void output(V* m, int s) {  // 6 -> M
    const V sum_a = m[s] + m[2 * s], sum_b = m[3 * s] + m[4 * s], last = m[5 * s];
    const V odd_a = m[s] - m[2 * s], odd_b = m[3 * s] - m[4 * s];
    m[0] = m[0] + sum_a + sum_b;
    m[s] = fma(odd_a, V(a), odd_b * V(b));
    m[2 * s] = fma(sum_a, V(a2), sum_b * V(b2));
    const V cubes = fma(odd_a, V(a * a2), odd_b * V(b * b2));
    m[3 * s] = M == 4 ? cubes + last : cubes;
    if constexpr (M == 5) m[4 * s] = fma(sum_a, V(a2 * a2), fma(sum_b, V(b2 * b2), last));
  }
  static void weights(V* g, int s) {  // R -> 6
    const V middle = g[s], last = g[(R - 1) * s];
    const V even_a = R == 3 ? fma(last, V(a2), g[0]) : g[0], even_b = R == 3 ? fma(last, V(b2), g[0]) : g[0];
    g[0] = g[0] * V(at_0), g[5 * s] = last;
    g[s] = fma(middle, V(a), even_a) * V(at_a), g[2 * s] = fma(middle, V(-a), even_a) * V(at_a);
    g[3 * s] = fma(middle, V(b), even_b) * V(at_b), g[4 * s] = fma(middle, V(-b), even_b) * V(at_b);
  }
  static void spread(V* y, int s) {  // M -> 6
    const V even_a = fma(y[2 * s], V(a2), y[0]), odd_a = fma(y[3 * s], V(a * a2), y[s] * V(a));
    const V even_b = fma(y[2 * s], V(b2), y[0]), odd_b = fma(y[3 * s], V(b * b2), y[s] * V(b));
    const V last = y[(M - 1) * s];
    const V all_a = M == 5 ? fma(last, V(a2 * a2), even_a) : even_a,
            all_b = M == 5 ? fma(last, V(b2 * b2), even_b) : even_b;
    y[5 * s] = last;
    y[s] = all_a + odd_a, y[2 * s] = all_a - odd_a, y[3 * s] = all_b + odd_b, y[4 * s] = all_b - odd_b;
  }
  static void gather(V* m, int s) {  // 6 -> R
    const V sum_a = (m[s] + m[2 * s]) * V(at_a), sum_b = (m[3 * s] + m[4 * s]) * V(at_b);
    const V odd_a = (m[s] - m[2 * s]) * V(at_a), odd_b = (m[3 * s] - m[4 * s]) * V(at_b), last = m[5 * s];
    m[0] = fma(m[0], V(at_0), sum_a + sum_b);
    m[s] = fma(odd_a, V(a), R == 2 ? fma(odd_b, V(b), last) : odd_b * V(b));
    if constexpr (R == 3) m[2 * s] = fma(sum_a, V(a2), fma(sum_b, V(b2), last));
  }
};

// Along the first columns of a tile of Edge x Edge, then along its first rows.
template <int Edge, class F>
void transform(V* tile, int columns, int rows, F&& axis) {
  for (int j = 0; j < columns; ++j) axis(tile + j, Edge);
  for (int i = 0; i < rows; ++i) axis(tile + i * Edge, 1);
}

// Along the rows, whose columns have been transformed; its values go to `to`, `plane` floats apart.
template <int Edge, class F>
__attribute__((always_inline)) inline void transform_rows(V* tile, F&& axis, float* to, size_t plane) {
#pragma GCC unroll 6
  for (int i = 0; i < Edge; ++i) {
    axis(tile + i * Edge, 1);
#pragma GCC unroll 6
    for (int j = 0; j < Edge; ++j, to += plane) store(to, tile[i * Edge + j]);
  }
}

}  // namespace regolith::winograd
