// 3x3 convolutions of stride 1 on the CPU with fewer multiplications: the algorithm F(m x m, 3x3) of Lavin and Gray,
// "Fast algorithms for convolutional neural networks" (CVPR 2016), and its adjoint for the weight gradients. Maps and
// weights are read in their own type, everything between is fp32.
//
// fp32 maps use tiles of 2x2 outputs, 2.25 times fewer multiplications: those transforms hold only 1 and 1/2, and
// rounding is nearly that of the direct sum. Maps of 16 bits use tiles of 4x4, 4 times fewer: their transforms cost a
// digit of fp32, far below the 8 or 11 bits that are kept. Even where the processor multiplies pairs of bf16 at twice
// the rate of fp32, four times fewer products of fp32 are sooner done, and more exact.
#include <omp.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "engine/conv/builtin.h"
#include "kernels/core/error.h"
#include "kernels/core/vec.h"

namespace regolith {
namespace {

using namespace kernels::fast;
constexpr int kL = kLanes<float>;
using V = Vec<kL>;
constexpr int kPanel = 2 * kL;            // channels that lie together, two vectors
constexpr int kRows = kL == 16 ? 12 : 6;  // a register tile: rows of two vectors
constexpr int kChunk = 64 * 64;           // pairs of channels whose weight gradients are summed at a time, at most
constexpr size_t kSkew = 16;  // floats between planes: else their distance is often a multiple of 4 KiB, and the lines
                              // of a tile fall into one set of the first-level cache

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

// out (Rows, ld) = or += the sum over i < count of a_i (Rows) b_i (Vecs vectors): a_i at a + i * a_step, its rows
// `a_row` apart; b_i at b + i * b_step.
template <int Rows, int Vecs>
void product(const float* a, ptrdiff_t a_row, ptrdiff_t a_step, const float* b, ptrdiff_t b_step, int count, float* out,
             ptrdiff_t ld, bool add) {
  V sum[Rows][Vecs];
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < Vecs; ++j) sum[i][j] = add ? load<V>(out + i * ld + j * kL) : V(0.0f);
  for (int n = 0; n < count; ++n, a += a_step, b += b_step) {
    V factor[Vecs];
#pragma GCC unroll 2
    for (int j = 0; j < Vecs; ++j) factor[j] = load<V>(b + j * kL);
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) {
      const V f(a[i * a_row]);
#pragma GCC unroll 2
      for (int j = 0; j < Vecs; ++j) sum[i][j] = fma(f, factor[j], sum[i][j]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < Vecs; ++j) store(out + i * ld + j * kL, sum[i][j]);
}

// The same for any number of rows; a multiple of kRows / 3 is computed, from whatever lies in `a` beyond them. width of
// b's vectors: kPanel or kL.
void products(int rows, int width, const float* a, ptrdiff_t a_row, ptrdiff_t a_step, const float* b, ptrdiff_t b_step,
              int count, float* out, ptrdiff_t ld, bool add) {
  for (int i = 0; i < rows;) {
    const auto pick = [&]<int Vecs>() {
      const int left = rows - i;
      const auto run = [&]<int Rows>() {
        product<Rows, Vecs>(a + i * a_row, a_row, a_step, b, b_step, count, out + i * ld, ld, add);
        i += Rows;
      };
      if (left > 2 * kRows / 3)
        run.template operator()<kRows>();
      else if (left > kRows / 3)
        run.template operator()<2 * kRows / 3>();
      else
        run.template operator()<kRows / 3>();
    };
    width == kPanel ? pick.template operator()<2>() : pick.template operator()<1>();
  }
}

int width_of_panel(int channels, int panel) { return std::min(kPanel, channels - panel * kPanel); }
int panels_of(int channels) { return (channels + kPanel - 1) / kPanel; }
size_t padded(int channels) { return static_cast<size_t>(panels_of(channels)) * kPanel; }

struct Epilogue {
  const float* bias = nullptr;  // per output channel
  bool relu = false;
  bool accumulate = false;  // onto what stands in the output
};

// Of one shape and type of maps and weights; C and K are multiples of the vector width.
template <class T>
class Winograd {
 public:
  static constexpr int M = std::is_same_v<T, float> ? 2 : 4;  // outputs of a tile along an axis
  static constexpr int kEdge = M + 2, kPlanes = kEdge * kEdge;

