#include "kernels/conv_thin.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"
#include "kernels/core/reduce.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// Registers decide the tiles. A host thread has 16 (AVX2) or 32 (AVX-512) vectors and owns several channel vectors of a
// few pixels; a GPU thread owns one vector of channels.
inline constexpr bool kHost = kWarp == 1;
inline constexpr bool kManyRegisters = !kHost || kLanes<float> == 16;
inline constexpr int kSpreadPixels = kHost ? 3 : 4;

// The strip of block blockIdx.x: rows p0..p1 of image n of the wide map.
struct Strip {
  int n, p0, p1;
  __device__ __forceinline__ Strip(const ThinStrips& strips, const TensorView& wide) {
    n = blockIdx.x / strips.per_image;
    p0 = blockIdx.x % strips.per_image * strips.rows;
    p1 = p0 + strips.rows < wide.H ? p0 + strips.rows : wide.H;
  }
};

// The part of the thin map that the strip reads, as fp32, zero outside the image: rows of (Q + S - 1) * C floats.
template <class T>
__device__ __forceinline__ void fill_patch(const TensorView& thin, const Strip& strip, int Q, const ThinWindow& o,
                                           float* __restrict__ patch) {
  const int C = thin.C, length = (Q + o.S - 1) * C, rank = thread_rank(), threads = block_threads();
  const int left = o.pad[1] * C < length ? o.pad[1] * C : length;  // zeros before the image, then its pixels
  const int right = left + thin.W * C < length ? left + thin.W * C : length;
  for (int i = 0; i < strip.p1 - strip.p0 + o.R - 1; ++i) {
    const int h = strip.p0 - o.pad[0] + i;
    float* __restrict__ out = patch + i * length;
    if (h < 0 || h >= thin.H) {
      for (int j = rank; j < length; j += threads) out[j] = 0;
      continue;
    }
    const T* __restrict__ in = row_of<const T>(thin, strip.n * thin.H + h);
    for (int j = rank; j < left; j += threads) out[j] = 0;
    for (int j = right + rank; j < length; j += threads) out[j] = 0;
    if (thin.pitch == C) {
      for (int j = rank; j < right - left; j += threads) out[left + j] = static_cast<float>(in[j]);
    } else {
      for (int j = rank; j < right - left; j += threads)
        out[left + j] = static_cast<float>(in[j / C * thin.pitch + j % C]);
    }
  }
}

// G vectors of channels of P neighbouring pixels of the wide map. row: their first taps in the patch.
template <class T, int L, int G, int P>
__device__ __forceinline__ void spread_tile(const float* row, int length, const float* w, const float* bias,
                                            float floor, int K, int C, const ThinWindow& o, T* out, int pitch) {
  using V = Vec<L>;
  V sum[P][G];
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < P; ++i) sum[i][g] = load<V>(bias + g * L);
  for (int r = 0; r < o.R; ++r, row += length) {
    for (int t = 0; t < o.S * C; ++t, w += K) {
      for (int g = 0; g < G; ++g) {
        const V a = load<V>(w + g * L);
        for (int i = 0; i < P; ++i) sum[i][g] = fma(a, V(row[i * C + t]), sum[i][g]);
      }
    }
  }
  for (int i = 0; i < P; ++i)
    for (int g = 0; g < G; ++g) store(out + i * pitch + g * L, max(V(floor), sum[i][g]));
}

struct SpreadShared {
  float *weights, *patch;  // (taps, K), then the bias (K); the strip of the thin map
  template <class A>
  REGOLITH_HOST_DEVICE SpreadShared(A& a, const TensorView& thin, const TensorView& wide, const ThinWindow& o,
                                    const ThinStrips& strips) {
    a.take(weights, (o.R * o.S * thin.C + 1) * wide.C);
    a.take(patch, strips.patch(wide, thin.C, o));
  }
};

