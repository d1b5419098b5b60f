#include "engine/conv/tiled_wgrad.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "engine/base/error.h"
#include "engine/conv/division.h"
#include "kernels/core/tile_products.h"

namespace regolith {
namespace {

using namespace kernels::fast;
constexpr int kBlock = kTileRows;  // channels of a tile, of input and of output
static_assert(kTileRows == 32 && kTileColumns == 32 && kTileDepth == 32);
// Of a chunk, more or less: what a tap reads of a block's panels fits into the first cache.
constexpr int kPixels = 256;

}  // namespace

struct TiledWgrad::Part {
  const bf16 *x, *dy;
  int part, parts;   // which range of the pixels
  int c0, c1;        // its blocks of input channels
  uint32_t* px;      // (phases, parities, c blocks, pairs, 32)
  bf16* pdy;         // (k_blocks, 32, pitch)
  float *sums, *db;  // (k_blocks, c blocks, R, S, 32 of K, 32 of C), (k_blocks, 32); db: null for none
};

TiledWgrad::TiledWgrad(const ConvShape& shape, int threads) : shape_(shape), threads_(threads) {
  ConvShape& s = shape_;
  if (s.R * s.S == 1 && s.P() == s.H && s.Q() == s.W &&
      s.stride[0] * s.stride[1] == 1) {  // rows as long as they can be
    const int pixels = s.N * s.H * s.W;
    s.W = std::gcd(pixels, kPixels);
    s.N = 1, s.H = pixels / s.W;
  }
  c_blocks_ = ceil_div(s.C, kBlock);
  k_blocks_ = ceil_div(s.K, kBlock);
  const int reach[] = {(s.R - 1) * s.dilation[0], (s.S - 1) * s.dilation[1]};
  for (int i = 0; i < 2; ++i) phases_[i] = std::min(s.stride[i], reach[i] + 1);
  const int halo = reach[0] / s.stride[0], more = reach[1] / s.stride[1];
  parities_ = 1;
  for (int w = 0; w < s.S; ++w)
    if (w * s.dilation[1] / s.stride[1] % 2 == 1) parities_ = 2;
  columns_ = round_up(s.Q() + more, 2);  // a pair of pixels has a row
  rows_ = equal_parts(s.P(), columns_, kPixels);
  in_rows_ = rows_ + halo;
  images_ = rows_ < s.P() ? 1 : equal_parts(s.N, in_rows_ * columns_, kPixels);
  chunks_ = ceil_div(s.N, images_) * ceil_div(s.P(), rows_);
  depth_ = round_up(((images_ - 1) * in_rows_ + rows_) * columns_, kTileDepth);
  pitch_ = depth_ % 64 == 0 ? depth_ + 32 : depth_;  // an odd number of lines: neighbours share no sets of the cache
  pairs_ = std::max(depth_ / 2 + (halo * columns_ + more) / 2, images_ * in_rows_ * columns_ / 2);
  // A thread's sums should stay in its second-level cache beside the panels, and all threads have work.
  const size_t block = sizeof(float) * kBlock * kBlock * s.R * s.S * k_blocks_;
  groups_ = 1;
  for (int g = 2; g <= threads && g <= c_blocks_; ++g)
    if (threads % g == 0 && (block * ceil_div(c_blocks_, groups_) > 1024 * 1024 || threads / groups_ > chunks_))
      groups_ = g;
  group_blocks_ = ceil_div(c_blocks_, groups_);
  x_bytes_ = sizeof(uint32_t) * phases_[0] * phases_[1] * parities_ * group_blocks_ * pairs_ * kBlock;
  dy_bytes_ = sizeof(bf16) * k_blocks_ * kBlock * pitch_;
  sums_bytes_ = block * group_blocks_ + sizeof(float) * k_blocks_ * kBlock;  // and those of db
}

float* TiledWgrad::sums_of(std::byte* workspace, int part, int group) const {
  return reinterpret_cast<float*>(workspace + (part * groups_ + group) * (x_bytes_ + dy_bytes_ + sums_bytes_) +
                                  x_bytes_ + dy_bytes_);
}

#if REGOLITH_TILES

namespace {

__m512i halves(const bf16* pixel, __mmask32 channels) {  // null stands for zeros
  return pixel == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(channels, pixel);
}

// Words of neighbouring pixels' channels, in the order in which one instruction interleaves them: four by four, those
// with an even number of four first. write_tile puts dw's channels back.
void store_pairs(__m512i first, __m512i second, uint32_t* to) {
  _mm512_storeu_si512(to, _mm512_maskz_unpacklo_epi16(~0u, first, second));
  _mm512_storeu_si512(to + kL, _mm512_maskz_unpackhi_epi16(~0u, first, second));
}

// to[c * pitch + i], 16 channels: channel c of pixel i, from + i * step, of up to 32. `channels`: which are there.
// `sum`, unless null, grows by the pixels.
void transpose_pixels(const bf16* from, ptrdiff_t step, int count, __mmask16 channels, bf16* to, ptrdiff_t pitch,
                      Vec<kL>* sum) {
  Vec<kL> v[kL];                   // pairs of pixels, of a channel a lane
  const auto words = [&](int i) {  // the masked forms, as in vec.h
    return i < count ? _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(channels, from + i * step))
                     : _mm512_setzero_si512();
  };
  REGOLITH_UNROLL
  for (int i = 0; i < kL; ++i) {
    const __m512i pair = words(2 * i) | _mm512_maskz_slli_epi32(0xffff, words(2 * i + 1), 16);
    if (sum != nullptr) *sum = Factor<bf16>::sum_of(pair, *sum);
    v[i].v = reinterpret_cast<__m512>(pair);
  }
  transpose_lanes<kL / 2>(v);
  const __mmask32 pixels = count < 32 ? (1u << count) - 1 : ~0u;
  REGOLITH_UNROLL
  for (int c = 0; c < kL; ++c) _mm512_mask_storeu_epi16(to + c * pitch, pixels, reinterpret_cast<__m512i>(v[c].v));
}

}  // namespace

