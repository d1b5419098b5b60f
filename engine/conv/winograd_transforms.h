// The transforms of F(m x m, 3x3) and their adjoints: see winograd.h. Matrices as in Lavin and Gray's paper; tiles are
// square, values of V, row by row.
#pragma once

#include <cstddef>

#include "kernels/core/register_tile.h"

namespace regolith::winograd {

using namespace kernels::fast;
using V = Vec<kL>;

// The transforms along one axis, in place, values `s` apart.
template <int M>
struct Axis;

template <>
struct Axis<2> {
  static void input(V* d, int s) {  // B^T d
    const V a = d[0] - d[2 * s], b = d[s] + d[2 * s], c = d[2 * s] - d[s], e = d[s] - d[3 * s];
    d[0] = a, d[s] = b, d[2 * s] = c, d[3 * s] = e;
  }
  static void output(V* m, int s) {  // A^T m: 4 -> 2
    const V a = m[0] + m[s] + m[2 * s], b = m[s] - m[2 * s] - m[3 * s];
    m[0] = a, m[s] = b;
  }
  static void weights(V* g, int s) {  // G g: 3 -> 4
    const V half = (g[0] + g[2 * s]) * V(0.5f), middle = g[s] * V(0.5f);
    g[3 * s] = g[2 * s], g[s] = half + middle, g[2 * s] = half - middle;
  }
  static void spread(V* y, int s) {  // A y: 2 -> 4
    const V a = y[0], b = y[s];
    y[s] = a + b, y[2 * s] = a - b, y[3 * s] = V(0.0f) - b;
  }
  static void gather(V* m, int s) {  // G^T m: 4 -> 3
    const V sum = (m[s] + m[2 * s]) * V(0.5f), difference = (m[s] - m[2 * s]) * V(0.5f);
    m[0] = m[0] + sum, m[s] = difference, m[2 * s] = sum + m[3 * s];
  }
};

template <>
struct Axis<4> {  // at the points 0, 1, -1, 2, -2 and infinity
  static void input(V* d, int s) {
    const V a = fma(d[2 * s], V(-4.0f), d[4 * s]), b = fma(d[s], V(-4.0f), d[3 * s]);
    const V c = d[4 * s] - d[2 * s], e = d[3 * s] - d[s];
    d[0] = fma(d[0], V(4.0f), fma(d[2 * s], V(-5.0f), d[4 * s]));
    d[5 * s] = fma(d[s], V(4.0f), fma(d[3 * s], V(-5.0f), d[5 * s]));
    d[s] = a + b, d[2 * s] = a - b, d[3 * s] = fma(e, V(2.0f), c), d[4 * s] = fma(e, V(-2.0f), c);
  }
  static void output(V* m, int s) {  // 6 -> 4
    const V a = m[s] + m[2 * s], b = m[s] - m[2 * s], c = m[3 * s] + m[4 * s], e = m[3 * s] - m[4 * s];
    m[0] = m[0] + a + c, m[s] = fma(e, V(2.0f), b), m[2 * s] = fma(c, V(4.0f), a),
    m[3 * s] = fma(e, V(8.0f), b + m[5 * s]);
  }
  static void weights(V* g, int s) {  // 3 -> 6
    const V ends = (g[0] + g[2 * s]) * V(-1.0f / 6), middle = g[s] * V(-1.0f / 6);
    const V far = fma(g[2 * s], V(4.0f), g[0]) * V(1.0f / 24), twice = g[s] * V(1.0f / 12);
    g[5 * s] = g[2 * s];
    g[0] = g[0] * V(0.25f), g[s] = ends + middle, g[2 * s] = ends - middle, g[3 * s] = far + twice,
    g[4 * s] = far - twice;
  }
  static void spread(V* y, int s) {  // 4 -> 6
    const V a = y[0] + y[2 * s], b = y[s] + y[3 * s];
    const V c = fma(y[2 * s], V(4.0f), y[0]), e = fma(y[3 * s], V(8.0f), y[s] * V(2.0f));
    y[5 * s] = y[3 * s], y[s] = a + b, y[2 * s] = a - b, y[3 * s] = c + e, y[4 * s] = c - e;
  }
  static void gather(V* m, int s) {  // 6 -> 3
    const V a = (m[s] + m[2 * s]) * V(-1.0f / 6), b = (m[s] - m[2 * s]) * V(-1.0f / 6);
    const V c = m[3 * s] + m[4 * s], e = m[3 * s] - m[4 * s];
    m[0] = fma(m[0], V(0.25f), fma(c, V(1.0f / 24), a)), m[s] = fma(e, V(1.0f / 12), b);
    m[2 * s] = fma(c, V(1.0f / 6), a + m[5 * s]);
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
