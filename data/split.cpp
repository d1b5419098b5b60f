#include "data/split.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <string_view>
#include <unordered_map>

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

using Histogram = std::array<int64_t, kernels::kAbsentClass + 1>;  // the last: pixels without truth

Histogram histogram(const Dataset& d, int64_t i) {
  Histogram h{};
  for (const uint8_t *p = d.mask(i), *end = p + d.mask_bytes(); p < end; ++p) ++h[*p];
  return h;
}

std::string describe(const Dataset& d, const Split& s, const std::string& how) {
  std::string text = "Split of " + d.origin + ", " + how + ":\n";
  for (const auto& [name, part] : {std::pair{"train", &s.train}, {"validation", &s.validation}, {"test", &s.test}}) {
    text += std::string("  ") + name + ": " + std::to_string(part->size()) + " samples";
    Histogram holding{};
    int64_t ignored = 0;
    for (const int64_t i : *part) {
      const Histogram h = histogram(d, i);
      for (size_t c = 0; c < h.size() - 1; ++c) holding[c] += h[c] > 0;
      ignored += h.back();
    }
    const auto last = std::find_if(holding.rbegin(), holding.rend(), [](int64_t n) { return n > 0; }).base();
    for (auto n = holding.begin(); n != last; ++n) {
      text += (n == holding.begin() ? "; with class " : ", ") + std::to_string(n - holding.begin()) + ": " +
              std::to_string(*n);
    }
    if (ignored > 0) text += "; ignored pixels: " + std::to_string(ignored);
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

// Whole groups, the largest first. A part's distance from its share is the squared difference in samples and in samples
// with each class, those of rare classes weighing most; a group goes where it lessens the sum of distances most.
// `order`: of the groups of one size. The last groups go to parts that are still empty.
Split deal_groups(const Dataset& d, const std::vector<int64_t>& samples, const std::vector<int64_t>& order,
                  const std::array<int64_t, 3>& sizes) {
  std::map<int64_t, size_t> places;
  std::vector<std::vector<int64_t>> groups;
  for (const int64_t i : order) {
    const auto [at, fresh] = places.emplace(d.group[samples[i]], groups.size());
    if (fresh) groups.emplace_back();
    groups[at->second].push_back(samples[i]);
  }
  std::stable_sort(groups.begin(), groups.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });
  const auto holding = [&](const std::vector<int64_t>& members) {
    std::array<double, kernels::kAbsentClass + 1> n{};  // samples with each class; all samples
    for (const int64_t i : members) {
      const Histogram h = histogram(d, i);
      for (size_t c = 0; c < n.size() - 1; ++c) n[c] += h[c] > 0;
    }
    n.back() = static_cast<double>(members.size());
    return n;
  };
  const auto total = holding(samples);
  std::array<decltype(holding(samples)), 3> has{};
  std::array<std::vector<int64_t>, 3> parts;
  auto left = std::ssize(groups);
  for (const auto& group : groups) {
    const auto n = holding(group);
    const auto gain = [&](int part) {
      const double share = static_cast<double>(sizes[part]) / static_cast<double>(samples.size());
      double sum = 0;
      for (size_t c = 0; c < n.size(); ++c)
        if (total[c] > 0) sum += n[c] * (2 * (share * total[c] - has[part][c]) - n[c]) / total[c];
      return sum;
    };
    int64_t empty = 0;
    for (int part = 0; part < 3; ++part) empty += sizes[part] > 0 && parts[part].empty();
    int best = -1;
    for (int part = 0; part < 3; ++part) {
      if (sizes[part] == 0 || (left <= empty && !parts[part].empty())) continue;
      if (best < 0 || gain(part) > gain(best)) best = part;
    }
    if (best < 0) break;
    for (size_t c = 0; c < n.size(); ++c) has[best][c] += n[c];
    parts[best].insert(parts[best].end(), group.begin(), group.end());
    --left;
  }
  for (int part = 0; part < 3; ++part) {
    if (sizes[part] > 0 && parts[part].empty())
      throw DataError("split of " + d.origin + ": " + std::to_string(groups.size()) +
                      " groups are fewer than the parts that have a share; see data.split");
    std::sort(parts[part].begin(), parts[part].end());
  }
  return {std::move(parts[0]), std::move(parts[1]), std::move(parts[2]), ""};
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
  Split s;
  if (!data.group.empty()) {
    s = deal_groups(data, samples, order, {trains, validations, tests});
    s.summary = describe(data, s, "whole groups, near the shares of samples and classes, seed " + std::to_string(seed));
    return s;
  }
  if (!data.masks.empty()) {
    std::vector<std::bitset<kernels::kAbsentClass>> present;
    Histogram total{};
    for (const int64_t i : samples) {
      const Histogram h = histogram(data, i);
      present.emplace_back();
      for (size_t c = 0; c < present.back().size(); ++c) total[c] += h[c], present.back()[c] = h[c] > 0;
    }
    std::vector<int> classes;  // those that occur, the rarest first
    for (int c = 0; c < kernels::kAbsentClass; ++c) {
      if (total[c] > 0) classes.push_back(c);
    }
    std::stable_sort(classes.begin(), classes.end(), [&](int a, int b) { return total[a] < total[b]; });
    if (classes.size() > 63) classes.resize(63);
    std::vector<uint64_t> strata;  // the set of classes as bits, the rarest on top
    for (const auto& has : present) {
      uint64_t key = 0;
      for (const int c : classes) key = key << 1 | has[c];
      strata.push_back(key);
    }
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strata[a] > strata[b]; });
  }
  for (int64_t& i : order) i = samples[i];
  s.test = deal(order, tests);
  s.validation = deal(order, validations);
  s.train = deal(order, trains);
  s.summary = describe(data, s, "stratified by the set of classes in each mask, seed " + std::to_string(seed));
  return s;
}

