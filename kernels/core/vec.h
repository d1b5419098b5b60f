// What a thread owns: a vector of neighbouring channels, computed in fp32 and stored in any element type.
//
//   using V = Vec<kLanes<T>>;                        // or Vec<1>, where the channels do not divide
//   V x = load<V>(p);  x = fma(x, scale, shift);  store(p, max(x, V(0)));
//
// The width is a constant of the execution: 16 bytes of storage on the GPU and in the checked execution, the widest
// register of the machine on the fast host, where a Vec is a GCC/Clang vector extension.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

#include "kernels/core/dtype.h"
#include "kernels/core/execution.h"

#if defined(__CUDACC__) || defined(REGOLITH_CHECKED)
#define REGOLITH_VECTOR_EXTENSION 0
#else
#define REGOLITH_VECTOR_EXTENSION 1
#endif

namespace regolith::kernels::REGOLITH_EXECUTION {

// Tells the fast host what will soon be read or written: strides of a slice of channels hide that from a processor. The
// address may be past the end of a map. Elsewhere nothing.
template <class T>
__device__ __forceinline__ void prefetch([[maybe_unused]] const T* base, [[maybe_unused]] int64_t elements) {
#if REGOLITH_VECTOR_EXTENSION
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(base) + elements * sizeof(T)));
#endif
}

#if !REGOLITH_VECTOR_EXTENSION
template <class T>
inline constexpr int kLanes = 16 / sizeof(T);
#elif defined(__AVX512F__)
template <class T>
inline constexpr int kLanes = 16;
#else
template <class T>
inline constexpr int kLanes = 8;
#endif

namespace detail {
#if !REGOLITH_VECTOR_EXTENSION
template <class E, int N>
struct Lanes {
  E e[N];
  __device__ __forceinline__ E& operator[](int i) { return e[i]; }
  __device__ __forceinline__ const E& operator[](int i) const { return e[i]; }
};
#else
template <class E, int N>
struct LanesOf {
  typedef E type __attribute__((vector_size(N * sizeof(E))));
};
template <class E>
struct LanesOf<E, 1> {
  struct type {
    E e;
    E& operator[](int) { return e; }
    const E& operator[](int) const { return e; }
  };
};
template <class E, int N>
using Lanes = typename LanesOf<E, N>::type;
#endif
}  // namespace detail

// N floats. All operations are lane by lane unless their name says otherwise.
template <int N>
struct Vec {
  static constexpr int size = N;
  static constexpr bool native = REGOLITH_VECTOR_EXTENSION && N > 1;  // one value of a vector extension
  detail::Lanes<float, N> v;

  Vec() = default;
  __device__ __forceinline__ Vec(float x) {
    if constexpr (native) {
      v = x - detail::Lanes<float, N>{};
    } else {
      for (int i = 0; i < N; ++i) v[i] = x;
    }
  }
  __device__ __forceinline__ float operator[](int i) const { return v[i]; }
  __device__ __forceinline__ void set(int i, float x) { v[i] = x; }

  // Applies f(float...) lane by lane: for functions that have no vector form.
  template <class F, class... A>
  static __device__ __forceinline__ Vec each(F&& f, const A&... a) {
    Vec r;
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int i = 0; i < N; ++i) r.v[i] = f(a[i]...);
    return r;
  }
};

// Lanes for which a comparison holds.
template <int N>
struct Mask {
  detail::Lanes<int32_t, N> m;  // -1 or 0
};

#define REGOLITH_VEC_BINARY(op)                                                     \
  template <int N>                                                                  \
  __device__ __forceinline__ Vec<N> operator op(const Vec<N>& a, const Vec<N>& b) { \
    if constexpr (Vec<N>::native) {                                                 \
      Vec<N> r;                                                                     \
      r.v = a.v op b.v;                                                             \
      return r;                                                                     \
    } else {                                                                        \
      return Vec<N>::each([](float x, float y) { return x op y; }, a, b);           \
    }                                                                               \
  }
