// Products of pairs of bf16 by the processor's vectors (AVX512-BF16).
#pragma once

namespace regolith {

// Whether they are done at twice the rate of products of fp32, as on AMD's processors. On Intel's they take four times
// as long as that: half the rate of fp32.
inline bool multiplies_pairs_fast() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") && !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace regolith
