#include "kernels/squeeze_excite.h"

#include "kernels/core/columns.h"
#include "kernels/core/dropout.h"
#include "kernels/core/reduce.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr unsigned kThreads = 256;

using Factors = DropoutFactors<64>;

// What becomes of x * s.
enum class Finish { plain, pool, dropout };

// A map's samples, pixel by pixel.
template <class T>
struct Samples {
  Plane<T> plane;
  int H, W;
  __device__ __forceinline__ int64_t pixels() const { return static_cast<int64_t>(H) * W; }
  __device__ __forceinline__ Plane<T> of(int n) const { return {plane.at(pixels() * n, 0), plane.pitch}; }
};
template <class T>
Samples<T> samples_of(const TensorView& m) {
  return {Plane<T>(m), m.H, m.W};
}

// The four pixels of x under pixel p of a map of half the size, `width` pixels wide.
template <class T, class P>
struct Window {
  P v[4];
  static __device__ __forceinline__ int64_t corner(int64_t p, int width) {
    const int row = static_cast<int>(p) / width, column = static_cast<int>(p) - row * width;
    return static_cast<int64_t>(row) * 4 * width + 2 * column;
  }
  __device__ __forceinline__ Window(const Plane<T>& x, int64_t at, int width, int c) {
    for (int i = 0; i < 4; ++i) v[i] = load_pack<P>(x.at(at + i / 2 * 2 * width + i % 2, c));
  }
};

// Lane by lane the larger, NaN where either is.
template <int L, int K>
__device__ __forceinline__ Pack<L, K> max_with_nan(const Pack<L, K>& x, const Pack<L, K>& m) {
  return Pack<L, K>::each([](const auto& a, const auto& b) { return select(a == a, max(a, b), a); }, x, m);
}

template <int L, int K>
__device__ __forceinline__ Pack<L, K> dropped(const Pack<L, K>& x, Factors& factors, bool spatial, int64_t pixel, int C,
                                              int c) {
  const int64_t first = spatial ? c : pixel * C + c;
  Pack<L, K> r;
  REGOLITH_UNROLL
  for (int k = 0; k < K; ++k) r.v[k] = x.v[k] * factors.template at<L>(first + k * L);
  return r;
}

// The norm before, in the channels from c on: h of x - mean.
template <class P>
struct Normed {
  P mean, scale, beta;
  __device__ __forceinline__ Normed(const float* norm, int n, int C, int c) {
    norm += static_cast<int64_t>(n) * 3 * C + c;
    mean = load_pack<P>(norm), scale = load_pack<P>(norm + C), beta = load_pack<P>(norm + 2 * C);
  }
  __device__ __forceinline__ P operator()(const P& centred) const { return fma(centred, scale, beta); }
};

// partial (N, B, C): sums over a block's pixels of x, or of dy * x (* dropout), or of dy * max(x). kNormed: (N, B, 2,
// C), of the slope of ReLU, or of its product with dy (* dropout), and of that times x - mean.
template <class T, class P, bool kGradient, Finish kFinish, bool kNormed>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 2)
    squeeze_sums(Samples<const T> x, Samples<const T> dy, int C, const float* norm, DropoutNumbers numbers,
                 size_t scratch, float* partial) {
  constexpr int kSums = kNormed ? 2 : 1;
  Shared shared;
  float* folds = shared.take<float>(scratch);
  const int n = static_cast<int>(blockIdx.y);
  const Plane<const T> xs = x.of(n), gs = dy.of(n);
  [[maybe_unused]] Factors factors(numbers);
  factors.sample(n);
  float* sums = partial + (static_cast<int64_t>(n) * gridDim.x + blockIdx.x) * kSums * C;
  const Range range = block_range(dy.pixels());
  block_reduce<P, Sums<P, kSums>>(
      range, cache_block<T>(range.end - range.begin, C), C, folds,
      [&](Sums<P, kSums>& sum, int c, int64_t first, int64_t last, int step) {
        if constexpr (kNormed) {
          if (first >= last) return;
          const Normed<P> normed(norm, n, C, c);
          for (int64_t p = first; p < last; p += step) {
            const P d = load_pack<P>(xs.at(p, c)) - normed.mean;
            P g(1);
            if constexpr (kGradient) g = load_pack<P>(gs.at(p, c));
            if constexpr (kFinish == Finish::dropout) g = dropped(g, factors, numbers.spatial, p, C, c);
            g = where_positive(normed(d), g);
            sum[0] += g;
            sum[1] = fma(g, d, sum[1]);
          }
        } else {
          for (int64_t p = first; p < last; p += step) {
            if constexpr (!kGradient) {
              sum[0] += load_pack<P>(xs.at(p, c));
            } else if constexpr (kFinish == Finish::pool) {
              const Window<const T, P> w(xs, Window<const T, P>::corner(p, dy.W), dy.W, c);
              const P top = max_with_nan(w.v[3], max_with_nan(w.v[2], max_with_nan(w.v[1], w.v[0])));
              sum[0] = fma(load_pack<P>(gs.at(p, c)), top, sum[0]);
            } else {
              P g = load_pack<P>(gs.at(p, c));
              if constexpr (kFinish == Finish::dropout) g = dropped(g, factors, numbers.spatial, p, C, c);
              sum[0] = fma(g, load_pack<P>(xs.at(p, c)), sum[0]);
            }
          }
        }
      },
      [&](Sums<P, kSums>& sum, int c, int64_t done) {
        for (int i = 0; i < kSums; ++i) {
          if (done > 0) sum[i] += load_pack<P>(sums + i * C + c);
          store_pack(sums + i * C + c, sum[i]);
        }
      });
}

