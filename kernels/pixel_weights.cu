#include "kernels/pixel_weights.h"

#include "kernels/core/atomics.h"
#include "kernels/loss_tiles.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr int kThreads = 256;
constexpr uint8_t kNone = 255;  // no class; no pixel within the radius

struct Labels {
  const uint8_t* mask;  // (N, H, W)
  int N, H, W, K, ignore;
  __device__ __forceinline__ int64_t pixels() const { return static_cast<int64_t>(N) * H * W; }
  __device__ __forceinline__ uint8_t operator()(int64_t pixel) const {
    const int t = mask[pixel];
    return t == ignore || t >= K ? kNone : static_cast<uint8_t>(t);
  }
};

// What a pixel knows of its row: the class of the nearest pixel that has one (of two the left one's) and its distance,
// and the distance to the nearest pixel of a class that is not that one. So the nearest pixel of any class but c is
// found from a column of them, exactly.
struct RowNearest {
  uint8_t cls, distance, other;
  __device__ __forceinline__ uint8_t but(uint8_t c) const { return cls == c ? other : distance; }
};
__device__ __forceinline__ uint32_t pack(const RowNearest& n) { return n.cls | n.distance << 8 | n.other << 16; }
__device__ __forceinline__ RowNearest unpack(uint32_t word) {
  return {static_cast<uint8_t>(word), static_cast<uint8_t>(word >> 8), static_cast<uint8_t>(word >> 16)};
}

__global__ void __launch_bounds__(kThreads) row_nearest(Labels labels, int radius, uint32_t* rows) {
  const Range range = block_range(labels.pixels());
  for (int64_t i = range.begin + threadIdx.x; i < range.end; i += blockDim.x) {
    const int x = static_cast<int>(i % labels.W);
    RowNearest n{kNone, kNone, kNone};
    const auto look = [&](int d, int at) {
      const uint8_t c = at < 0 || at >= labels.W ? kNone : labels(i + (at - x));
      if (c == kNone) return;
      if (n.cls == kNone) n.cls = c, n.distance = static_cast<uint8_t>(d);
      if (c != n.cls && n.other == kNone) n.other = static_cast<uint8_t>(d);
    };
    look(0, x);
    for (int d = 1; d <= radius && n.other == kNone; ++d) {
      look(d, x - d);
      look(d, x + d);
    }
    rows[i] = pack(n);
  }
}

__global__ void __launch_bounds__(kThreads)
    boundary_weights(Labels labels, const uint32_t* rows, int radius, float weight, float slope, float* weights) {
  const Range range = block_range(labels.pixels());
  for (int64_t i = range.begin + threadIdx.x; i < range.end; i += blockDim.x) {
    const int y = static_cast<int>(i / labels.W % labels.H);
    const uint8_t c = labels(i);
    int nearest = radius * radius + 1;  // squared
    const auto look = [&](int d, int at) {
      if (at < 0 || at >= labels.H) return;
      const int dx = unpack(rows[i + static_cast<int64_t>(at - y) * labels.W]).but(c);
      if (dx != kNone && dx * dx + d * d < nearest) nearest = dx * dx + d * d;
    };
    if (c != kNone) look(0, y);
    for (int d = 1; c != kNone && d * d < nearest && d <= radius; ++d) {
      look(d, y - d);
      look(d, y + d);
    }
    const bool near = c != kNone && nearest <= radius * radius;
    weights[i] = near ? 1 + weight * exp(Vec<1>(slope * static_cast<float>(nearest)))[0] : 1;
  }
}

constexpr float kUncounted = 2;  // above any probability

// Of each pixel's true class; 0 where it is NaN. Grid: (blocks of an image, N). out: (N, image)
__global__ void __launch_bounds__(kThreads)
    true_probability(Pixels x, const uint8_t* mask, int ignore, Shape s, LossTerms::Pixel term, float* out) {
  const auto [tile, truth] = take_shared<TileShared>(s.K);
  const TileRange r = block_pixels(s);
  for (int64_t at = r.begin; at < r.end; at += kTile) {
    const int pixels = load_pixels(x, mask, ignore, s, r, at, tile, truth);
    const int64_t begin = blockIdx.y * s.image + at;
    for (int p = threadIdx.x * kPixels; p < pixels; p += blockDim.x * kPixels) {
      const V t = load<V>(truth + p);
      V top = load<V>(tile + p), sum(0), e_t(0);
      for (int k = 1; k < s.K; ++k) top = max(load<V>(tile + k * kTile + p), top);
      for (int k = 0; k < s.K; ++k) {
        const V e = exp(load<V>(tile + k * kTile + p) - top);
        e_t += select(t == V(k), e, V(0));
        sum += e;
      }
      const V p_t = e_t / sum, kept = select(p_t == p_t, p_t, V(0));
      for (int i = 0; i < kPixels && p + i < pixels; ++i) {
        const int c = static_cast<int>(t[i]);
        out[begin + p + i] = c < s.K && term.class_weight[c] > 0 ? kept[i] : kUncounted;
      }
    }
  }
}

