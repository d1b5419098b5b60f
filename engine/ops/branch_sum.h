// What ASPP consists of, twice: y = sum over branches of (conv(x, w) + bias) * project^T, plus a bias or something per
// image. Once over the pixels of the map, and once, with one branch, over the images' means. By the kernel of
// kernels/aspp.h, or by the providers of convolution.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/conv/provider.h"
#include "engine/graph/op.h"
#include "kernels/aspp.h"

namespace regolith {

struct BranchSumShape {
  int N, H, W, C, F;
  struct Branch {
    int K;
    kernels::AsppTaps taps;
  };
  std::vector<Branch> branches;
  bool branch_bias = true;
  bool bias = false;  // of y; for a single branch
  bool needs_dx = true;

  int64_t pixels() const { return static_cast<int64_t>(N) * H * W; }
};

class BranchSum {
 public:
  // Of one branch. Maps are whole buffers.
  struct Branch {
    const void* w = nullptr;                                  // (K, rows, columns, C)
    ChannelBias bias;                                         // (K)
    const void* project = nullptr;                            // (F, K)
    TensorView z;                                             // (N, H, W, K): forward writes it, backward reads it
    TensorView dz;                                            // backward's own
    float *dw = nullptr, *db = nullptr, *dproject = nullptr;  // db may be null
    float* dbias = nullptr;                                   // of y's bias, or null: with Gradients::weights alone
    bool accumulate = false;                                  // adds to dw and db; dproject and dbias are written
  };
  // What the two sums of an op leave to be done at once.
  struct Gradients {
    kernels::AsppProjectionGradients projections;
    kernels::AsppWeightGradients weights;
  };

  virtual ~BranchSum() = default;
  virtual std::string provider() const = 0;
  // The copies of weights that it reads, as Op::prepacked(); `packed` below points at them in that order.
  virtual std::vector<Prepacked> prepacked() const { return {}; }
  virtual void prepack_weights(DeviceStream&, const std::vector<Branch>&, void* const* /*packed*/) {}
  virtual size_t forward_workspace() const = 0;
  virtual size_t backward_workspace() const = 0;
  virtual size_t gradients_workspace() const { return 0; }  // of Gradients::weights
  // `bias`: (F), or null. `image`: (N, 1, 1, F), added to every pixel of its image, or null.
  virtual void forward(DeviceStream&, const TensorView& x, const std::vector<Branch>&, const ChannelBias& bias,
                       const TensorView& image, const TensorView& y, void* const* packed, void* workspace) = 0;
  // First adds to `later` what is to be done before backward() ...
  virtual void begin_backward(const TensorView& /*dy*/, const std::vector<Branch>&, Gradients& /*later*/) {}
  // ... which adds what is to be done after it. dx (+)= the gradient of x + image_scale * image, (N, 1, 1, C) or null.
  // dx may be null: not wanted.
  virtual void backward(DeviceStream&, const TensorView& x, const TensorView& dy, const std::vector<Branch>&,
                        const TensorView& image, float image_scale, const TensorView& dx, bool accumulate,
                        void* const* packed, void* workspace, Gradients& later) = 0;
};

// The kernel where it takes the shape, on a GPU and in tests; else the providers, of which `context.conv` may name one.
std::unique_ptr<BranchSum> make_branch_sum(const CompileContext& context, const BranchSumShape& shape);

// A map of its own memory.
inline TensorView whole_map(void* data, int N, int H, int W, int C, DType type) { return {data, N, H, W, C, C, type}; }

// Pieces of one buffer, one after the other.
class Pieces {
 public:
  size_t take(size_t bytes) {
    const size_t at = bytes_;
    bytes_ += aligned(bytes);
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};
template <class T = void>
T* piece(void* base, size_t at) {
  return static_cast<T*>(static_cast<void*>(static_cast<unsigned char*>(base) + at));
}

}  // namespace regolith
