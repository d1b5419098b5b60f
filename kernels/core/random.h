// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011). The same key and counter give the same numbers on every execution, so nothing is stored.
// Seven rounds are the fewest that passed their tests, ten what they advise.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"

namespace regolith {

struct Philox {
  uint32_t v[4];
};

REGOLITH_HOST_DEVICE inline Philox philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                          int rounds = 10) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < rounds; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// What dropout draws: 16 bits for every element of a sample, and a sample numbered within the batch, so that running
// the batch in slices changes nothing. Element e takes half e % 2 of word e % 8 / 2 of philox(key, e / 8, sample,
// step), of seven rounds: where every element of the widest maps is drawn for, rounds are most of the time.
inline constexpr int kDropoutRounds = 7;
struct DropoutDraws {
  float rate = 0;                 // in [0, 1): what share of the elements is dropped; 0: dropout is the identity
  bool spatial = false;           // one draw a sample and channel instead
  uint64_t key = 0;               // of the run and the node
  const int64_t* step = nullptr;  // in device memory; null: step 0
  int first_sample = 0;           // the number of the map's first sample within the batch

  explicit operator bool() const { return rate > 0; }
  uint32_t threshold() const { return static_cast<uint32_t>(rate * 65536.0 + 0.5); }  // draws below it are dropped
  float scale() const { return static_cast<float>(1.0 / (1.0 - static_cast<double>(rate))); }
};

// In [0, 1), 24 bits.
REGOLITH_HOST_DEVICE inline float uniform(uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

}  // namespace regolith
