// Tensor-core products, one warp at a time: C(16,8) += A(16,16) * B(16,8), bf16 or fp16 in, fp32 sums.
//
// The fragments are those of PTX `mma.sync.aligned.m16n8k16` (PTX ISA, "Matrix Fragments for mma.m16n8k16"). With
// g = lane / 4 and q = lane % 4, a lane holds
//   A, 8 elements in 4 registers:  r[0] = A(g,   2q..2q+1)   r[1] = A(g+8, 2q..2q+1)
//                                  r[2] = A(g,   2q+8..+9)   r[3] = A(g+8, 2q+8..+9)
//   B, 4 elements in 2 registers:  r[0] = B(2q..2q+1, g)     r[1] = B(2q+8..+9, g)
//   C, 4 floats:                   v[0], v[1] = C(g, 2q..2q+1)   v[2], v[3] = C(g+8, 2q..2q+1)
// the element of the lower index in the lower half of a register.
//
// Tiles lie in shared memory, 16-byte aligned, `pitch` elements from one row to the next: a multiple of 8, and for
// loads without bank conflicts an odd multiple of 8. All lanes of a warp call each function, with the same arguments.
// The fast execution has no warps and none of this (REGOLITH_MMA is 0): a kernel offers it a loop of its own.
#pragma once

#include <numeric>
#include <string>
#include <type_traits>

#include "kernels/core/collectives.h"
#include "kernels/core/dtype.h"
#include "kernels/core/error.h"
#include "kernels/core/execution.h"

#if defined(__CUDACC__) || defined(REGOLITH_CHECKED)
#define REGOLITH_MMA 1
#else
#define REGOLITH_MMA 0
#endif

#if REGOLITH_MMA
namespace regolith::kernels::REGOLITH_EXECUTION {

template <class T>
struct MmaA {
  uint32_t r[4];
};
template <class T>
struct MmaB {
  uint32_t r[2];
};
struct MmaC {
  float v[4] = {};
};

// Where in C a lane's v[i] belongs.
__device__ __forceinline__ int mma_row(int i) { return lane() / 4 + i / 2 * 8; }
__device__ __forceinline__ int mma_column(int i) { return lane() % 4 * 2 + i % 2; }

namespace detail {
#if defined(__CUDACC__)
// Lane l names row l % 8 of the 8x8 matrix l / 8 (of 4, or of 2 by lanes 0 to 15). Transposed: r = M(2q..2q+1, g).
template <bool transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}
template <bool transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[2], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  }
}
#else
template <class T>
T half_of(uint32_t r, int which) {
  T t;
  t.bits = static_cast<uint16_t>(r >> 16 * which);
  return t;
}
#endif

// The fragment of a factor whose element (o, k), o being A's row or B's column, is at tile[o * pitch + k] if kAlong,
// else at tile[k * pitch + o].
template <class Fragment, bool kAlong, class T>
__device__ __forceinline__ Fragment load_fragment(const T* tile, int pitch) {
  constexpr bool kOfA = std::is_same_v<Fragment, MmaA<T>>;
  Fragment f;
  const int l = lane();
#if defined(__CUDACC__)
  const int row = kOfA == kAlong ? l % 16 : kOfA ? l % 8 + l / 16 * 8 : l % 8;
  const int column = kOfA && kAlong ? l / 16 * 8 : kOfA || kAlong ? l / 8 % 2 * 8 : 0;
  load_matrices<!kAlong>(f.r, tile + row * pitch + column);
#else
  if (reinterpret_cast<uintptr_t>(tile) % 16 != 0 || pitch % 8 != 0)
    throw KernelError("a tile of a tensor-core product must be 16-byte aligned and its pitch (" +
                      std::to_string(pitch) + ") a multiple of 8");
  constexpr int kMatrices = kOfA ? 4 : 2;
  if (l == 0) host::count_bank_conflicts(kMatrices * (std::gcd(pitch / 8, 8) - 1));  // rows of 16 bytes, 8 at once
  for (int i = 0; i < kMatrices; ++i) {
    const int o = l / 4 + (kOfA ? i % 2 * 8 : 0), k = l % 4 * 2 + (kOfA ? i / 2 : i) * 8;
    const T* low = kAlong ? tile + o * pitch + k : tile + k * pitch + o;
    f.r[i] = low->bits | static_cast<uint32_t>(low[kAlong ? 1 : pitch].bits) << 16;
  }
#endif
  return f;
}
}  // namespace detail

// A(m, k) at tile[m * pitch + k].
template <class T>
__device__ __forceinline__ MmaA<T> load_a(const T* tile, int pitch) {
  return detail::load_fragment<MmaA<T>, true>(tile, pitch);
}
// A(m, k) at tile[k * pitch + m].
template <class T>
__device__ __forceinline__ MmaA<T> load_a_transposed(const T* tile, int pitch) {
  return detail::load_fragment<MmaA<T>, false>(tile, pitch);
}
// B(k, n) at tile[k * pitch + n].
template <class T>
__device__ __forceinline__ MmaB<T> load_b(const T* tile, int pitch) {
  return detail::load_fragment<MmaB<T>, false>(tile, pitch);
}
// B(k, n) at tile[n * pitch + k].
template <class T>
__device__ __forceinline__ MmaB<T> load_b_transposed(const T* tile, int pitch) {
  return detail::load_fragment<MmaB<T>, true>(tile, pitch);
}

// The sums of two neighbouring products, C(16,8) and C(16,8), rounded to T, as the left factor A(16,16) of the next: a
// lane holds the same rows and columns of both.
template <class T>
__device__ __forceinline__ MmaA<T> to_a(const MmaC& left, const MmaC& right) {
  const auto pair = [](float low, float high) {
    return static_cast<uint32_t>(static_cast<T>(low).bits) | static_cast<uint32_t>(static_cast<T>(high).bits) << 16;
  };
  MmaA<T> a;
  a.r[0] = pair(left.v[0], left.v[1]);
  a.r[1] = pair(left.v[2], left.v[3]);
  a.r[2] = pair(right.v[0], right.v[1]);
  a.r[3] = pair(right.v[2], right.v[3]);
  return a;
}

// C += A * B. The GPU adds the 16 products in an order, and with a rounding, of its own.
template <class T>
__device__ __forceinline__ void mma_16x8x16(MmaC& c, const MmaA<T>& a, const MmaB<T>& b) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, fp16>);
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<T, bf16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
  }
#else
  struct Operands {
    MmaA<T> a;
    MmaB<T> b;
  } mine{a, b}, of[kWarp];
  host::exchange(&mine, of, sizeof mine);
  for (int i = 0; i < 4; ++i) {
    const int m = mma_row(i), n = mma_column(i);
    for (int k = 0; k < 16; ++k) {
      const int q = k % 8 / 2;  // of the lanes that hold column k of A and row k of B
      const T x = detail::half_of<T>(of[m % 8 * 4 + q].a.r[m / 8 + k / 8 * 2], k % 2);
      const T y = detail::half_of<T>(of[n * 4 + q].b.r[k / 8], k % 2);
      c.v[i] += static_cast<float>(x) * static_cast<float>(y);
    }
  }
#endif
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
#endif
