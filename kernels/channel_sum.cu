#include "kernels/channel_sum.h"

#include "kernels/core/columns.h"
#include "kernels/core/reduce.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr int kThreads = 256;

// partials: (parts, N, C).
template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads) sum_pixels(TensorView x, int64_t each, float* partials) {
  Shared shared;
  float* scratch = shared.take<float>(reduce_scratch<Sums<P>>(kThreads, x.C / P::size));
  const Plane<const T> plane(x);
  sum_part<P, 1>(static_cast<int64_t>(x.H) * x.W, each, x.C, partials, scratch,
                 [&](Sums<P>& sum, int64_t p, int c) { sum[0] += load_pack<P>(plane.at(p, c)); });
}
template <class P, class T>
void launch_sum_pixels(Stream& stream, const char* name, T, const TensorView& x, const PixelParts& layout,
                       float* partials) {
  launch(stream, name, {static_cast<unsigned>(layout.parts), static_cast<unsigned>(x.N)}, {kThreads},
         shared_bytes<float>(reduce_scratch<Sums<P>>(kThreads, x.C / P::size)), sum_pixels<T, P>, x, layout.each,
         partials);
}

// Sum s is that of blocks first[s] to first[s + 1]. No padding: see Branches in aspp.cu.
struct SumList {
  const float* data[kMostSums] = {};
  float* out[kMostSums] = {};
  int64_t stride[kMostSums] = {}, n[kMostSums] = {};
  int parts[kMostSums] = {}, first[kMostSums] = {}, lanes[kMostSums] = {}, accumulate[kMostSums] = {};
};
constexpr int kSumColumns = 16;  // packs of a block, whose rows divide the parts

template <int L>
__device__ __forceinline__ void sum_columns(const SumList& k, int s, float* scratch) {
  using P = Pack<L, 1>;
  const ThreadTile tile(kSumColumns);
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - k.first[s]) * kSumColumns;
  for (int64_t base = begin; base < begin + kSumColumns; base += tile.columns) {
    const int64_t i = (base + tile.column) * L;
    Sums<P> sums;
    if (i < k.n[s])
      for (int p = tile.row; p < k.parts[s]; p += tile.rows) sums[0] += load_pack<P>(k.data[s] + p * k.stride[s] + i);
    reduce_rows(tile, sums, scratch);
    if (tile.row == 0 && i < k.n[s]) store_pack(k.out[s] + i, sums[0], k.accumulate[s] != 0);
  }
}
__global__ void __launch_bounds__(kThreads) sum_list(SumList k, int count) {
  Shared shared;
  float* scratch = shared.take<float>(reduce_scratch<Sums<Pack<4, 1>>>(kThreads, kSumColumns));
  int s = 0;
  while (s + 1 < count && static_cast<int>(blockIdx.x) >= k.first[s + 1]) ++s;
  if (k.lanes[s] == 4)
    sum_columns<4>(k, s, scratch);
  else
    sum_columns<1>(k, s, scratch);
}

struct Parts {  // without padding: see Branches in aspp.cu
  const void* data[kMostParts] = {};
  int64_t pitch[kMostParts] = {};
};

template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads)
    add_image(Parts parts, int count, TensorView image, float scale, const float* bias, TensorView y, bool accumulate) {
  using V = Vec<L>;
  const Rows rows = block_rows(y);
  for (int row = rows.begin; row < rows.end; ++row) {
    for (int w = threadIdx.y; w < y.W; w += blockDim.y) {
      const int64_t p = static_cast<int64_t>(row) * y.W + w;
      T* out = y.as<T>() + p * y.pitch;
      for (int c = threadIdx.x * L; c < y.C; c += blockDim.x * L) {
        V sum(0);
        if (image) sum = V(scale) * load<V>(image.as<const T>() + row / y.H * image.pitch + c);
        if (bias != nullptr) sum += load<V>(bias + c);
        for (int i = 0; i < count; ++i) sum += load<V>(static_cast<const T*>(parts.data[i]) + p * parts.pitch[i] + c);
        store(out + c, sum, accumulate);
      }
    }
  }
}

