#include "kernels/sample.h"

#include "kernels/augment_rows.h"
#include "kernels/core/launch.h"
#include "kernels/core/vec.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

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

// What thread 0 draws for the sample at a position. `row`: of the data.
__device__ __forceinline__ void plan_sample(const SampleBatch& k, const SampleKey& key, int slot, int64_t row,
                                            AugmentPlan& plan) {
  const int H = k.x.H, W = k.x.W;
  plan.key = key;
  plan.draw = draw_augment(k.augment, H, W, key);
  AugmentDraw& d = plan.draw;
  d.partners.paste = d.partners.paste && k.masks != nullptr && k.paste_count > 0;
  int64_t rows[3] = {row, row, row};
  if (k.staged && k.partners != nullptr) {
    rows[1] = k.partners[2 * slot];
    rows[2] = k.partners[2 * slot + 1];
  } else if (!k.staged) {
    if (d.partners.cutmix) rows[1] = k.order[chosen(d.partners.cutmix_word, k.entries)] >> 1;
    if (d.partners.paste) rows[2] = k.paste_rows[chosen(d.partners.paste_word, k.paste_count)];
  }
  const Moves* const moves[3] = {&d.moves, &d.cutmix_moves, &d.paste_moves};
  REGOLITH_UNROLL
  for (int i = 0; i < 3; ++i) {
    plan.maps[i] = affine_of(*moves[i], H, W);
    plan.image[i] = k.images + rows[i] * H * W * k.x.C;
    plan.mask[i] = k.masks != nullptr ? k.masks + rows[i] * H * W : nullptr;
  }
  plan.radius = 0;
  if (d.blur == 0) return;
  plan.radius = static_cast<int>(ceilf(3 * d.blur));
  float sum = 1;
  for (int i = 0; i <= plan.radius; ++i) {
    const float at = static_cast<float>(i) / d.blur;
    plan.weights[i] = expf(-0.5f * at * at);
    if (i > 0) sum += 2 * plan.weights[i];
  }
  for (int i = 0; i <= plan.radius; ++i) plan.weights[i] /= sum;
}

// The means of a picture's channels, of exact sums.
__device__ __forceinline__ void take_means(const uint8_t* image, int pixels, int C, const AugmentMemory& memory) {
  for (int c = 0; c < C; ++c) {
    uint32_t sum = 0;  // of at most 2^24 pixels
    if (C == 1) {
      for (int i = static_cast<int>(threadIdx.x); i < pixels; i += static_cast<int>(blockDim.x)) sum += image[i];
    } else {
      for (int i = static_cast<int>(threadIdx.x); i < pixels; i += static_cast<int>(blockDim.x))
        sum += image[int64_t{i} * C + c];
    }
    sum = block_sum(sum, memory.scratch);
    if (threadIdx.x == 0) memory.means[c] = static_cast<float>(sum) / static_cast<float>(pixels);
  }
  sync_block();
}

// Rows begin..end of a sample whose plan is made. out, label: of the sample's first pixel; label may be null.
template <class T>
__device__ __forceinline__ void augmented_rows(const SampleBatch& k, const AugmentSizes& sizes,
                                               const AugmentMemory& memory, Normalise normalise, int begin, int end,
                                               T* out, uint8_t* label) {
  const int H = k.x.H, W = k.x.W, C = k.x.C, reach = memory.plan->radius;
  for (int left = 0; left < W; left += sizes.columns) {
    AugmentTile tile(k, sizes, memory, left);
    int made = begin - reach > 0 ? begin - reach : 0;
    for (int y = begin; y < end; ++y) {
      for (; made < H && made <= y + reach; ++made) {
        tile.make(made);
        if (label != nullptr && made >= begin && made < end)
          tile.write_classes(made, label + static_cast<int64_t>(made) * W);
        if (reach > 0) tile.blur_sideways(made);
      }
      if (reach > 0) tile.blur_down(y);
      float* const grey = reach > 0 ? memory.row : memory.raw;
      tile.cut_out(y, grey);
      tile.write(normalise, grey, out + static_cast<int64_t>(y) * W * C);
    }
  }
}