template <class T, int L, int G>
__global__ void __launch_bounds__(kColumnThreads)
    spread(TensorView thin, const T* w, const float* bias, TensorView wide, ThinWindow o, ThinStrips strips,
           float floor) {
  const int K = wide.C, C = thin.C, Q = wide.W, length = (Q + o.S - 1) * C, taps = o.R * o.S * C;
  const auto shared = take_shared<SpreadShared>(thin, wide, o, strips);
  float *const weights = shared.weights, *const patch = shared.patch;
  const Strip strip(strips, wide);
  for (int k = thread_rank(); k < K; k += block_threads()) {
    for (int t = 0; t < taps; ++t) weights[t * K + k] = static_cast<float>(w[o.taps_first ? t * K + k : k * taps + t]);
    weights[taps * K + k] = bias != nullptr ? bias[k] : 0.0f;
  }
  fill_patch<T>(thin, strip, Q, o, patch);
  sync_block();
  constexpr int P = kSpreadPixels;
  for (int p = strip.p0; p < strip.p1; ++p) {
    const float* row = patch + (p - strip.p0) * length;
    T* out = row_of<T>(wide, strip.n * wide.H + p);
    for (int q = threadIdx.y * P; q < Q; q += blockDim.y * P) {
      for (int k = threadIdx.x * L * G; k < K; k += blockDim.x * L * G) {
        const auto tile = [&](auto pixels, int i) {
          spread_tile<T, L, G, pixels>(row + (q + i) * C, length, weights + k, weights + taps * K + k, floor, K, C, o,
                                       out + (q + i) * wide.pitch + k, wide.pitch);
        };
        if (q + P <= Q) {
          tile(std::integral_constant<int, P>{}, 0);
        } else {
          for (int i = 0; i < Q - q; ++i) tile(std::integral_constant<int, 1>{}, i);
        }
      }
    }
  }
}

// Partial sums of a strip: (K, taps) or (taps, K) of dw, then K of db. A thread owns G vectors of channels, and D taps
// at a time.
template <class T, int L, int G, int D>
__global__ void __launch_bounds__(kColumnThreads)
    gather(TensorView thin, TensorView wide, ThinWindow o, ThinStrips strips, bool bias, float* partials) {
  using V = Vec<L>;
  const int K = wide.C, C = thin.C, Q = wide.W, length = (Q + o.S - 1) * C, line = o.S * C, taps = o.R * line;
  Shared shared;
  float* patch = shared.take<float>((strips.rows + o.R - 1) * length);
  float* scratch = shared.take<float>(reduce_scratch<Sums<Pack<L, 1>>>(kColumnThreads, K / (L * G)));
  const ThreadTile tile = ThreadTile::of_columns();
  const auto total_of = [&](const V& mine) {
    Sums<Pack<L, 1>> sums;
    sums[0].v[0] = mine;
    reduce_rows(tile, sums, scratch);
    return sums[0].v[0];
  };
  const Strip strip(strips, wide);
  fill_patch<T>(thin, strip, Q, o, patch);
  sync_block();
  const T* pixels = row_of<const T>(wide, strip.n * wide.H + strip.p0);
  float* out = partials + static_cast<int64_t>(blockIdx.x) * (taps + 1) * K;
  for (int base = 0; base < K; base += blockDim.x * L * G) {
    const int k = base + threadIdx.x * L * G;
    const bool mine = k < K;
    for (int t = 0; t < taps; t += D) {
      const float* tap[D];  // the last one again where there are no more
      V sum[D][G];
      for (int d = 0; d < D; ++d) {
        const int at = t + d < taps ? t + d : taps - 1;
        tap[d] = patch + at / line * length + at % line;
        for (int g = 0; g < G; ++g) sum[d][g] = V(0);
      }
      for (int p = 0; mine && p < strip.p1 - strip.p0; ++p) {
        for (int q = threadIdx.y; q < Q; q += blockDim.y) {
          V a[G];
          for (int g = 0; g < G; ++g) a[g] = load<V>(pixels + (p * Q + q) * wide.pitch + k + g * L);
          for (int d = 0; d < D; ++d) {
            const V x(tap[d][p * length + q * C]);
            for (int g = 0; g < G; ++g) sum[d][g] = fma(a[g], x, sum[d][g]);
          }
        }
      }
      for (int d = 0; d < D; ++d) {
        for (int g = 0; g < G; ++g) {
          const V total = total_of(sum[d][g]);
          if (threadIdx.y > 0 || !mine || t + d >= taps) continue;
          if (o.taps_first) {
            store(out + (t + d) * K + k + g * L, total);
          } else {
            for (int i = 0; i < L; ++i) out[(k + g * L + i) * taps + t + d] = total[i];
          }
        }
      }
    }
    if (!bias) continue;
    V sum[G];
    for (int g = 0; g < G; ++g) sum[g] = V(0);
    for (int i = threadIdx.y; mine && i < (strip.p1 - strip.p0) * Q; i += blockDim.y)
      for (int g = 0; g < G; ++g) sum[g] += load<V>(pixels + i * wide.pitch + k + g * L);
    for (int g = 0; g < G; ++g) {
      const V total = total_of(sum[g]);
      if (threadIdx.y == 0 && mine) store(out + taps * K + k + g * L, total);
    }
  }
}