  Winograd(const ConvShape& s, bool dgrad_wanted, int threads)
      : shape_(s),
        dgrad_wanted_(dgrad_wanted),
        threads_(threads),
        forward_(pass_of(s.N, s.H, s.W, s.C, s.P(), s.Q(), s.K, s.pad_before[0], s.pad_before[1])),
        dgrad_(pass_of(s.N, s.P(), s.Q(), s.K, s.H, s.W, s.C, 2 - s.pad_before[0], 2 - s.pad_before[1])),
        zeros_(std::max(s.C, s.K)) {
    // As many pairs as kChunk allows, at first 64 by 64; then of one size, as far as panels go.
    const auto most = [](int other) { return std::max(kChunk / other / kPanel, 1) * kPanel; };
    const auto even = [](int channels, int size) {
      const int n = (channels + size - 1) / size;
      return std::min(channels, static_cast<int>(padded((channels + n - 1) / n)));
    };
    c_chunk_ = std::min(s.C, 64), k_chunk_ = std::min(s.K, most(c_chunk_)), c_chunk_ = even(s.C, most(k_chunk_));
    k_chunk_ = even(s.K, k_chunk_);
    parts_ = chunks() % threads == 0 ? 1 : threads;
  }

  size_t packed_weights() const { return (dgrad_wanted_ ? 2 : 1) * sizeof(float) * plane_of_weights() * kPlanes; }
  size_t forward_workspace() const { return threads_ * forward_.floats() * sizeof(float); }
  size_t dgrad_workspace() const { return threads_ * dgrad_.floats() * sizeof(float); }
  size_t wgrad_workspace() const { return threads_ * wgrad_floats() * sizeof(float); }

  void pack(const T* w, float* packed) const;
  void forward(const T* x, const float* packed, const Epilogue& e, T* y, float* workspace) const {
    run(forward_, x, packed, e, y, workspace);
  }
  void dgrad(const T* dy, const float* packed, const Epilogue& e, T* dx, float* workspace) const {
    run(dgrad_, dy, packed + kPlanes * plane_of_weights(), e, dx, workspace);
  }
  // dw (K,3,3,C) and, unless null, db (K): written, or added to. Partial sums are added in a fixed order.
  void wgrad(const T* x, const T* dy, float* dw, float* db, bool accumulate, float* workspace) const;

 private:
  struct Range {
    int begin, end;
    int size() const { return end - begin; }
  };
  // One direction: in (N, H, W, C) -> out (N, P, Q, K), `block` tiles at a time.
  struct Pass {
    int N, H, W, C, P, Q, K, top, left, block;
    int rows() const { return (P + M - 1) / M; }
    int columns() const { return (Q + M - 1) / M; }
    int tiles() const { return N * rows() * columns(); }
    Range part(int i, int parts) const {  // of the tiles
      const auto at = [&](int j) { return static_cast<int>(static_cast<int64_t>(tiles()) * j / parts); };
      return {at(i), at(i + 1)};
    }
    size_t floats() const { return kPlanes * (static_cast<size_t>(block) * (C + K) + 2 * kSkew); }  // of a thread
  };
  struct Tile {  // where it lies
    int n, p, q;
    Tile(const Pass& r, int index)
        : n(index / (r.rows() * r.columns())), p(index / r.columns() % r.rows() * M), q(index % r.columns() * M) {}
  };
  struct Layout {  // floats from one plane, panel of channels and tile to the next
    size_t plane, panel, tile;
  };

  static Pass pass_of(int N, int H, int W, int C, int P, int Q, int K, int top, int left);
  int c_chunks() const { return (shape_.C + c_chunk_ - 1) / c_chunk_; }
  int chunks() const { return c_chunks() * ((shape_.K + k_chunk_ - 1) / k_chunk_); }
  static Range chunk(int channels, int size, int i) { return {i * size, std::min(channels, (i + 1) * size)}; }
  size_t plane_of_weights() const { return static_cast<size_t>(shape_.C) * shape_.K; }
  size_t wgrad_sums() const { return static_cast<size_t>(kPlanes) * c_chunk_ * k_chunk_; }
  size_t wgrad_floats() const {  // of a thread
    return wgrad_sums() + k_chunk_ + kPlanes * (2 * kSkew + kWgradBlock * (padded(c_chunk_) + padded(k_chunk_)));
  }