Split given_split(const Dataset& data, const std::vector<int64_t>& samples) {
  Split s;
  for (const int64_t i : samples) {
    if (data.part[i] == Part::train) s.train.push_back(i);
    if (data.part[i] == Part::validation) s.validation.push_back(i);
    if (data.part[i] == Part::test) s.test.push_back(i);
  }
  if (s.train.empty()) throw DataError("split of " + data.origin + ": no samples are left to train on");
  s.summary = describe(data, s, "as given");
  if (const auto left = std::count(data.part.begin(), data.part.end(), Part::none))
    s.summary += "  in no part: " + std::to_string(left) + " samples\n";
  std::unordered_map<std::string_view, int64_t> seen;  // images, by their bytes
  std::vector<std::string> copies;
  for (const int64_t i : samples) {
    if (data.part[i] == Part::none) continue;
    const std::string_view bytes(reinterpret_cast<const char*>(data.image(i)), data.image_bytes());
    const int64_t first = seen.emplace(bytes, i).first->second;
    if (data.part[first] != data.part[i]) copies.push_back(data.name(first) + " and " + data.name(i));
  }
  if (!copies.empty())
    s.summary +=
        "  the same image in two parts: " + std::to_string(copies.size()) + " times, first " + copies[0] + "\n";
  return s;
}

void assign_parts(Dataset& data, const SplitFiles& files) {
  std::map<std::string, int64_t> samples;  // by all that a line may say
  for (int64_t i = 0; i < data.count; ++i) {
    const std::string name = data.names.empty() ? std::to_string(data.source[i]) : data.names[i];
    samples.emplace(name, i);
    if (!data.names.empty()) samples.emplace(std::filesystem::path(name).stem().string(), i);
  }
  data.part.assign(data.count, files.train.path.empty() ? Part::train : Part::none);
  std::vector<std::string> listed(data.count);  // file and line
  for (const auto& [file, part] :
       {std::pair{&files.train, Part::train}, {&files.validation, Part::validation}, {&files.test, Part::test}}) {
    if (file->path.empty()) continue;
    std::ifstream in(file->path);
    if (!in) throw DataError(file->path + ": cannot be read");
    int64_t number = 0, found = 0;
    for (std::string line; std::getline(in, line);) {
      const std::string at = file->path + ":" + std::to_string(++number);
      if (number == 1 && (line.starts_with("\xff\xfe") || line.starts_with("\xfe\xff")))
        throw DataError(file->path + ": is text in UTF-16; save it in UTF-8");
      if (number == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);  // a byte order mark
      line.erase(line.find_last_not_of(" \t\r") + 1);
      line.erase(0, std::min(line.find_first_not_of(" \t"), line.size()));
      if (line.empty()) continue;
      const auto sample = samples.find(std::filesystem::path(line).filename().string());
      if (sample == samples.end())
        throw DataError(
            at + ": '" + line + "' is no image of " + data.origin + ": expected " +
            (data.names.empty() ? "a row, 0 to " + std::to_string(data.count - 1) : "a name such as " + data.names[0]));
      std::string& before = listed[sample->second];
      if (!before.empty()) throw DataError(at + ": '" + line + "' is listed already, at " + before);
      before = at;
      data.part[sample->second] = part;
      ++found;
    }
    if (found == 0) throw DataError(file->path + ": lists no images");
  }
}

std::vector<double> class_frequencies(const Dataset& data, const std::vector<int64_t>& samples, int classes) {
  std::vector<double> share(static_cast<size_t>(classes), 0);
  for (const int64_t i : samples) {
    const Histogram h = histogram(data, i);
    for (int c = 0; c < classes; ++c) share[c] += static_cast<double>(h[c]);
  }
  const double labelled = std::accumulate(share.begin(), share.end(), 0.0);
  for (double& s : share) s /= std::max(1.0, labelled);
  return share;
}

std::vector<SampleIndex> oversample(const Dataset& data, const std::vector<int64_t>& indices, const Oversample& rule,
                                    bool augment_all) {
  if (rule.factor < 1)
    throw DataError("oversampling " + data.origin + ": factor " + std::to_string(rule.factor) + ": expected 1 or more");
  std::vector<SampleIndex> all;
  for (const int64_t i : indices) {
    all.push_back({i, augment_all});
    const bool often = rule.factor > 1 && !data.masks.empty() && rule.class_id >= 0 &&
                       rule.class_id < kernels::kAbsentClass && histogram(data, i)[rule.class_id] >= rule.min_pixels;
    for (int repeat = 1; often && repeat < rule.factor; ++repeat) {
      all.push_back({i, true});
    }
  }
  return all;
}

std::vector<int64_t> samples_with(const Dataset& data, const std::vector<int64_t>& indices, int class_id) {
  std::vector<int64_t> with;
  for (const int64_t i : indices)
    if (!data.masks.empty() && std::memchr(data.mask(i), class_id, data.mask_bytes()) != nullptr) with.push_back(i);
  return with;
}

std::vector<int64_t> epoch_order(uint64_t seed, int64_t epoch, int64_t count) {
  return permutation(seed, static_cast<uint64_t>(epoch), kOrderStream, count);
}

}  // namespace regolith
