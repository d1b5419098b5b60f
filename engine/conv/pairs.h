// Products of pairs of bf16 by the processor's vectors (AVX512-BF16).
#pragma once

namespace regolith {

// Whether they are done at twice the rate of products of fp32, as on Zen 4. Intel's processors (measured: Sapphire
// Rapids) do them at half of that rate.
inline bool multiplies_pairs_fast() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") && !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace regolith
