#include "engine/conv/direct_wgrad.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "kernels/core/vec.h"

namespace regolith {
namespace {

using namespace kernels::fast;
constexpr int kL = kLanes<float>, kPanel = 2 * kL;  // output channels of a tile
constexpr int kPairs = 6;                           // (tap, input channel) of a tile

int ceil_div(int a, int b) { return (a + b - 1) / b; }
size_t whole_lines(size_t floats) { return (floats + 15) / 16 * 16; }

// sums (6, kPanel) += over rows and q: x[row][q * step + tap * tap_step + c] * dy[row][q][0 .. kPanel)
template <int Taps>
[[gnu::nonnull]] void tile(const float* x, ptrdiff_t x_row, ptrdiff_t step, ptrdiff_t tap_step, const float* dy,
                           int rows, int Q, float* sums) {
  constexpr int CB = kPairs / Taps;
  using V = Vec<kL>;
  V a[kPairs][2];
#pragma GCC unroll 6
  for (int i = 0; i < kPairs; ++i) {
    a[i][0] = load<V>(sums + i * kPanel);
    a[i][1] = load<V>(sums + i * kPanel + kL);
  }
  for (int row = 0; row < rows; ++row, x += x_row) {
    const float* in = x;
    for (int q = 0; q < Q; ++q, in += step, dy += kPanel) {
      const V d0 = load<V>(dy), d1 = load<V>(dy + kL);
#pragma GCC unroll 6
      for (int i = 0; i < kPairs; ++i) {
        const V f(in[i / CB * tap_step + i % CB]);
        a[i][0] = fma(f, d0, a[i][0]);
        a[i][1] = fma(f, d1, a[i][1]);
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPairs; ++i) {
    store(sums + i * kPanel, a[i][0]);
    store(sums + i * kPanel + kL, a[i][1]);
  }
}

}  // namespace

DirectWgrad::DirectWgrad(const ConvShape& s, DType type, int threads) : shape_(s), type_(type), threads_(threads) {
  taps_ = s.S % 3 == 0 ? 3 : s.S % 2 == 0 ? 2 : 1;
  c_blocks_ = ceil_div(s.C, kPairs / taps_);
  k_blocks_ = ceil_div(s.K, kPanel);
  // A thread's sums should stay in its second-level cache beside the panels.
  const size_t block = static_cast<size_t>(c_blocks_) * kPairs * kPanel * s.R * (s.S / taps_);
  k_groups_ = 1;
  for (int g = 2; g <= threads && g <= k_blocks_; ++g) {
    if (threads % g == 0 && block * ceil_div(k_blocks_, k_groups_) * sizeof(float) > 256 * 1024) k_groups_ = g;
  }
  group_blocks_ = ceil_div(k_blocks_, k_groups_);
  const int reach = (s.R - 1) * s.dilation[0];
  rows_ = std::clamp(std::max(256 / s.Q(), 2 * reach), 1, s.P());
  in_rows_ = std::min((rows_ - 1) * s.stride[0] + reach + 1, s.H);
  in_columns_ = (s.Q() - 1) * s.stride[1] + (s.S - 1) * s.dilation[1] + 1;
  packed_ = whole_lines(static_cast<size_t>(c_blocks_) * (kPairs / taps_) * in_rows_ * in_columns_) +
            static_cast<size_t>(group_blocks_) * kPanel * rows_ * s.Q();
  sums_ = (block + kPanel) * group_blocks_;  // and those of db
}

template <int Taps, class T>
void DirectWgrad::accumulate_part(const T* x, const T* dy, int part, int parts, int k_begin, int k_end, float* packed,
                                  float* sums) const {
  constexpr int CB = kPairs / Taps;
  const ConvShape& s = shape_;
  const int P = s.P(), Q = s.Q(), groups = s.S / Taps, columns = in_columns_;
  const size_t block = static_cast<size_t>(c_blocks_) * kPairs * kPanel * s.R * groups;
  float* const db = sums + block * group_blocks_;
  std::memset(sums, 0, sums_ * sizeof(float));
  const size_t x_plane = static_cast<size_t>(in_rows_) * columns * CB,
               dy_plane = static_cast<size_t>(rows_) * Q * kPanel;
  float* const px = packed;                                      // (c_blocks, in_rows, columns, CB)
  float* const pdy = packed + whole_lines(c_blocks_ * x_plane);  // (k_blocks, rows, Q, kPanel)
  std::memset(px, 0, c_blocks_ * x_plane * sizeof(float));       // the padding and the last block's tail stay so
  const int chunks = ceil_div(P, rows_), left = s.pad_before[1], w0 = std::max(0, -left);
  const int w1 = std::min(s.W, columns - left);
  const int64_t work = static_cast<int64_t>(s.N) * chunks;
  for (int64_t i = work * part / parts; i < work * (part + 1) / parts; ++i) {
    const int n = static_cast<int>(i / chunks), p0 = static_cast<int>(i % chunks) * rows_, p1 = std::min(P, p0 + rows_);
    const int h0 = std::max(0, p0 * s.stride[0] - s.pad_before[0]);
    const int h1 = std::min(s.H, (p1 - 1) * s.stride[0] - s.pad_before[0] + (s.R - 1) * s.dilation[0] + 1);
    for (int h = h0; h < h1; ++h) {
      const T* in = x + (static_cast<int64_t>(n) * s.H + h) * s.W * s.C;
      float* out = px + static_cast<size_t>(h - h0) * columns * CB + left * CB;
      for (int w = w0; w < w1; ++w) {
        const T* pixel = in + static_cast<int64_t>(w) * s.C;
        float* o = out + static_cast<ptrdiff_t>(w) * CB;
        int c = 0;
        for (; c + CB <= s.C; c += CB, o += x_plane)
          for (int j = 0; j < CB; ++j) o[j] = static_cast<float>(pixel[c + j]);
        for (int j = 0; c + j < s.C; ++j) o[j] = static_cast<float>(pixel[c + j]);
      }
    }
    const T* in = dy + (static_cast<int64_t>(n) * P + p0) * Q * s.K;
    const int pixels = (p1 - p0) * Q;
    for (int kb = k_begin; kb < k_end; ++kb) {
      const int width = std::min(kPanel, s.K - kb * kPanel);
      float* out = pdy + (kb - k_begin) * dy_plane;
      float* total = db + (kb - k_begin) * kPanel;
      using V = Vec<kL>;
      V t0 = load<V>(total), t1 = load<V>(total + kL);
      for (int q = 0; q < pixels; ++q, out += kPanel) {
        const T* pixel = in + static_cast<int64_t>(q) * s.K + kb * kPanel;
        if (width == kPanel) {
          store(out, load<V>(pixel));
          store(out + kL, load<V>(pixel + kL));
        } else {
          for (int j = 0; j < kPanel; ++j) out[j] = j < width ? static_cast<float>(pixel[j]) : 0.0f;
        }
        t0 += load<V>(out);
        t1 += load<V>(out + kL);
      }
      store(total, t0);
      store(total + kL, t1);
    }
    for (int kb = 0; kb < k_end - k_begin; ++kb) {
      float* to = sums + kb * block;
      for (int r = 0; r < s.R; ++r) {
        // The output rows whose input row lies inside the map.
        const int first = r * s.dilation[0] - s.pad_before[0];
        const int a = std::max(p0, first < 0 ? ceil_div(-first, s.stride[0]) : 0);
        const int b = s.H - 1 - first < 0 ? 0 : std::min(p1, (s.H - 1 - first) / s.stride[0] + 1);
        for (int g = 0; g < groups; ++g) {
          for (int cb = 0; cb < c_blocks_; ++cb, to += kPairs * kPanel) {
            if (a >= b) continue;
            tile<Taps>(
                px + cb * x_plane +
                    (static_cast<size_t>(a * s.stride[0] + first - h0) * columns + g * Taps * s.dilation[1]) * CB,
                static_cast<ptrdiff_t>(s.stride[0]) * columns * CB, s.stride[1] * CB, s.dilation[1] * CB,
                pdy + kb * dy_plane + static_cast<size_t>(a - p0) * Q * kPanel, b - a, Q, to);
          }
        }
      }
    }
  }
}

template <int Taps, class T>
void DirectWgrad::run(const T* x, const T* dy, float* dw, float* db, bool accumulate, float* workspace) const {
  constexpr int CB = kPairs / Taps;
  const ConvShape& s = shape_;
  const int parts = threads_ / k_groups_, groups = s.S / Taps;
  const auto sums_of = [&](int part, int kg) {
    return workspace + (part * k_groups_ + kg) * (packed_ + sums_) + packed_;
  };
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int t = 0; t < parts * k_groups_; ++t) {
    const int part = t / k_groups_, kg = t % k_groups_, begin = kg * group_blocks_;
    float* sums = sums_of(part, kg);
    accumulate_part<Taps>(x, dy, part, parts, begin, std::min(k_blocks_, begin + group_blocks_), sums - packed_, sums);
  }
  // dw[k][r][s][c] from the tiles (k block, r, group of taps, c block, tap, c, k)
  const size_t block = static_cast<size_t>(c_blocks_) * kPairs * kPanel * s.R * groups;
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int k = 0; k < s.K; ++k) {
    const int kg = k / kPanel / group_blocks_, kb = k / kPanel % group_blocks_;
    for (int rg = 0; rg < s.R * groups; ++rg) {
      for (int tap = 0; tap < Taps; ++tap) {
        float* out = dw + (static_cast<size_t>(k) * s.R * groups * Taps + rg * Taps + tap) * s.C;
        for (int c = 0; c < s.C; ++c) {
          const size_t at = kb * block +
                            ((static_cast<size_t>(rg) * c_blocks_ + c / CB) * kPairs + tap * CB + c % CB) * kPanel +
                            k % kPanel;
          float sum = sums_of(0, kg)[at];
          for (int part = 1; part < parts; ++part) sum += sums_of(part, kg)[at];
          out[c] = accumulate ? out[c] + sum : sum;
        }
      }
    }
    if (db != nullptr) {
      const size_t at = block * group_blocks_ + kb * kPanel + k % kPanel;
      float sum = sums_of(0, kg)[at];
      for (int part = 1; part < parts; ++part) sum += sums_of(part, kg)[at];
      db[k] = accumulate ? db[k] + sum : sum;
    }
  }
}

void DirectWgrad::run(const void* x, const void* dy, float* dw, float* db, bool accumulate, void* workspace) const {
  const auto with = [&]<class T>(T) {
    const T *a = static_cast<const T*>(x), *b = static_cast<const T*>(dy);
    float* ws = static_cast<float*>(workspace);
    if (taps_ == 3)
      run<3>(a, b, dw, db, accumulate, ws);
    else if (taps_ == 2)
      run<2>(a, b, dw, db, accumulate, ws);
    else
      run<1>(a, b, dw, db, accumulate, ws);
  };
  if (type_ == DType::f32)
    with(float{});
  else if (type_ == DType::bf16)
    with(bf16{});
  else
    with(fp16{});
}

}  // namespace regolith