  void read_tiles(const Pass& p, const T* in, Range channels, int first, int count, const Layout& to, float* v) const;
  void run(const Pass& p, const T* in, const float* u, const Epilogue& e, T* out, float* workspace) const;
  void write_tile(const Pass& p, const Tile& tile, const float* m, size_t plane, const Epilogue& e, T* out) const;
  void spread_tiles(const T* dy, Range channels, int first, int count, const Layout& to, float* d, float* total) const;
  void wgrad_part(const T* x, const T* dy, Range c, Range k, Range tiles, float* workspace) const;
  void wgrad_finish(Range c, Range k, int row, const float* workspace, float* dw, float* db, bool accumulate) const;

  static constexpr int kWgradBlock = 48;  // tiles: fewer would read and write the sums more often

  ConvShape shape_;
  bool dgrad_wanted_;
  int threads_;
  Pass forward_, dgrad_;
  int c_chunk_, k_chunk_;  // channels of x and of dy whose weight gradients are summed at a time
  int parts_;              // ranges of tiles that the weight gradients of a chunk are split into: one, or the threads
  std::vector<T> zeros_;   // a pixel outside the map
};

template <class T>
auto Winograd<T>::pass_of(int N, int H, int W, int C, int P, int Q, int K, int top, int left) -> Pass {
  Pass p{N, H, W, C, P, Q, K, top, left, 0};
  constexpr int cache = 512 * 1024;  // tiles and sums stay in the second level, while a register tile of rows allows it
  p.block = std::clamp(cache / (kPlanes * 4 * (C + K)) / kRows, 1, 8) * kRows;
  return p;
}

// packed: u (planes, panels of K, C, panel) of forward, then u (planes, panels of C, K, panel) of dgrad, whose weights
// are turned by half a turn.
template <class T>
void Winograd<T>::pack(const T* w, float* packed) const {
  const int C = shape_.C, K = shape_.K;
  // u of g: (planes, panels of `columns`, rows, panel), at one row and kL columns
  const auto write = [](V* g, int row, int column, int rows, int columns, float* u) {
    for (int j = 0; j < 3; ++j) Axis<M>::weights(g + j, kEdge);
    for (int i = 0; i < kEdge; ++i) Axis<M>::weights(g + i * kEdge, 1);
    const int panel = column / kPanel, width = width_of_panel(columns, panel);
    float* to = u + static_cast<size_t>(panel) * kPanel * rows + static_cast<size_t>(row) * width + column % kPanel;
    for (int i = 0; i < kPlanes; ++i) store(to + i * static_cast<size_t>(rows) * columns, g[i]);
  };
#pragma omp parallel num_threads(threads_)
  {
#pragma omp for schedule(static) nowait
    for (int c = 0; c < C; ++c) {
      for (int k = 0; k < K; k += kL) {
        V g[kPlanes];
        for (int i = 0; i < 9; ++i)
          for (int lane = 0; lane < kL; ++lane)
            g[i / 3 * kEdge + i % 3].set(lane, static_cast<float>(w[(static_cast<size_t>(k + lane) * 9 + i) * C + c]));
        write(g, c, k, C, K, packed);
      }
    }
#pragma omp for schedule(static)
    for (int k = 0; k < (dgrad_wanted_ ? K : 0); ++k) {
      for (int c = 0; c < C; c += kL) {
        V g[kPlanes];
        for (int i = 0; i < 9; ++i)
          g[(2 - i / 3) * kEdge + 2 - i % 3] = load<V>(w + (static_cast<size_t>(k) * 9 + i) * C + c);
        write(g, k, c, K, C, packed + kPlanes * plane_of_weights());
      }
    }
  }
}

// v = B^T d B of the inputs of each tile: planes of tiles, a tile's channels in panels
template <class T>
void Winograd<T>::read_tiles(const Pass& p, const T* in, Range channels, int first, int count, const Layout& to,
                             float* v) const {
  const size_t plane = to.plane, panel = to.panel;  // in registers: the compiler fears that the stores change them
  for (int t = 0; t < count; ++t, v += to.tile) {
    const Tile tile(p, first + t);
    const int h = tile.p - p.top, w = tile.q - p.left;
    const T* pixel[kPlanes];
    if (h >= 0 && w >= 0 && h + kEdge <= p.H && w + kEdge <= p.W) {
      const T* corner = in + ((static_cast<int64_t>(tile.n) * p.H + h) * p.W + w) * p.C;
      const int64_t line = static_cast<int64_t>(p.W) * p.C;
      for (int i = 0; i < kEdge; ++i)
        for (int j = 0; j < kEdge; ++j) pixel[i * kEdge + j] = corner + i * line + j * p.C;
    } else {
      for (int i = 0; i < kPlanes; ++i) {
        const int y = h + i / kEdge, x = w + i % kEdge;
        const bool inside = y >= 0 && y < p.H && x >= 0 && x < p.W;
        pixel[i] = inside ? in + ((static_cast<int64_t>(tile.n) * p.H + y) * p.W + x) * p.C : zeros_.data();
      }
    }
    for (int c = channels.begin; c < channels.end; c += kL) {
      V d[kPlanes];
#pragma GCC unroll 6
      for (int j = 0; j < kEdge; ++j) {
#pragma GCC unroll 6
        for (int i = 0; i < kEdge; ++i) d[i * kEdge + j] = load<V>(pixel[i * kEdge + j] + c);
        Axis<M>::input(d + j, kEdge);
      }
      const int at = c - channels.begin;
      float* o = v + at / kPanel * panel + at % kPanel;
#pragma GCC unroll 6
      for (int i = 0; i < kEdge; ++i) {
        Axis<M>::input(d + i * kEdge, 1);
#pragma GCC unroll 6
        for (int j = 0; j < kEdge; ++j, o += plane) store(o, d[i * kEdge + j]);
      }
    }
  }
}

// A^T m A, and the epilogue; m: the tile's K sums in each plane
template <class T>
void Winograd<T>::write_tile(const Pass& p, const Tile& tile, const float* m, size_t plane, const Epilogue& e,
                             T* out) const {
  T* const corner = out + ((static_cast<int64_t>(tile.n) * p.P + tile.p) * p.Q + tile.q) * p.K;
  const int rows = std::min(M, p.P - tile.p), columns = std::min(M, p.Q - tile.q);
  for (int k = 0; k < p.K; k += kL) {
    V a[kPlanes];
    const float* from = m + k;
#pragma GCC unroll 6
    for (int j = 0; j < kEdge; ++j, from += plane) {
#pragma GCC unroll 6
      for (int i = 0; i < kEdge; ++i) a[i * kEdge + j] = load<V>(from + i * kEdge * plane);
      Axis<M>::output(a + j, kEdge);
    }
    const V bias = e.bias != nullptr ? load<V>(e.bias + k) : V(0.0f);
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) {
      if (i >= rows) break;
      Axis<M>::output(a + i * kEdge, 1);
      T* o = corner + static_cast<int64_t>(i) * p.Q * p.K + k;
#pragma GCC unroll 4
      for (int j = 0; j < M; ++j, o += p.K) {
        if (j >= columns) break;
        V y = a[i * kEdge + j] + bias;
        if (e.accumulate) y = y + load<V>(o);
        store(o, e.relu ? max(V(0.0f), y) : y);  // NaN stays
      }
    }
  }
}

template <class T>
void Winograd<T>::run(const Pass& p, const T* in, const float* u, const Epilogue& e, T* out, float* workspace) const {
  const size_t v_plane = static_cast<size_t>(p.block) * p.C + kSkew;
  const size_t m_plane = static_cast<size_t>(p.block) * p.K + kSkew;
#pragma omp parallel num_threads(threads_)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    float* const v = workspace + thread * p.floats();  // (planes, block, C)
    float* const m = v + kPlanes * v_plane;            // (planes, block, K)
    const Range tiles = p.part(thread, threads);
    for (int first = tiles.begin; first < tiles.end; first += p.block) {
      const int count = std::min(p.block, tiles.end - first);
      read_tiles(p, in, {0, p.C}, first, count, {v_plane, kPanel, static_cast<size_t>(p.C)}, v);
      for (int i = 0; i < kPlanes; ++i)
        for (int panel = 0; panel < panels_of(p.K); ++panel)
          products(count, width_of_panel(p.K, panel), v + i * v_plane, p.C, 1,
                   u + (static_cast<size_t>(i) * p.K + panel * kPanel) * p.C, width_of_panel(p.K, panel), p.C,
                   m + i * m_plane + panel * kPanel, p.K, false);
      for (int t = 0; t < count; ++t)
        write_tile(p, Tile(p, first + t), m + static_cast<size_t>(t) * p.K, m_plane, e, out);
    }
  }
}