#define REGOLITH_VEC_COMPARE(op)                                                     \
  template <int N>                                                                   \
  __device__ __forceinline__ Mask<N> operator op(const Vec<N>& a, const Vec<N>& b) { \
    Mask<N> r;                                                                       \
    if constexpr (Vec<N>::native) {                                                  \
      r.m = a.v op b.v;                                                              \
    } else {                                                                         \
      for (int i = 0; i < N; ++i) r.m[i] = a[i] op b[i] ? -1 : 0;                    \
    }                                                                                \
    return r;                                                                        \
  }
REGOLITH_VEC_BINARY(+)
REGOLITH_VEC_BINARY(-)
REGOLITH_VEC_BINARY(*)
REGOLITH_VEC_BINARY(/)
REGOLITH_VEC_COMPARE(>)
REGOLITH_VEC_COMPARE(>=)
REGOLITH_VEC_COMPARE(<)
REGOLITH_VEC_COMPARE(==)
#undef REGOLITH_VEC_BINARY
#undef REGOLITH_VEC_COMPARE

template <int N>
__device__ __forceinline__ Vec<N>& operator+=(Vec<N>& a, const Vec<N>& b) {
  return a = a + b;
}
template <int N>
__device__ __forceinline__ Vec<N>& operator*=(Vec<N>& a, const Vec<N>& b) {
  return a = a * b;
}

// a * b + c, contracted to one rounding where the machine has it.
template <int N>
__device__ __forceinline__ Vec<N> fma(const Vec<N>& a, const Vec<N>& b, const Vec<N>& c) {
  if constexpr (Vec<N>::native) {
    return a * b + c;
  } else {
#if defined(__CUDACC__) || defined(__FMA__)
    return Vec<N>::each([](float x, float y, float z) { return fmaf(x, y, z); }, a, b, c);
#else
    return Vec<N>::each([](float x, float y, float z) { return x * y + z; }, a, b, c);
#endif
  }
}

// mask ? a : b
template <int N>
__device__ __forceinline__ Vec<N> select(const Mask<N>& mask, const Vec<N>& a, const Vec<N>& b) {
  Vec<N> r;
  if constexpr (Vec<N>::native) {
    r.v = mask.m ? a.v : b.v;
  } else {
    for (int i = 0; i < N; ++i) r.set(i, mask.m[i] ? a[i] : b[i]);
  }
  return r;
}

// The larger lane; a where either is NaN and a > b does not hold is b: max(NaN, b) = b, max(a, NaN) = NaN.
template <int N>
__device__ __forceinline__ Vec<N> max(const Vec<N>& a, const Vec<N>& b) {
  return select(a > b, a, b);
}
template <int N>
__device__ __forceinline__ Vec<N> min(const Vec<N>& a, const Vec<N>& b) {
  return select(a < b, a, b);
}

// Sum of the lanes, pairwise: the same order in every execution of the same N.
template <int N>
__device__ __forceinline__ float sum_lanes(const Vec<N>& a) {
  float s[N];
  for (int i = 0; i < N; ++i) s[i] = a[i];
  for (int step = N / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) s[i] += s[i + step];
  return s[0];
}
#if REGOLITH_VECTOR_EXTENSION && defined(__F16C__) && defined(__AVX2__)
#define REGOLITH_X86_HALVES 1  // g++ does not find these instructions by itself
#else
#define REGOLITH_X86_HALVES 0
#endif

