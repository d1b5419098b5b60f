#include "kernels/lovasz.h"

#include "kernels/loss_tiles.h"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#endif

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr int kThreads = 256;
constexpr int kErrorBits = 30;

// One pixel of a segment as a number: from the top its segment; its error, as 30 bits of which smaller ones are of
// larger errors; whether it is of the class; its place. Sorting by the first two alone, stably, keeps the order of
// equal errors.
struct Keys {
  int index_bits, classes;
  int64_t pixels;  // of a segment

  __device__ __forceinline__ uint64_t make(int64_t segment, uint32_t error, bool hit, int64_t index) const {
    return ((static_cast<uint64_t>(segment) << kErrorBits | error) << 1 | (hit ? 1 : 0)) << index_bits |
           static_cast<uint64_t>(index);
  }
  __device__ __forceinline__ bool hit(uint64_t key) const { return (key >> index_bits & 1) != 0; }
  __device__ __forceinline__ uint32_t error(uint64_t key) const {
    return static_cast<uint32_t>(key >> (index_bits + 1)) & ((1u << kErrorBits) - 1);
  }
  __device__ __forceinline__ int64_t index(uint64_t key) const {
    return static_cast<int64_t>(key & ((uint64_t{1} << index_bits) - 1));
  }
};

// Errors of 0 to 1 as kOne + 1 minus their bits. 0: NaN, which then is sorted to the front.
constexpr uint32_t kOne = 0x3f800000, kNoTruth = (1u << kErrorBits) - 1;
__device__ __forceinline__ uint32_t encode(float error) {
  uint32_t bits;
  memcpy(&bits, &error, sizeof bits);
  return bits <= kOne ? kOne + 1 - bits : 0;
}
__device__ __forceinline__ float decode(uint32_t code) {
  const uint32_t bits = code == 0 ? 0x7fc00000 : kOne + 1 - code;
  float error;
  memcpy(&error, &bits, sizeof error);
  return error;
}

// Grid: (blocks of an image, N). out: (segments, pixels)
__global__ void __launch_bounds__(kThreads)
    lovasz_keys(Pixels x, const uint8_t* mask, int ignore, Shape s, Keys keys, LossTerms::Lovasz term, uint64_t* out) {
  const auto [tile, truth] = take_shared<TileShared>(s.K);
  const TileRange r = block_pixels(s);
  const int64_t group = term.per_image ? blockIdx.y : 0, before = term.per_image ? 0 : blockIdx.y * s.image;
  for (int64_t at = r.begin; at < r.end; at += kTile) {
    const int pixels = load_pixels(x, mask, ignore, s, r, at, tile, truth);
    for (int p = threadIdx.x * kPixels; p < pixels; p += blockDim.x * kPixels) {
      const V t = load<V>(truth + p);
      const V sum = exponentials(tile + p, s.K);
      int64_t segment = group * keys.classes;
      for (int k = 0; k < s.K; ++k) {
        if (!(term.class_weight[k] > 0)) continue;
        const V probability = load<V>(tile + k * kTile + p) / sum;
        for (int i = 0; i < kPixels && p + i < pixels; ++i) {
          const bool hit = t[i] == static_cast<float>(k);
          const uint32_t code =
              t[i] < static_cast<float>(s.K) ? encode(hit ? 1 - probability[i] : probability[i]) : kNoTruth;
          const int64_t index = before + at + p + i;
          out[segment * keys.pixels + index] = keys.make(segment, code, hit, index);
        }
        ++segment;
      }
    }
  }
}

#if !defined(__CUDACC__)
// A segment's keys by their errors: eight bits at a time, from the lowest, each pass from one buffer into the other;
// four of them end where they began. Grid: segments
__global__ void sort_segment(Keys layout, uint64_t* keys, uint64_t* other) {
  if (threadIdx.x != 0) return;
  uint64_t *from = keys + blockIdx.x * layout.pixels, *to = other + blockIdx.x * layout.pixels;
  for (int shift = layout.index_bits + 1, last = shift + 24; shift <= last; shift += 8) {
    int64_t places[257] = {};
    for (int64_t i = 0; i < layout.pixels; ++i) ++places[(from[i] >> shift & 255) + 1];
    for (int digit = 1; digit < 256; ++digit) places[digit] += places[digit - 1];
    for (int64_t i = 0; i < layout.pixels; ++i) to[places[from[i] >> shift & 255]++] = from[i];
    std::swap(from, to);
  }
}
#endif

// The pixels of a segment's class before this thread's, of its block's. `counts`: a place for each thread.
__device__ __forceinline__ int sum_before(int mine, int* counts) {
  sync_block();  // it may still be read
  counts[thread_rank()] = mine;
  sync_block();
  int sum = 0;
  for (int i = 0; i < thread_rank(); ++i) sum += counts[i];
  return sum;
}

