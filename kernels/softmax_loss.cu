#include "kernels/softmax_loss.h"

#include "kernels/core/atomics.h"
#include "kernels/core/launch.h"
#include "kernels/core/math.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// A block walks over its pixels tile by tile. A tile lies in shared memory in fp32, class by class, so that a thread
// owns a vector of neighbouring pixels (one, on the GPU) and finds any number of classes without holding them.
constexpr int kThreads = 256, kTile = 256;
constexpr int kPixels = kWarp == 1 ? kLanes<float> : 1;
using V = Vec<kPixels>;
static_assert(kLossBlockPixels % kTile == 0 && kTile % kPixels == 0);

// The logits or their gradient. `vectors`: every tile of every image is whole 16-byte vectors of memory.
struct Pixels {
  TensorView map;
  bool vectors;
  explicit Pixels(const TensorView& m)
      : map(m),
        vectors(kWarp > 1 && m.whole() && reinterpret_cast<uintptr_t>(m.data) % 16 == 0 &&
                static_cast<int64_t>(m.H) * m.W * m.C * static_cast<int64_t>(size_of(m.dtype)) % 16 == 0) {}
};

// Calls f with the first element of pixel `begin`, by the element type of the map: once a tile, so that a kernel is
// compiled once for all types.
template <class F>
__device__ __forceinline__ void with_elements_at(const TensorView& m, int64_t begin, F&& f) {
  if (m.dtype == DType::f32) return f(m.as<float>() + begin * m.pitch);
  if constexpr (kExecution != Execution::fast) {
    if (m.dtype == DType::f16) return f(m.as<fp16>() + begin * m.pitch);
  }
  f(m.as<bf16>() + begin * m.pitch);
}

__device__ __forceinline__ void load_tile(const Pixels& x, int64_t begin, int pixels, float* tile) {
  const int K = x.map.C, pitch = x.map.pitch;
  with_elements_at(x.map, begin, [&](const auto* from) {
    constexpr int L = kLanes<std::remove_cvref_t<decltype(*from)>>;
    if (kWarp == 1 || !x.vectors) {
      for (int k = 0; k < K; ++k)
        for (int p = threadIdx.x; p < pixels; p += blockDim.x)
          tile[k * kTile + p] = static_cast<float>(from[p * pitch + k]);
      return;
    }
    for (int i = threadIdx.x * L; i < pixels * K; i += blockDim.x * L) {
      const Vec<L> v = load<Vec<L>>(from + i);
      int p = i / K, k = i % K;
      for (int j = 0; j < L; ++j) {
        tile[k * kTile + p] = v[j];
        if (++k == K) k = 0, ++p;
      }
    }
  });
}

__device__ __forceinline__ void store_tile(const Pixels& x, int64_t begin, int pixels, const float* tile) {
  const int K = x.map.C, pitch = x.map.pitch;
  with_elements_at(x.map, begin, [&](auto* to) {
    using T = std::remove_cvref_t<decltype(*to)>;
    constexpr int L = kLanes<T>;
    if (kWarp == 1 || !x.vectors) {
      for (int k = 0; k < K; ++k)
        for (int p = threadIdx.x; p < pixels; p += blockDim.x) to[p * pitch + k] = static_cast<T>(tile[k * kTile + p]);
      return;
    }
    for (int i = threadIdx.x * L; i < pixels * K; i += blockDim.x * L) {
      int p = i / K, k = i % K;
      Vec<L> v;
      for (int j = 0; j < L; ++j) {
        v.set(j, tile[k * kTile + p]);
        if (++k == K) k = 0, ++p;
      }
      store(to + i, v);
    }
  });
}

// The true class of each pixel of a tile, whole vectors of them; K where it counts for nothing.
__device__ __forceinline__ void load_truth(const uint8_t* mask, int64_t begin, int pixels, int K, int ignore,
                                           float* truth) {
  const int whole = (pixels + kPixels - 1) / kPixels * kPixels;
  for (int p = threadIdx.x; p < whole; p += blockDim.x) {
    const int t = mask != nullptr && p < pixels ? mask[begin + p] : K;
    truth[p] = static_cast<float>(t == ignore || t > K ? K : t);
  }
}

// table[t] of each pixel.
__device__ __forceinline__ V look_up(const float* table, const V& t) {
  return V::each([=](float i) { return table[static_cast<int>(i)]; }, t);
}

struct Shape {
  int64_t image;  // pixels
  int K;
};

struct TileRange {
  int64_t begin, end;  // of the image's pixels
};
__device__ __forceinline__ TileRange block_pixels(const Shape& s) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kLossBlockPixels, end = begin + kLossBlockPixels;
  return {begin, end < s.image ? end : s.image};
}

