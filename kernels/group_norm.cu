#include "kernels/group_norm.h"

#include <numeric>

#include "kernels/norm.h"

// Where there are samples enough to keep the machine busy, a block does all passes over a bundle of whole groups of one
// sample: on the fast host over all channels, whose map stays in the caches; on a GPU over as few channels as memory
// accesses allow, kept in shared memory between the passes where they fit (else most of them are still in L2).
namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr unsigned kThreads = 512;

// What a block does: `channels` of sample y, from channel x * channels.
struct Bundle {
  int C, D, channels;
  int64_t pixels;
  size_t scratch;
};

template <class T, class P, bool kTile>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 1)
    group_norm_bundle(ForwardPlanes<T> a, Bundle b, const float* gamma, const float* beta, float epsilon, float* mean,
                      float* rstd, float* sums) {
  Shared shared;
  const Channels k = Channels::take(shared, b.channels);
  float *m2 = shared.take<float>(b.channels), *folds = shared.take<float>(b.scratch);
  T* tile = kTile ? shared.take<T>(b.pixels * b.channels) : nullptr;
  const int c0 = static_cast<int>(blockIdx.x) * b.channels;
  const int64_t sample = blockIdx.y;
  a = a.shifted(b.pixels * sample, c0);
  const Range all{0, b.pixels};
  block_moments<T, P>(a.x, all, b.channels, tile, k.mean, m2, folds);
  sync_block();
  for (int g = static_cast<int>(threadIdx.x); g < b.channels / b.D; g += static_cast<int>(blockDim.x)) {
    const int64_t out = sample * (b.C / b.D) + c0 / b.D + g;
    float variance;
    const float r =
        group_rstd(k.mean + g * b.D, m2 + g * b.D, b.D, static_cast<float>(b.pixels), epsilon, mean + out, &variance);
    rstd[out] = r;
    for (int c = g * b.D; c < g * b.D + b.D; ++c) {
      k.mean[c] = mean[out];
      k.scale[c] = r * gamma[c0 + c];
      k.beta[c] = beta[c0 + c];
    }
  }
  sync_block();
  if (kTile) a.x = {tile, b.channels};
  block_apply<T, P>(a, all, b.channels, k, sums == nullptr ? nullptr : sums + sample * b.C + c0, folds);
}

// totals: (N, 2, C), the sums of g and of g * (x - mean) * rstd.
template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 1)
    group_norm_bundle_gradient(BackwardPlanes<T> a, Bundle b, const float* gamma, const float* beta, const float* mean,
                               const float* rstd, float* totals) {
  Shared shared;
  const Channels k = Channels::take(shared, b.channels);
  float *sum = shared.take<float>(b.channels), *moment = shared.take<float>(b.channels);
  float *slope = shared.take<float>(b.channels), *offset = shared.take<float>(b.channels);
  float* folds = shared.take<float>(b.scratch);
  const int c0 = static_cast<int>(blockIdx.x) * b.channels;
  const int64_t sample = blockIdx.y, g0 = sample * (b.C / b.D) + c0 / b.D;
  a = a.shifted(b.pixels * sample, c0);
  const Range all{0, b.pixels};
  k.fill(mean + g0, rstd + g0, gamma + c0, beta + c0, b.channels, b.D);
  block_gradient_sums<T, P>(a, all, b.channels, k, sum, moment, folds);
  sync_block();
  for (int c = static_cast<int>(threadIdx.x); c < b.channels; c += static_cast<int>(blockDim.x)) {
    float* total = totals + sample * 2 * b.C + c0 + c;
    moment[c] *= rstd[g0 + c / b.D];
    total[0] = sum[c];
    total[b.C] = moment[c];
  }
  sync_block();
  fill_gradient(sum, moment, rstd + g0, gamma + c0, b.channels, b.D, static_cast<float>(b.pixels * b.D), slope, offset);
  block_apply_gradient<T, P>(a, all, b.channels, k, slope, offset);
}

// Bytes of shared memory that a block may have.
size_t shared_limit() {
#if defined(__CUDACC__)
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    return 48 * 1024;
  }
  return static_cast<size_t>(bytes);
#else
  return 48 * 1024;
#endif
}

// Channels of a block's bundle: whole groups and whole packs, of a sector of memory or more where that leaves blocks
// enough. 0: the passes had better be launches of their own.
int bundle_channels(const Stream& stream, const TensorView& x, int D, int pack) {
  // Blocks that keep the machine busy. The checked execution shall see both ways.
  const int64_t least = kExecution == Execution::checked ? 4 : stream.processors();
  if (kWarp == 1) return x.N >= least ? x.C : 0;
  const int unit = std::lcm(D, pack);
  int channels = unit;
  while (channels * static_cast<int>(size_of(x.dtype)) < 64 && x.C % (2 * channels) == 0 &&
         static_cast<int64_t>(x.N) * x.C / (2 * channels) >= 2 * least) {
    channels *= 2;
  }
  const bool small = x.pixels() / x.N * channels * static_cast<int64_t>(size_of(x.dtype)) <= 16 * 1024;
  return small || static_cast<int64_t>(x.N) * x.C / channels >= least ? channels : 0;
}

}  // namespace