bool TiledWgrad::available() { return tiles_permitted(); }

// Image n as the chunk's `image`-th, output rows from p0 on.
void TiledWgrad::pack_x(const Part& t, int n, int p0, int image) const {
  const ConvShape& s = shape_;
  const size_t panel = static_cast<size_t>(pairs_) * kBlock, odd = panel * group_blocks_;
  for (int phase = 0; phase < phases_[0] * phases_[1]; ++phase) {
    const int ph = phase / phases_[1], left = s.pad_before[1] - phase % phases_[1];
    for (int row = 0; row < in_rows_; ++row) {
      const int h = (p0 + row) * s.stride[0] + ph - s.pad_before[0];
      const bf16* in = t.x + (static_cast<int64_t>(n) * s.H + h) * s.W * s.C;
      uint32_t* block = t.px + phase * parities_ * odd + (image * in_rows_ + row) * (columns_ / 2) * kBlock;
      for (int cb = t.c0; cb < t.c1; ++cb, block += panel) {
        if (h < 0 || h >= s.H) {
          for (int i = 0; i < parities_; ++i) std::memset(block + i * odd, 0, columns_ / 2 * kBlock * sizeof(uint32_t));
          continue;
        }
        const __mmask32 channels = s.C - cb * kBlock < kBlock ? (1u << (s.C - cb * kBlock)) - 1 : ~0u;
        const auto column = [&](int j) {  // the panel's, without its padding
          const int w = j * s.stride[1] - left;
          return halves(w < 0 || w >= s.W ? nullptr : in + static_cast<int64_t>(w) * s.C + cb * kBlock, channels);
        };
        uint32_t* to = block;
        __m512i first = column(0);
        for (int j = 0; j < columns_; j += 2, to += kBlock) {
          const __m512i second = column(j + 1), third = column(j + 2);
          store_pairs(first, second, to);
          if (parities_ == 2) store_pairs(second, third, to + odd);
          first = third;
        }
      }
    }
  }
}

