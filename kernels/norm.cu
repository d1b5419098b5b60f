#include "kernels/norm.h"

#include <numeric>
#include <utility>

#include "kernels/conv_tile.h"
#include "kernels/core/dropout.h"
#include "kernels/core/reduce.h"

// The passes: moments, application, gradient sums, input gradient. Where group norm has samples enough to keep the
// machine busy, a block does all passes over a bundle of whole groups of one sample: on the fast host over all
// channels, whose map stays in the caches; on a GPU over as few channels as memory accesses allow, kept in shared
// memory between the passes where they fit (else most of them are still in L2). Otherwise each pass is a launch over
// the whole machine.
namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr int kThreads = 256, kBundleThreads = 512;
constexpr int kAhead = 16;  // pixels that are prefetched before they are used
using One = Pack<1, 1>;

// The channels c0 to c0 + C of a sample, which a block normalises.
struct Part {
  int64_t sample, pixels;
  int c0, C, D;   // D: channels of a group
  int64_t first;  // group, an index into mean and rstd
  __device__ __forceinline__ Part(const Norm& k, int64_t at, int from, int channels)
      : sample(at),
        pixels(k.pixels()),
        c0(from),
        C(channels),
        D(k.group_channels()),
        first(at * (k.x.C / D) + from / D) {}
  template <class T>
  __device__ __forceinline__ Plane<T> of(const TensorView& m) const {
    return Plane<T>(m, pixels * sample, c0);
  }
};

// Mean and squared deviations of the pixels of `range`, a channel each, to mean[C] and m2[C]. Every thread shifts by
// its first pixel, so that cancellation loses at most the number of pixels of a thread. `tile`: null, or keeps what was
// read, densely; the thread that wrote an element there may read it again without a barrier.
template <class T, class P>
REGOLITH_DEVICE_LOOP void moments(Plane<const T> x, Range range, int C, T* tile, float* mean, float* m2,
                                  float* scratch) {
  block_reduce<P, Moments<P>>(
      range, cache_block<T>(range.end - range.begin, C), C, scratch,
      [&](Moments<P>& m, int c, int64_t first, int64_t last, int step) {
        if (first >= last) return;
        const P shift = load_pack<P>(x.at(first, c));
        P a(0), b(0);
        const auto add = [&](const P& value) {
          const P d = value - shift;
          a += d;
          b = fma(d, d, b);
        };
        if (tile == nullptr) {
          for (int64_t p = first; p < last; p += step) add(load_pack<P>(x.at(p, c)));
        } else {
          for (int64_t p = first; p < last; p += step) {
            const P value = load_pack<P>(x.at(p, c));
            store_pack(tile + (p - range.begin) * C + c, value);
            add(value);
          }
        }
        m.count = static_cast<float>((last - first + step - 1) / step);
        const P mean_of_a = a * P(1 / m.count);
        m.mean = shift + mean_of_a;
        m.m2 = max(P(0), b - a * mean_of_a);
      },
      [&](Moments<P>& m, int c, int64_t done) {
        if (done > 0) {
          const P late_mean = m.mean, late_m2 = m.m2;
          const float late_count = m.count;
          m.mean = load_pack<P>(mean + c);
          m.m2 = load_pack<P>(m2 + c);
          m.count = static_cast<float>(done);
          m.merge(late_mean, late_m2, late_count);
        }
        store_pack(mean + c, m.mean);
        store_pack(m2 + c, m.m2);
      });
}

// Coefficients of the elementwise passes, by channel, in shared memory: h = (x - mean) * scale + beta.
struct Channels {
  float *mean, *scale, *beta;  // (C) each
  template <class A>
  REGOLITH_HOST_DEVICE Channels(A& a, int C) {
    a.take_each(C, mean, scale, beta);
  }
  // Computes them from the statistics of the part. All threads call it; it ends with a barrier.
  __device__ __forceinline__ void fill(const Norm& k, const Part& part) const {
    for (int c = static_cast<int>(threadIdx.x); c < part.C; c += static_cast<int>(blockDim.x)) {
      mean[c] = k.mean[part.first + c / part.D];
      scale[c] = k.rstd[part.first + c / part.D] * k.gamma[part.c0 + c];
      beta[c] = k.beta[part.c0 + c];
    }
    sync_block();
  }
};
template <class P>
struct Affine {
  P mean, scale, beta;
  __device__ __forceinline__ Affine(const Channels& k, int c)
      : mean(load_pack<P>(k.mean + c)), scale(load_pack<P>(k.scale + c)), beta(load_pack<P>(k.beta + c)) {}
  __device__ __forceinline__ P operator()(const P& x) const { return fma(x - mean, scale, beta); }
};

// What a part's pixels are multiplied by, or nothing.
template <bool kDrops>
struct Drop {
  static constexpr bool draws = false;
  __device__ __forceinline__ Drop(const Norm&, const Part&, const DropoutNumbers&) {}
  template <class P>
  __device__ __forceinline__ P operator()(const P& v, int64_t, int) const {
    return v;
  }
};
template <>
class Drop<true> {
 public:
  static constexpr bool draws = true;
  __device__ __forceinline__ Drop(const Norm& k, const Part& part, const DropoutNumbers& numbers)
      : factors_(numbers),
        spatial_(numbers.spatial),
        c0_(part.c0),
        C_(k.x.C),
        sample_(static_cast<int>(part.sample)),
        image_(k.x.H * k.x.W),
        begin_(-image_) {}
  // v of pixel p of the part, from its channel c on.
  template <int L, int K>
  __device__ __forceinline__ Pack<L, K> operator()(const Pack<L, K>& v, int64_t p, int c) {
    if (p < begin_ || p >= begin_ + image_) {  // of batch norm, whose part is all samples
      const int64_t n = p / image_;
      begin_ = n * image_;
      factors_.sample(sample_ + static_cast<int>(n));
    }
    const int64_t first = (spatial_ ? 0 : (p - begin_) * C_) + c0_ + c;
    Pack<L, K> r;
    REGOLITH_UNROLL
    for (int k = 0; k < K; ++k) r.v[k] = v.v[k] * factors_.template at<L>(first + k * L);
    return r;
  }