void group_norm_forward(Stream& stream, const GroupNormForward& k) {
  norm_require("group_norm_forward", k.x, k.groups, {k.residual, k.y});
  const int C = k.x.C, D = C / k.groups;
  const int64_t pixels = static_cast<int64_t>(k.x.H) * k.x.W;
  bool done = false;
  with_float_type(k.x.dtype, "group_norm_forward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.residual, k.y}, [&](auto lanes) {
      with_pack<lanes>(C, [&](auto packs) {
        using P = Pack<lanes, packs>;
        const int channels = bundle_channels(stream, k.x, D, P::size);
        if (channels == 0) return;
        const int threads = static_cast<int>(tile_threads(kThreads)), units = channels / P::size;
        const size_t scratch =
            std::max(reduce_scratch<Moments<P>>(threads, units), reduce_scratch<Sums<P>>(threads, units));
        const Bundle bundle{C, D, channels, pixels, scratch};
        const size_t bytes = Channels::bytes(channels) + shared_bytes<float>(channels) + shared_bytes<float>(scratch);
        const size_t tile = shared_bytes<T>(static_cast<size_t>(pixels) * channels);
        const bool fits = kWarp > 1 && bytes + tile <= shared_limit();
        const ForwardPlanes<T> planes{plane_of<const T>(k.x), plane_of<const T>(k.residual), plane_of<T>(k.y), k.relu};
        launch(stream, "group_norm", {static_cast<unsigned>(C / channels), static_cast<unsigned>(k.x.N)}, {kThreads},
               bytes + (fits ? tile : 0), fits ? group_norm_bundle<T, P, kWarp != 1> : group_norm_bundle<T, P, false>,
               planes, bundle, k.gamma, k.beta, k.epsilon, k.mean, k.rstd, k.sums);
        done = true;
      });
    });
  });
  if (done) return;
  norm_forward(stream, {k.x, k.residual, k.y, k.x.N, k.groups, k.gamma, k.beta, k.mean, k.rstd, k.epsilon, k.relu,
                        k.sums, nullptr, nullptr, 0, nullptr, true, static_cast<float*>(k.workspace)});
}

void group_norm_backward(Stream& stream, const GroupNormBackward& k) {
  norm_require("group_norm_backward", k.x, k.groups, {k.y, k.dy, k.dy2, k.dx, k.dresidual});
  const int C = k.x.C, D = C / k.groups;
  const int64_t pixels = static_cast<int64_t>(k.x.H) * k.x.W;
  const NormBackward passes{k.x,
                            k.y,
                            k.dy,
                            k.dy2,
                            k.dx,
                            k.dresidual,
                            k.x.N,
                            k.groups,
                            k.gamma,
                            k.beta,
                            k.mean,
                            k.rstd,
                            k.dgamma,
                            k.dbeta,
                            k.relu,
                            true,
                            k.accumulate_dx,
                            k.accumulate_dresidual,
                            k.accumulate_parameters,
                            static_cast<float*>(k.workspace)};
  bool done = false;
  with_float_type(k.x.dtype, "group_norm_backward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.y, k.dy, k.dy2, k.dx, k.dresidual}, [&](auto lanes) {
      with_pack<lanes>(C, [&](auto packs) {
        using P = Pack<lanes, packs>;
        const int channels = bundle_channels(stream, k.x, D, P::size);
        if (channels == 0) return;
        const size_t scratch = reduce_scratch<Sums<P>>(static_cast<int>(tile_threads(kThreads)), channels / P::size);
        const Bundle bundle{C, D, channels, pixels, scratch};
        const size_t bytes =
            Channels::bytes(channels) + 4 * shared_bytes<float>(channels) + shared_bytes<float>(scratch);
        launch(stream, "group_norm_gradient", {static_cast<unsigned>(C / channels), static_cast<unsigned>(k.x.N)},
               {kThreads}, bytes, group_norm_bundle_gradient<T, P>, backward_planes<T>(passes), bundle, k.gamma, k.beta,
               k.mean, k.rstd, passes.workspace);
        done = true;
      });
    });
  });
  if (!done) return norm_backward(stream, passes);
  norm_parameter_gradient(stream, passes, passes.workspace);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
