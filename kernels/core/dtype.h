// Element types. Low-precision numbers have our own bit-level host conversions: they vectorise, the vendor's do not.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define REGOLITH_HOST_DEVICE __host__ __device__
#else
#define REGOLITH_HOST_DEVICE
#endif

namespace regolith {

enum class DType : uint8_t { f32, bf16, f16, u8, i32, i64, f64 };

constexpr size_t size_of(DType t) {
  switch (t) {
    case DType::u8:
      return 1;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::i64:
    case DType::f64:
      return 8;
  }
  return 0;
}

constexpr std::string_view name_of(DType t) {
  constexpr std::string_view names[] = {"fp32", "bf16", "fp16", "u8", "i32", "i64", "f64"};
  return names[static_cast<int>(t)];
}

// Brain float: the upper half of a float. Rounds to nearest, ties to even; NaN stays NaN.
struct bf16 {
  uint16_t bits;
  bf16() = default;
  REGOLITH_HOST_DEVICE explicit bf16(float x) {
#if defined(__CUDA_ARCH__)
    bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
    const uint32_t u = std::bit_cast<uint32_t>(x);
    bits = x != x ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
#endif
  }
  REGOLITH_HOST_DEVICE explicit operator float() const {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
#else
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
#endif
  }
};

// IEEE half. Rounds to nearest, ties to even; overflows to infinity; subnormals are kept.
struct fp16 {
  uint16_t bits;
  fp16() = default;
  REGOLITH_HOST_DEVICE explicit fp16(float x) {
#if defined(__CUDA_ARCH__)
    bits = __half_as_ushort(__float2half_rn(x));
#else
    const uint32_t u = std::bit_cast<uint32_t>(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) {
      bits = static_cast<uint16_t>(sign | 0x7e00);  // NaN
    } else if (a >= 0x477ff000) {
      bits = static_cast<uint16_t>(sign | 0x7c00);  // rounds past the largest half
    } else if (a < 0x38800000) {                    // subnormal: adding 0.5 puts the bits where they belong, rounded
      const float magic = std::bit_cast<float>(a) + 0.5f;
      bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(magic) - 0x3f000000u));
    } else {
      bits = static_cast<uint16_t>(sign | ((a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13));
    }
#endif
  }
  REGOLITH_HOST_DEVICE explicit operator float() const {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(bits));
#else
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, e = bits >> 10 & 0x1f, m = bits & 0x3ff;
    if (e == 0) return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(m) * 0x1p-24f));
    return std::bit_cast<float>(sign | (e == 31 ? 0x7f800000u : (e + 112) << 23) | m << 13);
#endif
  }
};

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<bf16>() {
  return DType::bf16;
}
template <>
constexpr DType dtype_of<fp16>() {
  return DType::f16;
}
template <>
constexpr DType dtype_of<uint8_t>() {
  return DType::u8;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::i32;
}
template <>
constexpr DType dtype_of<int64_t>() {
  return DType::i64;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::f64;
}

}  // namespace regolith