 private:
  DropoutFactors<64> factors_;
  bool spatial_;
  int c0_, C_, sample_, image_;
  int64_t begin_;  // of the sample
};

// y = act((x - mean) * scale + beta (+ residual)) (* dropout) over the pixels of `range`; where `sums` is not null, the
// sum of y before its rounding, a channel each, as well.
template <class T, class P, class D>
REGOLITH_DEVICE_LOOP void apply(Plane<const T> x, Plane<const T> residual, Plane<T> y, bool relu, Range range, int C,
                                Channels channels, D& drop, float* sums, float* scratch) {
  const float least = relu ? 0 : -INFINITY;
  const auto each = [&](const Affine<P>& affine, int64_t p, int c) {
    y.ahead(p + kAhead, c);
    P h = affine(load_pack<P>(x.at(p, c)));
    if (residual.data != nullptr) h += load_pack<P>(residual.at(p, c));
    h = drop(max(P(least), h), p, c);
    store_pack(y.at(p, c), h);
    return h;
  };
  if (sums == nullptr) {
    for_each_tile<T, P>(range, C, [&](int c, int64_t first, int64_t last, int step) {
      const Affine<P> affine(channels, c);
      for (int64_t p = first; p < last; p += step) each(affine, p, c);
    });
    return;
  }
  block_reduce<P, Sums<P>>(
      range, cache_block<T>(range.end - range.begin, C), C, scratch,
      [&](Sums<P>& s, int c, int64_t first, int64_t last, int step) {
        const Affine<P> affine(channels, c);
        for (int64_t p = first; p < last; p += step) s[0] += each(affine, p, c);
      },
      [&](Sums<P>& s, int c, int64_t done) {
        if (done > 0) s[0] += load_pack<P>(sums + c);
        store_pack(sums + c, s[0]);
      });
}

template <class T>
struct GradientPlanes {
  Plane<const T> x, y, dy;
  Plane<T> dx, dresidual;
  bool relu, accumulate_dx, accumulate_dresidual;
  float kept;  // what dropout multiplies by where y is not zero
  __device__ __forceinline__ GradientPlanes(const NormBackward& k, const Part& part, const DropoutNumbers& numbers)
      : x(part.of<const T>(k.norm.x)),
        y(part.of<const T>(k.y)),
        dy(part.of<const T>(k.dy)),
        dx(part.of<T>(k.dx)),
        dresidual(part.of<T>(k.dresidual)),
        relu(k.norm.relu),
        accumulate_dx(k.accumulate_dx),
        accumulate_dresidual(k.accumulate_dresidual),
        kept(numbers.scale) {}
  // The gradient at the input of the activation. `drop` draws where there is no y, and only there.
  template <class P, class D>
  __device__ __forceinline__ P gradient(const Affine<P>& affine, const P& value, int64_t p, int c, D& drop) const {
    const P g = load_pack<P>(dy.at(p, c));
    if constexpr (!D::draws) {
      if (y.data != nullptr) return where_positive(load_pack<P>(y.at(p, c)), g * P(kept));
    }
    return drop(relu ? where_positive(affine(value), g) : g, p, c);
  }
};

// Per channel over the pixels of `range`: sum[C] of the gradient g, and moment[C] of g * (x - mean). kWrites: and
// dresidual = g.
template <class T, class P, bool kWrites, class D>
REGOLITH_DEVICE_LOOP void gradient_sums(GradientPlanes<T> a, Range range, int C, Channels channels, D& drop, float* sum,
                                        float* moment, float* scratch) {
  block_reduce<P, Sums<P, 2>>(
      range, cache_block<T>(range.end - range.begin, C), C, scratch,
      [&](Sums<P, 2>& s, int c, int64_t first, int64_t last, int step) {
        const Affine<P> affine(channels, c);
        for (int64_t p = first; p < last; p += step) {
          a.dy.ahead(p + kAhead, c);
          const P value = load_pack<P>(a.x.at(p, c)), g = a.gradient(affine, value, p, c, drop);
          if constexpr (kWrites) store_pack(a.dresidual.at(p, c), g, a.accumulate_dresidual);
          s[0] += g;
          s[1] = fma(g, value - affine.mean, s[1]);
        }
      },
      [&](Sums<P, 2>& s, int c, int64_t done) {
        if (done > 0) {
          s[0] += load_pack<P>(sum + c);
          s[1] += load_pack<P>(moment + c);
        }
        store_pack(sum + c, s[0]);
        store_pack(moment + c, s[1]);
      });
}

// dx = scale * g + slope * (x - mean) + offset, and dresidual = g.
template <class T, class P, class D>
REGOLITH_DEVICE_LOOP void apply_gradient(GradientPlanes<T> a, Range range, int C, Channels channels, D& drop,
                                         const float* slope, const float* offset) {
  for_each_tile<T, P>(range, C, [&](int c, int64_t first, int64_t last, int step) {
    const Affine<P> affine(channels, c);
    const P b = load_pack<P>(slope + c), e = load_pack<P>(offset + c);
#if defined(__CUDACC__)
#pragma unroll 1  // more would spill: there are enough loads in one round
#endif
    for (int64_t p = first; p < last; p += step) {
      a.dy.ahead(p + kAhead, c);
      const P value = load_pack<P>(a.x.at(p, c)), g = a.gradient(affine, value, p, c, drop);
      if (a.dx.data != nullptr)
        store_pack(a.dx.at(p, c), fma(affine.scale, g, fma(b, value - affine.mean, e)), a.accumulate_dx);
      if (a.dresidual.data != nullptr) store_pack(a.dresidual.at(p, c), g, a.accumulate_dresidual);
    }
  });
}