struct DiceShared {
  float* tile;   // (K, kTile)
  float* truth;  // (kTile)
  float* sums;   // (3, K)
  template <class A>
  REGOLITH_HOST_DEVICE DiceShared(A& a, int K) {
    a.take(tile, K * kTile);
    a.take(truth, kTile);
    a.take(sums, 3 * K);
  }
};

// I, P and T of each class over this block's pixels. Grid: (blocks of an image, N). out: (N, blocks, 3, K)
__global__ void __launch_bounds__(kThreads) dice_sums(Pixels x, const uint8_t* mask, int ignore, Shape s, float* out) {
  const auto [tile, truth, sums] = take_shared<DiceShared>(s.K);
  for (int i = threadIdx.x; i < 3 * s.K; i += blockDim.x) sums[i] = 0;
  const TileRange r = block_pixels(s);
  for (int64_t at = r.begin; at < r.end; at += kTile) {
    const int pixels = static_cast<int>(r.end - at < kTile ? r.end - at : kTile);
    const int64_t begin = blockIdx.y * s.image + at;
    sync_block();  // the tile may still be read
    load_tile(x, begin, pixels, tile);
    load_truth(mask, begin, pixels, s.K, ignore, truth);
    sync_block();
    for (int p = threadIdx.x * kPixels; p < pixels; p += blockDim.x * kPixels) {
      const V t = load<V>(truth + p);
      V top = load<V>(tile + p), sum(0);
      for (int k = 1; k < s.K; ++k) top = max(load<V>(tile + k * kTile + p), top);
      for (int k = 0; k < s.K; ++k) {
        const V e = exp(load<V>(tile + k * kTile + p) - top);
        store(tile + k * kTile + p, e);
        sum += e;
      }
      const V scale = V(1) / sum;
      const Mask<kPixels> counts = t < V(s.K);
      for (int k = 0; k < s.K; ++k)
        store(tile + k * kTile + p, select(counts, load<V>(tile + k * kTile + p) * scale, V(0)));
    }
    sync_block();
    for (int k = warp_rank(); k < s.K; k += warps()) {
      V both(0), probability(0), truths(0);
      for (int p = lane() * kPixels; p < pixels; p += kWarp * kPixels) {
        const V v = load<V>(tile + k * kTile + p);
        const Mask<kPixels> hit = load<V>(truth + p) == V(k);
        both += select(hit, v, V(0));
        truths += select(hit, V(1), V(0));
        probability += v;
      }
      const float i = warp_sum(sum_lanes(both)), p = warp_sum(sum_lanes(probability)), t = warp_sum(sum_lanes(truths));
      if (lane() == 0) sums[k] += i, sums[s.K + k] += p, sums[2 * s.K + k] += t;
    }
  }
  sync_block();
  float* to = out + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * 3 * s.K;
  for (int i = threadIdx.x; i < 3 * s.K; i += blockDim.x) to[i] = sums[i];
}

// Adds the partial sums up, and makes the Dice terms' loss and coefficients (N, 2, K) of their gradient by p_c:
// b[c], plus a[c] in the pixels whose truth is c. One block. sums: (N + 1, 3, K), the last row the batch's.
__global__ void __launch_bounds__(kThreads) dice_finish(const float* partial, int N, int blocks, int K, LossTerms terms,
                                                        double* sums, float* coefficients, double* loss) {
  Shared shared;
  double* scratch = shared.take<double>(kReduceScratch);
  for (int i = threadIdx.x; i < N * 3 * K; i += blockDim.x) {
    const int n = i / (3 * K), j = i % (3 * K);
    double sum = 0;
    for (int b = 0; b < blocks; ++b) sum += partial[(static_cast<int64_t>(n) * blocks + b) * 3 * K + j];
    sums[i] = sum;
  }
  sync_block();
  for (int j = threadIdx.x; j < 3 * K; j += blockDim.x) {
    double sum = 0;
    for (int n = 0; n < N; ++n) sum += sums[n * 3 * K + j];
    sums[N * 3 * K + j] = sum;
  }
  sync_block();
  double mine = 0;
  for (int i = threadIdx.x; i < N * K; i += blockDim.x) {
    const int n = i / K, c = i % K;
    double a = 0, b = 0;
    for (int j = 0; j < terms.dice_terms; ++j) {
      const LossTerms::Dice& term = terms.dice[j];
      const double* of = sums + (term.per_image ? n : N) * 3 * K + c;
      const double top = 2 * of[0] + term.smooth, bottom = of[K] + of[2 * K] + term.smooth, w = term.class_weight[c];
      if (w == 0 || bottom == 0) continue;  // bottom 0: no smoothing, and the class is neither there nor predicted
      if (term.per_image || n == 0) mine += w * (1 - top / bottom);
      a -= w * 2 / bottom;
      b += w * top / (bottom * bottom);
    }
    coefficients[(n * 2) * K + c] = static_cast<float>(a);
    coefficients[(n * 2 + 1) * K + c] = static_cast<float>(b);
  }
  const double total = block_sum(mine, scratch);
  if (threadIdx.x == 0) *loss = total;
}