struct ChunkRange {
  int64_t segment, chunk, begin, end;  // begin, end: within the segment
};
__device__ __forceinline__ ChunkRange block_chunk(const Keys& keys, int64_t chunks) {
  const int64_t segment = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int64_t begin = chunk * LovaszSegments::kChunk, end = begin + LovaszSegments::kChunk;
  return {segment, chunk, begin, end < keys.pixels ? end : keys.pixels};
}

// Pixels of the class in each chunk. Grid: segments x chunks
__global__ void __launch_bounds__(kThreads)
    lovasz_counts(Keys layout, const uint64_t* keys, int64_t chunks, int* counts) {
  Shared shared;
  int* const scratch = shared.take<int>(kReduceScratch);
  const ChunkRange r = block_chunk(layout, chunks);
  int hits = 0;
  for (int64_t i = r.begin + threadIdx.x; i < r.end; i += blockDim.x)
    hits += layout.hit(keys[r.segment * layout.pixels + i]);
  hits = block_sum(hits, scratch);
  if (threadIdx.x == 0) counts[blockIdx.x] = hits;
}

// Turns the counts of a segment's chunks into those before each chunk. Grid: segments. totals: (segments)
__global__ void __launch_bounds__(kThreads) lovasz_offsets(int64_t chunks, int* counts, int* totals) {
  Shared shared;
  int* const places = shared.take<int>(block_threads());
  int* const of = counts + blockIdx.x * chunks;
  const int64_t each = (chunks + blockDim.x - 1) / blockDim.x, first = threadIdx.x * each;
  const int64_t begin = first < chunks ? first : chunks, end = begin + each < chunks ? begin + each : chunks;
  int sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += of[i];
  int before = sum_before(sum, places);
  for (int64_t i = begin; i < end; ++i) {
    const int count = of[i];
    of[i] = before;
    before += count;
  }
  if (threadIdx.x == blockDim.x - 1) totals[blockIdx.x] = before;
}

struct SlopeShared {
  int* counts;      // a place for each thread
  double* scratch;  // (kReduceScratch)
  template <class A>
  REGOLITH_HOST_DEVICE SlopeShared(A& a, int threads) {
    a.take(counts, threads);
    a.take(scratch, kReduceScratch);
  }
};

// The growth of the Jaccard loss at each rank, which is the slope of the loss by the error there, and the loss of the
// chunk. A thread has a run of ranks. Grid: segments x chunks. offsets: (segments, chunks); partial: the same
__global__ void __launch_bounds__(kThreads)
    lovasz_slopes(Keys layout, const uint64_t* keys, int64_t chunks, const int* offsets, const int* totals,
                  float weight, bool present, float* slope, double* partial) {
  const auto [counts, scratch] = take_shared<SlopeShared>(block_threads());
  const ChunkRange r = block_chunk(layout, chunks);
  const uint64_t* const of = keys + r.segment * layout.pixels;
  float* const to = slope + r.segment * layout.pixels;
  const int64_t each = (LovaszSegments::kChunk + blockDim.x - 1) / blockDim.x, first = r.begin + threadIdx.x * each;
  const int64_t begin = first < r.end ? first : r.end, end = begin + each < r.end ? begin + each : r.end;
  int hits = 0;
  for (int64_t i = begin; i < end; ++i) hits += layout.hit(of[i]);

  int divisor = layout.classes;
  const int* const group = totals + r.segment / layout.classes * layout.classes;
  if (present) {
    divisor = 0;
    for (int c = 0; c < layout.classes; ++c) divisor += group[c] > 0;
  }
  const int64_t truths = totals[r.segment];
  const double w = truths > 0 || !present ? static_cast<double>(weight) / divisor : 0;
  int64_t found = offsets[blockIdx.x] + sum_before(hits, counts);
  double loss = 0;
  for (int64_t i = begin; i < end; ++i) {
    const uint64_t key = of[i];
    const uint32_t code = layout.error(key);
    float by_p = 0;
    if (code != kNoTruth) {
      const bool hit = layout.hit(key);
      found += hit;
      // A pixel of the class leaves the union as it is and takes one from the intersection, another adds one to the
      // union. Where the class is not there, the first pixel makes the loss 1, and the others leave it.
      const auto both = static_cast<double>(truths - found), all = static_cast<double>(truths + i + 1 - found);
      double growth = 1 / all;
      if (!hit && i > 0) growth = both / (all * (all - 1));
      loss += w * growth * static_cast<double>(decode(code));
      by_p = static_cast<float>(hit ? -w * growth : w * growth);
    }
    to[layout.index(key)] = by_p;
  }
  loss = block_sum(loss, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = loss;
}

// Grid: groups. partial: (groups, count)
__global__ void __launch_bounds__(kThreads) lovasz_finish(const double* partial, int64_t count, double* loss) {
  Shared shared;
  double* const scratch = shared.take<double>(kReduceScratch);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[blockIdx.x * count + i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) loss[blockIdx.x] = sum;
}

// By segment and error. Returns where the sorted keys are: in either of the two.
uint64_t* sort_keys(Stream& stream, const LovaszSegments& s, const Keys& layout, uint64_t* keys, uint64_t* other,
                    void* workspace) {
#if defined(__CUDACC__)
  const auto native = static_cast<cudaStream_t>(stream.native());
  cub::DoubleBuffer<uint64_t> buffers(keys, other);
  const int first = layout.index_bits + 1, end = first + kErrorBits + s.segment_bits();
  const auto sort = [&](void* memory, size_t& bytes) {
    const cudaError_t e = cub::DeviceRadixSort::SortKeys(memory, bytes, buffers, s.items(), first, end, native);
    if (e != cudaSuccess) throw DeviceError(std::string("lovasz: the sort failed: ") + cudaGetErrorString(e));
  };
  size_t bytes = 0;
  sort(nullptr, bytes);
  if (bytes > lovasz_sort_workspace(s.items()))
    throw KernelError("lovasz: the sort of " + std::to_string(s.items()) + " errors needs " + std::to_string(bytes) +
                      " bytes, more than lovasz_sort_workspace() foresees");
  sort(workspace, bytes);
  return buffers.Current();
#else
  (void)workspace;
  launch(stream, "lovasz_sort", {static_cast<unsigned>(s.segments())}, {kThreads}, 0, sort_segment, layout, keys,
         other);
  return keys;
#endif
}

}  // namespace