void check(const char* kernel, const TensorView& m, const TensorView& like, int H, int W) {
  if (m.N != like.N || m.H != H || m.W != W || m.C != like.C || m.dtype != like.dtype)
    throw KernelError(std::string(kernel) +
                      ": the maps must have one batch, one number of channels, one element type "
                      "and one size; sums and images are of 1x1 pixels");
}

}  // namespace

void channel_sum(Stream& stream, const ChannelSum& k) {
  const int fold = channel_sum_fold(k.x), C = k.x.C;
  const PixelParts layout = channel_sum_parts(k.x);
  float* const partials = static_cast<float*>(k.workspace);
  const TensorView folded{
      k.x.data, 1, 1, static_cast<int>(k.x.pixels() / fold), C * fold, fold > 1 ? C * fold : k.x.pitch, k.x.dtype};
  with_packs("channel_sum", {folded}, [&](auto t, auto pack) {
    launch_sum_pixels<decltype(pack)>(stream, "channel_sum", t, folded, layout, partials);
  });
  sum_partials(stream, {partials, layout.parts * fold, C, C}, k.sum, k.accumulate);
}

void sum_partials(Stream& stream, const Partials& k, float* out, bool accumulate) {
  if (out == nullptr) return;
  std::vector<PartialSums> one{{k.data, k.parts, k.stride, k.n, out, accumulate}};
  if (stream.pending != nullptr)
    stream.pending->push_back(one[0]);
  else
    pending_sums(stream, {&one});
}

void pending_sums(Stream& stream, const PendingSums& k) {
  for (size_t at = 0; at < k.sums->size(); at += kMostSums) {
    SumList list;
    int64_t blocks = 0;
    const int count = static_cast<int>(std::min(k.sums->size() - at, size_t{kMostSums}));
    for (int s = 0; s < count; ++s) {
      const PartialSums& p = (*k.sums)[at + s];
      const auto whole = [](const float* m) { return reinterpret_cast<uintptr_t>(m) % 16 == 0; };
      const int lanes = whole(p.data) && whole(p.out) && p.stride % 4 == 0 && p.n % 4 == 0 ? 4 : 1;
      list.data[s] = p.data, list.out[s] = p.out, list.stride[s] = p.stride, list.n[s] = p.n;
      list.parts[s] = p.parts, list.lanes[s] = lanes, list.accumulate[s] = p.accumulate;
      list.first[s] = static_cast<int>(blocks);
      blocks += (p.n / lanes + kSumColumns - 1) / kSumColumns;
    }
    launch(stream, "sum_partials", {static_cast<unsigned>(blocks)}, {kThreads},
           shared_bytes<float>(reduce_scratch<Sums<Pack<4, 1>>>(kThreads, kSumColumns)), sum_list, list, count);
  }
  k.sums->clear();
}

void image_sum(Stream& stream, const ImageSum& k) {
  check("image_sum", k.sum, k.x, 1, 1);
  const PixelParts layout = image_parts(k.x);
  float* const partials = static_cast<float*>(k.workspace);
  with_packs("image_sum", {k.x, k.sum}, [&](auto t, auto pack) {
    launch_sum_pixels<decltype(pack)>(stream, "image_sum", t, k.x, layout, partials);
    finish_image_sums<decltype(t), decltype(pack)::lanes>(stream, partials, layout.parts, k.scale, k.sum, false);
  });
}

void add_images(Stream& stream, const AddImages& k) {
  if (k.count < 0 || k.count > kMostParts) throw KernelError("add_images: takes up to 8 parts");
  if (k.image) check("add_images", k.image, k.y, 1, 1);
  Parts parts;
  TensorView p[kMostParts];  // null beyond the count, so that with_lanes passes over them
  for (int i = 0; i < k.count; ++i) {
    p[i] = k.parts[i];
    check("add_images", p[i], k.y, k.y.H, k.y.W);
    parts.data[i] = p[i].data;
    parts.pitch[i] = p[i].pitch;
  }
  with_float_type(k.y.dtype, "add_images", [&](auto t) {
    using T = decltype(t);
    const TensorView bias = row_map(k.bias, k.y.C);
    with_lanes<T>({k.y, k.image, bias, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]}, [&](auto lanes) {
      constexpr int L = lanes;
      launch(stream, "add_images", {row_blocks(stream, k.y)}, columns_block(k.y.C / L), 0, add_image<T, L>, parts,
             k.count, k.image, k.scale, k.bias, k.y, k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