// A dy A^T of each tile; total (channels): += the sums of dy
template <class T>
void Winograd<T>::spread_tiles(const T* dy, Range channels, int first, int count, const Layout& to, float* d,
                               float* total) const {
  const Pass& p = forward_;
  const size_t plane = to.plane, panel = to.panel;
  for (int t = 0; t < count; ++t, d += to.tile) {
    const Tile tile(p, first + t);
    const T* corner = dy + ((static_cast<int64_t>(tile.n) * p.P + tile.p) * p.Q + tile.q) * p.K;
    const T* pixel[M * M];
    for (int i = 0; i < M * M; ++i) {
      const bool inside = tile.p + i / M < p.P && tile.q + i % M < p.Q;
      pixel[i] = inside ? corner + (static_cast<int64_t>(i / M) * p.Q + i % M) * p.K : zeros_.data();
    }
    for (int k = channels.begin; k < channels.end; k += kL) {
      V a[kPlanes];
      const int at = k - channels.begin;
      V sum = load<V>(total + at);
#pragma GCC unroll 4
      for (int j = 0; j < M; ++j) {
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
          a[i * kEdge + j] = load<V>(pixel[i * M + j] + k);
          sum += a[i * kEdge + j];
        }
        Axis<M>::spread(a + j, kEdge);
      }
      store(total + at, sum);
      float* o = d + at / kPanel * panel + at % kPanel;
#pragma GCC unroll 6
      for (int i = 0; i < kEdge; ++i) {
        Axis<M>::spread(a + i * kEdge, 1);
#pragma GCC unroll 6
        for (int j = 0; j < kEdge; ++j, o += plane) store(o, a[i * kEdge + j]);
      }
    }
  }
}