// The two coefficients of apply_gradient from the sums, over so many pixels, of g and of g * (x - mean) * rstd: with
// m = D * pixels values a group, slope = -rstd^2 / m * sum_D(gamma * moment), offset = -rstd / m * sum_D(gamma * sum).
// Statistics that are constants have none. Ends with a barrier.
__device__ __forceinline__ void fill_gradient(const Norm& k, const Part& part, float pixels, const float* sum,
                                              const float* moment, float* slope, float* offset) {
  const int D = part.D;
  const float *rstd = k.rstd + part.first, *gamma = k.gamma + part.c0, values = pixels * static_cast<float>(D);
  for (int g = static_cast<int>(threadIdx.x); g < part.C / D; g += static_cast<int>(blockDim.x)) {
    float a = 0, b = 0;
    for (int c = g * D; c < g * D + D; ++c) {
      a += gamma[c] * sum[c];
      b += gamma[c] * moment[c];
    }
    for (int c = g * D; c < g * D + D; ++c) {
      offset[c] = k.training ? -rstd[g] * a / values : 0;
      slope[c] = k.training ? -rstd[g] * rstd[g] * b / values : 0;
    }
  }
  sync_block();
}

// The sum over the part's pixels of what apply_gradient makes of channel c. `sum`: of g.
__device__ __forceinline__ float gradient_sum(const Norm& k, const Part& part, const Channels& channels,
                                              const float* sum, const float* slope, const float* offset, int c) {
  const float deviation = k.deviation == nullptr ? 0 : k.deviation[part.sample * k.x.C + part.c0 + c];
  return channels.scale[c] * sum[c] + static_cast<float>(part.pixels) * (slope[c] * deviation + offset[c]);
}

// Of group g of the part, by its channels' moments: its mean, 1 / sqrt(variance + epsilon), deviations. Returns the
// variance.
__device__ __forceinline__ float finish_group(const Norm& k, const Part& part, int g, const float* means,
                                              const float* m2s, float epsilon) {
  const int D = part.D;
  const float pixels = static_cast<float>(part.pixels);
  means += g * D, m2s += g * D;
  float m = 0, q = 0;
  for (int c = 0; c < D; ++c) m += means[c];
  m /= static_cast<float>(D);
  for (int c = 0; c < D; ++c) q += m2s[c] + (means[c] - m) * (means[c] - m) * pixels;
  if (k.deviation != nullptr) {
    float* const deviation = k.deviation + part.sample * k.x.C + part.c0 + g * D;
    for (int c = 0; c < D; ++c) deviation[c] = means[c] - m;
  }
  const float variance = q / (pixels * static_cast<float>(D));
  k.mean[part.first + g] = m;
  k.rstd[part.first + g] = 1 / sqrtf(variance + epsilon);
  return variance;
}

// A block does all passes over `channels` channels of sample y, from channel x * channels.

template <class T>
struct BundleShared {
  Channels channels;
  float *m2, *scratch;  // (channels), (scratch)
  T* tile;              // (pixels, channels), or empty
  template <class A>
  REGOLITH_HOST_DEVICE BundleShared(A& a, int C, size_t folds, size_t elements) : channels(a, C) {
    a.take(m2, C);
    a.take(scratch, folds);
    a.take(tile, elements);
  }
};
template <class P>
REGOLITH_HOST_DEVICE size_t bundle_scratch(int channels) {
  const int packs = channels / P::size;
  const size_t a = reduce_scratch<Moments<P>>(kBundleThreads, packs),
               b = reduce_scratch<Sums<P>>(kBundleThreads, packs);
  return a > b ? a : b;
}

template <class T, class P, bool kTile, bool kDrops>
__global__ void __launch_bounds__(kBundleThreads, 1)
    group_norm_bundle(NormForward k, DropoutNumbers numbers, int channels) {
  const Part part(k.norm, blockIdx.y, static_cast<int>(blockIdx.x) * channels, channels);
  const BundleShared<T> s = take_shared<BundleShared<T>>(channels, bundle_scratch<P>(channels),
                                                         kTile ? static_cast<size_t>(part.pixels) * channels : 0);
  const Range all{0, part.pixels};
  Plane<const T> x = part.of<const T>(k.norm.x);
  moments<T, P>(x, all, channels, kTile ? s.tile : nullptr, s.channels.mean, s.m2, s.scratch);
  sync_block();
  for (int g = static_cast<int>(threadIdx.x); g < channels / part.D; g += static_cast<int>(blockDim.x))
    finish_group(k.norm, part, g, s.channels.mean, s.m2, k.epsilon);
  sync_block();
  s.channels.fill(k.norm, part);
  if (kTile) x = {s.tile, channels};
  Drop<kDrops> drop(k.norm, part, numbers);
  apply<T, P>(x, part.of<const T>(k.residual), part.of<T>(k.y), k.norm.relu, all, channels, s.channels, drop,
              k.sums == nullptr ? nullptr : k.sums + part.sample * k.norm.x.C + part.c0, s.scratch);
}

// `sums`, `coefficients`: whether a pass keeps these of its own.
struct PassShared {
  Channels channels;
  float *sum, *moment, *slope, *offset, *scratch;  // (C) each but the last
  template <class A>
  REGOLITH_HOST_DEVICE PassShared(A& a, int C, bool sums, bool coefficients, size_t folds) : channels(a, C) {
    a.take_each(sums ? C : 0, sum, moment);
    a.take_each(coefficients ? C : 0, slope, offset);
    a.take(scratch, folds);
  }
};

// Rows of C sums that a sample has in backward: of g, of g * (x - mean) * rstd, and of dx where these are wanted.
REGOLITH_HOST_DEVICE int total_rows(const NormBackward& k) { return k.dx_sums != nullptr ? 3 : 2; }

