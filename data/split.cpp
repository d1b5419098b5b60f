#include "data/split.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "engine/base/error.h"
#include "kernels/core/random.h"

namespace regolith {
namespace {

constexpr uint32_t kOrderStream = 0x4f524452, kSplitStream = 0x53504c54;  // keep the uses of one seed apart

std::vector<int64_t> permutation(uint64_t seed, uint64_t epoch, uint32_t stream, int64_t count) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = count - 1; i > 0; --i) {
    const Philox p = philox(seed, static_cast<uint32_t>(i), static_cast<uint32_t>(epoch),
                            static_cast<uint32_t>(epoch >> 32), stream);
    const auto j = static_cast<int64_t>(uint64_t{p.v[0]} * static_cast<uint64_t>(i + 1) >> 32);
    std::swap(order[i], order[j]);
  }
  return order;
}

using Histogram = std::array<int64_t, 256>;

Histogram histogram(const Dataset& d, int64_t i) {
  Histogram h{};
  for (const uint8_t *p = d.mask(i), *end = p + d.mask_bytes(); p < end; ++p) ++h[*p];
  return h;
}

std::string describe(const Dataset& d, const Split& s, uint64_t seed) {
  std::string text =
      "Split of " + d.origin + ", stratified by the set of classes in each mask, seed " + std::to_string(seed) + ":\n";
  for (const auto& [name, part] : {std::pair{"train", &s.train}, {"validation", &s.validation}, {"test", &s.test}}) {
    text += std::string("  ") + name + ": " + std::to_string(part->size()) + " samples";
    Histogram holding{};
    if (!d.masks.empty()) {
      for (const int64_t i : *part) {
        const Histogram h = histogram(d, i);
        for (size_t c = 0; c < h.size(); ++c) holding[c] += h[c] > 0;
      }
      const auto last = std::find_if(holding.rbegin(), holding.rend(), [](int64_t n) { return n > 0; }).base();
      for (auto n = holding.begin(); n != last; ++n) {
        text += (n == holding.begin() ? "; with class " : ", ") + std::to_string(n - holding.begin()) + ": " +
                std::to_string(*n);
      }
    }
    text += "\n";
  }
  return text;
}

// Takes `count` of `from` at even distances, from a place in the first of them on.
std::vector<int64_t> deal(std::vector<int64_t>& from, int64_t count) {
  std::vector<int64_t> taken, rest;
  const auto n = static_cast<int64_t>(from.size());
  for (int64_t i = 0; i < n; ++i) {
    // Half a distance in: the first strata are not always those that lose one.
    const bool take = (2 * (i + 1) * count + n) / (2 * n) > (2 * i * count + n) / (2 * n);
    (take ? taken : rest).push_back(from[i]);
  }
  from = std::move(rest);
  std::sort(taken.begin(), taken.end());
  return taken;
}

}  // namespace

Split split(const Dataset& data, const std::vector<int64_t>& samples, double train, double validation, double test,
            uint64_t seed) {
  const double sum = train + validation + test;
  if (!(train >= 0) || !(validation >= 0) || !(test >= 0) || !(sum <= 1 + 1e-9)) {
    throw DataError("split of " + data.origin + ": fractions " + std::to_string(train) + ", " +
                    std::to_string(validation) + ", " + std::to_string(test) +
                    ": expected numbers from 0 whose sum is at most 1");
  }
  const auto count = static_cast<int64_t>(samples.size());
  const auto share = [&](double fraction) { return std::llround(fraction * static_cast<double>(count)); };
  const int64_t validations = share(validation), tests = std::min<int64_t>(share(test), count - validations);
  const int64_t rest = count - validations - tests,
                trains = sum > 1 - 1e-9 ? rest : std::min<int64_t>(share(train), rest);
  if (trains < 1)
    throw DataError("split of " + data.origin + ": " + std::to_string(count) + " samples leave none to train on");

  std::vector<int64_t> order = permutation(seed, 0, kSplitStream, count);
  if (!data.masks.empty()) {
    std::vector<Histogram> histograms;
    Histogram total{};
    for (const int64_t i : samples) {
      histograms.push_back(histogram(data, i));
      for (size_t c = 0; c < total.size(); ++c) total[c] += histograms.back()[c];
    }
    std::vector<int> classes;  // those that occur, the rarest first
    for (int c = 0; c < 256; ++c) {
      if (total[c] > 0) classes.push_back(c);
    }
    std::stable_sort(classes.begin(), classes.end(), [&](int a, int b) { return total[a] < total[b]; });
    if (classes.size() > 63) classes.resize(63);
    std::vector<uint64_t> strata;  // the set of classes as bits, the rarest on top
    for (const Histogram& h : histograms) {
      uint64_t key = 0;
      for (const int c : classes) key = key << 1 | (h[c] > 0);
      strata.push_back(key);
    }
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strata[a] > strata[b]; });
  }
  for (int64_t& i : order) i = samples[i];
  Split s;
  s.test = deal(order, tests);
  s.validation = deal(order, validations);
  s.train = deal(order, trains);
  s.summary = describe(data, s, seed);
  return s;
}

std::vector<double> class_frequencies(const Dataset& data, const std::vector<int64_t>& samples, int classes) {
  std::vector<double> share(static_cast<size_t>(classes), 0);
  for (const int64_t i : samples) {
    const Histogram h = histogram(data, i);
    for (int c = 0; c < classes; ++c) share[c] += static_cast<double>(h[c]);
  }
  for (double& s : share) s /= std::max<double>(1, static_cast<double>(data.mask_bytes() * std::ssize(samples)));
  return share;
}

std::vector<SampleIndex> oversample(const Dataset& data, const std::vector<int64_t>& indices, const Oversample& rule,
                                    bool augment_all) {
  if (rule.factor < 1)
    throw DataError("oversampling " + data.origin + ": factor " + std::to_string(rule.factor) + ": expected 1 or more");
  std::vector<SampleIndex> all;
  for (const int64_t i : indices) {
    all.push_back({i, augment_all});
    const bool often = rule.factor > 1 && !data.masks.empty() && rule.class_id >= 0 && rule.class_id < 256 &&
                       histogram(data, i)[rule.class_id] >= rule.min_pixels;
    for (int repeat = 1; often && repeat < rule.factor; ++repeat) {
      all.push_back({i, true});
    }
  }
  return all;
}

std::vector<int64_t> epoch_order(uint64_t seed, int64_t epoch, int64_t count) {
  return permutation(seed, static_cast<uint64_t>(epoch), kOrderStream, count);
}

}  // namespace regolith
