#include "app/sweep.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "engine/base/error.h"
#include "engine/base/text.h"

namespace regolith {
namespace {

constexpr const char* kOwn[] = {"run.seed", "run.name", "run.output", "data.split.seed"};  // engine_table sets them
constexpr size_t kMostRows = 10000;

void read_axis(const Yaml& yaml, const std::string& key, std::vector<SweepAxis>& axes) {
  if (yaml.is_map() && !yaml.find("uniform").exists() && !yaml.find("log_uniform").exists()) {
    for (const Yaml::Item& item : yaml.items()) read_axis(item.value, key + "." + item.key, axes);
    return;
  }
  for (const char* own : kOwn)
    if (key == own) yaml.fail("engine_table itself gives each run its " + key);
  if (std::ranges::find(axes, key, &SweepAxis::key) != axes.end()) yaml.fail("this key stands in the sweep twice");
  SweepAxis& axis = axes.emplace_back(SweepAxis{key, {}});
  if (yaml.is_map()) {
    yaml.expect_keys({"uniform", "log_uniform"});
    const std::string kind = yaml.one_of({"uniform", "log_uniform"});
    const Yaml range = yaml.at(kind.empty() ? "uniform" : kind);
    axis.logarithmic = kind == "log_uniform";
    if (!range.is_list() || range.size() != 2) range.fail("expected [low, high]");
    axis.low = range.elements()[0].as_double(-1e300, 1e300);
    axis.high = range.elements()[1].as_double(-1e300, 1e300);
    if (axis.low >= axis.high || (axis.logarithmic && axis.low <= 0))
      range.fail(std::string("expected [low, high] with ") + (axis.logarithmic ? "0 < low < high" : "low < high"));
  } else {
    if (!yaml.is_list() || yaml.size() == 0)
      yaml.fail("expected a list of values, {uniform: [low, high]} or {log_uniform: [low, high]}");
    for (const Yaml& value : yaml.elements()) axis.values.push_back(value.flow_text());
  }
}

}  // namespace

void SweepSpec::read_axes(const Yaml& yaml, const std::vector<std::string>& others) {
  for (const Yaml::Item& item : yaml.items()) {
    if (std::ranges::find(others, item.key) != others.end()) continue;
    read_axis(item.value, item.key, axes);
  }
  if (axes.empty()) yaml.fail("names no key to try values of, such as {optimizer.adamw.lr: [1.0e-4, 4.0e-4]}");
  size_t all = 1;
  for (const SweepAxis& axis : axes) {
    if (axis.values.empty() && samples == 0)
      yaml.fail_key("samples", "is missing: how many rows are to be drawn from the range of " + axis.key);
    all = std::min(kMostRows + 1, all * std::max<size_t>(1, axis.values.size()));
  }
  if (samples == 0 && all > kMostRows)
    yaml.fail("more than " + std::to_string(kMostRows) + " combinations; samples draws some of them");
}

std::vector<std::vector<std::string>> SweepSpec::rows(uint64_t seed) const {
  std::vector<std::vector<std::string>> rows;
  std::vector<size_t> at(axes.size());
  std::mt19937_64 random(seed);  // its numbers are the standard's; those of its distributions are not
  const auto add = [&](const auto& value_of) {
    std::vector<std::string>& row = rows.emplace_back();
    for (size_t i = 0; i < axes.size(); ++i) row.push_back(value_of(i));
  };
  for (int n = 0; n < samples; ++n) {
    add([&](size_t i) {
      const SweepAxis& a = axes[i];
      const double u = static_cast<double>(random() >> 11) * 0x1p-53;  // [0, 1)
      if (!a.values.empty()) return a.values[static_cast<size_t>(u * static_cast<double>(a.values.size()))];
      const double x = a.logarithmic ? a.low * std::pow(a.high / a.low, u) : a.low + (a.high - a.low) * u;
      return format("%.4g", x);
    });
  }
  while (samples == 0) {
    add([&](size_t i) { return axes[i].values[at[i]]; });
    size_t i = axes.size();  // the last axis turns fastest
    while (i > 0 && ++at[i - 1] == axes[i - 1].values.size()) at[--i] = 0;
    if (i == 0) break;
  }
  std::vector<std::vector<std::string>> once;  // draws from lists may meet
  for (std::vector<std::string>& row : rows)
    if (std::ranges::find(once, row) == once.end()) once.push_back(std::move(row));
  return once;
}

}  // namespace regolith
