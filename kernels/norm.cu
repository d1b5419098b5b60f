#include "kernels/norm.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr unsigned kThreads = 256;
using One = Pack<1, 1>;

struct Sum {  // of one element
  static constexpr int floats = 1;
  float value = 0;
  __device__ __forceinline__ void save(float* at) const { *at = value; }
  __device__ __forceinline__ void merge(const float* at) { value += *at; }
};

// Moments of block x of sample y: partial (S, B, 2, C).
template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 3)
    norm_statistics(Plane<const T> x, int C, int64_t pixels, size_t scratch, float* partial) {
  Shared shared;
  float* folds = shared.take<float>(scratch);
  float* mine = partial + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * 2 * C;
  block_moments<T, P>(x.shifted(pixels * blockIdx.y, 0), block_range(pixels), C, nullptr, mine, mine + C, folds);
}

// Merges the moments of a sample's blocks, then of a group's channels; updates the running statistics. Block x has
// `tile` channels of sample y.
__global__ void __launch_bounds__(kThreads)
    norm_combine(const float* partial, int blocks, int C, int D, int tile, int64_t pixels, size_t scratch,
                 float epsilon, float momentum, const int64_t* step, float* mean, float* rstd, float* running_mean,
                 float* running_variance) {
  Shared shared;
  float *folds = shared.take<float>(scratch), *means = shared.take<float>(tile), *m2s = shared.take<float>(tile);
  const int c0 = static_cast<int>(blockIdx.x) * tile, channels = C - c0 < tile ? C - c0 : tile;
  const int64_t each = (pixels + blocks - 1) / blocks;
  const ThreadTile crew(channels);
  for (int first = 0; first < channels; first += crew.columns) {
    const int c = first + crew.column;
    Moments<One> all;
    if (crew.row < crew.rows && c < channels) {
      for (int b = crew.row; b < blocks; b += crew.rows) {
        const float* part = partial + (static_cast<int64_t>(blockIdx.y) * blocks + b) * 2 * C + c0 + c;
        const int64_t rest = pixels - b * each;
        all.merge(load_pack<One>(part), load_pack<One>(part + C), static_cast<float>(rest < each ? rest : each));
      }
    }
    reduce_rows(crew, all, folds);
    if (crew.row == 0 && c < channels) {
      store_pack(means + c, all.mean);
      store_pack(m2s + c, all.m2);
    }
  }
  sync_block();
  float keep = momentum;
  if (step != nullptr) {
    const float t = static_cast<float>(*step), early = (1 + t) / (10 + t);
    keep = early < momentum ? early : momentum;
  }
  for (int g = static_cast<int>(threadIdx.x); g < channels / D; g += static_cast<int>(blockDim.x)) {
    const int out = static_cast<int>(blockIdx.y) * (C / D) + c0 / D + g;
    float variance;
    rstd[out] = group_rstd(means + g * D, m2s + g * D, D, static_cast<float>(pixels), epsilon, mean + out, &variance);
    if (running_mean != nullptr) {
      running_mean[out] = keep * running_mean[out] + (1 - keep) * mean[out];
      running_variance[out] = keep * running_variance[out] + (1 - keep) * variance;
    }
  }
}

__global__ void __launch_bounds__(kThreads) norm_given(const float* running_mean, const float* running_variance,
                                                       int groups, float epsilon, float* mean, float* rstd) {
  const Range r = block_range(groups);
  for (int64_t g = r.begin + threadIdx.x; g < r.end; g += blockDim.x) {
    mean[g] = running_mean[g];
    rstd[g] = 1 / sqrtf(running_variance[g] + epsilon);
  }
}

// partial: (S, B, C), or null.
template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 3)
    norm_apply(ForwardPlanes<T> a, int C, int D, int64_t pixels, size_t scratch, const float* mean, const float* rstd,
               const float* gamma, const float* beta, float* partial) {
  Shared shared;
  const Channels k = Channels::take(shared, C);
  float* folds = shared.take<float>(scratch);
  const int g = static_cast<int>(blockIdx.y) * (C / D);
  k.fill(mean + g, rstd + g, gamma, beta, C, D);
  float* sums =
      partial == nullptr ? nullptr : partial + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * C;
  block_apply<T, P>(a.shifted(pixels * blockIdx.y, 0), block_range(pixels), C, k, sums, folds);
}

