#include "engine/conv/winograd_pass.h"

#include <omp.h>

#include <cstring>

#include "engine/conv/division.h"
#include "engine/conv/winograd_transforms.h"

namespace regolith::winograd {
namespace {

constexpr int kCache = 384 * 1024;  // of the second level, for tiles and sums
constexpr int kLeast = 48;          // tiles that are worth reading the weights for

// The weights of C channels to `width` of them, and how many lines of those that follow each group of tiles fetches.
struct Panel {
  const float* u;
  int width, C, lines;
};

template <int Rows, int Vecs>
void multiply(const float* a, size_t next, const Panel& b, int group, float* out, int K) {
  constexpr int step = 16;  // channels of a line
  RegisterTile<Factor<float>, Rows, Vecs> tile(Zero{});
  const float* next_u = b.u + static_cast<size_t>(b.C) * b.width + group * b.lines * 16;
  for (int i = 0; i < Rows; ++i) __builtin_prefetch(out + i * K, 1);
  int lines = b.lines;
  for (int c = 0; c < b.C; c += step) {
    for (int i = 0; i < Rows; ++i) __builtin_prefetch(a + next + i * b.C + c);
    const int some = std::min(lines, 4);
    for (int i = 0; i < some; ++i) __builtin_prefetch(next_u + i * 16);
    next_u += some * 16, lines -= some;
    tile.add(
        a + c, [&](int i) { return i * b.C; }, 1, b.u + static_cast<ptrdiff_t>(c) * b.width, b.width,
        std::min(step, b.C - c));
  }
  tile.store_to(out, K);
}

// Of `count` tiles, at most kRows.
void multiply(int count, const float* a, size_t next, const Panel& b, int group, float* out, int K) {
  const auto run = [&]<int Rows>() {
    b.width == kPanel ? multiply<Rows, 2>(a, next, b, group, out, K) : multiply<Rows, 1>(a, next, b, group, out, K);
  };
  if (count > 2 * kRows / 3)
    run.template operator()<kRows>();
  else if (count > kRows / 3)
    run.template operator()<2 * kRows / 3>();
  else
    run.template operator()<kRows / 3>();
}

}  // namespace

template <class T, int M, int R>
Pass<T, M, R>::Pass(const PassShape& s, int threads) : shape_(s), threads_(threads), zeros_(s.C) {
  const int each = (tiles() + threads - 1) / threads;
  // With so few tiles, reading the weights takes the time: once for all threads.
  shared_ = threads > 1 && each <= 4 * kRows;
  if (shared_) {
    block_ = round_up(tiles(), kRows);
    return;
  }
  // Tiles and sums stay in the second-level cache, as far as there are enough to read the weights for.
  const int fit = kCache / (kPlanes * 4 * (s.C + s.K)), most = std::max(fit, kLeast);
  const int blocks = (each + most - 1) / most;
  block_ = round_up((each + blocks - 1) / blocks, kRows);
}

template <class T, int M, int R>
void Pass<T, M, R>::pack(const T* w, bool turned, float* u) const {
  constexpr int taps = R * R;
  const int C = shape_.C, K = shape_.K;
#pragma omp parallel for schedule(static) num_threads(threads_)
  for (int c = 0; c < C; ++c) {
    for (int k = 0; k < K; k += kL) {
      V g[kPlanes];
      for (int i = 0; i < taps; ++i) {
        V& tap = g[i / R * kEdge + i % R];
        if (turned) {
          tap = load<V>(w + (static_cast<size_t>(c) * taps + taps - 1 - i) * K + k);
        } else {
          for (int lane = 0; lane < kL; ++lane)
            tap.set(lane, static_cast<float>(w[(static_cast<size_t>(k + lane) * taps + i) * C + c]));
        }
      }
      transform<kEdge>(g, R, kEdge, Axis<M, R>::weights);
      const int panel = k / kPanel;
      float* to = u + static_cast<size_t>(panel) * kPanel * C + c * width_of_panel(K, panel) + k % kPanel;
      for (int i = 0; i < kPlanes; ++i) store(to + i * static_cast<size_t>(C) * K, g[i]);
    }
  }
}

template <class T, int M, int R>
template <bool Affine>
void Pass<T, M, R>::read(const Source<T>& in, Range channels, Range tiles, const Layout& to, float* v) const {
  const PassShape& s = shape_;
  const size_t plane = to.plane, panel = to.panel;  // in registers: the compiler fears that the stores change them
  for (int t = tiles.begin; t < tiles.end; ++t, v += to.tile) {
    const Tile at = tile(t);
    const int h = at.p - s.top, w = at.q - s.left;
    const T* pixel[kPlanes];
    const bool inside = h >= 0 && w >= 0 && h + kEdge <= s.H && w + kEdge <= s.W;
    const T* const image = in.data + static_cast<int64_t>(at.n) * s.H * s.W * in.pitch;
    for (int i = 0; i < kPlanes; ++i) {
      const int y = h + i / kEdge, x = w + i % kEdge;
      const bool there = inside || (y >= 0 && y < s.H && x >= 0 && x < s.W);
      pixel[i] = there ? image + (static_cast<int64_t>(y) * s.W + x) * in.pitch : zeros_.data();
    }
    for (int c = channels.begin; c < channels.end; c += kL) {
      V d[kPlanes], scale, shift;
      if constexpr (Affine) {
        const float* const affine = in.affine + static_cast<int64_t>(at.n) * 2 * s.C + c;
        scale = load<V>(affine);
        shift = load<V>(affine + s.C);
      }
      if (c % 16 == 0) {
        const int64_t next = M * in.pitch + c;
#pragma GCC unroll 6
        for (int i = 0; i < kEdge; ++i)
#pragma GCC unroll 6
          for (int j = R - 1; j < kEdge; ++j) __builtin_prefetch(pixel[i * kEdge + j] + next);
      }
      const V least(in.relu ? 0.0f : -__builtin_inff());
#pragma GCC unroll 6
      for (int j = 0; j < kEdge; ++j) {
        V column[kEdge];
#pragma GCC unroll 6
        for (int i = 0; i < kEdge; ++i) {
          V& x = column[i];
          x = load<V>(pixel[i * kEdge + j] + c);
          if constexpr (Affine) {
            if (inside || pixel[i * kEdge + j] != zeros_.data()) x = max(least, fma(x, scale, shift));  // NaN stays
          }
        }
        Axis<M, R>::input(column, 1);
#pragma GCC unroll 6
        for (int i = 0; i < kEdge; ++i) d[i * kEdge + j] = column[i];
      }
      const int from_first = c - channels.begin;
      transform_rows<kEdge>(d, Axis<M, R>::input, v + from_first / kPanel * panel + from_first % kPanel, plane);
    }
  }
}

template <class T, int M, int R>
void Pass<T, M, R>::read_tiles(const Source<T>& in, Range channels, Range tiles, const Layout& to, float* v) const {
  in.affine != nullptr ? read<true>(in, channels, tiles, to, v) : read<false>(in, channels, tiles, to, v);
}

// A^T m A, and the epilogue; m: the tile's K sums in each plane; sums (2, K): += those of the tile
template <class T, int M, int R>
void Pass<T, M, R>::write_tile(const Tile& tile, Range channels, const float* m, const Target<T>& out,
                               float* sums) const {
  const PassShape& s = shape_;
  const size_t plane = plane_of(s.K);
  const int64_t first = (static_cast<int64_t>(tile.n) * s.P + tile.p) * s.Q + tile.q;
  const int rows = std::min(M, s.P - tile.p), columns = std::min(M, s.Q - tile.q);
  for (int k = channels.begin; k < channels.end; k += kL) {
    V a[kPlanes];
    const float* from = m + k;
#pragma GCC unroll 6
    for (int j = 0; j < kEdge; ++j, from += plane) {
      V column[kEdge];
#pragma GCC unroll 6
      for (int i = 0; i < kEdge; ++i) column[i] = load<V>(from + i * kEdge * plane);
      Axis<M, R>::output(column, 1);
#pragma GCC unroll 5
      for (int i = 0; i < M; ++i) a[i * kEdge + j] = column[i];
    }
    const V bias = out.bias != nullptr ? load<V>(out.bias + k) : V(0.0f);
    V sum(0.0f), squares(0.0f);
#pragma GCC unroll 5
    for (int i = 0; i < M; ++i) {
      if (i >= rows) break;
      V* const row = a + i * kEdge;
      Axis<M, R>::output(row, 1);
      const int64_t pixel = first + static_cast<int64_t>(i) * s.Q;
      T* o = out.data + pixel * out.pitch + k;
      const T* residual = out.residual == nullptr ? nullptr : out.residual + pixel * out.residual_pitch + k;
#pragma GCC unroll 5
      for (int j = 0; j < M; ++j, o += out.pitch) {
        if (j >= columns) break;
        V y = row[j] + bias;
        if (residual != nullptr) y = y + load<V>(residual + j * out.residual_pitch);
        if (out.relu) y = max(V(0.0f), y);  // NaN stays
        store(o, y);
        sum += y, squares = fma(y, y, squares);
      }
    }
    if (sums != nullptr) {
      store(sums + k, sum, true);
      store(sums + s.K + k, squares, true);
    }
  }
}

template <class T, int M, int R>
void Pass<T, M, R>::run(const Source<T>& in, const float* u, const Target<T>& out, float* workspace) const {
  const int C = shape_.C, K = shape_.K, panels = panels_of(K), all_rows = shape_.N * rows();
  const size_t buffers = workspace_floats(false);
  float* const row_sums = out.sums != nullptr ? workspace + buffers : nullptr;  // (rows of tiles, 2, K)
#pragma omp parallel num_threads(threads_)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    float* const v = workspace + (shared_ ? 0 : thread * thread_floats());  // groups of (planes, kRows, C)
    float* const m = v + block_ / kRows * group_of(C);                      // groups of (planes, kRows, K)
    const auto mine = [&](int n, int step) {                                // of what the threads share
      return shared_ ? Range{0, n / step}.part(thread, threads).times(step) : Range{0, n};
    };
    // A row of tiles has its sums of one thread.
    const Range tiles = shared_               ? Range{0, this->tiles()}
                        : row_sums == nullptr ? Range{0, this->tiles()}.part(thread, threads)
                                              : Range{0, all_rows}.part(thread, threads).times(columns());
    const Range reads = mine(C, kL), writes = mine(K, kL), work = mine(kPlanes * panels, 1);
    for (int first = tiles.begin; first < tiles.end; first += block_) {
      const int count = std::min(block_, tiles.end - first);
      const int groups = (count + kRows - 1) / kRows;
      for (int g = 0; g < groups; ++g) {
        const int begin = first + g * kRows;
        read_tiles(in, reads, {begin, std::min(begin + kRows, first + count)},
                   {plane_of(C), kPanel, static_cast<size_t>(C)}, v + g * group_of(C) + reads.begin);
      }
      if (shared_) {
#pragma omp barrier
      }
      for (int i = work.begin; i < work.end; ++i) {
        const int plane = i / panels, panel = i % panels, width = width_of_panel(K, panel);
        const float* const panel_u = u + (static_cast<size_t>(plane) * K + panel * kPanel) * C;
        const Panel b{panel_u, width, C, (C * width / 16 + groups - 1) / groups};
        for (int g = 0; g < groups; ++g) {
          const float* const a = v + g * group_of(C) + plane * plane_of(C);
          float* const sums = m + g * group_of(K) + plane * plane_of(K) + panel * kPanel;
          multiply(std::min(kRows, count - g * kRows), a, g + 1 < groups ? group_of(C) : plane_of(C), b, g, sums, K);
        }
      }
      if (shared_) {
#pragma omp barrier
      }
      for (int t = 0; t < count; ++t) {
        float* sums = nullptr;
        if (row_sums != nullptr) {
          sums = row_sums + size_t{2} * K * ((first + t) / columns());
          if ((first + t) % columns() == 0)
            for (float* half : {sums, sums + K}) std::fill(half + writes.begin, half + writes.end, 0.0f);
        }
        write_tile(tile(first + t), writes, m + t / kRows * group_of(K) + t % kRows * K, out, sums);
      }
    }
    if (row_sums != nullptr) {
#pragma omp barrier
#pragma omp for schedule(static)
      for (int i = 0; i < shape_.N * 2 * K; ++i) {
        double sum = 0;
        for (int row = 0; row < rows(); ++row)
          sum += row_sums[(static_cast<size_t>(i / (2 * K)) * rows() + row) * 2 * K + i % (2 * K)];
        out.sums[i] = static_cast<float>(sum);
      }
    }
  }
}

template class Pass<float, 2, 3>;
template class Pass<float, 4, 3>;
template class Pass<float, 5, 2>;
template class Pass<bf16, 4, 3>;
template class Pass<bf16, 5, 2>;

}  // namespace regolith::winograd
