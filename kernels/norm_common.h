// What the passes of a norm (norm.cu) and the blocks that make all of them (group_norm.cu) have in common: moments,
// application, gradient sums, input gradient, over the part of a sample that a block has.
#pragma once

#include "kernels/core/dropout.h"
#include "kernels/core/reduce.h"
#include "kernels/norm.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

inline constexpr int kAhead = 16;  // pixels that are prefetched before they are used
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
  float kept;            // what dropout multiplies by where y is not zero
  const float* squeeze;  // of the sample
  __device__ __forceinline__ GradientPlanes(const NormBackward& k, const Part& part, const DropoutNumbers& numbers)
      : x(part.of<const T>(k.norm.x)),
        y(part.of<const T>(k.y)),
        dy(part.of<const T>(k.dy)),
        dx(part.of<T>(k.dx)),
        dresidual(part.of<T>(k.dresidual)),
        relu(k.norm.relu),
        accumulate_dx(k.accumulate_dx),
        accumulate_dresidual(k.accumulate_dresidual),
        kept(numbers.scale),
        squeeze(k.squeeze == nullptr ? nullptr : k.squeeze + part.sample * 2 * k.norm.x.C + part.c0) {}
  // The gradient at the input of the activation, from g at its output. `drop` draws where there is no y, and only
  // there.
  template <class P, class D>
  __device__ __forceinline__ P gradient(const Affine<P>& affine, const P& value, const P& g, int64_t p, int c,
                                        D& drop) const {
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
        [[maybe_unused]] P times(1), plus(0);
        if constexpr (kWrites)
          if (a.squeeze != nullptr) times = load_pack<P>(a.squeeze + c), plus = load_pack<P>(a.squeeze + C + c);
        for (int64_t p = first; p < last; p += step) {
          a.dy.ahead(p + kAhead, c);
          const P value = load_pack<P>(a.x.at(p, c));
          P g = load_pack<P>(a.dy.at(p, c));
          if constexpr (kWrites) g = fma(g, times, plus);
          g = a.gradient(affine, value, g, p, c, drop);
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
      const P value = load_pack<P>(a.x.at(p, c)),
              g = a.gradient(affine, value, load_pack<P>(a.dy.at(p, c)), p, c, drop);
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
REGOLITH_HOST_DEVICE inline int total_rows(const NormBackward& k) { return k.dx_sums != nullptr ? 3 : 2; }

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
inline void reduce_channels(Stream& stream, int samples, const float* partial, int blocks, int E,
                            const StoreChannelSums& finish) {
  launch_partials<1>(stream, "norm_fold", samples, {partial, blocks, E, E, static_cast<int64_t>(blocks) * E}, 32,
                     finish);
}

// Sums over the samples of (samples, total_rows(), C) sums into the gradients of beta and gamma, and of biases.
inline void reduce_samples(Stream& stream, const NormBackward& k, const float* sums) {
  const int C = k.norm.x.C, rows = total_rows(k);
  const auto row = [&](int r, float* to) {
    sum_partials(stream, {sums + r * C, k.norm.samples(), int64_t{rows} * C, C}, to, k.accumulate_parameters);
  };
  row(0, k.dbeta);
  row(1, k.dgamma);
  row(2, k.dx_sums);
  row(0, k.dresidual_sums);
}

// Calls f with whether the kernels draw.
template <class F>
void with_drops(bool drops, F&& f) {
  if (drops) return f(std::true_type{});
  f(std::false_type{});
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