// totals: (N, total_rows(), C).
template <class T, class P, bool kDrops>
__global__ void __launch_bounds__(kBundleThreads, 1)
    group_norm_bundle_gradient(NormBackward k, DropoutNumbers numbers, int channels, float* totals) {
  const PassShared s =
      take_shared<PassShared>(channels, true, true, reduce_scratch<Sums<P, 2>>(kBundleThreads, channels / P::size));
  const Part part(k.norm, blockIdx.y, static_cast<int>(blockIdx.x) * channels, channels);
  const GradientPlanes<T> planes(k, part, numbers);
  Drop<kDrops> drop(k.norm, part, numbers);
  const Range all{0, part.pixels};
  s.channels.fill(k.norm, part);
  gradient_sums<T, P, false>(planes, all, channels, s.channels, drop, s.sum, s.moment, s.scratch);
  sync_block();
  for (int c = static_cast<int>(threadIdx.x); c < channels; c += static_cast<int>(blockDim.x)) {
    float* total = totals + part.sample * total_rows(k) * k.norm.x.C + part.c0 + c;
    s.moment[c] *= k.norm.rstd[part.first + c / part.D];
    total[0] = s.sum[c];
    total[k.norm.x.C] = s.moment[c];
  }
  sync_block();
  fill_gradient(k.norm, part, static_cast<float>(part.pixels), s.sum, s.moment, s.slope, s.offset);
  if (k.dx_sums != nullptr) {
    float* of_dx = totals + (part.sample * 3 + 2) * k.norm.x.C + part.c0;
    for (int c = static_cast<int>(threadIdx.x); c < channels; c += static_cast<int>(blockDim.x))
      of_dx[c] = gradient_sum(k.norm, part, s.channels, s.sum, s.slope, s.offset, c);
  }
  apply_gradient<T, P>(planes, all, channels, s.channels, drop, s.slope, s.offset);
}

// The passes as launches of their own. Block x takes its range of the pixels of sample y.

__device__ __forceinline__ Part whole_part(const Norm& k) { return Part(k, blockIdx.y, 0, k.x.C); }
// Where this block leaves `width` partial results a channel: (S, B, width, C).
__device__ __forceinline__ float* partials_of_block(float* partials, int width) {
  return partials + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * width;
}

template <class T, class P>
__global__ void __launch_bounds__(kThreads, 3) norm_statistics(Norm k) {
  Shared shared;
  float* scratch = shared.take<float>(reduce_scratch<Moments<P>>(kThreads, k.x.C / P::size));
  const Part part = whole_part(k);
  float* mine = partials_of_block(static_cast<float*>(k.workspace), 2 * part.C);
  moments<T, P>(part.of<const T>(k.x), block_range(part.pixels), part.C, nullptr, mine, mine + part.C, scratch);
}

struct CombineShared {
  float *scratch, *means, *m2s;  // the last two (channels)
  template <class A>
  REGOLITH_HOST_DEVICE CombineShared(A& a, int channels) {
    a.take(scratch, kWarp > 1 ? kThreads * Moments<One>::floats : 0);
    a.take_each(channels, means, m2s);
  }
};

// The rows of NormForward::on_load of group g of the part, whose statistics are known.
__device__ __forceinline__ void leave_on_load(const NormForward& k, const Part& part, int g) {
  if (k.on_load == nullptr) return;
  const int C = k.norm.x.C;
  for (int c = part.c0 + g * part.D; c < part.c0 + (g + 1) * part.D; ++c) {
    float* const to = k.on_load + part.sample * 3 * C + c;
    to[0] = k.norm.mean[part.first + g];
    to[C] = k.norm.rstd[part.first + g] * k.norm.gamma[c];
    to[2 * C] = k.norm.beta[c];
  }
}

// The part's statistics, the running ones too, from its channels' moments.
__device__ __forceinline__ void finish_statistics(const NormForward& k, const Part& part, const float* means,
                                                  const float* m2s) {
  float keep = k.momentum;
  if (k.step != nullptr) {
    const float t = static_cast<float>(*k.step), early = (1 + t) / (10 + t);
    keep = early < k.momentum ? early : k.momentum;
  }
  for (int g = static_cast<int>(threadIdx.x); g < part.C / part.D; g += static_cast<int>(blockDim.x)) {
    const float variance = finish_group(k.norm, part, g, means, m2s, k.epsilon);
    if (k.running_mean != nullptr) {
      const int c = part.c0 + g;
      const float bias = k.x_bias == nullptr ? 0 : k.x_bias[c];
      k.running_mean[c] = keep * k.running_mean[c] + (1 - keep) * (k.norm.mean[part.first + g] + bias);
      k.running_variance[c] = keep * k.running_variance[c] + (1 - keep) * variance;
    }
    leave_on_load(k, part, g);
  }
}

// Merges the moments of a sample's blocks, or strips, then of a group's channels. Block x has `width` channels of
// sample y. moments: of batch norm, (2, C) and the number of pixels, which ranks merge; null: the statistics follow
// from these.
__global__ void __launch_bounds__(kThreads) norm_combine(NormForward k, int blocks, int width, float* moments) {
  const int all = k.norm.x.C, from = static_cast<int>(blockIdx.x) * width;
  const Part part(k.norm, blockIdx.y, from, all - from < width ? all - from : width);
  const CombineShared s = take_shared<CombineShared>(width);
  const int64_t each = (part.pixels + blocks - 1) / blocks;
  const bool strips = k.x_moments != nullptr;
  const float* partial =
      (strips ? k.x_moments : static_cast<const float*>(k.norm.workspace)) + part.sample * blocks * 2 * all + part.c0;
  const int H = k.norm.x.H, W = k.norm.x.W, per_image = tile_strips(H);
  block_reduce<One, Moments<One>>(
      {0, blocks}, blocks, part.C, s.scratch,
      [&](Moments<One>& m, int c, int64_t first, int64_t last, int step) {
        for (int64_t b = first; b < last; b += step) {
          const float* of_block = partial + b * 2 * all + c;
          int64_t count = part.pixels - b * each;
          if (strips) count = (H - static_cast<int>(b % per_image) * kTileStrip) * W;
          const int64_t most = strips ? kTileStrip * W : each;
          m.merge(load_pack<One>(of_block), load_pack<One>(of_block + all),
                  static_cast<float>(count < most ? count : most));
        }
      },
      [&](Moments<One>& m, int c, int64_t) {
        store_pack(s.means + c, m.mean);
        store_pack(s.m2s + c, m.m2);
      });
  sync_block();
  if (moments == nullptr) return finish_statistics(k, part, s.means, s.m2s);
  for (int c = static_cast<int>(threadIdx.x); c < part.C; c += static_cast<int>(blockDim.x)) {
    moments[from + c] = s.means[c];
    moments[all + from + c] = s.m2s[c];
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) moments[2 * all] = static_cast<float>(part.pixels);
}

