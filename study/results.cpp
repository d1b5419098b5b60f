#include "study/results.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "app/experiment.h"
#include "engine/base/error.h"
#include "engine/io/atomic_file.h"
#include "engine/io/safetensors.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

double number_of(const json& j) { return j.is_number() ? j.get<double>() : EpochRecord::kNone; }

SplitResult split_of(const json& j) {
  SplitResult s;
  for (const Metric& m : metrics({}, 0, EpochRecord::kNone))
    s.metrics.push_back({m.name, number_of(j.value(m.name, json())), m.higher_is_better});
  for (const json& c : j.at("classes")) {
    s.classes.push_back(c.at("name"));
    s.iou.push_back(number_of(c.at("iou")));
  }
  return s;
}

}  // namespace

double SplitResult::value(const std::string& metric) const {
  const auto found = std::ranges::find(metrics, metric, &Metric::name);
  return found == metrics.end() ? EpochRecord::kNone : found->value;
}

double SplitResult::iou_of(const std::string& cls) const {
  const auto at = std::ranges::find(classes, cls) - classes.begin();
  return at < std::ssize(classes) && at < std::ssize(iou) ? iou[at] : EpochRecord::kNone;
}

double RunResults::score(const std::string& split, const std::string& metric) const {
  const auto found = splits.find(split);
  return found == splits.end() ? EpochRecord::kNone : found->second.value(metric);
}

double RunResults::epoch_seconds() const {
  std::vector<double> seconds;
  for (const EpochRecord& r : history)
    if (std::isfinite(r.seconds)) seconds.push_back(r.seconds);
  if (seconds.empty()) return EpochRecord::kNone;
  const auto middle = seconds.begin() + std::ssize(seconds) / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

const EpochRecord* best_record(const std::vector<EpochRecord>& history, const RunConfig& config, int64_t until) {
  const std::string monitor = config.monitor().substr(4);  // without val_
  const EpochRecord* best = nullptr;
  double most = -INFINITY;
  for (const EpochRecord& r : history) {
    const std::vector<Metric>& watched = r.watched(config.watches_ema());
    const auto m = std::ranges::find(watched, monitor, &Metric::name);
    if (m == watched.end() || !std::isfinite(m->value) || (until > 0 && r.epoch > until)) continue;
    const double value = m->higher_is_better ? m->value : -m->value;
    if (value > most) best = &r, most = value;
  }
  return best;
}

RunResults read_results(const std::string& folder, const RunConfig& config) {
  RunResults r;
  const auto path = [&](const char* name) { return (fs::path(folder) / name).string(); };
  if (fs::exists(path("history.jsonl"))) r.history = History::read(path("history.jsonl"));
  try {
    if (fs::exists(path("last.safetensors"))) {
      const Checkpoint last = load_checkpoint(path("last.safetensors"), Loading::when_used);
      r.epochs = json::parse(last.meta("run")).at("epoch");
    }
    for (const char* file : {"eval-hidden/scores.json", "scores.json"}) {
      if (!fs::exists(path(file))) continue;
      const json scores = json::parse(read_text(path(file)));
      r.splits[scores.at("split")] = split_of(scores);
      if (scores.contains("validation")) r.splits["validation"] = split_of(scores.at("validation"));
      r.parameters = scores.value("parameters", r.parameters);
      r.finished = r.finished || file == std::string("scores.json");
    }
  } catch (const json::exception& e) {
    throw IoError(folder + ": was not written by this version of engine_run: " + e.what());
  }
  if (const EpochRecord* best = best_record(r.history, config); best != nullptr && !r.finished) {
    const std::vector<double>& iou = best->watched_iou(config.watches_ema());
    r.splits["validation"] = {best->watched(config.watches_ema()),
                              class_names(config.data.classes, static_cast<int>(iou.size())), iou};
  }
  return r;
}

}  // namespace regolith
