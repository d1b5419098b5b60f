#include "engine/conv/direct_wgrad.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "engine/conv/division.h"
#include "engine/conv/pairs.h"
#include "kernels/core/register_tile.h"

namespace regolith {
namespace {

using namespace kernels::fast;
using V = Vec<kL>;
constexpr int kPanel = 2 * kL;  // output channels of a tile

size_t whole_lines(size_t words) { return (words + 15) / 16 * 16; }

// Input channels of a tile: what the registers hold, 16 of them where there are no pairs.
template <class F>
constexpr int channels_of_tile(int taps) {
  return F::depth == 1 ? 6 / taps : taps == 1 ? 8 : 4;
}

// sums (Taps * CB, kPanel) += over rows and q: x[row][q * step + tap * tap_step + c] * dy[row][q][0 .. kPanel); a step
// of q is as many pixels as a word holds.
template <class F, int Taps, int CB>
[[gnu::nonnull]] void add_tile(const typename F::Word* x, ptrdiff_t x_row, ptrdiff_t step, ptrdiff_t tap_step,
                               const typename F::Word* dy, int rows, int steps, float* sums) {
  RegisterTile<F, Taps * CB, 2> tile(Stored{sums, kPanel});
  for (int row = 0; row < rows; ++row, x += x_row, dy += steps * kPanel)
    tile.add(
        x, [&](int i) { return i / CB * tap_step + i % CB; }, step, dy, kPanel, steps);
  tile.store_to(sums, kPanel);
}

}  // namespace

DirectWgrad::DirectWgrad(const ConvShape& s, DType type, int threads)
    : shape_(s), type_(type), pairs_(type == DType::bf16 && multiplies_pairs_fast()), threads_(threads) {
  taps_ = s.S % 3 == 0 ? 3 : s.S % 2 == 0 ? 2 : 1;
  channels_ = pairs_ ? channels_of_tile<Factor<bf16>>(taps_) : channels_of_tile<Factor<float>>(taps_);
  c_blocks_ = ceil_div(s.C, channels_);
  k_blocks_ = ceil_div(s.K, kPanel);
  // A thread's sums should stay in its second-level cache beside the panels.
  const size_t block = static_cast<size_t>(c_blocks_) * taps_ * channels_ * kPanel * s.R * (s.S / taps_);
  k_groups_ = 1;
  for (int g = 2; g <= threads && g <= k_blocks_; ++g) {
    if (threads % g == 0 && block * ceil_div(k_blocks_, k_groups_) * sizeof(float) > 256 * 1024) k_groups_ = g;
  }
  group_blocks_ = ceil_div(k_blocks_, k_groups_);
  const int reach = (s.R - 1) * s.dilation[0];
  rows_ = std::clamp(std::max(256 / s.Q(), 2 * reach), 1, s.P());
  in_rows_ = std::min((rows_ - 1) * s.stride[0] + reach + 1, s.H);
  in_columns_ = (s.Q() - 1) * s.stride[1] + (s.S - 1) * s.dilation[1] + 1;
  // Words of a pixel: an odd number of lines, so that neighbouring pixels share no sets of the first cache.
  pixel_ = (c_blocks_ * channels_ + 15) / 16 * 16;
  if (pixel_ % 32 == 0) pixel_ += 16;
  packed_ = whole_lines(static_cast<size_t>(pixel_) * in_rows_ * in_columns_) +
            static_cast<size_t>(group_blocks_) * kPanel * rows_ * s.Q();
  sums_ = (block + kPanel) * group_blocks_;  // and those of db
}

template <class F, int Taps, class T>
void DirectWgrad::accumulate_part(const T* x, const T* dy, int part, int parts, int k_begin, int k_end, float* packed,
                                  float* sums, bool biases) const {
  using Word = typename F::Word;
  static_assert(sizeof(Word) == sizeof(float));
  constexpr int CB = channels_of_tile<F>(Taps), kFactors = Taps * CB;
  const ConvShape& s = shape_;
  const int P = s.P(), Q = s.Q(), groups = s.S / Taps, columns = in_columns_, steps = ceil_div(Q, F::depth);
  const size_t block = static_cast<size_t>(c_blocks_) * kFactors * kPanel * s.R * groups;
  float* const db = sums + block * group_blocks_;
  std::memset(sums, 0, sums_ * sizeof(float));
  const size_t x_panel = static_cast<size_t>(pixel_) * in_rows_ * columns,
               dy_plane = static_cast<size_t>(rows_) * steps * kPanel;
  Word* const px = reinterpret_cast<Word*>(packed);  // (in_rows, columns, pixel_)
  Word* const pdy = px + whole_lines(x_panel);       // (k_blocks, rows, steps, kPanel)
  std::memset(px, 0, x_panel * sizeof(Word));        // the padding and the channels behind the last stay so
  const int chunks = ceil_div(P, rows_), left = s.pad_before[1];
  // Columns of the panel whose word holds a pixel of the map: that of a pair may be the second one's.
  const int ahead = (F::depth - 1) * s.stride[1], j0 = std::max(0, left - ahead), j1 = std::min(s.W + left, columns);
  const int64_t work = static_cast<int64_t>(s.N) * chunks;
  for (int64_t i = work * part / parts; i < work * (part + 1) / parts; ++i) {
    const int n = static_cast<int>(i / chunks), p0 = static_cast<int>(i % chunks) * rows_, p1 = std::min(P, p0 + rows_);
    const int h0 = std::max(0, p0 * s.stride[0] - s.pad_before[0]);
    const int h1 = std::min(s.H, (p1 - 1) * s.stride[0] - s.pad_before[0] + (s.R - 1) * s.dilation[0] + 1);
    for (int h = h0; h < h1; ++h) {
      const T* in = x + (static_cast<int64_t>(n) * s.H + h) * s.W * s.C;
      for (int j = j0; j < j1; ++j) {
        const auto pixel_of = [&](int column) {
          const int w = column - left;
          return w < 0 || w >= s.W ? nullptr : in + static_cast<int64_t>(w) * s.C;
        };
        F::pack(pixel_of(j), pixel_of(j + ahead), s.C, px + (static_cast<size_t>(h - h0) * columns + j) * pixel_);
      }
    }
    const T* in = dy + (static_cast<int64_t>(n) * P + p0) * Q * s.K;
    for (int kb = k_begin; kb < k_end; ++kb) {
      const int width = std::min(kPanel, s.K - kb * kPanel);
      Word* out = pdy + (kb - k_begin) * dy_plane;
      float* total = db + (kb - k_begin) * kPanel;
      V t0 = load<V>(total), t1 = load<V>(total + kL);
      for (int row = 0; row < p1 - p0; ++row) {
        for (int q = 0; q < Q; q += F::depth, out += kPanel) {
          const T* pixel = in + (static_cast<int64_t>(row) * Q + q) * s.K + kb * kPanel;
          F::pack(pixel, q + 1 < Q ? pixel + s.K : nullptr, width, out);
          std::fill(out + width, out + kPanel, Word(0));
          if (!biases) continue;
          t0 = F::sum_of(F::load_words(out), t0);
          t1 = F::sum_of(F::load_words(out + kL), t1);
        }
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
          for (int cb = 0; cb < c_blocks_; ++cb, to += kFactors * kPanel) {
            if (a >= b) continue;
            add_tile<F, Taps, CB>(
                px + cb * CB +
                    (static_cast<size_t>(a * s.stride[0] + first - h0) * columns + g * Taps * s.dilation[1]) * pixel_,
                static_cast<ptrdiff_t>(s.stride[0]) * columns * pixel_, F::depth * s.stride[1] * pixel_,
                s.dilation[1] * pixel_, pdy + kb * dy_plane + static_cast<size_t>(a - p0) * steps * kPanel, b - a,
                steps, to);
          }
        }
      }
    }
  }
}