// moments: (ranks, 2 * C + 1), each as norm_combine leaves them. Block x has `width` channels.
__global__ void __launch_bounds__(kThreads)
    norm_combine_ranks(NormForward k, const float* moments, int ranks, int width) {
  const int all = k.norm.x.C, from = static_cast<int>(blockIdx.x) * width;
  Part part(k.norm, 0, from, all - from < width ? all - from : width);
  const CombineShared s = take_shared<CombineShared>(width);
  part.pixels = 0;
  for (int r = 0; r < ranks; ++r) part.pixels += static_cast<int64_t>(moments[r * (2 * all + 1) + 2 * all]);
  for (int c = static_cast<int>(threadIdx.x); c < part.C; c += static_cast<int>(blockDim.x)) {
    Moments<One> m;
    for (int r = 0; r < ranks; ++r) {
      const float* const of_rank = moments + r * (2 * all + 1) + from + c;
      m.merge(load_pack<One>(of_rank), load_pack<One>(of_rank + all), moments[r * (2 * all + 1) + 2 * all]);
    }
    store_pack(s.means + c, m.mean);
    store_pack(s.m2s + c, m.m2);
  }
  sync_block();
  finish_statistics(k, part, s.means, s.m2s);
}

__global__ void __launch_bounds__(kThreads) norm_given(NormForward k) {
  const Range r = block_range(k.norm.x.C);
  for (int64_t c = r.begin + threadIdx.x; c < r.end; c += blockDim.x) {
    k.norm.mean[c] = k.running_mean[c];
    k.norm.rstd[c] = 1 / sqrtf(k.running_variance[c] + k.epsilon);
    leave_on_load(k, Part(k.norm, 0, 0, k.norm.x.C), static_cast<int>(c));
  }
}

// The statistics of sample x from the sums of its channels. In double, for the mean's square is taken away.
__global__ void __launch_bounds__(kThreads) norm_from_sums(NormForward k) {
  const Part part(k.norm, blockIdx.x, 0, k.norm.x.C);
  const float *sums = k.x_sums + part.sample * 2 * part.C, *squares = sums + part.C;
  const double values = static_cast<double>(part.pixels) * part.D;
  for (int g = static_cast<int>(threadIdx.x); g < part.C / part.D; g += static_cast<int>(blockDim.x)) {
    double sum = 0, square = 0;
    for (int c = g * part.D; c < g * part.D + part.D; ++c) sum += sums[c], square += squares[c];
    const double mean = sum / values, variance = square / values - mean * mean;
    k.norm.mean[part.first + g] = static_cast<float>(mean);
    k.norm.rstd[part.first + g] = 1 / sqrtf(static_cast<float>(variance < 0 ? 0 : variance) + k.epsilon);
  }
}

__global__ void __launch_bounds__(kThreads) norm_affine(NormForward k) {
  const Part part(k.norm, blockIdx.x, 0, k.norm.x.C);
  float *scale = k.affine + part.sample * 2 * part.C, *shift = scale + part.C;
  for (int c = static_cast<int>(threadIdx.x); c < part.C; c += static_cast<int>(blockDim.x)) {
    const int64_t g = part.first + c / part.D;
    scale[c] = k.norm.rstd[g] * k.norm.gamma[c];
    shift[c] = k.norm.beta[c] - k.norm.mean[g] * scale[c];
  }
}

// partial: (S, B, C), or null.
template <class T, class P, bool kDrops>
__global__ void __launch_bounds__(kThreads, 3)
    norm_apply(NormForward k, DropoutNumbers numbers, size_t folds, float* partial) {
  const Part part = whole_part(k.norm);
  const PassShared s = take_shared<PassShared>(part.C, false, false, folds);
  s.channels.fill(k.norm, part);
  Drop<kDrops> drop(k.norm, part, numbers);
  apply<T, P>(part.of<const T>(k.norm.x), part.of<const T>(k.residual), part.of<T>(k.y), k.norm.relu,
              block_range(part.pixels), part.C, s.channels, drop,
              partial == nullptr ? nullptr : partials_of_block(partial, part.C), s.scratch);
}

// Leaves the sums of g and of g * (x - mean) in the workspace: (S, B, 2, C).
template <class T, class P, bool kDrops, bool kWrites>
__global__ void __launch_bounds__(kThreads, kDrops || kWrites ? 2 : 3)
    norm_gradient_sums(NormBackward k, DropoutNumbers numbers) {
  const Part part = whole_part(k.norm);
  const PassShared s =
      take_shared<PassShared>(part.C, false, false, reduce_scratch<Sums<P, 2>>(kThreads, part.C / P::size));
  s.channels.fill(k.norm, part);
  float* mine = partials_of_block(static_cast<float*>(k.norm.workspace), 2 * part.C);
  Drop<kDrops> drop(k.norm, part, numbers);
  gradient_sums<T, P, kWrites>(GradientPlanes<T>(k, part, numbers), block_range(part.pixels), part.C, s.channels, drop,
                               mine, mine + part.C, s.scratch);
}

