// What dropout multiplies the elements of a map by, one by one.
#pragma once

#include "kernels/core/random.h"
#include "tests/support/cases.h"

namespace regolith::testing {

inline Values dropout_factors(const Layout& x, const DropoutDraws& draws, int64_t step) {
  Values factors(x.size(), 1.0);
  const size_t C = x.C, sample_size = C * x.H * x.W;
  for (size_t i = 0; draws && i < factors.size(); ++i) {
    const size_t n = i / sample_size, e = draws.spatial ? i % C : i % sample_size;
    const Philox p =
        philox(draws.key, static_cast<uint32_t>(e / 8), static_cast<uint32_t>(draws.first_sample + n),
               static_cast<uint32_t>(step), static_cast<uint32_t>(static_cast<uint64_t>(step) >> 32), kDropoutRounds);
    const uint32_t draw = p.v[e % 8 / 2] >> e % 2 * 16 & 0xffff;
    factors[i] = draw < draws.threshold() ? 0 : 1 / (1 - static_cast<double>(draws.rate));
  }
  return factors;
}

}  // namespace regolith::testing