// The sum of the pixel terms. weights: (terms, K + 1) by true class t.
__device__ __forceinline__ V pixel_terms(const LossTerms& terms, const float* weights, int K, const V& t, const V& p,
                                         const V& log_p, const V& mean_log_p, PixelGradient<V>& g) {
  V loss(0);
  for (int j = 0; j < terms.pixel_terms; ++j)
    loss += pixel_term(terms.pixel[j], look_up(weights + j * (K + 1), t), K, p, log_p, mean_log_p, g);
  return loss;
}

struct LossShared {
  float *tile, *truth;     // (K, kTile), (kTile)
  float* weights;          // (kMaxLossTerms, K + 1)
  float *dice_a, *dice_b;  // (K + 1), (K)
  float* scratch;          // (kReduceScratch)
  int* counts;             // (K, K)
  template <class A>
  REGOLITH_HOST_DEVICE LossShared(A& a, int K) {
    a.take(tile, K * kTile);
    a.take(truth, kTile);
    a.take(weights, kMaxLossTerms * (K + 1));
    a.take(dice_a, K + 1);
    a.take(dice_b, K);
    a.take(scratch, kReduceScratch);
    a.take(counts, K * K);
  }
};

// Grid: (blocks of an image, N). partial: (N, blocks) sums of the pixel terms
__global__ void __launch_bounds__(kThreads)
    pixel_loss(Pixels x, const uint8_t* mask, Shape s, LossTerms terms, const float* coefficients, Pixels dx,
               const float* loss_scale, double* partial, int64_t* confusion, uint8_t* prediction) {
  const int K = s.K;
  const auto [tile, truth, weights, dice_a, dice_b, scratch, counts] = take_shared<LossShared>(K);
  for (int i = threadIdx.x; i < terms.pixel_terms * (K + 1); i += blockDim.x) {
    const int k = i % (K + 1);
    weights[i] = k < K ? terms.pixel[i / (K + 1)].class_weight[k] : 0;
  }
  const bool dice = coefficients != nullptr && dx.map;
  for (int k = threadIdx.x; k <= K; k += blockDim.x) {
    dice_a[k] = dice && k < K ? coefficients[(blockIdx.y * 2) * K + k] : 0;
    if (k < K) dice_b[k] = dice ? coefficients[(blockIdx.y * 2 + 1) * K + k] : 0;
  }
  for (int i = threadIdx.x; i < K * K; i += blockDim.x) counts[i] = 0;
  const V scale(loss_scale != nullptr ? *loss_scale : 1.f);

  const TileRange r = block_pixels(s);
  V loss(0);
  for (int64_t at = r.begin; at < r.end; at += kTile) {
    const int pixels = static_cast<int>(r.end - at < kTile ? r.end - at : kTile);
    const int64_t begin = blockIdx.y * s.image + at;
    sync_block();  // the tile may still be read
    load_tile(x, begin, pixels, tile);
    load_truth(mask, begin, pixels, K, terms.ignore, truth);
    sync_block();
    for (int p = threadIdx.x * kPixels; p < pixels; p += blockDim.x * kPixels) {
      float* const here = tile + p;
      const V t = load<V>(truth + p);
      V top = load<V>(here), best(0);
      for (int k = 1; k < K; ++k) {
        const V v = load<V>(here + k * kTile);
        best = select(v > top, V(k), best);
        top = select(v > top, v, top);
      }
      for (int i = 0; i < kPixels && p + i < pixels; ++i) {
        const int label = static_cast<int>(best[i]), true_label = static_cast<int>(t[i]);
        if (prediction != nullptr) prediction[begin + p + i] = static_cast<uint8_t>(label);
        if (true_label < K) count_shared(counts + true_label * K + label, 1);
      }
      V sum(0), above_sum(0), e_t(0), above_t(0);  // above: a logit minus the highest
      for (int k = 0; k < K; ++k) {
        const V above = load<V>(here + k * kTile) - top, e = exp(above);
        const Mask<kPixels> hit = t == V(k);
        e_t += select(hit, e, V(0));
        above_t += select(hit, above, V(0));
        above_sum += above;
        sum += e;
        store(here + k * kTile, e);
      }
      const V log_sum = log(sum), over_sum = V(1) / sum, p_t = e_t * over_sum;
      const Mask<kPixels> valid = t < V(K);
      PixelGradient<V> g{V(0), V(0), V(0)};
      const V mine = pixel_terms(terms, weights, K, t, p_t, above_t - log_sum,
                                 above_sum * V(1.f / static_cast<float>(K)) - log_sum, g);
      loss += select(valid, mine, V(0));
      if (!dx.map) continue;
      if (dice) {
        const V at_t = look_up(dice_a, t) * p_t;
        V mean(0);
        for (int k = 0; k < K; ++k) mean += V(dice_b[k]) * load<V>(here + k * kTile);
        g.of_t += at_t;
        g.of_p += V(0) - at_t - mean * over_sum;
      }
      for (int k = 0; k < K; ++k) {
        const V slope = fma(load<V>(here + k * kTile) * over_sum, g.of_p + V(dice_b[k]), g.constant);
        const V full = slope + select(t == V(k), g.of_t, V(0));
        store(here + k * kTile, select(valid, full * scale, V(0)));
      }
    }
    if (!dx.map) continue;
    sync_block();
    store_tile(dx, begin, pixels, tile);
  }
  const float total = block_sum(sum_lanes(loss), scratch);  // its barriers also close the counts
  sync_block();
  if (threadIdx.x == 0) partial[static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = total;
  for (int i = threadIdx.x; confusion != nullptr && i < K * K; i += blockDim.x)
    if (counts[i] != 0) count_global(confusion + i, counts[i]);
}

// loss (+)= dice + the partial sums. One block.
__global__ void __launch_bounds__(kThreads)
    finish_loss(const double* partial, int64_t count, const double* dice, double* loss, bool accumulate) {
  Shared shared;
  double* scratch = shared.take<double>(kReduceScratch);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  const double total = block_sum(sum, scratch);
  if (threadIdx.x == 0) *loss = (accumulate ? *loss : 0) + (dice != nullptr ? *dice : 0) + total;
}

void check(const SoftmaxLoss& a) {
  const TensorView &x = a.logits, &g = a.dlogits;
  const auto fail = [](const std::string& what) { throw KernelError("softmax_loss: " + what); };
  if (x.C < 1 || x.C > kMaxClasses) fail("takes 1 to 32 classes, not " + std::to_string(x.C));
  if (g && (g.N != x.N || g.H != x.H || g.W != x.W || g.C != x.C || g.dtype != x.dtype))
    fail("dlogits must have the shape and type of the logits");
  with_float_type(x.dtype, "softmax_loss", [](auto) {});
  if (a.workspace == nullptr) fail("needs a workspace");
  const LossTerms& t = a.terms;
  if (t.pixel_terms < 0 || t.pixel_terms > kMaxLossTerms || t.dice_terms < 0 || t.dice_terms > kMaxLossTerms)
    fail("takes at most 4 pixel terms and 4 Dice terms");
}

}  // namespace

