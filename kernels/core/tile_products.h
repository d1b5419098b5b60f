// Products of matrices of bf16 whose sums the processor holds in tiles (AMX-BF16, eight times the rate of its vectors):
// C (32 x 32 in fp32) += A (32 rows x depth) * B (depth x 32 columns), 32 of the depth a step.
//
//   const Tiles tiles;                            // this thread's, as long as it lives; at the head of a block
//   if (tiles) {                                  // else: REGOLITH_TILES is 0, or the system refuses them
//     Tiles::clear();                             // or Tiles::load(c, pitch)
//     Tiles::add(a, a_next, a_row, b, b_next, b_row);
//     Tiles::store(c, pitch);
//   }
//
// Sums are fp32, in the order of the steps; subnormals count as zero, as in AVX512-BF16.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/core/register_tile.h"

#if REGOLITH_PAIRS && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define REGOLITH_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define REGOLITH_TILES 0
#endif

namespace regolith::kernels::REGOLITH_EXECUTION {

inline constexpr int kTileRows = 32, kTileColumns = 32, kTileDepth = 32;  // of a product's step

#if REGOLITH_TILES

// Linux lets a process use tiles once it has asked, for their state is large: ARCH_REQ_XCOMP_PERM, XTILEDATA.
inline bool tiles_permitted() {
  static const bool permitted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return permitted;
}

class Tiles {
 public:
  Tiles() : on_(tiles_permitted()) {
    if (!on_) return;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~Tiles() {
    if (on_) asm volatile("tilerelease" ::);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  explicit operator bool() const { return on_; }

  static __forceinline__ void clear() {
    asm volatile("tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3" ::);
  }
  // c (32, 32), rows `pitch` floats apart.
  static __forceinline__ void load(const float* c, ptrdiff_t pitch) {
    load_tile<0>(c, pitch * 4), load_tile<1>(c + 16, pitch * 4);
    load_tile<2>(c + 16 * pitch, pitch * 4), load_tile<3>(c + 16 * pitch + 16, pitch * 4);
  }
  static __forceinline__ void store(float* c, ptrdiff_t pitch) {
    store_tile<0>(c, pitch * 4), store_tile<1>(c + 16, pitch * 4);
    store_tile<2>(c + 16 * pitch, pitch * 4), store_tile<3>(c + 16 * pitch + 16, pitch * 4);
  }
  // One step. Each 16 rows of A begin at a pointer of their own, 32 neighbours in memory a row, rows `a_row` bytes
  // apart; each 16 columns of B at one of their own, (depth / 2, 16, 2), pairs of rows `b_row` bytes apart.
  static __forceinline__ void add(const void* a0, const void* a1, ptrdiff_t a_row, const void* b0, const void* b1,
                                  ptrdiff_t b_row) {
    load_tile<6>(b0, b_row), load_tile<4>(a0, a_row);
    multiply<0, 4, 6>();
    load_tile<7>(b1, b_row);
    multiply<1, 4, 7>();
    load_tile<5>(a1, a_row);
    multiply<2, 5, 6>();
    multiply<3, 5, 7>();
  }

 private:
  template <int N>
  static __forceinline__ void load_tile(const void* p, ptrdiff_t row_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(row_bytes), "i"(N) : "memory");
  }
  template <int N>
  static __forceinline__ void store_tile(void* p, ptrdiff_t row_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(row_bytes), "i"(N) : "memory");
  }
  template <int C, int A, int B>
  static __forceinline__ void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

  const bool on_;
};

template <int Bit, int... I>
__forceinline__ void exchange_lanes(Vec<kL>& a, Vec<kL>& b, std::integer_sequence<int, I...>) {
  const auto u = a.v, v = b.v;  // lanes with the bit go to the first, those without it to the second
  a.v = __builtin_shufflevector(u, v, (I & Bit ? kL + (I ^ Bit) : I)...);
  b.v = __builtin_shufflevector(u, v, (I & Bit ? kL + I : I ^ Bit)...);
}
// Lane j of row i goes to lane i of row j; Bit is kL / 2.
template <int Bit>
__forceinline__ void transpose_lanes(Vec<kL>* rows) {
  if constexpr (Bit > 0) {
    REGOLITH_UNROLL
    for (int i = 0; i < kL; ++i)
      if ((i & Bit) == 0) exchange_lanes<Bit>(rows[i], rows[i + Bit], std::make_integer_sequence<int, kL>{});
    transpose_lanes<Bit / 2>(rows);
  }
}

#else

class Tiles {
 public:
  explicit operator bool() const { return false; }
};

#endif

}  // namespace regolith::kernels::REGOLITH_EXECUTION