// How many of the image's values are wanted, in every thread.
template <class F>
__device__ __forceinline__ int count_values(const float* p, int64_t image, int* scratch, F&& wanted) {
  int count = 0;
  for (int64_t i = threadIdx.x; i < image; i += blockDim.x) count += wanted(p[i]);
  return block_sum(count, scratch);
}

__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The rank-th smallest (from 0) of the values that count. Their bits are ordered as they are: eight at a time, from the
// top, the digit of the wanted one is found by counting.
__device__ __forceinline__ float select_value(const float* p, int64_t image, int rank, int* histogram) {
  uint32_t found = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += blockDim.x) histogram[i] = 0;
    sync_block();
    for (int64_t i = threadIdx.x; i < image; i += blockDim.x) {
      const uint32_t bits = bits_of(p[i]);
      if (p[i] < kUncounted && (shift == 24 || bits >> (shift + 8) == found))
        count_shared(histogram + (bits >> shift & 255), 1);
    }
    sync_block();
    int digit = 0;
    while (rank >= histogram[digit]) rank -= histogram[digit++];
    found = found << 8 | static_cast<uint32_t>(digit);
    sync_block();  // the histogram may still be read
  }
  float value;
  memcpy(&value, &found, sizeof value);
  return value;
}

// Grid: N. probability: (N, image)
__global__ void __launch_bounds__(kThreads)
    hard_weights(const float* probability, int64_t image, LossTerms::Pixel term, bool multiply, float* weights) {
  Shared shared;
  int* const histogram = shared.take<int>(256);
  int* const scratch = shared.take<int>(kReduceScratch);
  const float* const p = probability + blockIdx.x * image;
  float* const w = weights + blockIdx.x * image;
  const float threshold = term.hard_threshold;
  const int counted = count_values(p, image, scratch, [](float v) { return v < kUncounted; });
  const int below = count_values(p, image, scratch, [=](float v) { return v < threshold; });
  const int least = static_cast<int>(ceilf(term.hard_share * static_cast<float>(counted)));
  const float limit = below < least ? select_value(p, image, (least < counted ? least : counted) - 1, histogram) : -1;
  const auto keeps = [=](float v) { return v < threshold || v <= limit; };
  const int kept = count_values(p, image, scratch, keeps);
  const float factor = term.hard_mean && kept > 0 ? static_cast<float>(image) / static_cast<float>(kept) : 1;
  for (int64_t i = threadIdx.x; i < image; i += blockDim.x)
    w[i] = keeps(p[i]) ? (multiply ? w[i] * factor : factor) : 0;
}

}  // namespace

void pixel_weights(Stream& stream, const PixelWeights& a) {
  const TensorView& x = a.logits;
  if (a.term.boundary()) {
    const int radius = boundary_radius(a.term.boundary_sigma);
    if (radius < 1 || radius > kMostBoundaryRadius)
      throw KernelError("pixel_weights: boundary_sigma must be above 0 and at most " +
                        std::to_string(kMostBoundaryRadius / 4));
    const Labels labels{a.mask, x.N, x.H, x.W, x.C, a.ignore};
    uint32_t* const rows = static_cast<uint32_t*>(a.workspace);
    const unsigned blocks = blocks_for(stream, x.pixels(), 4096);
    launch(stream, "row_nearest", {blocks}, {kThreads}, 0, row_nearest, labels, radius, rows);
    launch(stream, "boundary_weights", {blocks}, {kThreads}, 0, boundary_weights, labels, rows, radius,
           a.term.boundary_weight, -1 / (2 * a.term.boundary_sigma * a.term.boundary_sigma), a.weights);
  }
  if (a.term.hard()) {
    const Shape s{static_cast<int64_t>(x.H) * x.W, x.C};
    const Dim3 grid{static_cast<unsigned>((s.image + kLossBlockPixels - 1) / kLossBlockPixels),
                    static_cast<unsigned>(x.N)};
    float* const probability = static_cast<float*>(a.workspace);
    launch(stream, "true_probability", grid, {kThreads}, shared_bytes_of<TileShared>(s.K), true_probability, Pixels(x),
           a.mask, a.ignore, s, a.term, probability);
    launch(stream, "hard_weights", {static_cast<unsigned>(x.N)}, {kThreads},
           shared_bytes<int>(256) + shared_bytes<int>(kReduceScratch), hard_weights, probability, s.image, a.term,
           a.term.boundary(), a.weights);
  }
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
