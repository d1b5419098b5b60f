#include "engine/conv/direct_wgrad.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "kernels/core/pairs.h"

namespace regolith {
namespace {

using namespace kernels::fast;
using V = Vec<kLanes<float>>;
constexpr int kL = kLanes<float>, kPanel = 2 * kL;  // output channels of a tile

int ceil_div(int a, int b) { return (a + b - 1) / b; }
size_t whole_lines(size_t words) { return (words + 15) / 16 * 16; }

// How factors are held: one to a word, in fp32 ...
template <class T>
struct Singles {
  using Word = float;
  using Vector = V;
  static constexpr int depth = 1;                               // pixels of a row in a word
  static constexpr int channels(int taps) { return 6 / taps; }  // of a tile: what 16 registers hold
  static Vector load(const Word* p) { return kernels::fast::load<V>(p); }
  static V add(const V& sum, Word x, const Vector& dy) { return fma(V(x), dy, sum); }
  // n words of neighbouring channels of a pixel; `next` is not looked at.
  static void pack(Word* to, const T* pixel, const T* /*next*/, int n) {
    for (int j = 0; j < n; ++j) to[j] = static_cast<float>(pixel[j]);
  }
};

#if REGOLITH_PAIRS
// ... or two to a word: those of a pixel and of the next one that a tap sees, in bf16.
struct Pairs {
  using Word = uint32_t;
  using Vector = Words;
  static constexpr int depth = 2;
  static constexpr int channels(int taps) { return taps == 1 ? 8 : 4; }
  static Vector load(const Word* p) { return load_words(p); }
  static V add(const V& sum, Word x, const Vector& dy) { return dot(x, dy, sum); }
  static Word word(const bf16* pixel, const bf16* next, int j) {
    const uint32_t low = pixel != nullptr ? pixel[j].bits : 0, high = next != nullptr ? next[j].bits : 0;
    return low | high << 16;
  }
  static void pack(Word* to, const bf16* pixel, const bf16* next, int n) {  // null: outside of the map
    int j = 0;
    for (; j + 32 <= n; j += 32) {
      interleave(pixel == nullptr ? pixel : pixel + j, next == nullptr ? next : next + j, to + j);
    }
    for (; j < n; ++j) to[j] = word(pixel, next, j);
  }
};
#endif

template <class T>
struct HeldAs {
  using type = Singles<T>;
};
#if REGOLITH_PAIRS
template <>
struct HeldAs<bf16> {
  using type = Pairs;
};
#endif

int channels_of_tile(DType type, int taps) {
  if (type == DType::bf16) return HeldAs<bf16>::type::channels(taps);
  return Singles<float>::channels(taps);
}

// sums (Taps * channels, kPanel) += over rows and q: x[row][q * step + tap * tap_step + c] * dy[row][q][0 .. kPanel);
// a step of q is as many pixels as a word holds.
template <class H, int Taps>
[[gnu::nonnull]] void tile(const typename H::Word* x, ptrdiff_t x_row, ptrdiff_t step, ptrdiff_t tap_step,
                           const typename H::Word* dy, int rows, int steps, float* sums) {
  constexpr int CB = H::channels(Taps), kFactors = Taps * CB;
  V a[kFactors][2];
#pragma GCC unroll 12
  for (int i = 0; i < kFactors; ++i) {
    a[i][0] = load<V>(sums + i * kPanel);
    a[i][1] = load<V>(sums + i * kPanel + kL);
  }
  for (int row = 0; row < rows; ++row, x += x_row) {
    const typename H::Word* in = x;
    for (int q = 0; q < steps; ++q, in += step, dy += kPanel) {
      const typename H::Vector d0 = H::load(dy), d1 = H::load(dy + kL);
#pragma GCC unroll 12
      for (int i = 0; i < kFactors; ++i) {
        const typename H::Word f = in[i / CB * tap_step + i % CB];
        a[i][0] = H::add(a[i][0], f, d0);
        a[i][1] = H::add(a[i][1], f, d1);
      }
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kFactors; ++i) {
    store(sums + i * kPanel, a[i][0]);
    store(sums + i * kPanel + kL, a[i][1]);
  }
}

}  // namespace

bool DirectWgrad::multiplies_pairs() { return REGOLITH_PAIRS; }

DirectWgrad::DirectWgrad(const ConvShape& s, DType type, int threads) : shape_(s), type_(type), threads_(threads) {
  taps_ = s.S % 3 == 0 ? 3 : s.S % 2 == 0 ? 2 : 1;
  channels_ = channels_of_tile(type, taps_);
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

template <int Taps, class T>
void DirectWgrad::accumulate_part(const T* x, const T* dy, int part, int parts, int k_begin, int k_end, float* packed,
                                  float* sums, bool biases) const {
  using H = typename HeldAs<T>::type;
  using Word = typename H::Word;
  static_assert(sizeof(Word) == sizeof(float));
  constexpr int CB = H::channels(Taps), kFactors = Taps * CB;
  const ConvShape& s = shape_;
  const int P = s.P(), Q = s.Q(), groups = s.S / Taps, columns = in_columns_, steps = ceil_div(Q, H::depth);
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
  const int ahead = (H::depth - 1) * s.stride[1], j0 = std::max(0, left - ahead), j1 = std::min(s.W + left, columns);
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
        H::pack(px + (static_cast<size_t>(h - h0) * columns + j) * pixel_, pixel_of(j),
                H::depth > 1 ? pixel_of(j + ahead) : nullptr, s.C);
      }
    }
    const T* in = dy + (static_cast<int64_t>(n) * P + p0) * Q * s.K;
    for (int kb = k_begin; kb < k_end; ++kb) {
      const int width = std::min(kPanel, s.K - kb * kPanel);
      Word* out = pdy + (kb - k_begin) * dy_plane;
      float* total = db + (kb - k_begin) * kPanel;
      V t0 = load<V>(total), t1 = load<V>(total + kL);
      for (int row = 0; row < p1 - p0; ++row) {
        for (int q = 0; q < Q; q += H::depth, out += kPanel) {
          const T* pixel = in + (static_cast<int64_t>(row) * Q + q) * s.K + kb * kPanel;
          const T* next = H::depth > 1 && q + 1 < Q ? pixel + s.K : nullptr;
          H::pack(out, pixel, next, width);
          for (int j = width; j < kPanel; ++j) out[j] = Word(0);
          for (const T* p : {pixel, next}) {
            if (p == nullptr || !biases) continue;
            if (width == kPanel) {
              t0 += load<V>(p);
              t1 += load<V>(p + kL);
            } else {
              for (int j = 0; j < width; ++j)
                j < kL ? t0.set(j, t0[j] + static_cast<float>(p[j]))
                       : t1.set(j - kL, t1[j - kL] + static_cast<float>(p[j]));
            }
          }
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
            tile<H, Taps>(
                px + cb * CB +
                    (static_cast<size_t>(a * s.stride[0] + first - h0) * columns + g * Taps * s.dilation[1]) * pixel_,
                static_cast<ptrdiff_t>(s.stride[0]) * columns * pixel_, H::depth * s.stride[1] * pixel_,
                s.dilation[1] * pixel_, pdy + kb * dy_plane + static_cast<size_t>(a - p0) * steps * kPanel, b - a,
                steps, to);
          }
        }
      }
    }
  }
}

template <int Taps, class T>
void DirectWgrad::run(const T* x, const T* dy, float* dw, float* db, bool accumulate, float* workspace) const {
  constexpr int CB = HeldAs<T>::type::channels(Taps), kFactors = Taps * CB;
  const ConvShape& s = shape_;
  const int parts = threads_ / k_groups_, groups = s.S / Taps;
  const auto sums_of = [&](int part, int kg) {
    return workspace + (part * k_groups_ + kg) * (packed_ + sums_) + packed_;
  };
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int t = 0; t < parts * k_groups_; ++t) {
    const int part = t / k_groups_, kg = t % k_groups_, begin = kg * group_blocks_;
    float* sums = sums_of(part, kg);
    accumulate_part<Taps>(x, dy, part, parts, begin, std::min(k_blocks_, begin + group_blocks_), sums - packed_, sums,
                          db != nullptr);
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