template <class F, int Taps, class T>
void DirectWgrad::run(const T* x, const T* dy, float* dw, float* db, bool accumulate, float* workspace) const {
  constexpr int CB = channels_of_tile<F>(Taps), kFactors = Taps * CB;
  const ConvShape& s = shape_;
  const int parts = threads_ / k_groups_, groups = s.S / Taps;
  const auto sums_of = [&](int part, int kg) {
    return workspace + (part * k_groups_ + kg) * (packed_ + sums_) + packed_;
  };
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int t = 0; t < parts * k_groups_; ++t) {
    const int part = t / k_groups_, kg = t % k_groups_, begin = kg * group_blocks_;
    float* sums = sums_of(part, kg);
    accumulate_part<F, Taps>(x, dy, part, parts, begin, std::min(k_blocks_, begin + group_blocks_), sums - packed_,
                             sums, db != nullptr);
  }
  // dw[k][r][s][c] from the tiles (k block, r, group of taps, c block, tap, c, k)
  const size_t block = static_cast<size_t>(c_blocks_) * kFactors * kPanel * s.R * groups;
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int k = 0; k < s.K; ++k) {
    const int kg = k / kPanel / group_blocks_, kb = k / kPanel % group_blocks_;
    for (int rg = 0; rg < s.R * groups; ++rg) {
      for (int tap = 0; tap < Taps; ++tap) {
        float* out = dw + (static_cast<size_t>(k) * s.R * groups * Taps + rg * Taps + tap) * s.C;
        for (int c = 0; c < s.C; ++c) {
          const size_t at = kb * block +
                            ((static_cast<size_t>(rg) * c_blocks_ + c / CB) * kFactors + tap * CB + c % CB) * kPanel +
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
  const auto with = [&]<class F, class T>(F, T) {
    const T *a = static_cast<const T*>(x), *b = static_cast<const T*>(dy);
    float* ws = static_cast<float*>(workspace);
    if (taps_ == 3)
      run<F, 3>(a, b, dw, db, accumulate, ws);
    else if (taps_ == 2)
      run<F, 2>(a, b, dw, db, accumulate, ws);
    else
      run<F, 1>(a, b, dw, db, accumulate, ws);
  };
  if (type_ == DType::f32)
    with(Factor<float>{}, float{});
  else if (pairs_)
    with(Factor<bf16>{}, bf16{});
  else
    with(Fp32Factor<bf16>{}, bf16{});
}

}  // namespace regolith
