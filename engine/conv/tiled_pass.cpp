#include "engine/conv/tiled_pass.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "engine/base/error.h"
#include "engine/conv/division.h"
#include "kernels/core/tile_products.h"

namespace regolith {
namespace {

using namespace kernels::fast;
using V = Vec<kL>;
constexpr int kBlock = kTileRows;  // pixels, and channels, of a tile
static_assert(kTileRows == 32 && kTileColumns == 32 && kTileDepth == 32);
constexpr int kPanel = 128 * 1024;  // elements, more or less: two of them stay in the second-level cache
constexpr int kLeastPixels = 256, kLeastStrips = 16;
constexpr size_t kTileBytes = sizeof(bf16) * kTileDepth * kTileColumns;  // of weights

}  // namespace

TiledPass::TiledPass(const TiledShape& s, int threads) : shape_(s), threads_(threads) {
  c_blocks_ = ceil_div(s.C, kBlock);
  k_blocks_ = ceil_div(s.K, kBlock);
  columns_ = s.Q + s.S - 1;
  // Strips of equal size, and many enough for some threads.
  const int all = static_cast<int>(std::min<int64_t>(int64_t{s.N} * s.P * columns_, 1 << 30));
  const int target = std::clamp(all / kLeastStrips, kLeastPixels, std::max(kLeastPixels, kPanel / s.C));
  rows_ = equal_parts(s.P, columns_, target);
  in_rows_ = rows_ + s.R - 1;
  images_ = rows_ < s.P ? 1 : equal_parts(s.N, in_rows_ * columns_, target);
  strips_ = ceil_div(s.N, images_) * row_strips();
  depth_ = round_up(((images_ - 1) * in_rows_ + rows_) * columns_, kBlock);
  pixels_ = std::max(images_ * in_rows_ * columns_, depth_ + (s.R - 1) * columns_ + s.S - 1);
  for (int d = 0; d < depth_; ++d) {
    const int q = d % columns_, image = d / columns_ / in_rows_, p = d / columns_ % in_rows_;
    output_.push_back(q < s.Q && p < rows_ ? (image * s.P + p) * s.Q + q : -1);
  }
  panel_bytes_ = sizeof(bf16) * c_blocks_ * pixels_ * kBlock;
  sums_bytes_ = sizeof(float) * s.N * row_strips() * 2 * s.K;
}

size_t TiledPass::packed_bytes() const { return kTileBytes * k_blocks_ * c_blocks_ * shape_.R * shape_.S; }

// (k blocks, c blocks, R, S, 16 pairs of C, 32 of K, 2)
void TiledPass::pack(const bf16* w, bool turned, void* packed) const {
  const TiledShape& s = shape_;
  const int taps = s.R * s.S;
  bf16* to = static_cast<bf16*>(packed);
#pragma omp parallel for collapse(2) num_threads(threads_) schedule(static)
  for (int kb = 0; kb < k_blocks_; ++kb) {
    for (int cb = 0; cb < c_blocks_; ++cb) {
      bf16* out = to + static_cast<size_t>(kb * c_blocks_ + cb) * taps * kBlock * kBlock;
      for (int tap = 0; tap < taps; ++tap) {
        for (int i = 0; i < kBlock * kBlock; ++i) {
          const int c = cb * kBlock + i / 64 * 2 + i % 2, k = kb * kBlock + i % 64 / 2;
          const size_t at = turned ? (static_cast<size_t>(c) * taps + taps - 1 - tap) * s.K + k
                                   : (static_cast<size_t>(k) * taps + tap) * s.C + c;
          *out++ = c < s.C && k < s.K ? w[at] : bf16(0.0f);
        }
      }
    }
  }
}

#if REGOLITH_TILES

bool TiledPass::available() { return tiles_permitted(); }

namespace {

__m512i to_bf16(const V& low, const V& high) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)); }

V from_bf16(__m256i halves) {
  V r;
  r.v = reinterpret_cast<__m512>(_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, halves), 16));
  return r;
}

__mmask32 first_channels(int count) { return count >= kBlock ? ~0u : (1u << count) - 1; }

}  // namespace

