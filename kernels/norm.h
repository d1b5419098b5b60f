// The passes that group norm and batch norm are made of: moments, application, gradient sums, input gradient. Both
// normalise S samples of P pixels and C channels in G groups per sample; for batch norm the batch is one sample and
// every channel a group.
//
// Occupancy: at least 37% (256 threads).
#pragma once

#include <type_traits>

#include "kernels/core/launch.h"
#include "kernels/core/shared.h"
#include "kernels/core/thread_tile.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

inline constexpr int kAhead = 16;  // pixels that are asked for before they are used

// Where the maps of a sample lie. Null maps are absent.
template <class T>
struct Plane {
  T* data = nullptr;
  int pitch = 0;
  __device__ __forceinline__ T* at(int64_t pixel, int c) const { return data + pixel * pitch + c; }
  __device__ __forceinline__ void ahead(int64_t pixel, int c) const { prefetch(data, pixel * pitch + c); }
  __device__ __forceinline__ Plane shifted(int64_t pixels, int channels) const {
    return {data == nullptr ? nullptr : at(pixels, channels), pitch};
  }
};
template <class T>
Plane<T> plane_of(const TensorView& m) {
  return {m.as<T>(), m.pitch};
}

// Mean and sum of squared deviations of `count` values a channel (Chan, Golub, LeVeque 1979).
template <class P>
struct Moments {
  static constexpr int floats = 2 * P::size + (P::size % 4 == 0 ? 4 : 1);
  P mean = P(0), m2 = P(0);
  float count = 0;
  __device__ __forceinline__ void merge(const P& other_mean, const P& other_m2, float other_count) {
    if (other_count == 0) return;
    const float all = count + other_count, share = other_count / all;
    const P d = other_mean - mean;
    mean = fma(d, P(share), mean);
    m2 = fma(d * d, P(count * share), m2 + other_m2);
    count = all;
  }
  __device__ __forceinline__ void save(float* at) const {
    store_pack(at, mean);
    store_pack(at + P::size, m2);
    at[2 * P::size] = count;
  }
  __device__ __forceinline__ void merge(const float* at) {
    merge(load_pack<P>(at), load_pack<P>(at + P::size), at[2 * P::size]);
  }
};

template <class P>
struct Sums {  // two sums a channel
  static constexpr int floats = 2 * P::size;
  P a = P(0), b = P(0);
  __device__ __forceinline__ void save(float* at) const {
    store_pack(at, a);
    store_pack(at + P::size, b);
  }
  __device__ __forceinline__ void merge(const float* at) {
    a += load_pack<P>(at);
    b += load_pack<P>(at + P::size);
  }
};

// What the threads of a block, together, keep of the pixels of `range`: calls share(state, c, first, last, step) for
// every share of a thread, folds the states and gives the sum to finish(state, c, done) in one thread a column; `done`
// is the number of pixels that earlier calls for this column covered. All threads call it.
template <class T, class P, class State, class Share, class Finish>
__device__ __forceinline__ void block_reduce(Range range, int C, float* scratch, Share&& share, Finish&& finish) {
  const int units = C / P::size;
  const ThreadTile crew(units);
  const int64_t chunk = chunk_of<T>(range.end - range.begin, C);
  for (int64_t begin = range.begin; begin < range.end; begin += chunk) {
    const int64_t end = begin + chunk < range.end ? begin + chunk : range.end;
    for (int first = 0; first < units; first += crew.columns) {
      const int u = first + crew.column;
      State state;
      if (crew.row < crew.rows && u < units) share(state, u * P::size, begin + crew.row, end, crew.rows);
      reduce_rows(crew, state, scratch);
      if (crew.row == 0 && u < units) finish(state, u * P::size, begin - range.begin);
    }
  }
}