inline constexpr int kDotChunk = 512;             // pixels of a block
inline constexpr int kDotPixels = kHost ? 8 : 1;  // of a thread, at a time
inline constexpr int kDotThreads = 128;

struct DotShared {
  float *weights, *sums;  // (C, kThinChannels), zero beyond K, then the bias; (pixels, K)
  template <class A>
  REGOLITH_HOST_DEVICE DotShared(A& a, int C, int K) {
    a.take(weights, (C + 1) * kThinChannels);
    a.take(sums, kDotChunk * K + kThinChannels);
  }
};

// A thread owns pixels; lanes are the channels of the thin map, kThinChannels of them.
template <class T, int L>
__global__ void __launch_bounds__(kDotThreads, 8)
    dot(TensorView wide, const T* w, const float* bias, TensorView thin, int64_t pixels, float floor) {
  using V = Vec<L>;
  using O = Vec<kThinChannels>;
  constexpr int M = kThinChannels;
  const int C = wide.C, K = thin.C;
  const auto shared = take_shared<DotShared>(C, K);
  float *const weights = shared.weights, *const sums = shared.sums;
  for (int c = thread_rank(); c <= C; c += block_threads()) {
    for (int k = 0; k < M; ++k) {
      const float value = k >= K ? 0.0f : c < C ? static_cast<float>(w[k * C + c]) : (bias != nullptr ? bias[k] : 0.0f);
      weights[c * M + k] = value;
    }
  }
  sync_block();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kDotChunk;
  const int count = static_cast<int>(pixels - begin < kDotChunk ? pixels - begin : kDotChunk);
  const T* in = wide.as<const T>() + begin * wide.pitch;
  const auto tile = [&](auto n, int p) {
    constexpr int P = n;
    O sum[P];
    for (int i = 0; i < P; ++i) sum[i] = load<O>(weights + C * M);
    for (int c = 0; c < C; c += L) {
      V x[P];
      for (int i = 0; i < P; ++i) x[i] = load<V>(in + (p + i) * wide.pitch + c);
#if defined(__CUDACC__)
#pragma unroll
#endif
      for (int l = 0; l < L; ++l) {
        const O a = load<O>(weights + (c + l) * M);
        for (int i = 0; i < P; ++i) sum[i] = fma(a, O(x[i][l]), sum[i]);
      }
    }
    for (int i = 0; i < P; ++i) {
      const O y = max(O(floor), sum[i]);
      for (int k = 0; k < K; ++k) sums[(p + i) * K + k] = y[k];
    }
  };
  for (int p = threadIdx.x * kDotPixels; p < count; p += blockDim.x * kDotPixels) {
    if (p + kDotPixels <= count) {
      tile(std::integral_constant<int, kDotPixels>{}, p);
    } else {
      for (int i = p; i < count; ++i) tile(std::integral_constant<int, 1>{}, i);
    }
  }
  sync_block();
  T* out = thin.as<T>() + begin * thin.pitch;
  if (thin.pitch == K) {
    for (int i = threadIdx.x; i < count * K; i += blockDim.x) out[i] = static_cast<T>(sums[i]);
  } else {
    for (int i = threadIdx.x; i < count; i += blockDim.x)
      for (int k = 0; k < K; ++k) out[i * thin.pitch + k] = static_cast<T>(sums[i * K + k]);
  }
}