// Reads the inputs of a strip, some pixels at a time, while the processor multiplies those of the strip before.
class TiledPass::Reader {
 public:
  Reader(const TiledPass& pass, const Source<bf16>& in, bf16* panel, int strip)
      : pass_(pass),
        in_(in),
        panel_(panel),
        n0_(strip / pass.row_strips() * pass.images_),
        p0_(strip % pass.row_strips() * pass.rows_),
        last_(first_channels(pass.shape_.C - (pass.c_blocks_ - 1) * kBlock)) {
    begin_row();
  }
  void read(int pixels) {
    const TiledShape& s = pass_.shape_;
    while (pixels > 0 && line_ < lines()) {
      const int end = std::min(j_ + pixels, pass_.columns_);
      pixels -= end - j_;
      // Columns of the map lie between those of the padding.
      const int first = row_ == nullptr ? end : std::clamp(s.left, j_, end);
      const int last = row_ == nullptr ? end : std::clamp(s.W + s.left, j_, end);
      clear(j_, first);
      bf16* to = panel_ + (static_cast<size_t>(line_) * pass_.columns_ + first) * kBlock;
      const bf16* x = row_ + (first - s.left) * in_.pitch;
      for (int j = first; j < last; ++j, x += in_.pitch, to += kBlock)
        in_.affine == nullptr ? copy(x, to) : normalise(x, to);
      clear(last, end);
      j_ = end;
      if (j_ == pass_.columns_) ++line_, begin_row();
    }
  }
  void read_all() { read(lines() * pass_.columns_); }

 private:
  size_t block() const { return static_cast<size_t>(pass_.pixels_) * kBlock; }
  int lines() const { return std::min(pass_.images_, pass_.shape_.N - n0_) * pass_.in_rows_; }
  void begin_row() {
    const TiledShape& s = pass_.shape_;
    const int image = line_ / pass_.in_rows_, h = p0_ + line_ % pass_.in_rows_ - s.top;
    j_ = 0;
    row_ = h < 0 || h >= s.H ? nullptr : in_.data + (static_cast<int64_t>(n0_ + image) * s.H + h) * s.W * in_.pitch;
    affine_ = in_.affine == nullptr ? nullptr : in_.affine + static_cast<size_t>(n0_ + image) * 2 * s.C;
  }
  void clear(int begin, int end) const {
    if (begin == end) return;
    bf16* to = panel_ + (static_cast<size_t>(line_) * pass_.columns_ + begin) * kBlock;
    for (int cb = 0; cb < pass_.c_blocks_; ++cb)
      std::memset(to + cb * block(), 0, (end - begin) * kBlock * sizeof(bf16));
  }
  void copy(const bf16* x, bf16* to) const {
    int cb = 0;
    for (; cb + 1 < pass_.c_blocks_; ++cb, to += block(), x += kBlock) _mm512_storeu_si512(to, _mm512_loadu_si512(x));
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(last_, x));
  }
  void normalise(const bf16* x, bf16* to) const {
    const int C = pass_.shape_.C;
    const auto half = [&](int c) {
      if (c >= C) return V(0);
      const V y = fma(load<V>(x + c), load<V>(affine_ + c), load<V>(affine_ + C + c));
      return in_.relu ? max(V(0), y) : y;
    };
    for (int c = 0; c < C; c += kBlock, to += block()) _mm512_storeu_si512(to, to_bf16(half(c), half(c + kL)));
  }

  const TiledPass& pass_;
  const Source<bf16> in_;
  bf16* panel_;
  int n0_, p0_, line_ = 0, j_ = 0;  // line: row of the panel; j: of its pixels
  __mmask32 last_;                  // channels of the last block
  const bf16* row_ = nullptr;       // null: padding
  const float* affine_ = nullptr;
};

