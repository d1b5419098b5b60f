// The attention gate of Oktay et al., "Attention U-Net" (2018), additive form:
//
//   q = relu(theta x + phi g)      theta, phi: 1x1 without bias, to Ci channels
//   a = sigmoid(psi . q + bias)    one number a pixel
//   y = x * a
//
// Forward is one pass: theta x + phi g is one product over the channels of both, and q never leaves the kernel.
// Backward computes it again:
//
//   dlogit = sum_c dy x * a (1 - a);  dq = (q > 0) psi dlogit;  dx = dy a + theta^T dq;  dg = phi^T dq
//   dtheta = sum dq x^T;  dphi = sum dq g^T;  dpsi = sum q dlogit;  dbias = sum dlogit
//
// Factors of products are of the maps' type, sums fp32, in an order that depends on the shape alone. Maps may be
// slices; x and g have the same N, H, W, and Ci is at most kGateChannels: KernelError otherwise. Any number of channels
// will do; whole vectors of them are faster.
//
// Occupancy of gate: at least 25% (128 threads, 35072 bytes of shared memory).
// Occupancy of gate_backward: at least 12% (128 threads, 68864 bytes of shared memory).
// Occupancy of gate_weight_gradient: at least 25% (128 threads, 34816 bytes of shared memory).
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/core/kernel.h"

namespace regolith::kernels {

inline constexpr int kGateChannels = 256;  // Ci, at most

struct AttentionGateWeights {
  const void* theta = nullptr;   // (Ci, Cx) of the maps' type
  const void* phi = nullptr;     // (Ci, Cg)
  const float* psi = nullptr;    // (Ci)
  const float* bias = nullptr;   // (1)
  const void* packed = nullptr;  // what attention_gate_pack made of theta and phi; read by the fast host only
  int Ci = 0;
};

// Lays theta and phi out for the fast host's products, once whenever they change. Does nothing elsewhere.
struct AttentionGatePack {
  const void *theta, *phi;
  DType dtype;
  int Cx, Cg, Ci;
  void* packed;  // attention_gate_packed(Cx, Cg, Ci) bytes
};
REGOLITH_KERNEL(attention_gate_pack, AttentionGatePack);
constexpr size_t attention_gate_packed(int Cx, int Cg, int Ci) {
  const auto padded = [](int C) { return static_cast<size_t>(C + 31) / 32 * 32; };
  return 2 * (padded(Cx) + padded(Cg)) * padded(Ci) * sizeof(float);
}

struct AttentionGateForward {
  TensorView x, g;  // (N, H, W, Cx), (N, H, W, Cg)
  AttentionGateWeights weights;
  TensorView y;        // like x
  float* a = nullptr;  // (N, H, W), for backward
};
REGOLITH_KERNEL(attention_gate_forward, AttentionGateForward);

struct AttentionGateBackward {
  TensorView x, g;
  AttentionGateWeights weights;
  const float* a = nullptr;  // of forward
  TensorView dy;
  TensorView dx, dg;  // null where nobody wants them; dx may be dy
  bool accumulate_dx = false, accumulate_dg = false;
  float *dtheta = nullptr, *dphi = nullptr, *dpsi = nullptr, *dbias = nullptr;  // laid out like the weights, fp32
  bool accumulate_grads = false;
  void* workspace = nullptr;  // AttentionGateWorkspace(x, g, Ci).bytes, 256-byte aligned
};
REGOLITH_KERNEL(attention_gate_backward, AttentionGateBackward);

// How backward divides the pixels, and where in its workspace the partial sums and dq (pixels, Ci) are. The maps' data
// may be null.
struct AttentionGateWorkspace {
  int parts;        // of the pixels, each with sums of its own of dtheta and dphi
  int64_t each;     // pixels of a part
  int blocks;       // the same for dpsi and dbias
  int64_t weights;  // floats of a part: Ci * (Cx + Cg), dtheta first
  size_t vectors_at, dq_at, bytes;
  AttentionGateWorkspace(const TensorView& x, const TensorView& g, int Ci) {
    const auto lines = [](size_t n) { return (n + 255) / 256 * 256; };
    const int64_t pixels = x.pixels();
    weights = static_cast<int64_t>(Ci) * (x.C + g.C);
    // Enough for a machine to share, as long as what a part sums is worth more than its sums.
    const int64_t most = std::clamp<int64_t>((int64_t{1} << 21) / std::max<int64_t>(weights, 1), 8, 1024);
    const int64_t wanted = std::max(pixels / 512, std::min<int64_t>(8, pixels / 64));
    parts = static_cast<int>(std::clamp<int64_t>(wanted, 1, most));
    each = ((pixels + parts - 1) / parts + 63) / 64 * 64;
    blocks = static_cast<int>(std::clamp<int64_t>((pixels + 63) / 64, parts, 1024));
    vectors_at = lines(static_cast<size_t>(parts) * weights * sizeof(float));
    dq_at = vectors_at + lines(static_cast<size_t>(blocks) * (Ci + 1) * sizeof(float));
    bytes = dq_at + lines(static_cast<size_t>(pixels) * Ci * size_of(x.dtype));
  }
  REGOLITH_HOST_DEVICE float* weight_sums(void* workspace, int64_t part) const {
    return static_cast<float*>(workspace) + part * weights;
  }
  REGOLITH_HOST_DEVICE float* vector_sums(void* workspace, int64_t block, int Ci) const {  // of dpsi, then of dbias
    return reinterpret_cast<float*>(static_cast<unsigned char*>(workspace) + vectors_at) + block * (Ci + 1);
  }
  template <class T>
  REGOLITH_HOST_DEVICE T* dq(void* workspace) const {
    return reinterpret_cast<T*>(static_cast<unsigned char*>(workspace) + dq_at);
  }
};

}  // namespace regolith::kernels