// partial: (S, B, 2, C), the sums of g and of g * (x - mean).
template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 3)
    norm_gradient_sums(BackwardPlanes<T> a, int C, int D, int64_t pixels, size_t scratch, const float* mean,
                       const float* rstd, const float* gamma, const float* beta, float* partial) {
  Shared shared;
  const Channels k = Channels::take(shared, C);
  float* folds = shared.take<float>(scratch);
  const int g = static_cast<int>(blockIdx.y) * (C / D);
  k.fill(mean + g, rstd + g, gamma, beta, C, D);
  float* mine = partial + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * 2 * C;
  block_gradient_sums<T, P>(a.shifted(pixels * blockIdx.y, 0), block_range(pixels), C, k, mine, mine + C, folds);
}

// out[s][e] = sum over b of partial[s][b][e]: element e is channel e % C of one of E / C quantities, the second of
// which is multiplied by the rstd of its group, where rstd is given. Also to dbeta and dgamma, where given.
struct Fold {
  const float* partial;
  int blocks, E, C, D;
  const float* rstd;
  float *out, *dbeta, *dgamma;
  bool accumulate;
};
__global__ void __launch_bounds__(kThreads) norm_fold(Fold k, int tile, size_t scratch) {
  Shared shared;
  float* folds = shared.take<float>(scratch);
  const int e0 = static_cast<int>(blockIdx.x) * tile, elements = k.E - e0 < tile ? k.E - e0 : tile;
  const ThreadTile crew(elements);
  for (int first = 0; first < elements; first += crew.columns) {
    const int e = e0 + first + crew.column;
    const bool mine = e < e0 + elements;
    Sum sum;
    if (crew.row < crew.rows && mine) {
      for (int b = crew.row; b < k.blocks; b += crew.rows) {
        sum.value += k.partial[(static_cast<int64_t>(blockIdx.y) * k.blocks + b) * k.E + e];
      }
    }
    reduce_rows(crew, sum, folds);
    if (crew.row > 0 || !mine) continue;
    const int c = e % k.C;
    if (k.rstd != nullptr && e >= k.C) sum.value *= k.rstd[static_cast<int>(blockIdx.y) * (k.C / k.D) + c / k.D];
    if (k.out != nullptr) k.out[static_cast<int64_t>(blockIdx.y) * k.E + e] = sum.value;
    if (float* parameters = e < k.C ? k.dbeta : k.dgamma) {
      parameters[c] = k.accumulate ? parameters[c] + sum.value : sum.value;
    }
  }
}

template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 3)
    norm_apply_gradient(BackwardPlanes<T> a, int C, int D, int64_t pixels, bool training, const float* mean,
                        const float* rstd, const float* gamma, const float* beta, const float* sums) {
  Shared shared;
  const Channels k = Channels::take(shared, C);
  float *slope = shared.take<float>(C), *offset = shared.take<float>(C);
  const int g = static_cast<int>(blockIdx.y) * (C / D);
  k.fill(mean + g, rstd + g, gamma, beta, C, D);
  if (training) {
    const float* mine = sums + static_cast<int64_t>(blockIdx.y) * 2 * C;
    fill_gradient(mine, mine + C, rstd + g, gamma, C, D, static_cast<float>(pixels * D), slope, offset);
  } else {  // the statistics are constants
    for (int c = static_cast<int>(threadIdx.x); c < C; c += static_cast<int>(blockDim.x)) slope[c] = offset[c] = 0;
    sync_block();
  }
  block_apply_gradient<T, P>(a.shifted(pixels * blockIdx.y, 0), block_range(pixels), C, k, slope, offset);
}

void fold(Stream& stream, int samples, const Fold& k) {
  constexpr int tile = 32;
  const int threads = static_cast<int>(tile_threads(kThreads));
  size_t scratch = 0;  // the last block may have fewer columns, and then more rows
  for (const int columns : {std::min(tile, k.E), k.E % tile}) {
    if (columns > 0) scratch = std::max(scratch, reduce_scratch<Sum>(threads, columns));
  }
  launch(stream, "norm_fold", {static_cast<unsigned>((k.E + tile - 1) / tile), static_cast<unsigned>(samples)},
         {kThreads}, shared_bytes<float>(scratch), norm_fold, k, tile, scratch);
}

}  // namespace