// A block takes neighbouring rows of the batch; a row is one sample's.
template <class T, int L>
__global__ void __launch_bounds__(128, 4)
    sample(SampleBatch k, AugmentSizes sizes, bool augments, Normalise normalise) {
  const int H = k.x.H, W = k.x.W, C = k.x.C;
  const uint32_t step = k.step != nullptr ? static_cast<uint32_t>(*k.step) : 0;
  const uint32_t epoch = step / static_cast<uint32_t>(k.steps_per_epoch);
  const int before = static_cast<int>(step % static_cast<uint32_t>(k.steps_per_epoch)) * k.batch;
  const int64_t image_bytes = static_cast<int64_t>(H) * W * C;
  const int each = (k.x.N * H + gridDim.x - 1) / gridDim.x, first = blockIdx.x * each;  // rows; 32 bits suffice
  const int end = first + each < k.x.N * H ? first + each : k.x.N * H;
  for (int r = first; r < end;) {
    const int slot = k.first + r / H, position = before + slot, at = k.staged ? slot : position;
    const bool present = at < k.entries || k.wrap;
    const int32_t entry = present ? k.order[at % k.entries] : 0;
    const int64_t row = entry >> 1;
    const int begin = r % H, last = H - begin < end - r ? H : begin + end - r;  // rows of the sample
    r += last - begin;
    T* const out = static_cast<T*>(k.x.data) + (slot - k.first) * image_bytes;
    uint8_t* const label = k.labels != nullptr ? k.labels + static_cast<int64_t>(slot - k.first) * H * W : nullptr;
    if (augments && present && (entry & 1) != 0) {
      const AugmentMemory memory = take_shared<AugmentMemory>(sizes);
      sync_block();  // the sample before may still be read
      if (threadIdx.x == 0) plan_sample(k, {k.seed, epoch, static_cast<uint32_t>(position)}, slot, row, *memory.plan);
      if (sizes.nodes > 0) fill_spline(sizes.spacing, memory.spline);
      sync_block();
      const AugmentDraw& d = memory.plan->draw;
      if (d.any()) {
        if (d.contrast != 1 || (d.cutout && k.augment.cutout.value < 0))
          take_means(memory.plan->image[0], H * W, C, memory);
        augmented_rows(k, sizes, memory, normalise, begin, last, out, label);
        continue;
      }
    }
    const uint8_t* const image = k.images + row * image_bytes;
    const uint8_t* const mask = present && k.masks != nullptr ? k.masks + row * H * W : nullptr;
    for (int y = begin; y < last; ++y) {
      const int64_t pixel = static_cast<int64_t>(y) * W;
      if (present) {
        plain_row<T, L>(normalise, image + pixel * C, out + pixel * C, W * C);
      } else {
        for (int i = threadIdx.x; i < W * C; i += blockDim.x) out[pixel * C + i] = static_cast<T>(0.0f);
      }
      if (label == nullptr) continue;
      for (int x = threadIdx.x; x < W; x += blockDim.x)
        label[pixel + x] = mask != nullptr ? mask[pixel + x] : kAbsentClass;
    }
  }
}

// Options under which no sample draws anything.
bool changes_nothing(const Augment& a) {
  const auto none = [](const auto& i) { return i.low == 0 && i.high == 0; };
  const auto still = [](const Extent& e) { return e.height == 0 && e.width == 0; };
  return a.flip == Flip::none && none(a.zoom) && still(a.translation) && none(a.rotation) && still(a.shear) &&
         none(a.brightness) && none(a.contrast) && a.gamma.low == 1 && a.gamma.high == 1 && !a.crop.on &&
         !a.elastic.on && !a.noise.on && !a.blur.on && !a.cutout.on && !a.cutmix.on && !a.copy_paste.on;
}

}  // namespace

void sample_batch(Stream& stream, const SampleBatch& batch) {
  SampleBatch k = batch;
  if (!k.x.whole()) throw KernelError("sample_batch: writes whole maps, not slices of the channels");
  if (k.entries < 1 || k.batch < 1 || k.steps_per_epoch < 1 || k.first < 0 || k.first + k.x.N > k.batch ||
      int64_t{k.x.N} * k.x.H > INT32_MAX / 2 || int64_t{k.steps_per_epoch} * k.batch > INT32_MAX) {
    throw KernelError("sample_batch: slots " + std::to_string(k.first) + " to " + std::to_string(k.first + k.x.N) +
                      " of a batch of " + std::to_string(k.batch) + ", " + std::to_string(k.entries) + " entries, " +
                      std::to_string(k.steps_per_epoch) + " steps per epoch do not fit together");
  }
  const bool augments = !changes_nothing(k.augment);
  if (augments && (int64_t{k.x.H} * k.x.W * k.x.C > 1 << 24 || k.augment.blur.sigma > kMostBlur)) {
    throw KernelError("sample_batch: augments pictures of at most 2^24 values, with a blur of sigma " +
                      std::to_string(kMostBlur) + " at most");
  }
  if (k.augment.mask_fill == MaskFill::ignore) {
    k.augment.mask_fill = MaskFill::constant;
    k.augment.mask_fill_value = kAbsentClass;
  }
  const Normalise normalise{k.offset, k.divisor, 1 / k.divisor};
  const AugmentSizes sizes(k.augment, k.x.W, k.x.C);
  with_float_type(k.x.dtype, "sample_batch", [&](auto t) {
    using T = decltype(t);
    constexpr int L = kLanes<T>;
    const unsigned grid = blocks_for(stream, int64_t{k.x.N} * k.x.H, 4);
    const size_t shared = augments ? shared_bytes_of<AugmentMemory>(sizes) : 0;
    if (k.x.W * k.x.C % L == 0 && reinterpret_cast<uintptr_t>(k.images) % 16 == 0) {
      launch(stream, "sample", {grid}, {128}, shared, sample<T, L>, k, sizes, augments, normalise);
    } else {
      launch(stream, "sample", {grid}, {128}, shared, sample<T, 1>, k, sizes, augments, normalise);
    }
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