// sums (planes, k, c) over the tiles of (A dy A^T) (B^T x B), then the sums of dy: at the workspace's beginning
template <class T>
void Winograd<T>::wgrad_part(const T* x, const T* dy, Range c, Range k, Range tiles, float* workspace) const {
  constexpr size_t panel = size_t{kWgradBlock} * kPanel;
  const size_t v_plane = kWgradBlock * padded(c_chunk_) + kSkew;
  const size_t d_plane = kWgradBlock * padded(k_chunk_) + kSkew;
  const size_t sums_plane = static_cast<size_t>(c.size()) * k.size();
  float* const sums = workspace;             // (planes, k, c)
  float* const total = sums + wgrad_sums();  // (k)
  float* const v = total + k_chunk_;         // (planes, panels of c, block, panel)
  float* const d = v + kPlanes * v_plane;    // (planes, panels of k, block, panel)
  std::memset(total, 0, k_chunk_ * sizeof(float));
  if (tiles.size() == 0) std::memset(sums, 0, kPlanes * sums_plane * sizeof(float));
  for (int first = tiles.begin; first < tiles.end; first += kWgradBlock) {
    const int count = std::min(kWgradBlock, tiles.end - first);
    read_tiles(forward_, x, c, first, count, {v_plane, panel, kPanel}, v);
    spread_tiles(dy, k, first, count, {d_plane, panel, kPanel}, d, total);
    for (int i = 0; i < kPlanes; ++i) {
      for (int kp = 0; kp < panels_of(k.size()); ++kp) {
        for (int cp = 0; cp < panels_of(c.size()); ++cp) {
          const int rows = width_of_panel(k.size(), kp), width = width_of_panel(c.size(), cp);
          products(rows, width, d + i * d_plane + kp * panel, 1, kPanel, v + i * v_plane + cp * panel, kPanel, count,
                   sums + i * sums_plane + static_cast<size_t>(kp) * kPanel * c.size() + cp * kPanel, c.size(),
                   first > tiles.begin);
        }
      }
    }
  }
}