// Writes tiles of sums (32 pixels, 32 channels) as they go out. A few lines at a time, while the processor multiplies
// the next tile.
template <bool Extras>
class TiledPass::Writer {
 public:
  // sums: (strips of an image, 2, K) of the strip's first image, those of its own are written; null: not wanted.
  Writer(const TiledPass& pass, const Target<bf16>& out, int n0, int p0, int k0, float* sums)
      : pass_(pass),
        out_(out),
        sums_(sums == nullptr ? nullptr : sums + k0),
        image_end_(pass.shape_.P * pass.shape_.Q) {
    const TiledShape& s = pass.shape_;
    const int64_t first = (static_cast<int64_t>(n0) * s.P + p0) * s.Q;
    limit_ = pass.images_ == 1 ? std::min(pass.rows_, s.P - p0) * s.Q : std::min(pass.images_, s.N - n0) * s.P * s.Q;
    channels_ = first_channels(s.K - k0);
    data_ = out.data + first * out.pitch + k0;
    if (Extras && out.residual != nullptr) residual_ = out.residual + first * out.residual_pitch + k0;
    for (int i = 0; i < 2; ++i) {
      bias_[i] = V(0);
      if (out.bias != nullptr) bias_[i].v = _mm512_maskz_loadu_ps(lanes(i), out.bias + k0 + i * kL);
    }
  }
  ~Writer() {
    if (Extras && sums_ != nullptr) flush(total_, squares_);
  }
  Writer(const Writer&) = delete;

  // Lines [begin, end) of the tile of pixels from d on.
  void write(const float* tile, int d, int begin, int end) {
    V total[] = {total_[0], total_[1]}, squares[] = {squares_[0], squares_[1]};
    const V bias[] = {bias_[0], bias_[1]};
    for (int i = begin; i < end; ++i) {
      const int pixel = pass_.output_[d + i];
      if (static_cast<unsigned>(pixel) >= static_cast<unsigned>(limit_)) continue;
      V y[2] = {load<V>(tile + i * kBlock) + bias[0], load<V>(tile + i * kBlock + kL) + bias[1]};
      if (Extras && residual_ != nullptr) {
        const __m512i r = _mm512_maskz_loadu_epi16(channels_, residual_ + pixel * out_.residual_pitch);
        y[0] = y[0] + from_bf16(_mm512_maskz_extracti64x4_epi64(0xff, r, 0));
        y[1] = y[1] + from_bf16(_mm512_maskz_extracti64x4_epi64(0xff, r, 1));
      }
      if (out_.relu) y[0] = max(V(0), y[0]), y[1] = max(V(0), y[1]);
      _mm512_mask_storeu_epi16(data_ + pixel * out_.pitch, channels_, to_bf16(y[0], y[1]));
      if (!Extras || sums_ == nullptr) continue;
      if (pixel >= image_end_) {
        flush(total, squares);
        image_end_ += pass_.shape_.P * pass_.shape_.Q;
        for (int half = 0; half < 2; ++half) total[half] = squares[half] = V(0);
      }
      for (int half = 0; half < 2; ++half) {
        total[half] = total[half] + y[half];
        squares[half] = fma(y[half], y[half], squares[half]);
      }
    }
    for (int half = 0; half < 2; ++half) total_[half] = total[half], squares_[half] = squares[half];
  }

 private:
  __mmask16 lanes(int half) const { return static_cast<__mmask16>(channels_ >> (half * kL)); }
  void flush(const V (&total)[2], const V (&squares)[2]) {  // the sums of an image
    const TiledShape& s = pass_.shape_;
    for (int i = 0; i < 2; ++i) {
      _mm512_mask_storeu_ps(sums_ + i * kL, lanes(i), total[i].v);
      _mm512_mask_storeu_ps(sums_ + s.K + i * kL, lanes(i), squares[i].v);
    }
    sums_ += static_cast<size_t>(2) * s.K * pass_.row_strips();
  }

  const TiledPass& pass_;
  const Target<bf16> out_;
  int limit_;
  __mmask32 channels_;  // which of the 32 there are
  bf16* data_;
  const bf16* residual_ = nullptr;
  float* sums_;
  int image_end_;  // pixel behind the image whose sums those are
  V bias_[2], total_[2] = {V(0), V(0)}, squares_[2] = {V(0), V(0)};
};