// f(row, sum of the products of row r of w (rows, columns) with x) for every row, which `Team` threads share: a warp or
// one. L numbers are read at a time.
template <int L, int Team, class F>
__device__ __forceinline__ void dense_rows(const float* w, int rows, int columns, const float* x, F&& f) {
  using V = Vec<L>;
  const int member = thread_rank() % Team;
  for (int r = thread_rank() / Team; r < rows; r += block_threads() / Team) {
    V sum(0);
    for (int c = member * L; c < columns; c += Team * L)
      sum = fma(load<V>(w + static_cast<int64_t>(r) * columns + c), load<V>(x + c), sum);
    float total = sum_lanes(sum);
    if constexpr (Team > 1) total = warp_sum(total);
    if (member == 0) f(r, total);
  }
}
// f(c, sums of the products of columns c to c + L with x), likewise.
template <int L, int Team, class F>
__device__ __forceinline__ void dense_columns(const float* w, int rows, int columns, const float* x, F&& f) {
  using V = Vec<L>;
  const int member = thread_rank() % Team;
  for (int c = thread_rank() / Team * L; c < columns; c += block_threads() / Team * L) {
    V sum(0);
    for (int r = member; r < rows; r += Team)
      sum = fma(load<V>(w + static_cast<int64_t>(r) * columns + c), V(x[r]), sum);
    if constexpr (Team > 1) sum = V::each([](float part) { return warp_sum(part); }, sum);
    if (member == 0) f(c, sum);
  }
}

// A sample's partial sums (blocks, C), or with a norm (blocks, 2, C), and what its norm makes of them.
template <int L>
struct SampleSums {
  using V = Vec<L>;
  const float *partial, *norm;
  int blocks, C, rows;
  __device__ __forceinline__ SampleSums(const SqueezeExcite& k, const float* all, int parts, int64_t n)
      : norm(k.norm == nullptr ? nullptr : k.norm + n * 3 * k.x.C),
        blocks(parts),
        C(k.x.C),
        rows(k.norm == nullptr ? 1 : 2) {
    partial = all + n * blocks * rows * C;
  }
  __device__ __forceinline__ V row(int r, int c) const {
    V sum(0);
    for (int b = 0; b < blocks; ++b) sum += load<V>(partial + (static_cast<int64_t>(b) * rows + r) * C + c);
    return sum;
  }
  // Of x as the squeeze reads it, or of dy times that.
  __device__ __forceinline__ V of_x(int c) const {
    if (norm == nullptr) return row(0, c);
    return fma(row(1, c), load<V>(norm + C + c), row(0, c) * load<V>(norm + 2 * C + c));
  }
  // f(c, of_x(c)), L channels at a time.
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
    for (int c = thread_rank() * L; c < C; c += block_threads() * L) f(c, of_x(c));
  }
};