// sums: (S, total_rows(), C), of so many pixels a sample; the last row is written here, by the first block of a sample.
template <class T, class P, bool kDrops>
__global__ void __launch_bounds__(kThreads, kDrops ? 2 : 3)
    norm_apply_gradient(NormBackward k, DropoutNumbers numbers, float* sums, float pixels) {
  const Part part = whole_part(k.norm);
  const PassShared s = take_shared<PassShared>(part.C, false, true, 0);
  float* const mine = sums + part.sample * total_rows(k) * part.C;
  s.channels.fill(k.norm, part);
  fill_gradient(k.norm, part, pixels, mine, mine + part.C, s.slope, s.offset);
  if (k.dx_sums != nullptr && blockIdx.x == 0) {
    const bool last = gridDim.y == 1;  // then it is the sum over all pixels
    for (int c = static_cast<int>(threadIdx.x); c < part.C; c += static_cast<int>(blockDim.x)) {
      const float sum = gradient_sum(k.norm, part, s.channels, mine, s.slope, s.offset, c);
      if (last)
        k.dx_sums[c] = k.accumulate_parameters ? k.dx_sums[c] + sum : sum;
      else
        mine[2 * part.C + c] = sum;
    }
  }
  Drop<kDrops> drop(k.norm, part, numbers);
  apply_gradient<T, P>(GradientPlanes<T>(k, part, numbers), block_range(part.pixels), part.C, s.channels, drop, s.slope,
                       s.offset);
}

// Stores element i of a sample's sums: that of channel i % C of the first, second or third quantity. Multiplies the
// second by the rstd of its group, where rstd is given.
struct StoreChannelSums {
  int C, D;
  const float* rstd = nullptr;
  float* out = nullptr;  // a row of each quantity in the first of `rows` rows of a sample; or null
  int rows = 1;
  float *dbeta = nullptr, *dgamma = nullptr, *dx_sums = nullptr, *dresidual_sums = nullptr;  // null: not wanted
  bool accumulate = false;  // the parameters' gradients
  __device__ __forceinline__ void operator()(int sample, int64_t i, const One& total) const {
    const int c = static_cast<int>(i % C), quantity = static_cast<int>(i / C);
    float sum = total.v[0][0];
    if (rstd != nullptr && quantity == 1) sum *= rstd[sample * (C / D) + c / D];
    if (out != nullptr) out[static_cast<int64_t>(sample) * rows * C + i] = sum;
    const auto give = [&](float* to) {
      if (to != nullptr) to[c] = accumulate ? to[c] + sum : sum;
    };
    give(quantity == 0 ? dbeta : quantity == 1 ? dgamma : dx_sums);
    if (quantity == 0) give(dresidual_sums);
  }
};
// partial: (S, B, E).
void reduce_channels(Stream& stream, int samples, const float* partial, int blocks, int E,
                     const StoreChannelSums& finish) {
  launch_partials<1>(stream, "norm_fold", samples, {partial, blocks, E, E, static_cast<int64_t>(blocks) * E}, 32,
                     finish);
}

// Folds the partial sums (S, blocks, 2, C), gives them to `finish`, and leaves the coefficients of `k.on_load`. Block x
// has `width` channels of sample y.
__global__ void __launch_bounds__(kThreads)
    norm_gradient_coefficients(NormBackward k, const float* partial, int blocks, int width, StoreChannelSums finish) {
  const int C = k.norm.x.C, from = static_cast<int>(blockIdx.x) * width;
  const Part part(k.norm, blockIdx.y, from, C - from < width ? C - from : width);
  const PassShared s = take_shared<PassShared>(width, true, true, kWarp > 1 ? kThreads * Sums<One, 2>::floats : 0);
  partial += part.sample * blocks * 2 * C + part.c0;
  block_reduce<One, Sums<One, 2>>(
      {0, blocks}, blocks, part.C, s.scratch,
      [&](Sums<One, 2>& sums, int c, int64_t first, int64_t last, int step) {
        for (int64_t b = first; b < last; b += step)
          for (int i = 0; i < 2; ++i) sums[i] += load_pack<One>(partial + (b * 2 + i) * C + c);
      },
      [&](Sums<One, 2>& sums, int c, int64_t) {
        store_pack(s.sum + c, sums[0]);
        store_pack(s.moment + c, sums[1] * One(k.norm.rstd[part.first + c / part.D]));
      });
  sync_block();
  s.channels.fill(k.norm, part);
  fill_gradient(k.norm, part, static_cast<float>(part.pixels), s.sum, s.moment, s.slope, s.offset);
  for (int c = static_cast<int>(threadIdx.x); c < part.C; c += static_cast<int>(blockDim.x)) {
    const int sample = static_cast<int>(part.sample), at = part.c0 + c;
    finish(sample, at, One(s.sum[c]));
    finish(sample, C + at, One(s.moment[c]));
    if (k.dx_sums != nullptr)
      finish(sample, 2 * C + at, One(gradient_sum(k.norm, part, s.channels, s.sum, s.slope, s.offset, c)));
    float* const to = k.on_load + part.sample * 5 * C + at;
    to[0] = s.channels.mean[c];
    to[C] = s.channels.scale[c];
    to[2 * C] = s.channels.beta[c];
    to[3 * C] = s.slope[c];
    to[4 * C] = s.offset[c];
  }
}

// Sums over the samples of (samples, total_rows(), C) sums into the gradients of beta and gamma, and of biases.
void reduce_samples(Stream& stream, const NormBackward& k, const float* sums) {
  const int C = k.norm.x.C;
  reduce_channels(stream, 1, sums, k.norm.samples(), total_rows(k) * C,
                  {.C = C,
                   .D = 1,
                   .dbeta = k.dbeta,
                   .dgamma = k.dgamma,
                   .dx_sums = k.dx_sums,
                   .dresidual_sums = k.dresidual_sums,
                   .accumulate = k.accumulate_parameters});
}

// Channels of a block's bundle: whole groups and whole packs, of a sector of memory or more where that leaves blocks
// enough. 0: the passes had better be launches of their own, which those of batch norm always are.
int bundle_channels(const Stream& stream, const Norm& k, int pack) {
  if (k.groups == 0) return 0;
  const TensorView& x = k.x;
  // Blocks that keep the machine busy; few in the checked execution, so that tests of small maps reach both ways.
  const int64_t least = kExecution == Execution::checked ? 4 : stream.processors();
  if (kWarp == 1) return x.N >= least ? x.C : 0;
  int channels = std::lcm(k.group_channels(), pack);
  while (channels * static_cast<int>(size_of(x.dtype)) < 64 && x.C % (2 * channels) == 0 &&
         static_cast<int64_t>(x.N) * x.C / (2 * channels) >= 2 * least) {
    channels *= 2;
  }
  const bool small = x.pixels() / x.N * channels * static_cast<int64_t>(size_of(x.dtype)) <= 16 * 1024;
  return small || static_cast<int64_t>(x.N) * x.C / channels >= least ? channels : 0;
}