void norm_forward(Stream& stream, const NormForward& k) {
  const int C = k.x.C, D = C / k.groups, S = k.samples;
  const int64_t pixels = k.x.pixels() / S;
  const int threads = static_cast<int>(tile_threads(kThreads));
  const unsigned blocks = norm_blocks(stream, S, pixels, 4, norm_partials(S)), samples = static_cast<unsigned>(S);
  const unsigned applying = norm_blocks(stream, S, pixels, kWarp == 1 ? 4 : 8, 65535);
  with_float_type(k.x.dtype, "norm_forward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.residual, k.y}, [&](auto lanes) {
      with_pack<lanes>(C, [&](auto packs) {
        using P = Pack<lanes, packs>;
        if (k.training) {
          const size_t scratch = reduce_scratch<Moments<P>>(threads, C / P::size);
          launch(stream, "norm_statistics", {blocks, samples}, {kThreads}, shared_bytes<float>(scratch),
                 norm_statistics<T, P>, plane_of<const T>(k.x), C, pixels, scratch, k.workspace);
          const int tile = std::min(C, D >= 32 ? D : 32 / D * D);
          size_t folds = 0;
          for (const int columns : {tile, C % tile}) {
            if (columns > 0) folds = std::max(folds, reduce_scratch<Moments<One>>(threads, columns));
          }
          launch(stream, "norm_combine", {static_cast<unsigned>((C + tile - 1) / tile), samples}, {kThreads},
                 shared_bytes<float>(folds) + 2 * shared_bytes<float>(tile), norm_combine, k.workspace,
                 static_cast<int>(blocks), C, D, tile, pixels, folds, k.epsilon, k.momentum, k.step, k.mean, k.rstd,
                 k.running_mean, k.running_variance);
        } else {
          launch(stream, "norm_given", {1}, {kThreads}, 0, norm_given, k.running_mean, k.running_variance, k.groups,
                 k.epsilon, k.mean, k.rstd);
        }
        const ForwardPlanes<T> planes{plane_of<const T>(k.x), plane_of<const T>(k.residual), plane_of<T>(k.y), k.relu};
        const size_t scratch = k.sums == nullptr ? 0 : reduce_scratch<Sums<P>>(threads, C / P::size);
        launch(stream, "norm_apply", {k.sums == nullptr ? applying : blocks, samples}, {kThreads},
               Channels::bytes(C) + shared_bytes<float>(scratch), norm_apply<T, P>, planes, C, D, pixels, scratch,
               k.mean, k.rstd, k.gamma, k.beta, k.sums == nullptr ? nullptr : k.workspace);
      });
    });
  });
  if (k.sums != nullptr) {
    fold(stream, S, {k.workspace, static_cast<int>(blocks), C, C, D, nullptr, k.sums, nullptr, nullptr, false});
  }
}

void norm_parameter_gradient(Stream& stream, const NormBackward& k, const float* sums) {
  const int C = k.x.C;
  fold(stream, 1, {sums, k.samples, 2 * C, C, 1, nullptr, nullptr, k.dbeta, k.dgamma, k.accumulate_parameters});
}

void norm_backward(Stream& stream, const NormBackward& k) {
  const int C = k.x.C, D = C / k.groups, S = k.samples;
  const int64_t pixels = k.x.pixels() / S;
  const unsigned blocks = norm_blocks(stream, S, pixels, 4, norm_partials(S)), samples = static_cast<unsigned>(S);
  const unsigned applying = norm_blocks(stream, S, pixels, kWarp == 1 ? 4 : 8, 65535);
  float* sums = k.workspace + static_cast<int64_t>(norm_partials(S)) * S * 2 * C;  // (S, 2, C)
  with_float_type(k.x.dtype, "norm_backward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.y, k.dy, k.dy2, k.dx, k.dresidual}, [&](auto lanes) {
      with_pack<lanes>(C, [&](auto packs) {
        using P = Pack<lanes, packs>;
        const BackwardPlanes<T> planes = backward_planes<T>(k);
        const size_t scratch = reduce_scratch<Sums<P>>(static_cast<int>(tile_threads(kThreads)), C / P::size);
        launch(stream, "norm_gradient_sums", {blocks, samples}, {kThreads},
               Channels::bytes(C) + shared_bytes<float>(scratch), norm_gradient_sums<T, P>, planes, C, D, pixels,
               scratch, k.mean, k.rstd, k.gamma, k.beta, k.workspace);
        const bool last = S == 1;  // then these sums are the parameters' gradients
        fold(stream, S,
             {k.workspace, static_cast<int>(blocks), 2 * C, C, D, k.rstd, sums, last ? k.dbeta : nullptr,
              last ? k.dgamma : nullptr, k.accumulate_parameters});
        launch(stream, "norm_apply_gradient", {applying, samples}, {kThreads},
               Channels::bytes(C) + 2 * shared_bytes<float>(C), norm_apply_gradient<T, P>, planes, C, D, pixels,
               k.training, k.mean, k.rstd, k.gamma, k.beta, sums);
      });
    });
  });
  if (S > 1) norm_parameter_gradient(stream, k, sums);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