// dw = G^T sums G, of one output channel k.begin + row; workspace: that of the first part
template <class T>
void Winograd<T>::wgrad_finish(Range c, Range k, int row, const float* workspace, float* dw, float* db,
                               bool accumulate) const {
  const size_t sums_plane = static_cast<size_t>(c.size()) * k.size(), each = wgrad_floats();
  float* const to = dw + static_cast<size_t>(k.begin + row) * 9 * shape_.C + c.begin;
  for (int at = 0; at < c.size(); at += kL) {
    V m[kPlanes];
    for (int i = 0; i < kPlanes; ++i) {
      const float* from = workspace + i * sums_plane + static_cast<size_t>(row) * c.size() + at;
      m[i] = load<V>(from);
      for (int part = 1; part < parts_; ++part) m[i] += load<V>(from + part * each);
    }
    for (int j = 0; j < kEdge; ++j) Axis<M>::gather(m + j, kEdge);
    for (int i = 0; i < 3; ++i) Axis<M>::gather(m + i * kEdge, 1);
    for (int i = 0; i < 9; ++i) {
      float* const o = to + i * shape_.C + at;
      const V& g = m[i / 3 * kEdge + i % 3];
      store(o, accumulate ? load<V>(o) + g : g);
    }
  }
  if (db == nullptr || c.begin > 0) return;
  float sum = 0;
  for (int part = 0; part < parts_; ++part) sum += workspace[part * each + wgrad_sums() + row];
  float& o = db[k.begin + row];
  o = accumulate ? o + sum : sum;
}

template <class T>
void Winograd<T>::wgrad(const T* x, const T* dy, float* dw, float* db, bool accumulate, float* workspace) const {
  const auto c_of = [&](int i) { return chunk(shape_.C, c_chunk_, i % c_chunks()); };
  const auto k_of = [&](int i) { return chunk(shape_.K, k_chunk_, i / c_chunks()); };
#pragma omp parallel num_threads(threads_)
  {
    if (parts_ == 1) {
      float* const mine = workspace + omp_get_thread_num() * wgrad_floats();
#pragma omp for schedule(static)
      for (int i = 0; i < chunks(); ++i) {
        const Range c = c_of(i), k = k_of(i);
        wgrad_part(x, dy, c, k, forward_.part(0, 1), mine);
        for (int row = 0; row < k.size(); ++row) wgrad_finish(c, k, row, mine, dw, db, accumulate);
      }
    } else {
      for (int i = 0; i < chunks(); ++i) {
        const Range c = c_of(i), k = k_of(i);
#pragma omp for schedule(static)
        for (int part = 0; part < parts_; ++part) {
          wgrad_part(x, dy, c, k, forward_.part(part, parts_), workspace + part * wgrad_floats());
        }
#pragma omp for schedule(static)
        for (int row = 0; row < k.size(); ++row) wgrad_finish(c, k, row, workspace, dw, db, accumulate);
      }
    }
  }
}

template <class T>
class WinogradConvolution : public Convolution {
 public:
  explicit WinogradConvolution(const ConvRequest& request)
      : request_(request),
        winograd_(std::make_shared<const Winograd<T>>(request.shape, request.needs_dgrad, omp_get_max_threads())) {}
  std::string_view provider() const override { return "winograd"; }
  std::string implementation() const override { return Winograd<T>::M == 2 ? "F(2x2, 3x3)" : "F(4x4, 3x3)"; }
  size_t forward_workspace() const override { return winograd_->forward_workspace(); }
  size_t dgrad_workspace() const override { return winograd_->dgrad_workspace(); }
  size_t wgrad_workspace() const override { return winograd_->wgrad_workspace(); }
  size_t packed_weights() const override { return winograd_->packed_weights(); }
  bool has_dgrad_epilogue() const override { return true; }

