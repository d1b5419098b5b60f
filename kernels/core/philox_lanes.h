// Philox on the fast host, a counter in each lane: the numbers of random.h, many at once.
#pragma once

#include "kernels/core/random.h"
#include "kernels/core/vec.h"

#if REGOLITH_VECTOR_EXTENSION
namespace regolith::kernels::REGOLITH_EXECUTION {

// A counter and the words made of it in the lower halves of 64-bit lanes; what the upper halves hold is never read.
inline constexpr int kPhiloxLanes = kLanes<float> / 2;
using PhiloxLanes = detail::Lanes<uint64_t, kPhiloxLanes>;

// Products of the lower halves of the lanes.
__device__ __forceinline__ PhiloxLanes philox_product(PhiloxLanes a, uint32_t b) {
#if defined(__AVX512F__)
  return reinterpret_cast<PhiloxLanes>(  // g++ warns of the unmasked one
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), _mm512_set1_epi64(static_cast<long long>(b))));
#elif defined(__AVX2__)
  return reinterpret_cast<PhiloxLanes>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(static_cast<long long>(b))));
#else
  return (a & 0xffffffff) * static_cast<uint64_t>(b);
#endif
}

// Makes words of counters, in place. The sets are chains of products that hide each other's time.
template <int kSets>
__device__ __forceinline__ void philox_lanes(uint64_t key, PhiloxLanes (&c0)[kSets], PhiloxLanes (&c1)[kSets],
                                             PhiloxLanes (&c2)[kSets], PhiloxLanes (&c3)[kSets], int rounds) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 4
    for (int s = 0; s < kSets; ++s) {
      const PhiloxLanes p0 = philox_product(c0[s], 0xD2511F53u), p1 = philox_product(c2[s], 0xCD9E8D57u);
      c0[s] = (p1 >> 32) ^ c1[s] ^ k0;
      c2[s] = (p0 >> 32) ^ c3[s] ^ k1;
      c1[s] = p1;
      c3[s] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
#endif
