#include "kernels/softmax_loss.h"

#include "kernels/core/atomics.h"
#include "kernels/loss_tiles.h"
#include "kernels/pixel_weights.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr int kThreads = 256;

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
    const int pixels = load_pixels(x, mask, ignore, s, r, at, tile, truth);
    for (int p = threadIdx.x * kPixels; p < pixels; p += blockDim.x * kPixels) {
      const V t = load<V>(truth + p);
      const V sum = exponentials(tile + p, s.K);
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

// The loss of a Tversky term in one class, times its weight, and its derivative by I and by P.
struct Tversky {
  double loss, of_I, of_P;
};
__device__ __forceinline__ Tversky tversky(const LossTerms::Dice& term, double I, double P, double T, double w) {
  const double alpha = term.alpha, rest = 1 - alpha - term.beta, top = I + term.smooth;
  const double bottom = rest * I + alpha * P + term.beta * T + term.smooth;
  if (w == 0 || bottom == 0) return {0, 0, 0};  // bottom 0: as of Dice
  const double base = 1 - top / bottom, miss = base < 0 ? 0 : base;
  const double outer = w * term.power * ::pow(miss < 1e-7 ? 1e-7 : miss, term.power - 1.);
  return {w * ::pow(miss, static_cast<double>(term.power)), outer * (top * rest / bottom - 1) / bottom,
          outer * top * alpha / (bottom * bottom)};
}

// Adds the partial sums up, and makes the Dice terms' loss and coefficients (N, 2, K) of their gradient by p_c:
// b[c], plus a[c] in the pixels whose truth is c. One block. sums: (N + 1, 3, K), the last row the batch's. of_ranks:
// (ranks, 3, K), null at first: the batch's sums of each rank, which have been made before.
__global__ void __launch_bounds__(kThreads)
    dice_finish(const float* partial, int N, int blocks, int K, LossTerms terms, const double* of_ranks, int ranks,
                double* sums, float* coefficients, double* loss) {
  Shared shared;
  double* scratch = shared.take<double>(kReduceScratch);
  for (int i = threadIdx.x; of_ranks == nullptr && i < N * 3 * K; i += blockDim.x) {
    const int n = i / (3 * K), j = i % (3 * K);
    double sum = 0;
    for (int b = 0; b < blocks; ++b) sum += partial[(static_cast<int64_t>(n) * blocks + b) * 3 * K + j];
    sums[i] = sum;
  }
  sync_block();
  for (int j = threadIdx.x; j < 3 * K; j += blockDim.x) {
    const double* const parts = of_ranks == nullptr ? sums : of_ranks;
    double sum = 0;
    for (int n = 0; n < (of_ranks == nullptr ? N : ranks); ++n) sum += parts[n * 3 * K + j];
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
      if (term.tversky) {
        const Tversky t = tversky(term, of[0], of[K], of[2 * K], term.class_weight[c]);
        if (term.per_image || n == 0) mine += t.loss;
        a += t.of_I;
        b += t.of_P;
        continue;
      }
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

// What terms have for each pixel. Most losses have nothing, and a kernel that asks for nothing.
struct NoMaps {
  static constexpr bool any = false;
};
struct Maps {
  static constexpr bool any = true;
  const float* weight[kMaxLossTerms] = {};  // (N, image) of each pixel term; null: 1
  const float* slope = nullptr;             // of the Lovasz term, at [n * image_step + slot[c] * class_step + pixel]
  int64_t image = 0, image_step = 0, class_step = 0;
  int8_t slot[kMaxClasses] = {};  // -1: the class has none

  __device__ __forceinline__ V weigh(int term, int64_t n, int64_t pixel, const V& w) const {
    return weight[term] == nullptr ? w : w * load<V>(weight[term] + n * image + pixel);
  }
  __device__ __forceinline__ V slope_of(int c, int64_t n, int64_t pixel) const {
    return slot[c] < 0 ? V(0) : load<V>(slope + n * image_step + slot[c] * class_step + pixel);
  }
};

// The sum of the pixel terms. weights: (terms, K + 1) by true class t; n, pixel: the first of the vector's.
template <class M>
__device__ __forceinline__ V pixel_terms(const LossTerms& terms, const float* weights, int K, const V& t, const V& p,
                                         const V& log_p, const V& mean_log_p, PixelGradient<V>& g,
                                         [[maybe_unused]] const M& maps, [[maybe_unused]] int64_t n,
                                         [[maybe_unused]] int64_t pixel) {
  V loss(0);
  for (int j = 0; j < terms.pixel_terms; ++j) {
    V w = look_up(weights + j * (K + 1), t);
    if constexpr (M::any) w = maps.weigh(j, n, pixel, w);
    loss += pixel_term(terms.pixel[j], w, K, p, log_p, mean_log_p, g);
  }
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
template <class M>
__global__ void __launch_bounds__(kThreads)
    pixel_loss(Pixels x, const uint8_t* mask, Shape s, LossTerms terms, const float* coefficients, Pixels dx,
               const float* loss_scale, double* partial, int64_t* confusion, uint8_t* prediction, M maps) {
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
    const int pixels = load_pixels(x, mask, terms.ignore, s, r, at, tile, truth);
    const int64_t begin = blockIdx.y * s.image + at;
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
                                 above_sum * V(1.f / static_cast<float>(K)) - log_sum, g, maps, blockIdx.y, at + p);
      loss += select(valid, mine, V(0));
      if (!dx.map) continue;
      if (dice) {
        const V at_t = look_up(dice_a, t) * p_t;
        V mean(0);
        for (int k = 0; k < K; ++k) mean += V(dice_b[k]) * load<V>(here + k * kTile);
        g.of_t += at_t;
        g.of_p += V(0) - at_t - mean * over_sum;
      }
      if constexpr (M::any) {
        V mean(0);
        for (int k = 0; maps.slope != nullptr && k < K; ++k)
          mean += maps.slope_of(k, blockIdx.y, at + p) * load<V>(here + k * kTile);
        g.of_p += V(0) - mean * over_sum;
      }
      for (int k = 0; k < K; ++k) {
        V of_k = g.of_p + V(dice_b[k]);
        if constexpr (M::any) {
          if (maps.slope != nullptr) of_k += maps.slope_of(k, blockIdx.y, at + p);
        }
        const V slope = fma(load<V>(here + k * kTile) * over_sum, of_k, g.constant);
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

// loss (+)= dice + the partial sums + the Lovasz term's of its groups. One block.
__global__ void __launch_bounds__(kThreads)
    finish_loss(const double* partial, int64_t count, const double* dice, const double* lovasz, int groups,
                double* loss, bool accumulate) {
  Shared shared;
  double* scratch = shared.take<double>(kReduceScratch);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  const double total = block_sum(sum, scratch);
  if (threadIdx.x != 0) return;
  double all = (accumulate ? *loss : 0) + (dice != nullptr ? *dice : 0) + total;
  for (int g = 0; lovasz != nullptr && g < groups; ++g) all += lovasz[g];
  *loss = all;
}

// loss[n] (+)= factor * what the terms give for the image, of a batch of that many. Grid: N. sums: of the Dice terms,
// (N + 1, 3, K); null: none
__global__ void __launch_bounds__(kThreads)
    finish_images(const double* partial, int blocks, LossTerms terms, int K, int batch, const double* sums,
                  const double* lovasz, double factor, double* loss, bool accumulate) {
  Shared shared;
  double* scratch = shared.take<double>(kReduceScratch);
  const int n = static_cast<int>(blockIdx.x), N = static_cast<int>(gridDim.x);
  double sum = 0;
  for (int i = threadIdx.x; i < blocks; i += blockDim.x) sum += partial[static_cast<int64_t>(n) * blocks + i];
  for (int c = threadIdx.x; sums != nullptr && c < K; c += blockDim.x) {
    for (int j = 0; j < terms.dice_terms; ++j) {
      const LossTerms::Dice& term = terms.dice[j];
      const double* of = sums + static_cast<int64_t>(term.per_image ? n : N) * 3 * K + c;
      const double w = term.class_weight[c] / (term.per_image ? 1. : batch);
      const double bottom = of[K] + of[2 * K] + term.smooth;
      if (term.tversky)
        sum += tversky(term, of[0], of[K], of[2 * K], w).loss;
      else if (w != 0 && bottom != 0)
        sum += w * (1 - (2 * of[0] + term.smooth) / bottom);
    }
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x != 0) return;
  if (lovasz != nullptr) sum += terms.lovasz.per_image ? lovasz[n] : lovasz[0] / batch;
  loss[n] = (accumulate ? loss[n] : 0) + factor * sum;
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
  if (a.ranks != nullptr && (a.ranks->size() > BatchRanks::kMost || (t.has_lovasz && !t.lovasz.per_image)))
    fail("takes at most " + std::to_string(BatchRanks::kMost) + " ranks, and these without Lovasz over the batch");
  if (t.pixel_terms < 0 || t.pixel_terms > kMaxLossTerms || t.dice_terms < 0 || t.dice_terms > kMaxLossTerms)
    fail("takes at most 4 pixel terms and 4 Dice terms");
}

// What pixel_loss takes from the kernels before it.
struct Extras {
  bool any = false;
  Maps maps;
  const double* lovasz = nullptr;  // (groups)
};

// Computes the maps, in the end of the workspace.
Extras make_maps(Stream& stream, const SoftmaxLoss& a) {
  const TensorView& x = a.logits;
  const LossTerms& terms = a.terms;
  const size_t bytes = loss_maps_workspace(x.N, x.H, x.W, x.C, terms);
  Extras e;
  if (bytes == 0) return e;
  e.any = true;
  e.maps.image = static_cast<int64_t>(x.H) * x.W;
  const size_t before = softmax_loss_workspace(x.N, x.H, x.W, x.C, terms) - bytes;
  unsigned char* next = static_cast<unsigned char*>(a.workspace) + (before + 255) / 256 * 256;
  const auto take = [&](size_t piece) { return std::exchange(next, next + piece); };
  void* scratch = nullptr;
  for (int j = 0; j < terms.pixel_terms; ++j) {
    if (!terms.pixel[j].weighs_pixels()) continue;
    if (scratch == nullptr) scratch = take(loss_map_bytes(x.pixels()));
    float* const weights = reinterpret_cast<float*>(take(loss_map_bytes(x.pixels())));
    pixel_weights(stream, {x, a.mask, terms.ignore, terms.pixel[j], weights, scratch});
    e.maps.weight[j] = weights;
  }
  if (!terms.has_lovasz) return e;
  const LovaszSegments segments(x.N, x.H, x.W, x.C, terms.lovasz);
  float* const slope = reinterpret_cast<float*>(take(loss_map_bytes(segments.items())));
  double* const loss = reinterpret_cast<double*>(take(loss_map_bytes(2 * segments.groups)));
  lovasz(stream, {x, a.mask, terms.ignore, terms.lovasz, slope, loss, next});
  e.maps.slope = slope;
  e.maps.class_step = segments.pixels;
  e.maps.image_step = terms.lovasz.per_image ? segments.classes * segments.pixels : e.maps.image;
  std::copy_n(segments.slot, kMaxClasses, e.maps.slot);
  e.lovasz = loss;
  return e;
}

}  // namespace

void softmax_loss(Stream& stream, const SoftmaxLoss& a) {
  check(a);
  const TensorView& x = a.logits;
  const Shape s{static_cast<int64_t>(x.H) * x.W, x.C};
  const unsigned blocks = static_cast<unsigned>((s.image + kLossBlockPixels - 1) / kLossBlockPixels);
  const Dim3 grid{blocks, static_cast<unsigned>(x.N)};
  const int64_t partials = static_cast<int64_t>(blocks) * x.N;
  const bool learns = a.dlogits || a.loss != nullptr || a.image_loss != nullptr;
  const bool dice = a.terms.dice_terms > 0 && learns;
  // workspace: the Dice loss, partial (N, blocks), sums (N + 1, 3, K), the ranks' (kMost, 3, K), partial sums
  // (N, blocks, 3, K), coefficients, the maps
  double* const dice_loss = static_cast<double*>(a.workspace);
  double* const partial = dice_loss + 1;
  double* const sums = partial + partials;
  double* const of_ranks = sums + static_cast<int64_t>(x.N + 1) * 3 * s.K;
  float* const partial_sums = reinterpret_cast<float*>(of_ranks + BatchRanks::kMost * 3 * s.K);
  float* const coefficients = partial_sums + partials * 3 * s.K;
  const size_t reduce = shared_bytes<double>(kReduceScratch);
  const Pixels logits(x), dlogits(a.dlogits);
  if (dice) {
    launch(stream, "dice_sums", grid, {kThreads}, shared_bytes_of<DiceShared>(s.K), dice_sums, logits, a.mask,
           a.terms.ignore, s, partial_sums);
    const auto finish = [&](const double* each, int ranks) {
      launch(stream, "dice_finish", {1}, {kThreads}, reduce, dice_finish, partial_sums, x.N, static_cast<int>(blocks),
             s.K, a.terms, each, ranks, sums, coefficients, dice_loss);
    };
    finish(nullptr, 0);
    if (a.ranks != nullptr) {
      a.ranks->gather(stream, sums + static_cast<int64_t>(x.N) * 3 * s.K, 3 * s.K * sizeof(double), of_ranks);
      finish(of_ranks, a.ranks->size());
    }
  }
  const Extras extras = a.mask != nullptr && learns ? make_maps(stream, a) : Extras{};
  const auto pixels = [&](auto maps) {
    launch(stream, "pixel_loss", grid, {kThreads}, shared_bytes_of<LossShared>(s.K), pixel_loss<decltype(maps)>, logits,
           a.mask, s, a.terms, dice ? coefficients : nullptr, dlogits, a.loss_scale, partial, a.confusion, a.prediction,
           maps);
  };
  extras.any ? pixels(extras.maps) : pixels(NoMaps{});
  if (a.loss != nullptr)
    launch(stream, "finish_loss", {1}, {kThreads}, reduce, finish_loss, partial, partials, dice ? dice_loss : nullptr,
           extras.lovasz, a.terms.lovasz.per_image ? x.N : 1, a.loss, a.accumulate_loss);
  if (a.image_loss != nullptr)
    launch(stream, "image_loss", {static_cast<unsigned>(x.N)}, {kThreads}, reduce, finish_images, partial,
           static_cast<int>(blocks), a.terms, s.K, a.ranks == nullptr ? x.N : a.ranks->images(), dice ? sums : nullptr,
           extras.lovasz, a.image_factor, a.image_loss, a.accumulate_image_loss);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
