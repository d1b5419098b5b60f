#include "kernels/aspp.h"

#include "kernels/channel_sum.h"
#include "kernels/core/gemm.h"
#include "kernels/core/launch.h"
#include "kernels/core/reduce.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

inline constexpr int kThreads = 256;
template <class T>
inline constexpr int kStep = 128 / sizeof(T);  // of a sum, between two barriers
template <class T>
inline constexpr int kSlab = 64 / sizeof(T);  // the same, of the projection, whose tiles are wide
inline constexpr int kPixels = 32;            // of a tile of forward; of a step of the weight gradient
inline constexpr int kChunk = 128;            // channels of z that forward has at a time
inline constexpr int kGradientPixels = 64, kGradientColumns = 128;  // of a tile of the data gradient

// What a kernel knows of its branches; z is dz in the data gradient. Without padding, which g++ 12 clears wrongly
// inside of arrays: launch() could then not see all pointers.
struct Branches {
  struct Branch {
    const void* w;
    const float* bias;
    const void* project;
    void* z;
    int K, pitch;  // of z
    AsppTaps taps;
    int unused = 0;
  } at[kAsppGroups] = {};
};
static_assert(sizeof(Branches) == kAsppGroups * (4 * sizeof(void*) + 6 * sizeof(int)));

template <class T, int M, int N>
using AsppSums = TileSums<T, M, N, kThreads>;

// Fetches a tile: `width` elements of each row, from source(row), zeros where that is null.
template <class T, class Source>
__device__ __forceinline__ void fetch(T* tile, int pitch, int rows, int width, Source&& source) {
  stage_tile<kTileVector<T>, true>(tile, pitch, rows, width, width, source);
}

// fetch(step, stage) and use(step, stage) for every step, with the fetches one step ahead. Begins and ends with the
// stages free; a barrier stands between a step's use and whatever comes after it.
template <class T, class Fetch, class Use>
__device__ __forceinline__ void pipeline(int steps, T* stages, int stage_size, Fetch&& fetch_step, Use&& use) {
  fetch_step(0, stages);
  commit_copies();
  for (int s = 0; s < steps; ++s) {
    if (s + 1 < steps) fetch_step(s + 1, stages + (s + 1) % 2 * stage_size);
    commit_copies();
    wait_for_copies<1>();
    sync_block();
    use(s, stages + s % 2 * stage_size);
    sync_block();
  }
}

// The pixel that lies (down, right) of pixel p of a map of that size; null where that is outside of its image, or p is
// none.
template <class T>
__device__ __forceinline__ const T* pixel_at(const T* data, int pitch, const TensorView& size, int p, int down,
                                             int right) {
  if (p >= size.N * size.H * size.W) return nullptr;
  if (down != 0 || right != 0) {
    const int row = p / size.W, h = row % size.H + down, w = p % size.W + right;
    if (h < 0 || h >= size.H || w < 0 || w >= size.W) return nullptr;
    p += down * size.W + right;
  }
  return data + static_cast<int64_t>(p) * pitch;
}

// The taps, a bit each, that land inside of the image for some of the pixels p0 to p0 + count: on a map larger than a
// tile, most dilated taps miss it from most tiles. `sign`: 1, or -1 for taps read backwards.
__device__ __forceinline__ unsigned taps_that_land(const TensorView& size, AsppTaps taps, int sign, int p0, int count) {
  const int pixels = size.N * size.H * size.W, last = p0 + count <= pixels ? p0 + count - 1 : pixels - 1;
  const int first_row = p0 / size.W, last_row = last / size.W;
  const bool one_image = first_row / size.H == last_row / size.H;
  unsigned mask = 0;
  for (int tap = 0; tap < taps.count(); ++tap) {
    const int down = sign * taps.down(tap), right = sign * taps.right(tap);
    const bool down_lands = !one_image || (last_row % size.H + down >= 0 && first_row % size.H + down < size.H);
    const bool right_lands = first_row != last_row || (last % size.W + right >= 0 && p0 % size.W + right < size.W);
    if (down_lands && right_lands) mask |= 1u << tap;
  }
  return mask;
}
__device__ __forceinline__ int count_of(unsigned mask) {
  int n = 0;
  for (; mask != 0; mask &= mask - 1) ++n;
  return n;
}
// The i-th tap of those.
__device__ __forceinline__ int tap_of(unsigned mask, int i) {
  for (; i > 0; --i) mask &= mask - 1;
  int tap = 0;
  while ((mask >> tap & 1) == 0) ++tap;
  return tap;
}

