// What a configuration says of a set of runs: values of its keys to be tried, all combinations or a number of draws.
// engine_table makes a run of each.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/config/yaml.h"

namespace regolith {

// Successive halving (Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
// 2016): all rows are trained for first_epochs, the best 1/factor of them go on to factor times as many, and so on.
struct Halving {
  int factor = 3, first_epochs = 10;
};
template <class V>
void fields(V& v, Halving& s) {
  v("factor", s.factor,
    {.doc = "the best 1/factor of the rows go on, to factor times the epochs", .min = 2, .max = 100});
  v("first_epochs", s.first_epochs, {.doc = "that all rows are trained for", .min = 1, .max = 1'000'000});
}

struct SweepOptions {
  int samples = 0;  // 0: auto, every combination
  std::optional<Halving> halving;
};
template <class V>
void fields(V& v, SweepOptions& s) {
  v("samples", s.samples,
    {.doc = "rows, drawn by run.seed; auto: every combination of the lists", .min = 1, .max = 10000, .word = "auto"});
  v("halving", s.halving, {.doc = "stop the worst rows early; the schedule is that of the whole run"});
}

struct SweepAxis {
  std::string key;                  // "optimizer.adamw.lr"
  std::vector<std::string> values;  // YAML on one line; empty: a range
  double low = 0, high = 0;
  bool logarithmic = false;
};

struct SweepSpec : SweepOptions {
  std::vector<SweepAxis> axes;

  // Every key of the map but `others`; maps within it lead to further keys. Throws ConfigError.
  void read_axes(const Yaml& yaml, const std::vector<std::string>& others);
  // The values of each row in the order of the axes. Drawn from `seed`: the same rows, and more samples only add some.
  std::vector<std::vector<std::string>> rows(uint64_t seed) const;
};

}  // namespace regolith