  void pack_weights(DeviceStream& stream, const void* w, void* packed) override {
    stream.enqueue("winograd_pack",
                   [c = winograd_, w = static_cast<const T*>(w), to = static_cast<float*>(packed)] { c->pack(w, to); });
  }
  void forward(DeviceStream& stream, const Map& x, const void*, const void* packed, const float* bias, const Map& y,
               void* workspace) override {
    check_x(provider(), request_, x);
    check_y(provider(), request_, y);
    const Epilogue e{.bias = request_.bias ? bias : nullptr, .relu = request_.relu};
    stream.enqueue("winograd_forward",
                   [c = winograd_, x = x.as<T>(), u = static_cast<const float*>(packed), e, y = y.as<T>(),
                    ws = static_cast<float*>(workspace)] { c->forward(x, u, e, y, ws); });
  }
  void dgrad(DeviceStream& stream, const Map& dy, const void*, const void* packed, const Map& dx, void* workspace,
             const DgradEpilogue& epilogue) override {
    if (!request_.needs_dgrad)
      throw KernelError("convolution " + to_string(request_.shape) + " (winograd): its request asked for no dgrad");
    check_x(provider(), request_, dx);
    check_y(provider(), request_, dy);
    const Epilogue e{.bias = epilogue.bias, .accumulate = epilogue.accumulate};
    stream.enqueue("winograd_dgrad",
                   [c = winograd_, dy = dy.as<T>(), u = static_cast<const float*>(packed), e, dx = dx.as<T>(),
                    ws = static_cast<float*>(workspace)] { c->dgrad(dy, u, e, dx, ws); });
  }
  void wgrad(DeviceStream& stream, const Map& x, const Map& dy, float* dw, float* db, bool accumulate,
             void* workspace) override {
    check_x(provider(), request_, x);
    check_y(provider(), request_, dy);
    stream.enqueue("winograd_wgrad",
                   [c = winograd_, x = x.as<T>(), dy = dy.as<T>(), dw, db, accumulate,
                    ws = static_cast<float*>(workspace)] { c->wgrad(x, dy, dw, db, accumulate, ws); });
  }

 private:
  ConvRequest request_;
  std::shared_ptr<const Winograd<T>> winograd_;
};

struct WinogradProvider : ConvProvider {
  std::string_view name() const override { return "winograd"; }
  bool pays(const ConvRequest& r) const override {
#if !defined(__AVX2__) || !defined(__FMA__)
    return false;  // a build for any processor; oneDNN chooses its code as it runs
#else
    // Where bf16 is multiplied much faster than this build multiplies fp32.
    if (r.type == DType::bf16 && __builtin_cpu_supports("amx-bf16")) return false;
    if (r.type == DType::bf16 && kL < 16 && __builtin_cpu_supports("avx512bf16")) return false;
    // With fewer tiles the transformed weights, 1.8 times fp32 weights and 8 times those of 16 bits, cost more to read
    // than they save.
    const int m = r.type == DType::f32 ? Winograd<float>::M : Winograd<bf16>::M;
    return int64_t{r.shape.N} * ((r.shape.P() + m - 1) / m) * ((r.shape.Q() + m - 1) / m) >= 32;
#endif
  }
  std::variant<std::unique_ptr<Convolution>, Refusal> create(Device& device, const ConvRequest& request) override {
    const ConvShape& s = request.shape;
    if (device.kind() != DeviceKind::cpu) return Refusal{"runs on the CPU only"};
    constexpr std::array one{1, 1};
    if (s.R != 3 || s.S != 3 || s.stride != one || s.dilation != one) return Refusal{"takes 3x3 of stride 1 undilated"};
    if (s.C % kL != 0 || s.K % kL != 0) return Refusal{"takes channels in multiples of " + std::to_string(kL)};
    if (std::max(s.pad_before[0], s.pad_before[1]) > 2) return Refusal{"takes paddings of at most 2"};
    if (s.P() < 1 || s.Q() < 1) return Refusal{"the output would be empty"};
    switch (request.type) {
      case DType::f32:
        return std::make_unique<WinogradConvolution<float>>(request);
      case DType::bf16:
        return std::make_unique<WinogradConvolution<bf16>>(request);
      case DType::f16:
        return std::make_unique<WinogradConvolution<fp16>>(request);
      default:
        return Refusal{"takes fp32, bf16 and fp16, not " + std::string(name_of(request.type))};
    }
  }
};

}  // namespace

ConvProvider& winograd_provider() {
  static WinogradProvider provider;
  return provider;
}

}  // namespace regolith