// Throws where a map that is there has not x's shape and type.
void check(const char* kernel, const Norm& k, std::initializer_list<TensorView> others) {
  const TensorView& x = k.x;
  if (x.pixels() == 0 || k.groups < 0 || (k.groups > 0 && x.C % k.groups != 0)) {
    throw KernelError(std::string(kernel) + ": x has " + std::to_string(x.pixels()) + " pixels of " +
                      std::to_string(x.C) + " channels; expected some, in " + std::to_string(k.groups) +
                      " groups of one size");
  }
  if (k.ranks != nullptr && (k.groups > 0 || !k.training || k.ranks->size() > BatchRanks::kMost))
    throw KernelError(std::string(kernel) +
                      ": statistics of all ranks are those of batch norm in training, of at most " +
                      std::to_string(BatchRanks::kMost) + " ranks");
  if (!(k.dropout.rate >= 0 && k.dropout.rate < 1))
    throw KernelError(std::string(kernel) + ": the rate of dropout is " + std::to_string(k.dropout.rate) +
                      "; expected 0 or more and less than 1");
  for (const TensorView& m : others) {
    if (m && (m.N != x.N || m.H != x.H || m.W != x.W || m.C != x.C || m.dtype != x.dtype)) {
      throw KernelError(std::string(kernel) + ": all maps must have the shape and the element type of x");
    }
  }
}

template <class T, class P, bool kDrops>
void forward_bundles(Stream& stream, const NormForward& k, int channels) {
  const auto bytes = [&](size_t tile) {
    return shared_bytes_of<BundleShared<T>>(channels, bundle_scratch<P>(channels), tile);
  };
  const size_t tile = static_cast<size_t>(k.norm.pixels()) * channels;
  const bool fits = kWarp > 1 && bytes(tile) <= shared_limit(stream);
  launch(stream, "group_norm", {static_cast<unsigned>(k.norm.x.C / channels), static_cast<unsigned>(k.norm.x.N)},
         {kBundleThreads}, bytes(fits ? tile : 0),
         fits ? group_norm_bundle<T, P, kWarp != 1, kDrops> : group_norm_bundle<T, P, false, kDrops>, k,
         dropout_numbers(k.norm.dropout), channels);
}

unsigned strips_of_sample(const Norm& n) {
  return static_cast<unsigned>((n.groups > 0 ? 1 : n.x.N) * tile_strips(n.x.H));
}
// Channels whose partial results a block merges, whole groups. Strips are many: fewer channels, more threads for each.
int combined_channels(const Norm& n, bool strips) {
  const int most = strips ? 8 : 32, D = n.group_channels();
  return std::min(n.x.C, D >= most ? D : most / D * D);
}

template <class T, class P, bool kDrops>
void forward_passes(Stream& stream, NormForward k) {
  const Norm& n = k.norm;
  BatchRanks* const ranks = std::exchange(k.norm.ranks, nullptr);  // it is the host's
  const int C = n.x.C, D = n.group_channels();
  const unsigned samples = static_cast<unsigned>(n.samples());
  const unsigned summing = summing_blocks(stream, n.samples(), n.pixels());
  float* workspace = static_cast<float*>(n.workspace);
  if (k.x_sums != nullptr) {
    launch(stream, "norm_from_sums", {samples}, {kThreads}, 0, norm_from_sums, k);
  } else if (n.training) {
    if (k.x_moments == nullptr)
      launch(stream, "norm_statistics", {summing, samples}, {kThreads},
             shared_bytes<float>(reduce_scratch<Moments<P>>(kThreads, C / P::size)), norm_statistics<T, P>, n);
    const unsigned parts = k.x_moments == nullptr ? summing : strips_of_sample(n);
    const int width = combined_channels(n, k.x_moments != nullptr);
    const unsigned blocks = static_cast<unsigned>((C + width - 1) / width);
    float* const moments = ranks == nullptr ? nullptr : workspace + static_cast<int64_t>(most_partials(1)) * 2 * C;
    launch(stream, "norm_combine", {blocks, samples}, {kThreads}, shared_bytes_of<CombineShared>(width), norm_combine,
           k, static_cast<int>(parts), width, moments);
    if (ranks != nullptr) {  // in place of the blocks' moments
      ranks->gather(stream, moments, (2 * C + 1) * sizeof(float), workspace);
      launch(stream, "norm_combine_ranks", {blocks}, {kThreads}, shared_bytes_of<CombineShared>(width),
             norm_combine_ranks, k, workspace, ranks->size(), width);
    }
  } else {
    launch(stream, "norm_given", {1}, {kThreads}, 0, norm_given, k);
  }
  if (k.on_load != nullptr) return;
  if (k.affine != nullptr) {
    launch(stream, "norm_affine", {samples}, {kThreads}, 0, norm_affine, k);
    return;
  }
  const bool sums = k.sums != nullptr;
  const size_t folds = sums ? reduce_scratch<Sums<P>>(kThreads, C / P::size) : 0;
  launch(stream, "norm_apply", {sums ? summing : writing_blocks(stream, n.samples(), n.pixels()), samples}, {kThreads},
         shared_bytes_of<PassShared>(C, false, false, folds), norm_apply<T, P, kDrops>, k, dropout_numbers(n.dropout),
         folds, sums ? workspace : nullptr);
  if (sums) {
    reduce_channels(stream, n.samples(), workspace, static_cast<int>(summing), C, {.C = C, .D = D, .out = k.sums});
  }
}

