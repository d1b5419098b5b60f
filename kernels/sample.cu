#include "kernels/sample.h"

#include "kernels/augment.h"
#include "kernels/core/launch.h"
#include "kernels/core/vec.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// The pixel of 0..n-1 that stands at place i of the extended line; -1 where the fill's constant does.
__device__ __forceinline__ int extend(int i, int n, Fill fill) {
  if (static_cast<unsigned>(i) < static_cast<unsigned>(n)) return i;
  if (fill == Fill::constant) return -1;
  if (fill == Fill::nearest) return i < 0 ? 0 : n - 1;
  const int period = fill == Fill::wrap ? n : 2 * n, r = i % period, p = r < 0 ? r + period : r;
  return p < n ? p : period - 1 - p;
}

template <int L>
__device__ __forceinline__ Vec<L> load_bytes(const uint8_t* p) {
  Vec<L> r;
#if REGOLITH_VECTOR_EXTENSION
  if constexpr (Vec<L>::native) {
    detail::Lanes<uint8_t, L> bytes;
    std::memcpy(&bytes, p, L);
    r.v = __builtin_convertvector(bytes, detail::Lanes<float, L>);
    return r;
  }
#endif
  uint8_t bytes[L];
  memcpy(bytes, __builtin_assume_aligned(p, L), L);
  for (int i = 0; i < L; ++i) r.set(i, static_cast<float>(bytes[i]));
  return r;
}

// (x - offset) / divisor, rounded as a division is: the quotient by the reciprocal, corrected by what it leaves over.
// (P. Markstein, "Computation of elementary functions on the IBM RISC System/6000", 1990.)
struct Normalise {
  float offset, divisor, reciprocal;
  template <int L>
  __device__ __forceinline__ Vec<L> operator()(const Vec<L>& byte) const {
    const Vec<L> x = byte - Vec<L>(offset), q = x * Vec<L>(reciprocal);
    return fma(fma(q, Vec<L>(-divisor), x), Vec<L>(reciprocal), q);
  }
};

// A row of a sample as it is: `n` = W * C values.
template <class T, int L>
__device__ __forceinline__ void plain_row(Normalise normalise, const uint8_t* in, T* out, int n) {
  for (int i = static_cast<int>(threadIdx.x) * L; i < n; i += static_cast<int>(blockDim.x) * L) {
    store(out + i, normalise(load_bytes<L>(in + i)));
  }
}

template <class T>
__device__ __forceinline__ void augmented_row(const SampleBatch& k, Normalise normalise, const uint8_t* image,
                                              const uint8_t* mask, const Affine& a, int y, T* out, uint8_t* label) {
  const int H = k.x.H, W = k.x.W, C = k.x.C;
  const float fy = static_cast<float>(y);
  for (int x = static_cast<int>(threadIdx.x); x < W; x += static_cast<int>(blockDim.x)) {
    const float fx = static_cast<float>(x);
    const float u = a.xx * fx + (a.xy * fy + a.x0), v = a.yx * fx + (a.yy * fy + a.y0);
    const float fu = floorf(u), fv = floorf(v), wu = u - fu, wv = v - fv;
    const int iu = static_cast<int>(fu), iv = static_cast<int>(fv);
    const int x0 = extend(iu, W, k.augment.fill), x1 = extend(iu + 1, W, k.augment.fill);
    const int y0 = extend(iv, H, k.augment.fill), y1 = extend(iv + 1, H, k.augment.fill);
    for (int c = 0; c < C; ++c) {
      const auto at = [&](int py, int px) {
        return (px | py) < 0 ? k.augment.fill_value : static_cast<float>(image[(py * W + px) * C + c]);
      };
      const float top = at(y0, x0) * (1 - wu) + at(y0, x1) * wu, bottom = at(y1, x0) * (1 - wu) + at(y1, x1) * wu;
      store(out + x * C + c, normalise(Vec<1>(top * (1 - wv) + bottom * wv)));
    }
    if (label != nullptr && mask != nullptr) {
      const int mx = extend(static_cast<int>(roundf(u)), W, k.augment.mask_fill);
      const int my = extend(static_cast<int>(roundf(v)), H, k.augment.mask_fill);
      label[x] = (mx | my) < 0 ? static_cast<uint8_t>(k.augment.mask_fill_value) : mask[my * W + mx];
    }
  }
}