void softmax_loss(Stream& stream, const SoftmaxLoss& a) {
  check(a);
  const TensorView& x = a.logits;
  const Shape s{static_cast<int64_t>(x.H) * x.W, x.C};
  const unsigned blocks = static_cast<unsigned>((s.image + kLossBlockPixels - 1) / kLossBlockPixels);
  const Dim3 grid{blocks, static_cast<unsigned>(x.N)};
  const int64_t partials = static_cast<int64_t>(blocks) * x.N;
  const bool dice = a.terms.dice_terms > 0 && (a.dlogits || a.loss != nullptr);
  // workspace: the Dice loss, partial (N, blocks), sums (N + 1, 3, K), partial sums (N, blocks, 3, K), coefficients
  double* const dice_loss = static_cast<double*>(a.workspace);
  double* const partial = dice_loss + 1;
  double* const sums = partial + partials;
  float* const partial_sums = reinterpret_cast<float*>(sums + static_cast<int64_t>(x.N + 1) * 3 * s.K);
  float* const coefficients = partial_sums + partials * 3 * s.K;
  const size_t reduce = shared_bytes<double>(kReduceScratch);
  const Pixels logits(x), dlogits(a.dlogits);
  if (dice) {
    launch(stream, "dice_sums", grid, {kThreads}, shared_bytes_of<DiceShared>(s.K), dice_sums, logits, a.mask,
           a.terms.ignore, s, partial_sums);
    launch(stream, "dice_finish", {1}, {kThreads}, reduce, dice_finish, partial_sums, x.N, static_cast<int>(blocks),
           s.K, a.terms, sums, coefficients, dice_loss);
  }
  launch(stream, "pixel_loss", grid, {kThreads}, shared_bytes_of<LossShared>(s.K), pixel_loss, logits, a.mask, s,
         a.terms, dice ? coefficients : nullptr, dlogits, a.loss_scale, partial, a.confusion, a.prediction);
  if (a.loss != nullptr)
    launch(stream, "finish_loss", {1}, {kThreads}, reduce, finish_loss, partial, partials, dice ? dice_loss : nullptr,
           a.loss, a.accumulate_loss);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
