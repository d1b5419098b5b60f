#include "engine/conv/winograd.h"

#include <omp.h>

#include <cstring>

#include "engine/conv/winograd_transforms.h"

namespace regolith::winograd {
namespace {

constexpr int kChunk = 64 * 64;  // pairs of channels whose weight gradients are summed at a time, at most

}  // namespace

template <class T, int R>
Winograd<T, R>::Winograd(const ConvShape& s, int threads)
    : shape_(s),
      threads_(threads),
      forward_({s.N, s.H, s.W, s.C, s.P(), s.Q(), s.K, s.pad_before[0], s.pad_before[1]}, threads),
      dgrad_({s.N, s.P(), s.Q(), s.K, s.H, s.W, s.C, R - 1 - s.pad_before[0], R - 1 - s.pad_before[1]}, threads),
      zeros_(s.K) {
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

template <class T, int R>
size_t Winograd<T, R>::wgrad_floats() const {
  return wgrad_sums() + k_chunk_ + kPlanes * (2 * kSkew + kWgradBlock * (padded(c_chunk_) + padded(k_chunk_)));
}

// A dy A^T of each tile; total (channels): += the sums of dy
template <class T, int R>
void Winograd<T, R>::spread_tiles(const T* dy, Range channels, int first, int count,
                                  const typename Direction::Layout& to, float* d, float* total) const {
  const PassShape& p = forward_.shape();
  const size_t plane = to.plane, panel = to.panel;
  for (int t = 0; t < count; ++t, d += to.tile) {
    const auto tile = forward_.tile(first + t);
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
#pragma GCC unroll 5
      for (int j = 0; j < M; ++j) {
#pragma GCC unroll 5
        for (int i = 0; i < M; ++i) {
          a[i * kEdge + j] = load<V>(pixel[i * M + j] + k);
          sum += a[i * kEdge + j];
        }
        Axis<M, R>::spread(a + j, kEdge);
      }
      store(total + at, sum);
      transform_rows<kEdge>(a, Axis<M, R>::spread, d + at / kPanel * panel + at % kPanel, plane);
    }
  }
}

// sums (planes, k, c) over the tiles of (A dy A^T) (B^T x B), then the sums of dy: at the workspace's beginning
template <class T, int R>
void Winograd<T, R>::wgrad_part(const T* x, const T* dy, Range c, Range k, Range tiles, float* workspace) const {
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
    forward_.read_tiles({x, shape_.C}, c, {first, first + count}, {v_plane, panel, kPanel}, v);
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
template <class T, int R>
void Winograd<T, R>::wgrad_finish(Range c, Range k, int row, const float* workspace, float* dw, float* db,
                                  bool accumulate) const {
  const size_t sums_plane = static_cast<size_t>(c.size()) * k.size(), each = wgrad_floats();
  float* const to = dw + static_cast<size_t>(k.begin + row) * R * R * shape_.C + c.begin;
  for (int at = 0; at < c.size(); at += kL) {
    V m[kPlanes];
    for (int i = 0; i < kPlanes; ++i) {
      const float* from = workspace + i * sums_plane + static_cast<size_t>(row) * c.size() + at;
      m[i] = load<V>(from);
      for (int part = 1; part < parts_; ++part) m[i] += load<V>(from + part * each);
    }
    transform<kEdge>(m, kEdge, R, Axis<M, R>::gather);
    for (int i = 0; i < R * R; ++i) {
      float* const o = to + i * shape_.C + at;
      const V& g = m[i / R * kEdge + i % R];
      store(o, accumulate ? load<V>(o) + g : g);
    }
  }
  if (db == nullptr || c.begin > 0) return;
  float sum = 0;
  for (int part = 0; part < parts_; ++part) sum += workspace[part * each + wgrad_sums() + row];
  float& o = db[k.begin + row];
  o = accumulate ? o + sum : sum;
}

template <class T, int R>
void Winograd<T, R>::wgrad(const T* x, const T* dy, float* dw, float* db, bool accumulate, float* workspace) const {
  const auto c_of = [&](int i) { return chunk(shape_.C, c_chunk_, i % c_chunks()); };
  const Range all{0, forward_.tiles()};
  const auto k_of = [&](int i) { return chunk(shape_.K, k_chunk_, i / c_chunks()); };
#pragma omp parallel num_threads(threads_)
  {
    if (parts_ == 1) {
      float* const mine = workspace + omp_get_thread_num() * wgrad_floats();
#pragma omp for schedule(static)
      for (int i = 0; i < chunks(); ++i) {
        const Range c = c_of(i), k = k_of(i);
        wgrad_part(x, dy, c, k, all, mine);
        for (int row = 0; row < k.size(); ++row) wgrad_finish(c, k, row, mine, dw, db, accumulate);
      }
    } else {
      for (int i = 0; i < chunks(); ++i) {
        const Range c = c_of(i), k = k_of(i);
#pragma omp for schedule(static)
        for (int part = 0; part < parts_; ++part) {
          wgrad_part(x, dy, c, k, all.part(part, parts_), workspace + part * wgrad_floats());
        }
#pragma omp for schedule(static)
        for (int row = 0; row < k.size(); ++row) wgrad_finish(c, k, row, workspace, dw, db, accumulate);
      }
    }
  }
}

template class Winograd<float, 2>;
template class Winograd<float, 3>;
template class Winograd<bf16, 2>;
template class Winograd<bf16, 3>;

}  // namespace regolith::winograd