void TiledWgrad::pack_dy(const Part& t, int n, int p0, int image) const {
  const ConvShape& s = shape_;
  const int P = s.P(), Q = s.Q();
  for (int k = 0; k < k_blocks_ * kBlock; k += kL) {
    const __mmask16 there = s.K - k < kL ? (1u << std::max(0, s.K - k)) - 1 : 0xffff;
    Vec<kL> sum(0);
    for (int row = 0; row < rows_; ++row) {
      bf16* to = t.pdy + static_cast<ptrdiff_t>(k) * pitch_ + (image * in_rows_ + row) * columns_;
      if (n >= s.N || p0 + row >= P) {
        for (int i = 0; i < kL; ++i) std::memset(to + i * pitch_, 0, columns_ * sizeof(bf16));
        continue;
      }
      const bf16* in = t.dy + (static_cast<int64_t>(n) * P + p0 + row) * Q * s.K + k;
      for (int q = 0; q < Q; q += 32)
        transpose_pixels(in + static_cast<ptrdiff_t>(q) * s.K, s.K, std::min(32, Q - q), there, to + q, pitch_,
                         t.db == nullptr ? nullptr : &sum);
    }
    if (t.db != nullptr) store(t.db + k, load<Vec<kL>>(t.db + k) + sum);
  }
}

void TiledWgrad::add_products(const Part& t, bool first) const {
  const ConvShape& s = shape_;
  const ptrdiff_t a_row = pitch_ * static_cast<ptrdiff_t>(sizeof(bf16)), b_row = kBlock * sizeof(uint32_t);
  const size_t panel = static_cast<size_t>(pairs_) * kBlock;
  for (int cb = 0; cb < t.c1 - t.c0; ++cb) {
    for (int kb = 0; kb < k_blocks_; ++kb) {
      float* to = t.sums + static_cast<size_t>(kb * group_blocks_ + cb) * s.R * s.S * kBlock * kBlock;
      for (int tap = 0; tap < s.R * s.S; ++tap, to += kBlock * kBlock) {
        const int dh = tap / s.S * s.dilation[0], dw = tap % s.S * s.dilation[1], shift = dw / s.stride[1];
        const int phase = dh % s.stride[0] * phases_[1] + dw % s.stride[1];
        const bf16* a = t.pdy + static_cast<ptrdiff_t>(kb) * kBlock * pitch_;
        const uint32_t* b = t.px + ((phase * parities_ + shift % 2) * group_blocks_ + cb) * panel +
                            (dh / s.stride[0] * columns_ + shift) / 2 * kBlock;
        first ? Tiles::clear() : Tiles::load(to, kBlock);
        for (int d = 0; d < depth_; d += kTileDepth, a += kTileDepth, b += kTileDepth / 2 * kBlock)
          Tiles::add(a, a + 16 * static_cast<ptrdiff_t>(pitch_), a_row, b, b + kL, b_row);
        Tiles::store(to, kBlock);
      }
    }
  }
}

void TiledWgrad::add_up(const Part& t) const {
  const Tiles tiles;
  std::memset(t.px, 0, x_bytes_ + dy_bytes_);  // padding, and channels behind the last, stay so
  if (t.db != nullptr) std::memset(t.db, 0, sizeof(float) * k_blocks_ * kBlock);
  const int strips = ceil_div(shape_.P(), rows_);
  const int begin = static_cast<int>(int64_t{chunks_} * t.part / t.parts),
            end = static_cast<int>(int64_t{chunks_} * (t.part + 1) / t.parts);
  if (begin == end) std::memset(t.sums, 0, sums_bytes_);
  for (int i = begin; i < end; ++i) {
    for (int image = 0; image < images_; ++image) {
      const int n = i / strips * images_ + image, p0 = i % strips * rows_;
      if (n < shape_.N) pack_x(t, n, p0, image);
      pack_dy(t, n, p0, image);
    }
    add_products(t, i == begin);
  }
}

