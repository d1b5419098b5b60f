#include "kernels/norm.h"

#include <utility>

#include "kernels/conv_tile.h"
#include "kernels/group_norm.h"
#include "kernels/norm_common.h"

// The passes as launches of their own, over the whole machine. Block x takes its range of the pixels of sample y.
namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr int kThreads = 256;

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
  const int parts = static_cast<int>(k.whole_sums ? 1 : strips ? strips_of_sample(n) : summing);
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

}  // namespace

void norm_forward(Stream& stream, const NormForward& k) {
  check("norm_forward", k.norm, {k.residual, k.y});
  if ((k.on_load != nullptr || k.x_moments != nullptr) && k.norm.ranks != nullptr)
    throw KernelError("norm_forward: statistics of all ranks are those of a norm that writes y");
  if (k.on_load != nullptr && k.residual) throw KernelError("norm_forward: readers of x have no residual to add");
  if (k.affine != nullptr && k.norm.dropout) throw KernelError("norm_forward: coefficients know no dropout");
  if ((k.x_sums != nullptr || k.affine != nullptr) && k.norm.groups == 0)
    throw KernelError("norm_forward: sums of x and coefficients are those of group norm");
  const bool whole = k.x_sums == nullptr && k.affine == nullptr && k.x_moments == nullptr && k.on_load == nullptr;
  if (whole && group_norm_forward(stream, k)) return;
  with_packs("norm_forward", {k.norm.x, k.residual, k.y}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    with_drops(static_cast<bool>(k.norm.dropout), [&](auto drops) { forward_passes<T, P, drops>(stream, k); });
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
  if (k.squeeze != nullptr && (k.on_load == nullptr || !k.dresidual || k.sums != nullptr || k.norm.groups == 0))
    throw KernelError(
        "norm_backward: a squeeze leaves its gradient to a group norm that writes that of a residual alone");
  if (k.on_load != nullptr && k.dx) throw KernelError("norm_backward: dx is left to the reader of dy");
  if (k.sums == nullptr && k.on_load == nullptr && group_norm_backward(stream, k)) return;
  with_packs("norm_backward", {k.norm.x, k.y, k.dy, k.dx, k.dresidual}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    with_drops(k.norm.dropout && !k.y, [&](auto drops) { backward_passes<T, P, drops>(stream, k); });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