// N elements at p, converted. p is aligned to min(16 bytes, N * sizeof(T)) on the GPU.
template <class V, class T>
__device__ __forceinline__ V load(const T* p) {
  constexpr int N = V::size;
  V r;
#if REGOLITH_VECTOR_EXTENSION
  if constexpr (V::native && sizeof(T) == 4) {
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
#if REGOLITH_X86_HALVES
  } else if constexpr (N == 8 && std::is_same_v<T, bf16>) {
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    r.v = reinterpret_cast<detail::Lanes<float, N>>(_mm256_slli_epi32(words, 16));
    return r;
  } else if constexpr (N == 8 && std::is_same_v<T, fp16>) {
    r.v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return r;
#if defined(__AVX512F__)
  } else if constexpr (N == 16 && std::is_same_v<T, bf16>) {
    // The masked forms: g++ 12 takes the plain ones for reads of what is not initialised.
    const __m512i words = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    r.v = reinterpret_cast<detail::Lanes<float, N>>(reinterpret_cast<detail::Lanes<uint32_t, N>>(words) << 16);
    return r;
  } else if constexpr (N == 16 && std::is_same_v<T, fp16>) {
    r.v = _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return r;
#endif
#endif
  } else if constexpr (V::native && std::is_same_v<T, bf16>) {
    detail::Lanes<uint16_t, N> h;
    std::memcpy(&h, p, sizeof h);
    r.v = reinterpret_cast<detail::Lanes<float, N>>(__builtin_convertvector(h, detail::Lanes<uint32_t, N>) << 16);
    return r;
  } else
#elif defined(__CUDACC__)
  if constexpr (N * sizeof(T) % 16 == 0) {
    constexpr int parts = N * sizeof(T) / 16, each = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < parts; ++i) {
      const uint4 raw = reinterpret_cast<const uint4*>(p)[i];
      T t[each];
      memcpy(t, &raw, 16);
#pragma unroll
      for (int j = 0; j < each; ++j) r.v[i * each + j] = static_cast<float>(t[j]);
    }
    return r;
  } else
#endif
  {
    for (int i = 0; i < N; ++i) r.set(i, static_cast<float>(p[i]));
    return r;
  }
}

// Rounds the lanes to T (to nearest, ties to even) and writes N elements at p; alignment as for load.
template <class T, int N>
__device__ __forceinline__ void store(T* p, const Vec<N>& a) {
#if REGOLITH_VECTOR_EXTENSION
  if constexpr (Vec<N>::native && sizeof(T) == 4) {
    std::memcpy(p, &a.v, sizeof a.v);
  } else if constexpr (Vec<N>::native && std::is_same_v<T, bf16>) {
    using Words = detail::Lanes<uint32_t, N>;
    const Words u = reinterpret_cast<Words>(a.v), rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    const Words bits = a.v != a.v ? Words{} + 0x7fc0 : rounded;
#if REGOLITH_X86_HALVES
    if constexpr (N == 8) {
      const __m256i words = reinterpret_cast<__m256i>(bits);
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0xd8);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
      return;
    }
#endif
    const auto h = __builtin_convertvector(bits, detail::Lanes<uint16_t, N>);
    std::memcpy(p, &h, sizeof h);
#if REGOLITH_X86_HALVES
  } else if constexpr (N == 8 && std::is_same_v<T, fp16>) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
#endif
  } else
#elif defined(__CUDACC__)
  if constexpr (N * sizeof(T) % 16 == 0) {
    constexpr int parts = N * sizeof(T) / 16, each = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < parts; ++i) {
      T t[each];
#pragma unroll
      for (int j = 0; j < each; ++j) t[j] = static_cast<T>(a[i * each + j]);
      uint4 raw;
      memcpy(&raw, t, 16);
      // nvcc takes a plain store of 16 bytes apart into single elements in some loops.
      asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p + i * each), "r"(raw.x), "r"(raw.y), "r"(raw.z),
                   "r"(raw.w)
                   : "memory");
    }
  } else
#endif
  {
    for (int i = 0; i < N; ++i) p[i] = static_cast<T>(a[i]);
  }
}

// The same, or adds to what stands at p, in fp32.
template <class T, int N>
__device__ __forceinline__ void store(T* p, Vec<N> a, bool accumulate) {
  if (accumulate) a += load<Vec<N>>(p);
  store(p, a);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
