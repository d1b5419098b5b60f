// Dropout as a factor that any kernel can multiply what it has at hand with: 0, or 1 / (1 - rate). Nothing is stored:
// backward draws the same numbers anew (random.h says which).
//
//   DropoutFactors<> factors(k);                                   // a thread's own; k: made by dropout_numbers()
//   factors.sample(n);                                             // before the first element of every sample
//   y = x * factors.template at<L>(k.spatial ? c : pixel * C + c);  // pixel: h * W + w
#pragma once

#include "kernels/core/philox_lanes.h"
#include "kernels/core/random.h"
#include "kernels/core/vec.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// DropoutDraws as a kernel takes them.
struct DropoutNumbers {
  uint64_t key;
  const int64_t* step;
  int first_sample;
  uint32_t threshold;  // 0: nothing is dropped
  float scale;
  bool spatial;
};
inline DropoutNumbers dropout_numbers(const DropoutDraws& d) {
  return {d.key, d.step, d.first_sample, d.threshold(), d.scale(), d.spatial};
}

#if REGOLITH_VECTOR_EXTENSION

// The fast host draws for kBlock elements at a time and keeps the last kKept such blocks: elements that follow each
// other are cheap, others are right as well. With 64 blocks, so are the columns of for_each_tile.
template <int kKept = 1>
class DropoutFactors {
 public:
  explicit DropoutFactors(const DropoutNumbers& k) : k_(k), step_(k.step == nullptr ? 0 : *k.step) {}
  void sample(int n) {
    if (n == sample_) return;
    sample_ = n;
    for (uint32_t& b : blocks_) b = kNone;
  }
  // The factors of elements first ... first + L - 1 of the sample; first is a multiple of L.
  template <int L>
  __device__ __forceinline__ Vec<L> at(int64_t first) {
    const uint32_t block = static_cast<uint32_t>(static_cast<uint64_t>(first) / kBlock);
    if (blocks_[block % kKept] != block) draw(block);
    const uint16_t* draws = draws_ + static_cast<uint64_t>(first) % (kKept * kBlock);
    Vec<L> r;
    if constexpr (Vec<L>::native) {
      detail::Lanes<uint16_t, L> h;
      std::memcpy(&h, draws, sizeof h);
      const auto kept = __builtin_convertvector(h, detail::Lanes<int32_t, L>) >= static_cast<int32_t>(k_.threshold);
      r.v = kept ? Vec<L>(k_.scale).v : Vec<L>(0).v;
    } else {
      for (int i = 0; i < L; ++i) r.set(i, draws[i] >= k_.threshold ? k_.scale : 0.f);
    }
    return r;
  }

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  static constexpr int kSets = 4, kBlock = kSets * kPhiloxLanes * 8;  // chains of products that hide each other's time

  __attribute__((noinline)) void draw(uint32_t block) {
    blocks_[block % kKept] = block;
    uint16_t* draws = draws_ + block % kKept * kBlock;
    const uint32_t sample = static_cast<uint32_t>(k_.first_sample + sample_);
    PhiloxLanes c0[kSets], c1[kSets], c2[kSets], c3[kSets], lane;
    for (int i = 0; i < kPhiloxLanes; ++i) lane[i] = static_cast<uint64_t>(i);
    for (int s = 0; s < kSets; ++s) {
      c0[s] = lane + static_cast<uint64_t>(block) * (kBlock / 8) + static_cast<uint64_t>(s * kPhiloxLanes);
      c1[s] = PhiloxLanes{} + sample;
      c2[s] = PhiloxLanes{} + static_cast<uint64_t>(step_);
      c3[s] = PhiloxLanes{} + (static_cast<uint64_t>(step_) >> 32);
    }
    philox_lanes(k_.key, c0, c1, c2, c3, kDropoutRounds);
    for (int s = 0; s < kSets; ++s) {
      const PhiloxLanes low = (c0[s] & 0xffffffff) | c1[s] << 32, high = (c2[s] & 0xffffffff) | c3[s] << 32;
      uint64_t words[2][kPhiloxLanes];
      std::memcpy(words[0], &low, sizeof low);
      std::memcpy(words[1], &high, sizeof high);
      for (int i = 0; i < kPhiloxLanes; ++i) {
        for (int half = 0; half < 2; ++half)
          std::memcpy(draws + (s * kPhiloxLanes + i) * 8 + half * 4, &words[half][i], 8);
      }
    }
  }

  const DropoutNumbers k_;
  const int64_t step_;
  int sample_ = -1;
  uint32_t blocks_[kKept];
  alignas(64) uint16_t draws_[kKept * kBlock];
};

#else

template <int = 1>
class DropoutFactors {
 public:
  __device__ __forceinline__ explicit DropoutFactors(const DropoutNumbers& k)
      : k_(k), step_(k.step == nullptr ? 0 : *k.step) {}
  __device__ __forceinline__ void sample(int n) { sample_ = static_cast<uint32_t>(k_.first_sample + n); }
  template <int L>
  __device__ __forceinline__ Vec<L> at(int64_t first) const {
    static_assert(L <= 8 && 8 % L == 0);
    const Philox p = philox(k_.key, static_cast<uint32_t>(first / 8), sample_, static_cast<uint32_t>(step_),
                            static_cast<uint32_t>(static_cast<uint64_t>(step_) >> 32), kDropoutRounds);
    // Halves of two words, or of four, as they lie: no array that would be indexed by a number of run time.
    const int skip = static_cast<int>(first % 8) / 2;  // words
    Vec<L> r;
    if constexpr (L == 8) {
#if defined(__CUDACC__)
#pragma unroll
#endif
      for (int i = 0; i < 8; ++i) r.set(i, factor(p.v[i / 2] >> i % 2 * 16));
    } else if constexpr (L == 1) {
      const uint32_t word = skip < 2 ? (skip == 0 ? p.v[0] : p.v[1]) : (skip == 2 ? p.v[2] : p.v[3]);
      r.set(0, factor(word >> first % 2 * 16));
    } else {
      static_assert(L == 4);
      const uint32_t a = skip == 0 ? p.v[0] : p.v[2], b = skip == 0 ? p.v[1] : p.v[3];
      r.set(0, factor(a));
      r.set(1, factor(a >> 16));
      r.set(2, factor(b));
      r.set(3, factor(b >> 16));
    }
    return r;
  }

 private:
  __device__ __forceinline__ float factor(uint32_t draw) const {
    return (draw & 0xffff) >= k_.threshold ? k_.scale : 0.f;
  }
  const DropoutNumbers k_;
  const int64_t step_;
  uint32_t sample_ = 0;
};

#endif

}  // namespace regolith::kernels::REGOLITH_EXECUTION