// A tile of dw from the threads' sums of it.
void TiledWgrad::write_tile(std::byte* workspace, int kb, int cb, int tap, float* dw, bool accumulate) const {
  const ConvShape& s = shape_;
  const int taps = s.R * s.S, group = cb / group_blocks_, width = std::min(kBlock, s.C - cb * kBlock);
  const __mmask32 there = width < kBlock ? (1u << width) - 1 : ~0u;
  const size_t at = (static_cast<size_t>(kb * group_blocks_ + cb % group_blocks_) * taps + tap) * kBlock * kBlock;
  for (int k = 0; k < std::min(kBlock, s.K - kb * kBlock); ++k) {
    Vec<kL> sum[2] = {Vec<kL>(0), Vec<kL>(0)};  // of channels in the order of store_pairs
    for (int part = 0; part < threads_ / groups_; ++part) {
      const float* from = sums_of(workspace, part, group) + at + k * kBlock;
      for (int i = 0; i < 2; ++i) sum[i] = sum[i] + load<Vec<kL>>(from + i * kL);
    }
    const auto a = sum[0].v, b = sum[1].v;
    const __m512 halves[] = {
        __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23),
        __builtin_shufflevector(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31)};
    float* out = dw + (static_cast<size_t>(kb * kBlock + k) * taps + tap) * s.C + cb * kBlock;
    for (int i = 0; i < 2; ++i, out += kL) {
      const __mmask16 mask = static_cast<__mmask16>(there >> (i * kL));
      const __m512 before = accumulate ? _mm512_maskz_loadu_ps(mask, out) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(out, mask, before + halves[i]);
    }
  }
}

void TiledWgrad::run(const void* x, const void* dy, float* dw, float* db, bool accumulate, void* memory) const {
  std::byte* const workspace = static_cast<std::byte*>(memory);
  const ConvShape& s = shape_;
  const int parts = threads_ / groups_;
  const size_t biases = (sums_bytes_ - sizeof(float) * k_blocks_ * kBlock) / sizeof(float);  // where db's sums stand
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int t = 0; t < parts * groups_; ++t) {
    const int part = t / groups_, group = t % groups_, c0 = group * group_blocks_;
    float* sums = sums_of(workspace, part, group);
    std::byte* packed = reinterpret_cast<std::byte*>(sums) - x_bytes_ - dy_bytes_;
    add_up({static_cast<const bf16*>(x), static_cast<const bf16*>(dy), part, parts, c0,
            std::min(c_blocks_, c0 + group_blocks_), reinterpret_cast<uint32_t*>(packed),
            reinterpret_cast<bf16*>(packed + x_bytes_), sums, db != nullptr && group == 0 ? sums + biases : nullptr});
  }
#pragma omp parallel for collapse(3) num_threads(threads_) schedule(static)
  for (int kb = 0; kb < k_blocks_; ++kb)
    for (int cb = 0; cb < c_blocks_; ++cb)
      for (int tap = 0; tap < s.R * s.S; ++tap) write_tile(workspace, kb, cb, tap, dw, accumulate);
  for (int k = 0; db != nullptr && k < s.K; ++k) {
    float sum = accumulate ? db[k] : 0;
    for (int part = 0; part < parts; ++part) sum += sums_of(workspace, part, 0)[biases + k];
    db[k] = sum;
  }
}

#else

bool TiledWgrad::available() { return false; }
void TiledWgrad::run(const void*, const void*, float*, float*, bool, void*) const {
  throw KernelError("convolution " + to_string(shape_) + ": this build has no products in tiles (AMX-BF16)");
}

#endif

}  // namespace regolith
