#include "kernels/group_norm.h"

#include <numeric>

#include "kernels/norm_common.h"

// A block has a bundle of whole groups of one sample: on the fast host all channels, whose map stays in the caches; on
// a GPU as few channels as memory accesses allow, kept in shared memory between the passes where they fit (else most of
// them are still in L2).
namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr int kBundleThreads = 512;

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

// All passes over `channels` channels of sample y, from channel x * channels.
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

}  // namespace

bool group_norm_forward(Stream& stream, const NormForward& k) {
  bool runs = false;
  with_packs("norm_forward", {k.norm.x, k.residual, k.y}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    const int channels = bundle_channels(stream, k.norm, P::size);
    runs = channels > 0;
    if (!runs) return;
    with_drops(static_cast<bool>(k.norm.dropout),
               [&](auto drops) { forward_bundles<T, P, drops>(stream, k, channels); });
  });
  return runs;
}

bool group_norm_backward(Stream& stream, const NormBackward& k) {
  bool runs = false;
  with_packs("norm_backward", {k.norm.x, k.y, k.dy, k.dx, k.dresidual}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    const int channels = bundle_channels(stream, k.norm, P::size);
    runs = channels > 0;
    if (!runs) return;
    with_drops(k.norm.dropout && !k.y, [&](auto drops) {
      const size_t folds = reduce_scratch<Sums<P, 2>>(kBundleThreads, channels / P::size);
      float* totals = static_cast<float*>(k.norm.workspace);
      launch(stream, "group_norm_gradient",
             {static_cast<unsigned>(k.norm.x.C / channels), static_cast<unsigned>(k.norm.x.N)}, {kBundleThreads},
             shared_bytes_of<PassShared>(channels, true, true, folds), group_norm_bundle_gradient<T, P, drops>, k,
             dropout_numbers(k.norm.dropout), channels, totals);
      reduce_samples(stream, k, totals);
    });
  });
  return runs;
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