void lovasz(Stream& stream, const Lovasz& a) {
  const TensorView& x = a.logits;
  const LovaszSegments s(x.N, x.H, x.W, x.C, a.term);
  if (s.items() == 0) throw KernelError("lovasz: no class has a weight, or there are no pixels");
  if (s.segment_bits() + kErrorBits + 1 + s.index_bits() > 64 || s.segments() * s.chunks() > (int64_t{1} << 31) - 1)
    throw KernelError("lovasz: " + std::to_string(s.segments()) + " x " + std::to_string(s.pixels) +
                      " errors are too many to be sorted at once; take a smaller batch");
  const Shape shape{static_cast<int64_t>(x.H) * x.W, x.C};
  const Keys layout{s.index_bits(), s.classes, s.pixels};
  // workspace: keys and as many again, (segments, pixels); partial (segments, chunks); the sort's; counts; totals
  uint64_t* const keys = static_cast<uint64_t*>(a.workspace);
  double* const partial = reinterpret_cast<double*>(keys + 2 * s.items());
  unsigned char* const sorting = reinterpret_cast<unsigned char*>(partial + s.segments() * s.chunks());
  int* const counts = reinterpret_cast<int*>(sorting + lovasz_sort_workspace(s.items()));
  int* const totals = counts + s.segments() * s.chunks();
  float weight = 0;
  for (const float w : a.term.class_weight) weight = w > weight ? w : weight;

  const Dim3 tiles{static_cast<unsigned>((shape.image + kLossBlockPixels - 1) / kLossBlockPixels),
                   static_cast<unsigned>(x.N)};
  launch(stream, "lovasz_keys", tiles, {kThreads}, shared_bytes_of<TileShared>(x.C), lovasz_keys, Pixels(x), a.mask,
         a.ignore, shape, layout, a.term, keys);
  const uint64_t* const sorted = sort_keys(stream, s, layout, keys, keys + s.items(), sorting);
  const Dim3 chunks{static_cast<unsigned>(s.segments() * s.chunks())}, segments{static_cast<unsigned>(s.segments())};
  launch(stream, "lovasz_counts", chunks, {kThreads}, shared_bytes<int>(kReduceScratch), lovasz_counts, layout, sorted,
         s.chunks(), counts);
  launch(stream, "lovasz_offsets", segments, {kThreads}, shared_bytes<int>(kThreads), lovasz_offsets, s.chunks(),
         counts, totals);
  launch(stream, "lovasz_slopes", chunks, {kThreads}, shared_bytes_of<SlopeShared>(kThreads), lovasz_slopes, layout,
         sorted, s.chunks(), counts, totals, weight, a.term.present, a.slope, partial);
  launch(stream, "lovasz_finish", {static_cast<unsigned>(s.groups)}, {kThreads}, shared_bytes<double>(kReduceScratch),
         lovasz_finish, partial, s.classes * s.chunks(), a.loss);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