template <class T>
struct ForwardShared {
  int stage;  // elements of a stage
  T* stages;  // (2, stage); y uses the two again, which are larger
  T* z;       // (kPixels, kChunk)
  template <class A>
  REGOLITH_HOST_DEVICE ForwardShared(A& a, int F) {
    const int branch = tile_elements<T>(kPixels + kChunk, kStep<T>), projection = tile_elements<T>(F, kSlab<T>);
    stage = branch > projection ? branch : projection;
    a.take(stages, 2 * stage);
    a.take(z, tile_elements<T>(kPixels, kChunk));
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    forward(TensorView x, Branches branches, int count, const float* bias, TensorView image, TensorView y) {
  const int C = x.C, F = y.C, pixels = x.N * x.H * x.W, p0 = static_cast<int>(blockIdx.x) * kPixels;
  constexpr int step_pitch = tile_pitch<T>(kStep<T>), slab_pitch = tile_pitch<T>(kSlab<T>),
                z_pitch = tile_pitch<T>(kChunk);
  const auto shared = take_shared<ForwardShared<T>>(F);
  T *const stages = shared.stages, *const tile = shared.z;
  const int steps_of_tap = (C + kStep<T> - 1) / kStep<T>;
  AsppSums<T, kPixels, kAsppFilters> sums;
  for (int g = 0; g < count; ++g) {
    const Branches::Branch& branch = branches.at[g];
    const AsppTaps taps = branch.taps;
    const T* w = static_cast<const T*>(branch.w);
    const T* project = static_cast<const T*>(branch.project);
    T* z_map = static_cast<T*>(branch.z);
    const int K = branch.K;
    const unsigned landing = taps_that_land(x, taps, 1, p0, kPixels);
    for (int n0 = 0; n0 < K; n0 += kChunk) {
      const int columns = K - n0 < kChunk ? K - n0 : kChunk;
      AsppSums<T, kPixels, kChunk> z;
      const auto width_of = [&](int c) { return C - c < kStep<T> ? C - c : kStep<T>; };
      pipeline(
          count_of(landing) * steps_of_tap, stages, shared.stage,
          [&](int s, T* stage) {
            const int tap = tap_of(landing, s / steps_of_tap), c = s % steps_of_tap * kStep<T>;
            const int down = taps.down(tap), right = taps.right(tap);
            fetch(stage, step_pitch, kPixels, width_of(c), [&](int m) {
              const T* in = pixel_at(x.as<const T>(), x.pitch, x, p0 + m, down, right);
              return in == nullptr ? in : in + c;
            });
            fetch(stage + kPixels * step_pitch, step_pitch, columns, width_of(c),
                  [&](int n) { return w + static_cast<int64_t>((n0 + n) * taps.count() + tap) * C + c; });
          },
          [&](int s, T* stage) {
            z.template add<false, true>(stage, step_pitch, stage + kPixels * step_pitch, step_pitch,
                                        width_of(s % steps_of_tap * kStep<T>), columns);
          });
      z.each(columns, [&](int r, int n, float sum) {
        tile[z.row(r) * z_pitch + n] = static_cast<T>(sum + (branch.bias != nullptr ? branch.bias[n0 + n] : 0.0f));
      });
      sync_block();
      write_tile<kTileVector<T>>(tile, z_pitch, kPixels, columns, [&](int m) {
        return p0 + m < pixels ? z_map + static_cast<int64_t>(p0 + m) * branch.pitch + n0 : nullptr;
      });
      const auto slab_width = [&](int s) {
        return columns - s * kSlab<T> < kSlab<T> ? columns - s * kSlab<T> : kSlab<T>;
      };
      pipeline((columns + kSlab<T> - 1) / kSlab<T>, stages, shared.stage,
               [&](int s, T* stage) {
                 fetch(stage, slab_pitch, F, slab_width(s),
                       [&](int f) { return project + static_cast<int64_t>(f) * K + n0 + s * kSlab<T>; });
               },
               [&](int s, T* stage) {
                 sums.template add<false, true>(tile + s * kSlab<T>, z_pitch, stage, slab_pitch, slab_width(s), F);
               });
    }
  }
  T* out = stages;
  const int out_pitch = tile_pitch<T>(F), per_image = x.H * x.W;
  sums.each(F, [&](int r, int f, float sum) {
    const int m = sums.row(r);
    if (p0 + m >= pixels) return;
    if (bias != nullptr) sum += bias[f];
    if (image) sum += static_cast<float>(image.as<const T>()[(p0 + m) / per_image * image.pitch + f]);
    out[m * out_pitch + f] = static_cast<T>(sum);
  });
  sync_block();
  write_tile<kTileVector<T>>(out, out_pitch, kPixels, F, [&](int m) {
    return p0 + m < pixels ? y.as<T>() + static_cast<int64_t>(p0 + m) * y.pitch : nullptr;
  });
}

template <class T>
inline constexpr int kGradientStage = tile_elements<T>(kGradientPixels, kStep<T>) + tile_elements<T>(kStep<T>,
                                                                                                     kGradientColumns);

// The pixels and channels that a block has of dx, from branches first to last.
template <class T>
__device__ __forceinline__ void gradient_tile(const Branches& branches, int first, int last, const TensorView& image,
                                              float image_scale, const TensorView& dx, bool accumulate) {
  const int C = dx.C, pixels = dx.N * dx.H * dx.W;
  const int p0 = static_cast<int>(blockIdx.x) * kGradientPixels, c0 = static_cast<int>(blockIdx.y) * kGradientColumns;
  const int columns = C - c0 < kGradientColumns ? C - c0 : kGradientColumns;
  constexpr int a_pitch = tile_pitch<T>(kStep<T>), b_pitch = tile_pitch<T>(kGradientColumns);
  Shared shared;
  T* stages = shared.take<T>(2 * kGradientStage<T>);
  AsppSums<T, kGradientPixels, kGradientColumns> sums;
  for (int g = first; g < last; ++g) {
    const Branches::Branch& branch = branches.at[g];
    const AsppTaps taps = branch.taps;
    const T* w = static_cast<const T*>(branch.w);
    const T* dz = static_cast<const T*>(branch.z);
    const int K = branch.K, steps_of_tap = (K + kStep<T> - 1) / kStep<T>;
    const auto width_of = [&](int j) { return K - j < kStep<T> ? K - j : kStep<T>; };
    const unsigned landing = taps_that_land(dx, taps, -1, p0, kGradientPixels);
    pipeline(
        count_of(landing) * steps_of_tap, stages, kGradientStage<T>,
        [&](int s, T* stage) {
          const int tap = tap_of(landing, s / steps_of_tap), j = s % steps_of_tap * kStep<T>;
          const int down = -taps.down(tap), right = -taps.right(tap);
          fetch(stage, a_pitch, kGradientPixels, width_of(j), [&](int m) {
            const T* in = pixel_at(dz, branch.pitch, dx, p0 + m, down, right);
            return in == nullptr ? in : in + j;
          });
          fetch(stage + kGradientPixels * a_pitch, b_pitch, width_of(j), columns,
                [&](int i) { return w + static_cast<int64_t>((j + i) * taps.count() + tap) * C + c0; });
        },
        [&](int s, T* stage) {
          sums.template add<false, false>(stage, a_pitch, stage + kGradientPixels * a_pitch, b_pitch,
                                          width_of(s % steps_of_tap * kStep<T>), columns);
        });
  }
  T* out = stages;
  const int per_image = dx.H * dx.W;
  sums.each(columns, [&](int r, int n, float sum) {
    const int m = sums.row(r), p = p0 + m;
    if (p >= pixels) return;
    if (image) sum += image_scale * static_cast<float>(image.as<const T>()[p / per_image * image.pitch + c0 + n]);
    if (accumulate) sum += static_cast<float>(dx.as<const T>()[static_cast<int64_t>(p) * dx.pitch + c0 + n]);
    out[m * b_pitch + n] = static_cast<T>(sum);
  });
  sync_block();
  write_tile<kTileVector<T>>(out, b_pitch, kGradientPixels, columns, [&](int m) {
    return p0 + m < pixels ? dx.as<T>() + static_cast<int64_t>(p0 + m) * dx.pitch + c0 : nullptr;
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    data_gradient(Branches branches, int count, TensorView image, float image_scale, TensorView dx, bool accumulate) {
  gradient_tile<T>(branches, 0, count, image, image_scale, dx, accumulate);
}

struct Maps {
  TensorView at[kAsppGroups];
};
static_assert(sizeof(TensorView) == sizeof(void*) + 6 * sizeof(int));  // no padding: see Branches

// Grid: tiles of pixels and of channels, as the largest dz has them; branches.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) projection_gradients(Branches branches, Maps dz) {
  const int g = static_cast<int>(blockIdx.z);
  const TensorView& to = dz.at[g];
  if (static_cast<int>(blockIdx.x) * kGradientPixels >= to.N * to.H * to.W ||
      static_cast<int>(blockIdx.y) * kGradientColumns >= to.C)
    return;
  gradient_tile<T>(branches, g, g + 1, {}, 1, to, false);
}

template <class T>
inline constexpr int kWeightStage =
    tile_elements<T>(kPixels, AsppSplits::kRows) + tile_elements<T>(kPixels, AsppSplits::kColumns);

// Product s is that of blocks first to the first of the next: parts of the pixels, taps, tiles of dw, these fastest.
// Its partial results are rows of dw and db. No padding: see Branches.
struct Products {
  struct Product {
    const void *dz, *x;
    float* partials;
    int N, H, W, K, C, dz_pitch, x_pitch, each, first;
    AsppTaps taps;
    __device__ __forceinline__ TensorView size() const { return {nullptr, N, H, W, C, C, DType::f32}; }
  } at[kAsppProducts] = {};
};
static_assert(sizeof(Products::Product) == 3 * sizeof(void*) + 12 * sizeof(int));

template <class T>
struct WeightShared {
  T* stages;  // (2, kWeightStage)
  float* db;  // (kRows)
  template <class A>
  REGOLITH_HOST_DEVICE explicit WeightShared(A& a) {
    a.take(stages, 2 * kWeightStage<T>);
    a.take(db, AsppSplits::kRows);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 3) weight_gradients(Products products, int count) {
  constexpr int kRows = AsppSplits::kRows, kColumns = AsppSplits::kColumns;
  int s = 0;
  while (s + 1 < count && static_cast<int>(blockIdx.x) >= products.at[s + 1].first) ++s;
  const Products::Product& k = products.at[s];
  const AsppTaps taps = k.taps;
  const TensorView size = k.size();
  const int K = k.K, C = k.C, tiles_across = (C + kColumns - 1) / kColumns;
  const int tiles = (K + kRows - 1) / kRows * tiles_across, block = static_cast<int>(blockIdx.x) - k.first;
  const int tile = block % tiles, tap = block / tiles % taps.count(), part = block / tiles / taps.count();
  const int k0 = tile / tiles_across * kRows, c0 = tile % tiles_across * kColumns;
  const int rows = K - k0 < kRows ? K - k0 : kRows, columns = C - c0 < kColumns ? C - c0 : kColumns;
  const int pixels = k.N * k.H * k.W, begin = part * k.each, end = begin + k.each < pixels ? begin + k.each : pixels;
  const int down = taps.down(tap), right = taps.right(tap);
  const T *const dz = static_cast<const T*>(k.dz) + k0, *const x = static_cast<const T*>(k.x) + c0;
  constexpr int a_pitch = tile_pitch<T>(kRows), b_pitch = tile_pitch<T>(kColumns);
  const auto shared = take_shared<WeightShared<T>>();
  const bool sums_dz = tap == 0 && c0 == 0;
  for (int i = thread_rank(); i < kRows; i += block_threads()) shared.db[i] = 0;
  AsppSums<T, kRows, kColumns> dw;
  pipeline((end - begin + kPixels - 1) / kPixels, shared.stages, kWeightStage<T>,
           [&](int step, T* stage) {
             const int p0 = begin + step * kPixels;
             // Rows of dw beyond K are computed from zeros and dropped.
             for (int i = thread_rank(); rows < kRows && i < kPixels * (kRows - rows); i += block_threads())
               stage[i / (kRows - rows) * a_pitch + rows + i % (kRows - rows)] = T(0.0f);
             fetch(stage, a_pitch, kPixels, rows,
                   [&](int i) { return p0 + i < end ? dz + static_cast<int64_t>(p0 + i) * k.dz_pitch : nullptr; });
             fetch(stage + kPixels * a_pitch, b_pitch, kPixels, columns,
                   [&](int i) { return p0 + i < end ? pixel_at(x, k.x_pitch, size, p0 + i, down, right) : nullptr; });
           },
           [&](int, T* stage) {
             dw.template add<true, false>(stage, a_pitch, stage + kPixels * a_pitch, b_pitch, kPixels, columns);
             for (int i = thread_rank(); sums_dz && i < kRows; i += block_threads()) {
               float sum = 0;
               for (int p = 0; p < kPixels; ++p) sum += static_cast<float>(stage[p * a_pitch + i]);
               shared.db[i] += sum;
             }
           });
  float* const out = k.partials + static_cast<int64_t>(part) * K * (taps.count() * C + 1);
  dw.each(columns, [&](int r, int n, float sum) {
    const int m = dw.row(r);
    if (m < rows) out[(static_cast<int64_t>(k0 + m) * taps.count() + tap) * C + c0 + n] = sum;
  });
  float* const db = out + static_cast<int64_t>(K) * taps.count() * C + k0;
  for (int i = thread_rank(); sums_dz && i < rows; i += block_threads()) db[i] = shared.db[i];
}

void require(bool holds, const char* kernel, const char* what) {
  if (!holds) throw KernelError(std::string(kernel) + ": " + what);
}

// Channels in multiples of 16 at multiples of 16 bytes, 32-bit pixel numbers.
void check_map(const char* kernel, const TensorView& m, const TensorView& like, int C) {
  require(m.N == like.N && m.H == like.H && m.W == like.W && m.C == C && m.dtype == like.dtype, kernel,
          "all maps must have one element type and one size, and the channels of their weights");
  require(m.C % 16 == 0 && m.pitch % 16 == 0 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0, kernel,
          "takes channels in multiples of 16, at multiples of 16 bytes");
  require(m.pixels() < (int64_t{1} << 31) - 1024, kernel, "the batch has too many pixels; run it in slices");
}
void check_image(const char* kernel, const TensorView& image, const TensorView& like) {
  require(
      !image || (image.N == like.N && image.H == 1 && image.W == 1 && image.C == like.C && image.dtype == like.dtype),
      kernel, "`image` must have one pixel per image, and the channels of the result");
}
void check_taps(const char* kernel, const AsppTaps& t) {
  require((t.rows == 1 || t.rows == 3) && (t.columns == 1 || t.columns == 3), kernel,
          "a branch has 1 or 3 taps down and 1 or 3 across");
}
unsigned tiles(int64_t n, int size) { return static_cast<unsigned>((n + size - 1) / size); }

}  // namespace

void aspp_forward(Stream& stream, const AsppForward& k) {
  const char* name = "aspp_forward";
  require(k.count >= 1 && k.count <= kAsppBranches, name, "takes 1 to 8 branches");
  check_map(name, k.x, k.x, k.x.C);
  check_map(name, k.y, k.x, k.y.C);
  require(k.y.C <= kAsppFilters, name, "takes up to 512 filters");
  check_image(name, k.image, k.y);
  Branches branches;
  for (int g = 0; g < k.count; ++g) {
    const AsppBranch& b = k.branches[g];
    check_map(name, b.z, k.x, b.z.C);
    check_taps(name, b.taps);
    branches.at[g] = {b.w, b.bias, b.project, b.z.data, b.z.C, b.z.pitch, b.taps};
  }
  with_float_type(k.y.dtype, name, [&](auto t) {
    using T = decltype(t);
    launch(stream, "aspp_forward", {tiles(k.x.pixels(), kPixels)}, {kThreads}, shared_bytes_of<ForwardShared<T>>(k.y.C),
           forward<T>, k.x, branches, k.count, k.bias, k.image, k.y);
  });
}

void aspp_data_gradient(Stream& stream, const AsppDataGradient& k) {
  const char* name = "aspp_data_gradient";
  require(k.count >= 1 && k.count <= kAsppBranches, name, "takes 1 to 8 branches");
  check_map(name, k.dx, k.dx, k.dx.C);
  check_image(name, k.image, k.dx);
  Branches branches;
  for (int g = 0; g < k.count; ++g) {
    const AsppDataGradient::Branch& b = k.branches[g];
    check_map(name, b.dz, k.dx, b.dz.C);
    check_taps(name, b.taps);
    branches.at[g] = {b.w, nullptr, nullptr, b.dz.data, b.dz.C, b.dz.pitch, b.taps};
  }
  with_float_type(k.dx.dtype, name, [&](auto t) {
    using T = decltype(t);
    launch(stream, "aspp_data_gradient", {tiles(k.dx.pixels(), kGradientPixels), tiles(k.dx.C, kGradientColumns)},
           {kThreads}, shared_bytes<T>(2 * kGradientStage<T>), data_gradient<T>, branches, k.count, k.image,
           k.image_scale, k.dx, k.accumulate);
  });
}

void aspp_projection_gradients(Stream& stream, const AsppProjectionGradients& k) {
  const char* name = "aspp_projection_gradients";
  require(k.count >= 1 && k.count <= kAsppGroups, name, "takes 1 to 9 branches");
  Branches branches;
  Maps dz;
  unsigned rows = 0, columns = 0;
  for (int g = 0; g < k.count; ++g) {
    const AsppProjectionGradients::Branch& b = k.branches[g];
    check_map(name, b.dz, b.dz, b.dz.C);
    check_map(name, b.dy, b.dz, b.dy.C);
    require(b.dz.dtype == k.branches[0].dz.dtype, name, "all maps must have one element type");
    branches.at[g] = {b.project, nullptr, nullptr, b.dy.data, b.dy.C, b.dy.pitch, {}};
    dz.at[g] = b.dz;
    rows = std::max(rows, tiles(b.dz.pixels(), kGradientPixels));
    columns = std::max(columns, tiles(b.dz.C, kGradientColumns));
  }
  with_float_type(dz.at[0].dtype, name, [&](auto t) {
    using T = decltype(t);
    launch(stream, "aspp_projection_gradients", {rows, columns, static_cast<unsigned>(k.count)}, {kThreads},
           shared_bytes<T>(2 * kGradientStage<T>), projection_gradients<T>, branches, dz);
  });
}

void aspp_weight_gradients(Stream& stream, const AsppWeightGradients& k) {
  const char* name = "aspp_weight_gradients";
  require(k.count >= 1 && k.count <= kAsppProducts, name, "takes 1 to 18 products");
  Products products;
  std::vector<PartialSums> sums;
  float* partials = static_cast<float*>(k.workspace);
  int64_t blocks = 0;
  for (int s = 0; s < k.count; ++s) {
    const AsppWeightGradients::Product& p = k.products[s];
    check_map(name, p.x, p.x, p.x.C);
    check_map(name, p.dz, p.x, p.dz.C);
    check_taps(name, p.taps);
    require(p.x.dtype == k.products[0].x.dtype, name, "all maps must have one element type");
    const int K = p.dz.C, C = p.x.C, taps = p.taps.count();
    const AsppSplits splits(p.x.pixels(), K, C, taps);
    products.at[s] = {p.dz.data, p.x.data, partials,   p.x.N,     p.x.H,       p.x.W,
                      K,         C,        p.dz.pitch, p.x.pitch, splits.each, static_cast<int>(blocks),
                      p.taps};
    blocks += int64_t{splits.parts} * taps * tiles(K, AsppSplits::kRows) * tiles(C, AsppSplits::kColumns);
    const int64_t n = static_cast<int64_t>(K) * taps * C, row = n + K;
    sums.push_back({partials, splits.parts, row, n, p.dw, p.accumulate});
    if (p.db != nullptr) sums.push_back({partials + n, splits.parts, row, K, p.db, p.accumulate});
    partials += splits.parts * row;
  }
  with_float_type(k.products[0].x.dtype, name, [&](auto t) {
    using T = decltype(t);
    launch(stream, "aspp_weight_gradients", {static_cast<unsigned>(blocks)}, {kThreads},
           shared_bytes_of<WeightShared<T>>(), weight_gradients<T>, products, k.count);
  });
  pending_sums(stream, {&sums});
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