struct DenseShared {
  float *of_C, *of_hidden;  // (C), (hidden): of the block's sample
  template <class A>
  REGOLITH_HOST_DEVICE DenseShared(A& a, int C, int hidden) {
    a.take(of_C, C);
    a.take(of_hidden, hidden);
  }
};

// The dense layers of all samples, a block each, from partial of squeeze_sums. Rows of W1 are read LC, those of W2 LH
// numbers at a time.
template <int LC, int LH>
__global__ void __launch_bounds__(kThreads, 2) squeeze_gates(SqueezeExcite k, const float* partial, int blocks) {
  const int64_t n = blockIdx.x;
  const int C = k.x.C;
  const auto shared = take_shared<DenseShared>(C, k.hidden);
  const SampleSums<LC> sums(k, partial, blocks, n);
  sums.each([&](int c, Vec<LC> sum) {
    if (k.norm != nullptr)
      for (int r = 0; r < 2; ++r) store(k.slopes + (n * 2 + r) * C + c, sums.row(r, c));
    sum *= Vec<LC>(1 / static_cast<float>(k.x.H * k.x.W));
    store(shared.of_C + c, sum);
    store(k.mean + n * C + c, sum);
  });
  sync_block();
  dense_rows<LC, kWarp>(k.reduce, k.hidden, C, shared.of_C, [&](int j, float sum) {
    const float h = sum + k.reduce_bias[j];
    shared.of_hidden[j] = k.activation[n * k.hidden + j] = h < 0 ? 0 : h;  // NaN stays NaN
  });
  sync_block();
  dense_rows<LH, 1>(k.expand, C, k.hidden, shared.of_hidden,
                    [&](int c, float sum) { k.scale[n * C + c] = 1 / (1 + expf(-(sum + k.expand_bias[c]))); });
}

// What the loss is to the dense layers, a sample a block: gates (N, C) is the gradient at the sigmoid's input, units
// (N, hidden) that at the ReLU's, offset (N, C) that of every pixel of x by way of the mean.
// With a norm, `sums` and `affine` of SqueezeExciteBackward.
struct GateGradients {
  float *gates, *units, *offset, *sums, *affine;
};
template <int LC, int LH>
__global__ void __launch_bounds__(kThreads, 2)
    squeeze_gate_gradients(SqueezeExcite k, const float* partial, int blocks, GateGradients to) {
  const int64_t n = blockIdx.x;
  const int C = k.x.C;
  const auto shared = take_shared<DenseShared>(C, k.hidden);
  const SampleSums<LC> sums(k, partial, blocks, n);
  sums.each([&](int c, const Vec<LC>& sum) {
    const Vec<LC> s = load<Vec<LC>>(k.scale + n * C + c), g = sum * s * (Vec<LC>(1) - s);
    store(shared.of_C + c, g);
    store(to.gates + n * C + c, g);
  });
  sync_block();
  dense_columns<LH, kWarp>(k.expand, C, k.hidden, shared.of_C, [&](int j, const Vec<LH>& sum) {
    const Vec<LH> g = select(load<Vec<LH>>(k.activation + n * k.hidden + j) > Vec<LH>(0), sum, Vec<LH>(0));
    store(shared.of_hidden + j, g);
    store(to.units + n * k.hidden + j, g);
  });
  sync_block();
  dense_columns<LC, 1>(k.reduce, k.hidden, C, shared.of_hidden, [&](int c, const Vec<LC>& sum) {
    using V = Vec<LC>;
    const V offset = sum * V(1 / static_cast<float>(k.x.H * k.x.W)), s = load<V>(k.scale + n * C + c);
    store(to.offset + n * C + c, offset);
    if (to.affine == nullptr) return;
    for (int r = 0; r < 2; ++r) {
      const int64_t at = (n * 2 + r) * C + c;
      if (k.norm != nullptr) store(to.sums + at, fma(sums.row(r, c), s, load<V>(k.slopes + at) * offset));
      store(to.affine + at, r == 0 ? s : offset);
    }
  });
}

