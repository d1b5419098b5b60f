#include "data/sampling.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <cmath>
#include <numeric>

#include "data/split.h"
#include "kernels/core/random.h"

namespace regolith {
namespace {

constexpr uint32_t kDrawStream = 0x44524157;  // keeps the uses of one seed apart

}  // namespace

std::vector<double> repeat_factors(const Dataset& data, const std::vector<int64_t>& samples, double threshold) {
  std::vector<std::bitset<kernels::kAbsentClass>> present;
  std::array<int64_t, kernels::kAbsentClass> holding{};
  for (const int64_t i : samples) {
    auto& has = present.emplace_back();
    for (const uint8_t *p = data.mask(i), *end = p + data.mask_bytes(); p < end; ++p)
      if (*p < kernels::kAbsentClass) has[*p] = true;
    for (size_t c = 0; c < has.size(); ++c) holding[c] += has[c];
  }
  std::vector<double> factors;
  for (const auto& has : present) {
    double factor = 1;
    for (size_t c = 0; c < has.size(); ++c)
      if (has[c])
        factor = std::max(factor,
                          std::sqrt(threshold * static_cast<double>(samples.size()) / static_cast<double>(holding[c])));
    factors.push_back(factor);
  }
  return factors;
}

std::vector<double> hard_factors(const std::vector<float>& losses, const HardExamples& rule) {
  double sum = 0;
  int64_t known = 0;
  for (const float loss : losses)
    if (std::isfinite(loss)) sum += loss, ++known;
  const double mean = known > 0 ? sum / static_cast<double>(known) : 0;
  std::vector<double> factors;
  for (const float loss : losses) {
    const double relative = std::isfinite(loss) && mean > 0 ? std::max(0.f, loss) / mean : 1;
    factors.push_back(std::min(rule.at_most, 1 - rule.share + rule.share * relative));
  }
  return factors;
}

std::vector<int64_t> weighted_order(uint64_t seed, int64_t epoch, const std::vector<double>& weights, int64_t count) {
  const auto entries = static_cast<int64_t>(weights.size());
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  const auto low = static_cast<uint32_t>(epoch), high = static_cast<uint32_t>(static_cast<uint64_t>(epoch) >> 32);
  // Between the multiples of 2^-24: no rounding of the sums below moves a point over the end of a whole part.
  const double offset = uniform(philox(seed, 0, low, high, kDrawStream).v[0]) + 0x1p-25;
  // Points at equal distances on a line on which each entry has the length of its part: in an order of the epoch's own,
  // for neighbours on the line exclude each other.
  std::vector<int64_t> drawn;
  double end = 0;
  for (const int64_t i : epoch_order(seed ^ kDrawStream, epoch, entries)) {
    end += weights[i];
    const double reach = end / total * static_cast<double>(count);
    while (std::ssize(drawn) < count && static_cast<double>(drawn.size()) + offset < reach) drawn.push_back(i);
  }
  while (std::ssize(drawn) < count) drawn.push_back(drawn.back());  // rounding took the last from the line
  std::vector<int64_t> order;
  for (const int64_t i : epoch_order(seed, epoch, count)) order.push_back(drawn[i]);
  return order;
}

}  // namespace regolith
