// exp, log, erf, sqrt, sines and rounding of vectors. In the fast execution polynomials of our own (minimax fits of the
// functions below, error about 1 ulp, so that loops over pixels stay vector loops); elsewhere, and for single lanes,
// those of the platform.
#pragma once

#include <cmath>
#include <limits>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "kernels/core/vec.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// e^x. Below -87.3, where the result would be subnormal, 0; above 88.7 infinity; NaN stays NaN.
template <int N>
__device__ __forceinline__ Vec<N> exp(const Vec<N>& x) {
#if REGOLITH_VECTOR_EXTENSION
  if constexpr (Vec<N>::native) {
    using V = Vec<N>;
    using Words = detail::Lanes<uint32_t, N>;  // whose sums wrap, in lanes out of range
    // x = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 leaves n, rounded, in the low bits of the sum.
    const V magic(0x1.8p23f), sum = fma(x, V(0x1.715476p+0f), magic), n = sum - magic;
    const V r = fma(n, V(-0x1.7f7d1cp-20f), fma(n, V(-0x1.62e4p-1f), x));
    // e^r = 1 + r + r^2 P(r)
    V p = fma(r, V(0x1.6a1a72p-10f), V(0x1.123fc6p-7f));
    p = fma(p, r, V(0x1.555916p-5f));
    p = fma(p, r, V(0x1.55548ap-3f));
    p = fma(p, r, V(0x1.fffffcp-2f));
    p = fma(p * r, r, r) + V(1);
    V y;  // times 2^n, by the exponent's bits
    y.v = reinterpret_cast<detail::Lanes<float, N>>(reinterpret_cast<Words>(p.v) +
                                                    ((reinterpret_cast<Words>(sum.v) - 0x4b400000) << 23));
    y = select(x < V(-0x1.5d58ap+6f), V(0), y);
    y = select(x > V(0x1.62e42ep+6f), V(std::numeric_limits<float>::infinity()), y);
    return select(x == x, y, x);
  } else
#endif
    return Vec<N>::each([](float a) { return expf(a); }, x);
}

// Natural logarithm. In the fast execution subnormals count as zero: log(0) = -infinity; of negative numbers NaN.
template <int N>
__device__ __forceinline__ Vec<N> log(const Vec<N>& x) {
#if REGOLITH_VECTOR_EXTENSION
  if constexpr (Vec<N>::native) {
    using V = Vec<N>;
    using Words = detail::Lanes<uint32_t, N>;
    using Integers = detail::Lanes<int32_t, N>;
    const float inf = std::numeric_limits<float>::infinity();
    // x = 2^n (1 + f), 1 + f between the square roots of 1/2 and 2
    const Words bits = reinterpret_cast<Words>(x.v);
    const Integers exponent = reinterpret_cast<Integers>(bits - 0x3f3504f3) >> 23;
    V n, f;
    n.v = __builtin_convertvector(exponent, detail::Lanes<float, N>);
    f.v = reinterpret_cast<detail::Lanes<float, N>>(bits - (reinterpret_cast<Words>(exponent) << 23)) - 1.f;
    // log(1 + f) = f - f^2/2 + f^3 P(f)
    V p = fma(f, V(-0.076344974f), V(0.12761578f));
    p = fma(p, f, V(-0.13160183f));
    p = fma(p, f, V(0.14201757f));
    p = fma(p, f, V(-0.16623357f));
    p = fma(p, f, V(0.20001227f));
    p = fma(p, f, V(-0.2500082f));
    p = fma(p, f, V(0.3333333f));
    const V f2 = f * f;
    V y = fma(n, V(0x1.7f7d1cp-20f), fma(f2 * f, p, f2 * V(-.5f)));
    y = fma(n, V(0x1.62e4p-1f), f + y);
    y = select(x < V(std::numeric_limits<float>::min()), V(-inf), y);
    y = select(x < V(0), V(std::numeric_limits<float>::quiet_NaN()), y);
    y = select(x == V(inf), x, y);
    return select(x == x, y, x);
  } else
#endif
    return Vec<N>::each([](float a) { return logf(a); }, x);
}