// A dense layer's gradient over the batch, in the order of the samples: kernel (out, in) and bias (out).
struct DenseGradient {
  const float *dy, *x;  // (N, out), (N, in)
  int out, in;
  float *kernel, *bias;  // null where not wanted
};
template <int L>
__device__ __forceinline__ void dense_gradient(const DenseGradient& k, int N, bool accumulate) {
  using V = Vec<L>;
  const int vectors = k.in / L;
  const Range r = block_range(static_cast<int64_t>(k.out) * vectors);
  for (int i = static_cast<int>(r.begin + threadIdx.x); i < r.end; i += static_cast<int>(blockDim.x)) {
    const int o = i / vectors, at = i % vectors * L;
    V sum(0);
    float bias = 0;
    for (int n = 0; n < N; ++n) {
      const float g = k.dy[n * k.out + o];
      sum = fma(load<V>(k.x + n * k.in + at), V(g), sum);
      bias += g;
    }
    if (k.kernel != nullptr) {
      float* out = k.kernel + static_cast<int64_t>(o) * k.in + at;
      store(out, accumulate ? load<V>(out) + sum : sum);
    }
    if (at == 0 && k.bias != nullptr) k.bias[o] = accumulate ? k.bias[o] + bias : bias;
  }
}
template <int LC, int LH>
__global__ void __launch_bounds__(kThreads, 2)
    squeeze_parameter_gradients(DenseGradient reduce, DenseGradient expand, int N, bool accumulate) {
  if (blockIdx.y == 0) {
    dense_gradient<LC>(reduce, N, accumulate);
  } else {
    dense_gradient<LH>(expand, N, accumulate);
  }
}

template <class T, class P, Finish kFinish, bool kNormed>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 2)
    squeeze_scale(Samples<const T> x, Samples<T> y, int C, const float* norm, const float* scale,
                  DropoutNumbers numbers) {
  const int n = static_cast<int>(blockIdx.y);
  const Plane<const T> xs = x.of(n);
  const Plane<T> ys = y.of(n);
  [[maybe_unused]] Factors factors(numbers);
  factors.sample(n);
  for_each_tile<T, P>(block_range(y.pixels()), C, [&](int c, int64_t first, int64_t last, int step) {
    const P s = load_pack<P>(scale + static_cast<int64_t>(n) * C + c);
    if constexpr (kNormed) {
      const Normed<P> normed(norm, n, C, c);
      for (int64_t p = first; p < last; p += step) {
        P v = max(P(0), normed(load_pack<P>(xs.at(p, c)) - normed.mean)) * s;
        if constexpr (kFinish == Finish::dropout) v = dropped(v, factors, numbers.spatial, p, C, c);
        store_pack(ys.at(p, c), v);
      }
    } else {
      for (int64_t p = first; p < last; p += step) {
        if constexpr (kFinish == Finish::pool) {
          const Window<const T, P> w(xs, Window<const T, P>::corner(p, y.W), y.W, c);
          store_pack(ys.at(p, c), max_with_nan(w.v[3], max_with_nan(w.v[2], max_with_nan(w.v[1], w.v[0]))) * s);
        } else {
          P v = load_pack<P>(xs.at(p, c)) * s;
          if constexpr (kFinish == Finish::dropout) v = dropped(v, factors, numbers.spatial, p, C, c);
          store_pack(ys.at(p, c), v);
        }
      }
    }
  });
}

// dx = dy * s (* dropout) + offset; pool: dy * s at the first maximum of a window, and the offset at all of it.
template <class T, class P, Finish kFinish>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 2)
    squeeze_scale_gradient(Samples<const T> x, Samples<const T> dy, Samples<T> dx, int C, const float* scale,
                           const float* offset, DropoutNumbers numbers, bool accumulate) {
  const int n = static_cast<int>(blockIdx.y);
  const Plane<const T> xs = x.of(n), gs = dy.of(n);
  const Plane<T> out = dx.of(n);
  [[maybe_unused]] Factors factors(numbers);
  factors.sample(n);
  for_each_tile<T, P>(block_range(dy.pixels()), C, [&](int c, int64_t first, int64_t last, int step) {
    const P s = load_pack<P>(scale + static_cast<int64_t>(n) * C + c);
    const P e = load_pack<P>(offset + static_cast<int64_t>(n) * C + c);
    const auto put = [&](int64_t pixel, const P& g) { store_pack(out.at(pixel, c), g, accumulate); };
    for (int64_t p = first; p < last; p += step) {
      P g = load_pack<P>(gs.at(p, c));
      if constexpr (kFinish == Finish::pool) {
        const int64_t corner = Window<const T, P>::corner(p, dy.W);
        const Window<const T, P> w(xs, corner, dy.W, c);
        const P top = max(w.v[3], max(w.v[2], max(w.v[1], w.v[0])));
        P rest = g * s;
        for (int i = 0; i < 4; ++i) {
          const auto mine = [](const auto& v, const auto& m, const auto& r) {
            return select(v == m, r, std::remove_cvref_t<decltype(r)>(0));
          };
          const auto others = [](const auto& v, const auto& m, const auto& r) {
            return select(v == m, std::remove_cvref_t<decltype(r)>(0), r);
          };
          const P part = i == 3 ? rest : P::each(mine, w.v[i], top, rest);
          rest = P::each(others, w.v[i], top, rest);
          put(corner + i / 2 * 2 * dy.W + i % 2, part + e);
        }
      } else {
        if constexpr (kFinish == Finish::dropout) g = dropped(g, factors, numbers.spatial, p, C, c);
        put(p, fma(g, s, e));
      }
    }
  });
}