// The strip's outputs from its panel, while the next one is read.
template <bool Extras>
void TiledPass::compute(const bf16* panel, const std::byte* packed, const Target<bf16>& out, int strip,
                        winograd::Range blocks, float* sums, Reader* next) const {
  const TiledShape& s = shape_;
  const ptrdiff_t row_bytes = kBlock * sizeof(bf16), pair_bytes = 2 * row_bytes;
  const size_t block = static_cast<size_t>(pixels_) * kBlock;
  const int steps = c_blocks_ * s.R * s.S, lines = std::max(8, ceil_div(kBlock, steps));
  const int pixels =
      ceil_div(images_ * in_rows_ * columns_ * lines, depth_ * blocks.size());  // to read beside those lines
  const int n0 = strip / row_strips() * images_, p0 = strip % row_strips() * rows_;
  alignas(64) float tiles[2][kBlock * kBlock];
  for (int kb = blocks.begin; kb < blocks.end; ++kb) {
    Writer<Extras> writer(*this, out, n0, p0, kb * kBlock, sums);
    for (int d = 0; d < depth_; d += kBlock) {
      Tiles::clear();
      const float* before = tiles[d / kBlock % 2 ^ 1];
      const std::byte* b = packed + kTileBytes * kb * steps;
      int step = 0, line = 0;
      for (int cb = 0; cb < c_blocks_; ++cb) {
        for (int r = 0; r < s.R; ++r) {
          const bf16* a = panel + cb * block + static_cast<size_t>(d + r * columns_) * kBlock;
          for (int t = 0; t < s.S; ++t, a += kBlock, b += kTileBytes) {
            Tiles::add(a, a + 16 * kBlock, row_bytes, b, b + row_bytes, pair_bytes);
            if (++step * kBlock < line * steps) continue;  // the lines of these steps are out
            const int end = std::min(kBlock, line + lines);
            if (d > 0) writer.write(before, d - kBlock, line, end);
            line = end;
            if (next != nullptr) next->read(pixels);
          }
        }
      }
      Tiles::store(tiles[d / kBlock % 2], kBlock);
    }
    writer.write(tiles[(depth_ / kBlock - 1) % 2], depth_ - kBlock, 0, kBlock);
  }
}

void TiledPass::run(const Source<bf16>& in, const void* packed, const Target<bf16>& out, void* workspace) const {
  const TiledShape& s = shape_;
  std::byte* const memory = static_cast<std::byte*>(workspace);
  float* const sums = out.sums == nullptr ? nullptr : reinterpret_cast<float*>(memory + threads_ * 2 * panel_bytes_);
  // Where there are more threads than strips, some share one: each has blocks of its output channels.
  const int groups = std::clamp(threads_ / strips_, 1, k_blocks_), parts = threads_ / groups;
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int t = 0; t < parts * groups; ++t) {
    const Tiles tiles;
    const winograd::Range blocks = winograd::Range{0, k_blocks_}.part(t % groups, groups);
    const winograd::Range strips = winograd::Range{0, strips_}.part(t / groups, parts);
    const auto* weights = static_cast<const std::byte*>(packed);
    bf16* panels[2];
    for (int i = 0; i < 2; ++i) panels[i] = reinterpret_cast<bf16*>(memory + (2 * t + i) * panel_bytes_);
    if (strips.size() > 0) Reader(*this, in, panels[strips.begin % 2], strips.begin).read_all();
    for (int i = strips.begin; i < strips.end; ++i) {
      std::optional<Reader> next;
      if (i + 1 < strips.end) next.emplace(*this, in, panels[(i + 1) % 2], i + 1);
      float* to = nullptr;
      if (sums != nullptr)
        to = sums + (static_cast<size_t>(i / row_strips()) * images_ * row_strips() + i % row_strips()) * 2 * s.K;
      if (to != nullptr || out.residual != nullptr)
        compute<true>(panels[i % 2], weights, out, i, blocks, to, next ? &*next : nullptr);
      else
        compute<false>(panels[i % 2], weights, out, i, blocks, to, next ? &*next : nullptr);
      if (next) next->read_all();
    }
  }
  if (sums == nullptr) return;
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int i = 0; i < s.N * 2 * s.K; ++i) {
    double sum = 0;
    for (int strip = 0; strip < row_strips(); ++strip)
      sum += sums[(static_cast<size_t>(i / (2 * s.K)) * row_strips() + strip) * 2 * s.K + i % (2 * s.K)];
    out.sums[i] = static_cast<float>(sum);
  }
}

#else

bool TiledPass::available() { return false; }
void TiledPass::run(const Source<bf16>&, const void*, const Target<bf16>&, void*) const {
  throw KernelError("this build has no products in tiles (AMX-BF16)");
}

#endif

}  // namespace regolith