void check(const char* kernel, const TensorView& thin, const TensorView& wide, const ThinWindow& o) {
  const auto refuse = [&](const std::string& what) { throw KernelError(std::string(kernel) + ": " + what); };
  if (thin.C > kThinChannels) refuse("more than " + std::to_string(kThinChannels) + " channels on the thin side");
  if (wide.C > kThinWide) refuse("more than " + std::to_string(kThinWide) + " channels on the wide side");
  if ((o.R * o.S * thin.C + 1) * wide.C > kThinWeights)
    refuse("more than " + std::to_string(kThinWeights) + " weights");
  if (ThinStrips(wide).patch(wide, thin.C, o) > kThinPatch) refuse("the rows of the maps are too long");
}

// How many channel vectors a thread owns: 4, 2 or 1, whichever divides what a pixel has of them.
template <class F>
void with_group(int vectors, F&& f) {
  if (kHost && vectors % 4 == 0) return f(std::integral_constant < int, kHost ? 4 : 1 > {});
  if (kHost && vectors % 2 == 0) return f(std::integral_constant < int, kHost ? 2 : 1 > {});
  return f(std::integral_constant<int, 1>{});
}

}  // namespace

void thin_spread(Stream& stream, const ThinSpread& k) {
  check("thin_spread", k.thin, k.wide, k.window);
  const ThinStrips strips(k.wide);
  with_float_type(k.wide.dtype, "thin_spread", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.wide}, [&](auto lanes) {
      constexpr int L = lanes;
      with_group(k.wide.C / L, [&](auto group) {
        constexpr int G = group;
        launch(stream, "thin_spread", {static_cast<unsigned>(strips.count)}, columns_block(k.wide.C / (L * G)),
               shared_bytes_of<SpreadShared>(k.thin, k.wide, k.window, strips), spread<T, L, G>, k.thin,
               static_cast<const T*>(k.w), k.bias, k.wide, k.window, strips, k.relu ? 0.0f : -INFINITY);
      });
    });
  });
}

void thin_gather(Stream& stream, const ThinGather& k) {
  check("thin_gather", k.thin, k.wide, k.window);
  const ThinStrips strips(k.wide);
  const int C = k.thin.C, K = k.wide.C, taps = k.window.R * k.window.S * C;
  float* partials = static_cast<float*>(k.workspace);
  with_float_type(k.wide.dtype, "thin_gather", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.wide}, [&](auto lanes) {
      constexpr int L = lanes;
      with_group(K / L, [&](auto group) {
        constexpr int G = group;
        const size_t bytes = shared_bytes<float>(strips.patch(k.wide, C, k.window)) +
                             shared_bytes<float>(reduce_scratch<Sums<Pack<L, 1>>>(kColumnThreads, K / (L * G)));
        const auto run = [&](auto kernel) {
          launch(stream, "thin_gather", {static_cast<unsigned>(strips.count)}, columns_block(K / (L * G)), bytes,
                 kernel, k.thin, k.wide, k.window, strips, k.db != nullptr, partials);
        };
        if constexpr (kManyRegisters) {
          run(taps <= 5 ? gather<T, L, G, 5> : gather<T, L, G, 9>);
        } else {
          run(gather<T, L, G, 3>);
        }
      });
    });
  });
  const int64_t row = static_cast<int64_t>(taps + 1) * K, n = static_cast<int64_t>(taps) * K;
  sum_partials(stream, {partials, strips.count, row, n}, k.dw, k.accumulate);
  if (k.db != nullptr) sum_partials(stream, {partials + n, strips.count, row, K}, k.db, k.accumulate);
}

void thin_dot(Stream& stream, const ThinDot& k) {
  check("thin_dot", k.thin, k.wide, {});
  const int64_t pixels = k.wide.pixels();
  with_float_type(k.wide.dtype, "thin_dot", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.wide}, [&](auto lanes) {
      launch(stream, "thin_dot", {static_cast<unsigned>((pixels + kDotChunk - 1) / kDotChunk)}, {kDotThreads},
             shared_bytes_of<DotShared>(k.wide.C, k.thin.C), dot<T, lanes>, k.wide, static_cast<const T*>(k.w), k.bias,
             k.thin, pixels, k.relu ? 0.0f : -INFINITY);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