void check(const char* kernel, const SqueezeExcite& k, const TensorView& x, const TensorView& y) {
  const int shrink = k.pool ? 2 : 1;
  if (x.pixels() == 0 || y.N != x.N || y.C != x.C || y.dtype != x.dtype || y.H * shrink != x.H || y.W * shrink != x.W) {
    throw KernelError(std::string(kernel) + ": the maps must have one element type, some pixels and " +
                      (k.pool ? "even sizes, the pooled one half of the other's" : "one shape"));
  }
  if (k.hidden < 1 || k.hidden > x.C) {
    throw KernelError(std::string(kernel) + ": " + std::to_string(k.hidden) + " hidden units for " +
                      std::to_string(x.C) + " channels; expected 1 to as many as there are channels");
  }
  if (k.pool && (k.dropout || k.norm != nullptr))
    throw KernelError(std::string(kernel) + ": takes pooling or dropout, not both, and no norm with pooling");
}

// f(what becomes of x * s, whether there is a norm)
template <class F>
void with_finish(const SqueezeExcite& k, F&& f) {
  constexpr std::integral_constant<Finish, Finish::dropout> dropout;
  constexpr std::integral_constant<Finish, Finish::plain> plain;
  const bool drops = static_cast<bool>(k.dropout);
  if (k.pool) return f(std::integral_constant<Finish, Finish::pool>{}, std::false_type{});
  if (k.norm != nullptr) return drops ? f(dropout, std::true_type{}) : f(plain, std::true_type{});
  drops ? f(dropout, std::false_type{}) : f(plain, std::false_type{});
}

// Calls f with the lanes of rows of C and of rows of `hidden` numbers. The caller adds some of each, or null.
template <class F>
void with_dense_lanes(const SqueezeExcite& k, const float* of_C, const float* of_hidden, const float* units, F&& f) {
  const int C = k.x.C, H = k.hidden;
  with_lanes<float>({row_map(k.reduce, C), row_map(of_C, C), row_map(k.mean, C), row_map(k.scale, C),
                     row_map(static_cast<const float*>(k.workspace), C)},
                    [&](auto c) {
                      with_lanes<float>(
                          {row_map(k.expand, H), row_map(of_hidden, H), row_map(units, H), row_map(k.activation, H)},
                          [&](auto h) { f(c, h); });
                    });
}

// partial of squeeze_sums.
template <bool kGradient, class FinishOf, class NormedOf>
void launch_sums(Stream& stream, const char* name, const SqueezeExcite& op, const TensorView& dy, unsigned blocks,
                 FinishOf finish, NormedOf normed) {
  with_packs(name, {op.x, dy}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    const size_t scratch = reduce_scratch<Sums<P, normed ? 2 : 1>>(kThreads, op.x.C / P::size);
    launch(stream, name, {blocks, static_cast<unsigned>(op.x.N)}, {kThreads}, shared_bytes<float>(scratch),
           squeeze_sums<T, P, kGradient, finish, normed>, samples_of<const T>(op.x), samples_of<const T>(dy), op.x.C,
           op.norm, dropout_numbers(op.dropout), scratch, static_cast<float*>(op.workspace));
  });
}