template <class T, class P, bool kDrops>
void backward_passes(Stream& stream, NormBackward k) {
  const Norm& n = k.norm;
  BatchRanks* const ranks = std::exchange(k.norm.ranks, nullptr);  // it is the host's
  const int C = n.x.C, S = n.samples(), D = n.group_channels();
  const unsigned samples = static_cast<unsigned>(S), summing = summing_blocks(stream, S, n.pixels());
  float* workspace = static_cast<float*>(n.workspace);
  float* sums = workspace + static_cast<int64_t>(most_partials(S)) * S * 2 * C;  // (S, total_rows(), C)
  const bool strips = k.sums != nullptr, writes = k.on_load != nullptr && k.dresidual;
  if (!strips) {
    launch(stream, "norm_gradient_sums", {summing, samples}, {kThreads},
           shared_bytes_of<PassShared>(C, false, false, reduce_scratch<Sums<P, 2>>(kThreads, C / P::size)),
           writes ? norm_gradient_sums<T, P, kDrops, true> : norm_gradient_sums<T, P, kDrops, false>, k,
           dropout_numbers(n.dropout));
  }
  const float* const partial = strips ? k.sums : workspace;
  const int parts = static_cast<int>(strips ? strips_of_sample(n) : summing);
  const bool last = S == 1;  // then these sums are the parameters' gradients
  StoreChannelSums finish{.C = C,
                          .D = D,
                          .out = sums,
                          .rows = total_rows(k),
                          .dbeta = last ? k.dbeta : nullptr,
                          .dgamma = last ? k.dgamma : nullptr,
                          .dresidual_sums = last ? k.dresidual_sums : nullptr,
                          .accumulate = k.accumulate_parameters};
  if (k.on_load != nullptr) {
    finish.dx_sums = last ? k.dx_sums : nullptr;
    const int width = combined_channels(n, strips);
    launch(stream, "norm_gradient_coefficients", {static_cast<unsigned>((C + width - 1) / width), samples}, {kThreads},
           shared_bytes_of<PassShared>(width, true, true,
                                       static_cast<size_t>(kWarp > 1 ? kThreads * Sums<One, 2>::floats : 0)),
           norm_gradient_coefficients, k, partial, parts, width, finish);
  } else {
    finish.rstd = n.rstd;
    reduce_channels(stream, S, partial, parts, 2 * C, finish);
    float batch_pixels = static_cast<float>(n.pixels());
    if (ranks != nullptr) {  // in place of the blocks' sums
      ranks->gather(stream, sums, 2 * C * sizeof(float), workspace);
      reduce_channels(stream, 1, workspace, ranks->size(), 2 * C, {.C = C, .D = 1, .out = sums});
      batch_pixels = static_cast<float>(n.pixels() / n.x.N * ranks->images());
    }
    launch(stream, "norm_apply_gradient", {writing_blocks(stream, S, n.pixels()), samples}, {kThreads},
           shared_bytes_of<PassShared>(C, false, true, size_t{0}), norm_apply_gradient<T, P, kDrops>, k,
           dropout_numbers(n.dropout), sums, batch_pixels);
  }
  if (!last) reduce_samples(stream, k, sums);
}

// Calls f with whether the kernels draw.
template <class F>
void with_drops(bool drops, F&& f) {
  if (drops) return f(std::true_type{});
  f(std::false_type{});
}

}  // namespace

void norm_forward(Stream& stream, const NormForward& k) {
  check("norm_forward", k.norm, {k.residual, k.y});
  if ((k.on_load != nullptr || k.x_moments != nullptr) && k.norm.ranks != nullptr)
    throw KernelError("norm_forward: statistics of all ranks are those of a norm that writes y");
  if (k.on_load != nullptr && k.residual) throw KernelError("norm_forward: readers of x have no residual to add");
  if (k.affine != nullptr && k.norm.dropout) throw KernelError("norm_forward: coefficients know no dropout");
  if ((k.x_sums != nullptr || k.affine != nullptr) && k.norm.groups == 0)
    throw KernelError("norm_forward: sums of x and coefficients are those of group norm");
  with_packs("norm_forward", {k.norm.x, k.residual, k.y}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    const bool whole = k.x_sums == nullptr && k.affine == nullptr && k.x_moments == nullptr && k.on_load == nullptr;
    with_drops(static_cast<bool>(k.norm.dropout), [&](auto drops) {
      if (const int channels = whole ? bundle_channels(stream, k.norm, P::size) : 0) {
        forward_bundles<T, P, drops>(stream, k, channels);
      } else {
        forward_passes<T, P, drops>(stream, k);
      }
    });
  });
}

void norm_backward(Stream& stream, const NormBackward& given) {
  NormBackward k = given;
  if (k.sums != nullptr) k.norm.relu = false, k.norm.dropout = {};  // dy is masked already
  check("norm_backward", k.norm, {k.y, k.dy, k.dx, k.dresidual});
  if (k.dx_sums != nullptr && k.norm.group_channels() > 1 && k.norm.deviation == nullptr)
    throw KernelError("norm_backward: sums of dx need the deviations of groups of several channels");
  if ((k.on_load != nullptr || k.sums != nullptr) && k.norm.ranks != nullptr)
    throw KernelError("norm_backward: sums of all ranks are those of a norm that writes dx");
  if (k.on_load != nullptr && k.dx) throw KernelError("norm_backward: dx is left to the reader of dy");
  with_packs("norm_backward", {k.norm.x, k.y, k.dy, k.dx, k.dresidual}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    with_drops(k.norm.dropout && !k.y, [&](auto drops) {
      const int channels = k.sums == nullptr && k.on_load == nullptr ? bundle_channels(stream, k.norm, P::size) : 0;
      if (channels == 0) return backward_passes<T, P, drops>(stream, k);
      const size_t folds = reduce_scratch<Sums<P, 2>>(kBundleThreads, channels / P::size);
      float* totals = static_cast<float*>(k.norm.workspace);
      launch(stream, "group_norm_gradient",
             {static_cast<unsigned>(k.norm.x.C / channels), static_cast<unsigned>(k.norm.x.N)}, {kBundleThreads},
             shared_bytes_of<PassShared>(channels, true, true, folds), group_norm_bundle_gradient<T, P, drops>, k,
             dropout_numbers(k.norm.dropout), channels, totals);
      reduce_samples(stream, k, totals);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
