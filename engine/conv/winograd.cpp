#include "engine/conv/winograd.h"

#include <omp.h>

#include <cstring>

#include "engine/conv/winograd_transforms.h"

namespace regolith::winograd {
namespace {

constexpr int kPanel = 2 * kL;            // channels that lie together, two vectors
constexpr int kRows = kL == 16 ? 12 : 6;  // a register tile: rows of two vectors
constexpr int kChunk = 64 * 64;           // pairs of channels whose weight gradients are summed at a time, at most

// out (Rows, ld) = or += the sum over i < count of a_i (Rows) b_i (Vecs vectors): a_i at a + i * a_step, its rows
// `a_row` apart; b_i at b + i * b_step.
template <int Rows, int Vecs>
void product(const float* a, ptrdiff_t a_row, ptrdiff_t a_step, const float* b, ptrdiff_t b_step, int count, float* out,
             ptrdiff_t ld, bool add) {
  RegisterTile<Factor<float>, Rows, Vecs> tile([&](int i, int j) { return add ? Stored{out, ld}(i, j) : V(0); });
  tile.add(
      a, [&](int i) { return i * a_row; }, a_step, b, b_step, count);
  tile.store_to(out, ld);
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

// u of the kernels g of one row and kL columns, into (planes, panels of `columns`, rows, panel).
template <int M>
void pack_kernels(V* g, int row, int column, int rows, int columns, float* u) {
  constexpr int edge = M + 2;
  transform<edge>(g, 3, edge, Axis<M>::weights);
  const int panel = column / kPanel, width = width_of_panel(columns, panel);
  float* to = u + static_cast<size_t>(panel) * kPanel * rows + static_cast<size_t>(row) * width + column % kPanel;
  for (int i = 0; i < edge * edge; ++i) store(to + i * static_cast<size_t>(rows) * columns, g[i]);
}

}  // namespace

template <class T>
Winograd<T>::Winograd(const ConvShape& s, int threads)
    : shape_(s),
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

template <class T>
size_t Winograd<T>::wgrad_floats() const {
  return wgrad_sums() + k_chunk_ + kPlanes * (2 * kSkew + kWgradBlock * (padded(c_chunk_) + padded(k_chunk_)));
}

template <class T>
auto Winograd<T>::pass_of(int N, int H, int W, int C, int P, int Q, int K, int top, int left) -> Pass {
  Pass p{N, H, W, C, P, Q, K, top, left, 0};
  constexpr int cache = 512 * 1024;  // tiles and sums stay in the second level, while a register tile of rows allows it
  p.block = std::clamp(cache / (kPlanes * 4 * (C + K)) / kRows, 1, 8) * kRows;
  return p;
}

// packed: u (planes, panels of K, C, panel)
template <class T>
void Winograd<T>::pack_forward(const T* w, float* packed) const {
  const int C = shape_.C, K = shape_.K;
#pragma omp parallel for schedule(static) num_threads(threads_)
  for (int c = 0; c < C; ++c) {
    for (int k = 0; k < K; k += kL) {
      V g[kPlanes];
      for (int i = 0; i < 9; ++i)
        for (int lane = 0; lane < kL; ++lane)
          g[i / 3 * kEdge + i % 3].set(lane, static_cast<float>(w[(static_cast<size_t>(k + lane) * 9 + i) * C + c]));
      pack_kernels<M>(g, c, k, C, K, packed);
    }
  }
}

// packed: u (planes, panels of C, K, panel) of the weights turned by half a turn
template <class T>
void Winograd<T>::pack_dgrad(const T* w, float* packed) const {
  const int C = shape_.C, K = shape_.K;
#pragma omp parallel for schedule(static) num_threads(threads_)
  for (int k = 0; k < K; ++k) {
    for (int c = 0; c < C; c += kL) {
      V g[kPlanes];
      for (int i = 0; i < 9; ++i)
        g[(2 - i / 3) * kEdge + 2 - i % 3] = load<V>(w + (static_cast<size_t>(k) * 9 + i) * C + c);
      pack_kernels<M>(g, k, c, K, C, packed);
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
      transform_rows<kEdge>(d, Axis<M>::input, v + at / kPanel * panel + at % kPanel, plane);
    }
  }
}

// A^T m A, and the epilogue; m: the tile's K sums in each plane
template <class T>
void Winograd<T>::write_tile(const Pass& p, const Tile& tile, const float* m, size_t plane, const Epilogue& e,
                             T* out) const {
  T* const corner = out + output_at(p, tile);
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
    const T* corner = dy + output_at(p, tile);
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
      transform_rows<kEdge>(a, Axis<M>::spread, d + at / kPanel * panel + at % kPanel, plane);
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
    transform<kEdge>(m, kEdge, 3, Axis<M>::gather);
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

template class Winograd<float>;
template class Winograd<bf16>;

}  // namespace regolith::winograd