unsigned sum_blocks(Stream& stream, const TensorView& m) {
  return summing_blocks(stream, m.N, static_cast<int64_t>(m.H) * m.W);
}
unsigned scale_blocks(Stream& stream, const TensorView& m) {
  return writing_blocks(stream, m.N, static_cast<int64_t>(m.H) * m.W);
}

}  // namespace

void squeeze_excite_forward(Stream& stream, const SqueezeExciteForward& k) {
  const SqueezeExcite& op = k.op;
  check("squeeze_excite_forward", op, op.x, k.y);
  const int C = op.x.C;
  const unsigned N = static_cast<unsigned>(op.x.N), blocks = k.sums != nullptr ? 1 : sum_blocks(stream, op.x);
  if (k.sums == nullptr) {
    constexpr std::integral_constant<Finish, Finish::plain> plain;
    if (op.norm != nullptr)
      launch_sums<false>(stream, "squeeze_sums", op, op.x, blocks, plain, std::true_type{});
    else
      launch_sums<false>(stream, "squeeze_sums", op, op.x, blocks, plain, std::false_type{});
  }
  const float* partial = k.sums != nullptr ? k.sums : static_cast<const float*>(op.workspace);
  with_dense_lanes(op, k.sums, nullptr, nullptr, [&](auto c, auto h) {
    launch(stream, "squeeze_gates", {N}, {kThreads}, shared_bytes_of<DenseShared>(C, op.hidden), squeeze_gates<c, h>,
           op, partial, static_cast<int>(blocks));
  });
  with_finish(op, [&](auto finish, auto normed) {
    with_packs("squeeze_excite_forward", {op.x, k.y}, [&](auto t, auto pack) {
      using T = decltype(t);
      using P = decltype(pack);
      launch(stream, "squeeze_scale", {scale_blocks(stream, k.y), N}, {kThreads}, 0,
             squeeze_scale<T, P, finish, normed>, samples_of<const T>(op.x), samples_of<T>(k.y), C, op.norm, op.scale,
             dropout_numbers(op.dropout));
    });
  });
}

void squeeze_excite_backward(Stream& stream, const SqueezeExciteBackward& k) {
  const SqueezeExcite& op = k.op;
  check("squeeze_excite_backward", op, op.x, k.dy);
  if (k.dx) check("squeeze_excite_backward", op, k.dx, k.dy);
  const int C = op.x.C, hidden = op.hidden;
  const int64_t rows = op.x.N;
  const unsigned N = static_cast<unsigned>(op.x.N), blocks = sum_blocks(stream, k.dy);
  float *partial = static_cast<float*>(op.workspace), *gates = partial + std::max<int64_t>(512, rows) * 2 * C;
  float *offset = gates + rows * C, *units = offset + rows * C;
  with_finish(op, [&](auto finish, auto normed) {
    launch_sums<true>(stream, "squeeze_gradient_sums", op, k.dy, blocks, finish, normed);
  });
  with_dense_lanes(op, k.dreduce, k.dexpand, units, [&](auto c, auto h) {
    launch(stream, "squeeze_gate_gradients", {N}, {kThreads}, shared_bytes_of<DenseShared>(C, hidden),
           squeeze_gate_gradients<c, h>, op, partial, static_cast<int>(blocks),
           GateGradients{gates, units, offset, k.sums, k.affine});
    launch(stream, "squeeze_parameter_gradients", {blocks_for(stream, static_cast<int64_t>(C) * hidden, 64), 2},
           {kThreads}, 0, squeeze_parameter_gradients<c, h>,
           DenseGradient{units, op.mean, hidden, C, k.dreduce, k.dreduce_bias},
           DenseGradient{gates, op.activation, C, hidden, k.dexpand, k.dexpand_bias}, op.x.N, k.accumulate_parameters);
  });
  if (!k.dx) return;
  with_finish(op, [&](auto finish, auto) {
    with_packs("squeeze_excite_backward", {op.x, k.dy, k.dx}, [&](auto t, auto pack) {
      using T = decltype(t);
      using P = decltype(pack);
      launch(stream, "squeeze_scale_gradient", {scale_blocks(stream, k.dy), N}, {kThreads}, 0,
             squeeze_scale_gradient<T, P, finish>, samples_of<const T>(op.x), samples_of<const T>(k.dy),
             samples_of<T>(k.dx), C, op.scale, offset, dropout_numbers(op.dropout), k.accumulate_dx);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