// The error function. In the fast execution x times a quotient of polynomials of x^2 (a minimax fit over |x| <= 3.92,
// of relative error 2e-9; beyond, erf is 1 to within half an ulp), evaluated to within 7 ulp.
template <int N>
__device__ __forceinline__ Vec<N> erf(const Vec<N>& x) {
#if REGOLITH_VECTOR_EXTENSION
  if constexpr (Vec<N>::native) {
    using V = Vec<N>;
    const V z = min(V(3.92f), max(V(-3.92f), x)), u = z * z;  // NaN stays
    V p = fma(u, V(-0x1.b7d5d4p-27f), V(0x1.3555b2p-18f));
    p = fma(p, u, V(0x1.8b1190p-12f));
    p = fma(p, u, V(0x1.f72358p-9f));
    p = fma(p, u, V(0x1.bc5e36p-5f));
    p = fma(p, u, V(0x1.7b281ep-3f));
    p = fma(p, u, V(0x1.20dd76p+0f));
    V q = fma(u, V(0x1.05bac6p-14f), V(0x1.5530c8p-10f));
    q = fma(q, u, V(0x1.f99d22p-7f));
    q = fma(q, u, V(0x1.d26d62p-4f));
    q = fma(q, u, V(0x1.fd57c4p-2f));
    q = fma(q, u, V(1));
    return z * p / q;
  } else
#endif
    return Vec<N>::each([](float a) { return erff(a); }, x);
}

template <int N>
__device__ __forceinline__ Vec<N> sqrt(const Vec<N>& x) {
#if REGOLITH_VECTOR_EXTENSION && defined(__AVX512F__)
  if constexpr (N == 16) {
    Vec<N> r;
    r.v = _mm512_maskz_sqrt_ps(0xffff, x.v);
    return r;
  } else
#elif REGOLITH_VECTOR_EXTENSION && defined(__AVX__)
  if constexpr (N == 8) {
    Vec<N> r;
    r.v = _mm256_sqrt_ps(x.v);
    return r;
  } else
#endif
    return Vec<N>::each([](float a) { return sqrtf(a); }, x);
}

// sin(2 pi x) and cos(2 pi x) for x in [0, 1], within 2e-7, by the same polynomial in every execution.
template <int N>
__device__ __forceinline__ void sincos_turns(const Vec<N>& x, Vec<N>& sine, Vec<N>& cosine) {
  using V = Vec<N>;
  const auto of = [](const V& t) {  // Taylor's, for |t| <= 1/4
    const V u = t * t;
    V p = fma(u, V(-15.094643f), V(42.058693f));
    p = fma(p, u, V(-76.705859f));
    p = fma(p, u, V(81.605249f));
    p = fma(p, u, V(-41.341702f));
    p = fma(p, u, V(6.2831853f));
    return p * t;
  };
  const V v = x - V(.5f), a = max(v, V(0) - v), s = of(min(a, V(.5f) - a));
  sine = select(v < V(0), s, V(0) - s);
  cosine = of(a - V(.25f));
}

// The next whole number below, or towards zero, for |x| < 2^31.
template <int N>
__device__ __forceinline__ Vec<N> trunc(const Vec<N>& x) {
  if constexpr (Vec<N>::native) {
    Vec<N> r;
    r.v = __builtin_convertvector(__builtin_convertvector(x.v, detail::Lanes<int32_t, N>), detail::Lanes<float, N>);
    return r;
  } else {
    return Vec<N>::each([](float a) { return truncf(a); }, x);
  }
}
template <int N>
__device__ __forceinline__ Vec<N> floor(const Vec<N>& x) {
  const Vec<N> t = trunc(x);
  return select(t > x, t - Vec<N>(1), t);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