// A block takes neighbouring rows of the batch; a row is one sample's.
template <class T, int L>
__global__ void __launch_bounds__(128, 8) sample(SampleBatch k, Normalise normalise) {
  const int H = k.x.H, W = k.x.W, C = k.x.C;
  const uint32_t step = k.step != nullptr ? static_cast<uint32_t>(*k.step) : 0;
  const int64_t image_bytes = static_cast<int64_t>(H) * W * C;
  const int each = (k.x.N * H + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * each;  // rows; 32 bits suffice
  const int end = begin + each < k.x.N * H ? begin + each : k.x.N * H;
  for (int r = begin; r < end;) {
    const int slot = k.first + r / H;
    const int at = static_cast<int>(step % k.steps_per_epoch) * k.batch + slot;
    const bool present = at < k.entries || k.wrap;
    const int32_t entry = present ? k.order[at % k.entries] : 0;
    const int64_t row = entry >> 1;
    const bool augment = present && (entry & 1) != 0;
    const uint8_t* image = k.images + row * image_bytes;
    const uint8_t* mask = k.masks != nullptr ? k.masks + row * H * W : nullptr;
    Affine affine{};
    if (augment) affine = affine_of(draw_augment(k.augment, H, W, k.seed, step, slot), H, W);
    for (int y = r % H; y < H && r < end; ++y, ++r) {
      T* out = static_cast<T*>(k.x.data) + int64_t{r} * W * C;
      uint8_t* label = k.labels != nullptr ? k.labels + int64_t{r} * W : nullptr;
      if (augment) {
        augmented_row<T>(k, normalise, image, mask, affine, y, out, label);
      } else if (present) {
        plain_row<T, L>(normalise, image + static_cast<int64_t>(y) * W * C, out, W * C);
      } else {
        for (int i = threadIdx.x; i < W * C; i += blockDim.x) out[i] = static_cast<T>(0.0f);
      }
      if (label != nullptr && (!augment || mask == nullptr)) {
        const uint8_t* from = present && mask != nullptr ? mask + static_cast<int64_t>(y) * W : nullptr;
        for (int x = threadIdx.x; x < W; x += blockDim.x) label[x] = from != nullptr ? from[x] : kAbsentClass;
      }
    }
  }
}

}  // namespace

void sample_batch(Stream& stream, const SampleBatch& k) {
  if (!k.x.whole()) throw KernelError("sample_batch: writes whole maps, not slices of the channels");
  if (k.entries < 1 || k.batch < 1 || k.steps_per_epoch < 1 || k.first < 0 || k.first + k.x.N > k.batch ||
      int64_t{k.x.N} * k.x.H > INT32_MAX / 2 || int64_t{k.steps_per_epoch} * k.batch > INT32_MAX) {
    throw KernelError("sample_batch: slots " + std::to_string(k.first) + " to " + std::to_string(k.first + k.x.N) +
                      " of a batch of " + std::to_string(k.batch) + ", " + std::to_string(k.entries) + " entries, " +
                      std::to_string(k.steps_per_epoch) + " steps per epoch do not fit together");
  }
  const Normalise normalise{k.offset, k.divisor, 1 / k.divisor};
  with_float_type(k.x.dtype, "sample_batch", [&](auto t) {
    using T = decltype(t);
    constexpr int L = kLanes<T>;
    const unsigned grid = blocks_for(stream, int64_t{k.x.N} * k.x.H, 4);
    if (k.x.W * k.x.C % L == 0 && reinterpret_cast<uintptr_t>(k.images) % 16 == 0) {
      launch(stream, "sample", {grid}, {128}, 0, sample<T, L>, k, normalise);
    } else {
      launch(stream, "sample", {grid}, {128}, 0, sample<T, 1>, k, normalise);
    }
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