// Mean and squared deviations of the pixels of `range`, a channel each, to mean[C] and m2[C]. Every thread shifts by
// its first pixel, so that cancellation loses at most the number of pixels of a thread. `tile`: null, or keeps what was
// read, densely; the thread that wrote an element there may read it again without a barrier.
template <class T, class P>
__device__ __forceinline__ void block_moments(Plane<const T> x, Range range, int C, T* tile, float* mean, float* m2,
                                              float* scratch) {
  block_reduce<T, P, Moments<P>>(
      range, C, scratch,
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

// What the elementwise passes know of a channel: h = (x - mean) * scale + beta. Lies in shared memory.
struct Channels {
  float *mean, *scale, *beta;
  __device__ __forceinline__ static Channels take(Shared& shared, int C) {
    return {shared.take<float>(C), shared.take<float>(C), shared.take<float>(C)};
  }
  static size_t bytes(int C) { return 3 * shared_bytes<float>(C); }
  // From the statistics of a sample's groups of D channels. All threads call it; a barrier follows.
  __device__ __forceinline__ void fill(const float* group_mean, const float* group_rstd, const float* gamma,
                                       const float* offset, int C, int D) const {
    for (int c = static_cast<int>(threadIdx.x); c < C; c += static_cast<int>(blockDim.x)) {
      mean[c] = group_mean[c / D];
      scale[c] = group_rstd[c / D] * gamma[c];
      beta[c] = offset[c];
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

template <class T>
struct ForwardPlanes {
  Plane<const T> x, residual;
  Plane<T> y;
  bool relu;
  __device__ __forceinline__ ForwardPlanes shifted(int64_t pixels, int channels) const {
    return {x.shifted(pixels, channels), residual.shifted(pixels, channels), y.shifted(pixels, channels), relu};
  }
};

// y = act((x - mean) * scale + beta (+ residual)) over the pixels of `range`; where `sums` is not null, the sum of y
// before its rounding, a channel each, as well.
template <class T, class P>
__device__ __forceinline__ void block_apply(const ForwardPlanes<T>& a, Range range, int C, const Channels& k,
                                            float* sums, float* scratch) {
  const float least = a.relu ? 0 : -INFINITY;
  const auto each = [&](const Affine<P>& affine, int64_t p, int c) {
    a.y.ahead(p + kAhead, c);
    P h = affine(load_pack<P>(a.x.at(p, c)));
    if (a.residual.data != nullptr) h += load_pack<P>(a.residual.at(p, c));
    h = max(P(least), h);
    store_pack(a.y.at(p, c), h);
    return h;
  };
  if (sums == nullptr) {
    for_each_tile<T, P>(range, C, [&](int c, int64_t first, int64_t last, int step) {
      const Affine<P> affine(k, c);
      for (int64_t p = first; p < last; p += step) each(affine, p, c);
    });
    return;
  }
  block_reduce<T, P, Sums<P>>(
      range, C, scratch,
      [&](Sums<P>& s, int c, int64_t first, int64_t last, int step) {
        const Affine<P> affine(k, c);
        for (int64_t p = first; p < last; p += step) s.a += each(affine, p, c);
      },
      [&](Sums<P>& s, int c, int64_t done) {
        if (done > 0) s.a += load_pack<P>(sums + c);
        store_pack(sums + c, s.a);
      });
}

template <class T>
struct BackwardPlanes {
  Plane<const T> x, y, dy, dy2;
  Plane<T> dx, dresidual;
  bool relu, accumulate_dx, accumulate_dresidual;
  __device__ __forceinline__ BackwardPlanes shifted(int64_t pixels, int channels) const {
    return {x.shifted(pixels, channels),
            y.shifted(pixels, channels),
            dy.shifted(pixels, channels),
            dy2.shifted(pixels, channels),
            dx.shifted(pixels, channels),
            dresidual.shifted(pixels, channels),
            relu,
            accumulate_dx,
            accumulate_dresidual};
  }
  // The gradient at the input of the activation.
  template <class P>
  __device__ __forceinline__ P gradient(const Affine<P>& affine, const P& value, int64_t p, int c) const {
    P g = load_pack<P>(dy.at(p, c));
    if (dy2.data != nullptr) g += load_pack<P>(dy2.at(p, c));
    if (!relu) return g;
    if (y.data != nullptr) return where_positive(load_pack<P>(y.at(p, c)), g);
    return where_positive(affine(value), g);
  }
};

// Per channel over the pixels of `range`: sum[C] of the gradient g, and moment[C] of g * (x - mean).
template <class T, class P>
__device__ __forceinline__ void block_gradient_sums(const BackwardPlanes<T>& a, Range range, int C, const Channels& k,
                                                    float* sum, float* moment, float* scratch) {
  block_reduce<T, P, Sums<P>>(
      range, C, scratch,
      [&](Sums<P>& s, int c, int64_t first, int64_t last, int step) {
        const Affine<P> affine(k, c);
        for (int64_t p = first; p < last; p += step) {
          a.dy.ahead(p + kAhead, c);
          const P value = load_pack<P>(a.x.at(p, c)), g = a.gradient(affine, value, p, c);
          s.a += g;
          s.b = fma(g, value - affine.mean, s.b);
        }
      },
      [&](Sums<P>& s, int c, int64_t done) {
        if (done > 0) {
          s.a += load_pack<P>(sum + c);
          s.b += load_pack<P>(moment + c);
        }
        store_pack(sum + c, s.a);
        store_pack(moment + c, s.b);
      });
}

// dx = scale * g + slope * (x - mean) + offset, and dresidual = g.
template <class T, class P>
__device__ __forceinline__ void block_apply_gradient(const BackwardPlanes<T>& a, Range range, int C, const Channels& k,
                                                     const float* slope, const float* offset) {
  for_each_tile<T, P>(range, C, [&](int c, int64_t first, int64_t last, int step) {
    const Affine<P> affine(k, c);
    const P b = load_pack<P>(slope + c), e = load_pack<P>(offset + c);
#if defined(__CUDACC__)
#pragma unroll 1  // more would spill: there are enough loads in one round
#endif
    for (int64_t p = first; p < last; p += step) {
      a.dy.ahead(p + kAhead, c);
      const P value = load_pack<P>(a.x.at(p, c)), g = a.gradient(affine, value, p, c);
      P dx = fma(affine.scale, g, fma(b, value - affine.mean, e));
      if (a.accumulate_dx) dx += load_pack<P>(a.dx.at(p, c));
      store_pack(a.dx.at(p, c), dx);
      if (a.dresidual.data != nullptr) {
        store_pack(a.dresidual.at(p, c), a.accumulate_dresidual ? g + load_pack<P>(a.dresidual.at(p, c)) : g);
      }
    }
  });
}

// The two coefficients of block_apply_gradient from a sample's sums of g and of g * (x - mean) * rstd: with m = D * P
// values a group, slope = -rstd^2 / m * sum_D(gamma * moment), offset = -rstd / m * sum_D(gamma * sum). A barrier
// follows.
__device__ __forceinline__ void fill_gradient(const float* sum, const float* moment, const float* rstd,
                                              const float* gamma, int C, int D, float values, float* slope,
                                              float* offset) {
  for (int g = static_cast<int>(threadIdx.x); g < C / D; g += static_cast<int>(blockDim.x)) {
    float a = 0, b = 0;
    for (int c = g * D; c < g * D + D; ++c) {
      a += gamma[c] * sum[c];
      b += gamma[c] * moment[c];
    }
    for (int c = g * D; c < g * D + D; ++c) {
      offset[c] = -rstd[g] * a / values;
      slope[c] = -rstd[g] * rstd[g] * b / values;
    }
  }
  sync_block();
}

// 1 / sqrt(variance + epsilon) of D channels' moments of `pixels` values each, and their common mean to *mean.
__device__ __forceinline__ float group_rstd(const float* means, const float* m2s, int D, float pixels, float epsilon,
                                            float* mean, float* variance) {
  float m = 0, q = 0;
  for (int c = 0; c < D; ++c) m += means[c];
  m /= static_cast<float>(D);
  for (int c = 0; c < D; ++c) q += m2s[c] + (means[c] - m) * (means[c] - m) * pixels;
  *mean = m;
  *variance = q / (pixels * static_cast<float>(D));
  return 1 / sqrtf(*variance + epsilon);
}

// The passes as launches of their own, over the whole machine: kernels/norm.cu.
struct NormForward {
  TensorView x, residual, y;
  int samples, groups;  // the maps' N * H * W pixels are `samples` samples; `groups` of a sample
  const float *gamma, *beta;
  float *mean, *rstd;  // (samples, groups)
  float epsilon;
  bool relu;
  float* sums;                             // (samples, C) or null
  float *running_mean, *running_variance;  // (groups) or null
  float momentum;
  const int64_t* step;  // of the statistics' warm-up, or null
  bool training;        // false: normalises by the running statistics
  float* workspace;
};
void norm_forward(Stream&, const NormForward&);

struct NormBackward {
  TensorView x, y, dy, dy2, dx, dresidual;
  int samples, groups;
  const float *gamma, *beta, *mean, *rstd;
  float *dgamma, *dbeta;
  bool relu, training, accumulate_dx, accumulate_dresidual, accumulate_parameters;
  float* workspace;
};
void norm_backward(Stream&, const NormBackward&);

// Sums over the samples of (samples, 2, C) sums into the gradients of beta and gamma.
void norm_parameter_gradient(Stream&, const NormBackward&, const float* sums);

template <class T>
BackwardPlanes<T> backward_planes(const NormBackward& k) {
  return {plane_of<const T>(k.x),
          plane_of<const T>(k.y),
          plane_of<const T>(k.dy),
          plane_of<const T>(k.dy2),
          plane_of<T>(k.dx),
          plane_of<T>(k.dresidual),
          k.relu,
          k.accumulate_dx,
          k.accumulate_dresidual};
}

// Throws where a map that is there has not x's shape and type.
inline void norm_require(const char* kernel, const TensorView& x, int groups,
                         std::initializer_list<TensorView> others) {
  if (x.pixels() == 0 || groups < 1 || x.C % groups != 0) {
    throw KernelError(std::string(kernel) + ": x has " + std::to_string(x.pixels()) + " pixels of " +
                      std::to_string(x.C) + " channels; expected some, in " + std::to_string(groups) +
                      " groups of one size");
  }
  for (const TensorView& m : others) {
    if (m && (m.N != x.N || m.H != x.H || m.W != x.W || m.C != x.C || m.dtype != x.dtype)) {
      throw KernelError(std::string(kernel) + ": all maps must have the shape and the element type of x");
    }
  }
}

// Blocks that a sample's pixels are divided among, none of them empty.
inline unsigned norm_blocks(const Stream& stream, int samples, int64_t pixels, int waves, unsigned most) {
  const int64_t wanted = std::max<int64_t>(1, blocks_for(stream, pixels * samples, 64, waves) / samples);
  const int64_t blocks = std::min<int64_t>({wanted, pixels, most});
  const int64_t each = (pixels + blocks - 1) / blocks;
  return static_cast<unsigned>((pixels + each - 1) / each);
}
// At most 512 partial results in all, so that the workspace does not depend on the machine.
inline unsigned norm_partials(int samples) { return static_cast<unsigned>(std::max(1, 512 / samples)); }

}  // namespace regolith::kernels::REGOLITH_EXECUTION
