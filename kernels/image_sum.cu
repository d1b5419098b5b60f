#include "kernels/image_sum.h"

#include "kernels/core/image_sums.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

template <class T, int L, int K>
__global__ REGOLITH_FLAT void __launch_bounds__(kColumnThreads)
    sum_images(TensorView x, int64_t each, float* partials) {
  Shared shared;
  [[maybe_unused]] float* scratch = shared.take<float>(column_scratch(L));
  sum_image_part<L, K>(static_cast<int64_t>(x.H) * x.W, x.C, each, partials, scratch,
                       [&](int64_t p, int c) { return load_pack<Pack<L, K>>(x.as<const T>() + p * x.pitch + c); });
}

struct Parts {  // without padding: see Branches in aspp.cu
  const void* data[kMostParts] = {};
  int64_t pitch[kMostParts] = {};
};

template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads)
    add_image(Parts parts, int count, TensorView image, float scale, TensorView y, bool accumulate) {
  using V = Vec<L>;
  const Rows rows = block_rows(y);
  for (int row = rows.begin; row < rows.end; ++row) {
    for (int w = threadIdx.y; w < y.W; w += blockDim.y) {
      const int64_t p = static_cast<int64_t>(row) * y.W + w;
      T* out = y.as<T>() + p * y.pitch;
      for (int c = threadIdx.x * L; c < y.C; c += blockDim.x * L) {
        V sum(0);
        if (image) sum = V(scale) * load<V>(image.as<const T>() + row / y.H * image.pitch + c);
        for (int i = 0; i < count; ++i) sum += load<V>(static_cast<const T*>(parts.data[i]) + p * parts.pitch[i] + c);
        if (accumulate) sum += load<V>(out + c);
        store(out + c, sum);
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

void image_sum(Stream& stream, const ImageSum& k) {
  check("image_sum", k.sum, k.x, 1, 1);
  const ImageSumLayout layout(k.x);
  float* const partials = static_cast<float*>(k.workspace);
  with_float_type(k.x.dtype, "image_sum", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.sum}, [&](auto lanes) {
      constexpr int L = lanes;
      with_pack<L>(k.x.C, [&](auto packs) {
        launch(stream, "image_sum", {static_cast<unsigned>(layout.parts), static_cast<unsigned>(k.x.N)},
               columns_block(k.x.C / (L * packs)), shared_bytes<float>(column_scratch(L)), sum_images<T, L, packs>, k.x,
               layout.each, partials);
      });
      finish_image_sums<T, L>(stream, partials, layout.parts, k.scale, k.sum, false);
    });
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
    with_lanes<T>({k.y, k.image, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]}, [&](auto lanes) {
      constexpr int L = lanes;
      launch(stream, "add_images", {row_blocks(stream, k.y)}, columns_block(k.y.C / L), 0, add_image<T, L>, parts,
             k.count, k.image, k.scale, k.y, k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
