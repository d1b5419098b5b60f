#include "app/resume.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "engine/base/text.h"
#include "engine/io/atomic_file.h"
#include "engine/train/weights.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Sections and keys that make it another experiment. Data may move: its digest tells.
constexpr const char* kFixed[] = {"run.seed",
                                  "data.clean",
                                  "data.split",
                                  "data.oversample",
                                  "data.balance",
                                  "data.hard_examples",
                                  "data.pseudo",
                                  "data.normalise",
                                  "train.batch",
                                  "train.accumulate",
                                  "train.drop_last",
                                  "train.init",
                                  "train.sync_batch_norm",
                                  "model"};
// Those that change the order of sums, or the provider of a result, and nothing else.
constexpr const char* kRounding[] = {"train.per_device_batch",
                                     "run.device",
                                     "run.devices",
                                     "run.reduce",
                                     "run.precision",
                                     "run.threads",
                                     "run.deterministic",
                                     "train.slices",
                                     "conv",
                                     "graph",
                                     "version",
                                     "gpu",
                                     "driver",
                                     "cuDNN"};

bool inside(const std::string& key, const char* section) {
  return key == section || key.starts_with(section + std::string("."));
}
bool inside_any(const std::string& key, const auto& sections) {
  return std::ranges::any_of(sections, [&](const char* section) { return inside(key, section); });
}
bool fixed(const std::string& key) {
  return key == "optimizer" ||  // its kind
         (inside_any(key, kFixed) && key != "model.name" && !inside(key, "data.split.files"));
}

void compare(const Yaml& before, const Yaml& now, std::vector<Change>& changes) {
  if (!before.is_map() || !now.is_map()) {
    const std::string a = before.flow_text(), b = now.flow_text();
    if (a != b) changes.push_back({now.path(), a, b});
    return;
  }
  const auto missing = [](const Yaml& from, const Yaml& in) {
    std::vector<std::string> keys;
    for (const Yaml::Item& item : from.items())
      if (!in.find(item.key).exists()) keys.push_back(item.key);
    return keys.empty() ? "nothing" : join(keys);
  };
  const std::string gone = missing(before, now), added = missing(now, before);
  if (gone != added) changes.push_back({now.path(), gone, added});
  for (const Yaml::Item& item : now.items())
    if (const Yaml earlier = before.find(item.key); earlier.exists()) compare(earlier, item.value, changes);
}

// Words of 64 bits, each mixed in by a product and a shift: not against an adversary.
std::string digest(std::initializer_list<std::string_view> parts) {
  uint64_t hash = 0, word;
  const auto mix = [&] {
    hash = (hash ^ word) * 0x9E3779B97F4A7C15;  // 2^64 over the golden ratio
    hash ^= hash >> 29;
  };
  for (std::string_view part : parts) {
    word = part.size();
    mix();
    for (; part.size() >= sizeof word; part.remove_prefix(sizeof word), mix())
      std::memcpy(&word, part.data(), sizeof word);
    word = 0;
    if (!part.empty()) std::memcpy(&word, part.data(), part.size());
    mix();
  }
  return format("%016llx", static_cast<unsigned long long>(hash));
}
template <class T>
std::string_view bytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace

const char* const kVersion = REGOLITH_VERSION;

RunConfig chosen(Experiment& experiment) {
  RunConfig config = experiment.config;
  const Device& device = experiment.device();
  config.run.device = device.kind() == DeviceKind::cuda ? DeviceChoice::cuda : DeviceChoice::cpu;
  config.run.precision = experiment.network().options().precision;
  if (device.kind() == DeviceKind::cpu) config.run.threads = experiment.device().make_stream()->processors();
  return config;
}

std::string kept_config(RunConfig chosen) {
  chosen.run.name = RunOptions{}.name;
  chosen.run.output = RunOptions{}.output;
  chosen.reference.reset();
  return chosen.to_yaml(false);
}

void write_config(const std::string& folder, const RunConfig& chosen, const Device& device) {
  const std::string text = std::string("# Regolith ") + kVersion + " on " + device.name() + "\n" + chosen.to_yaml();
  const std::string path = folder + "/config.yaml", earlier = read_text(path);
  if (earlier == text) return;
  for (int i = 1; !earlier.empty(); ++i) {
    const std::string copy = folder + "/config-" + std::to_string(i) + ".yaml";
    if (fs::exists(copy)) continue;
    write_file_atomically(copy, earlier);
    break;
  }
  write_file_atomically(path, text);
}

std::string kept_device(Device& device) {
  const auto versions = device.versions();
  return versions.empty() ? "" : json{{"versions", versions}, {"choices", device.choices()}}.dump();
}

json digests(const ExperimentData& data) {
  return {{"images", digest({bytes(data.images.images)})},
          {"masks", digest({bytes(data.images.masks)})},
          {"split", digest({bytes(data.train), bytes(data.validation), bytes(data.test)})}};
}

std::vector<Change> changes_between(const RunConfig& before, const RunConfig& now) {
  const bool unnamed = now.train.init.from.path.empty();  // weights to begin with need not be named again
  const auto settled = [&](RunConfig config) {            // a seed that is said, and one that follows from another
    if (config.data.split.seed < 0) config.data.split.seed = static_cast<int64_t>(config.run.seed);
    if (unnamed) config.train.init.from = {};
    config.train.init.match = {};
    return Yaml::load_string(kept_config(std::move(config)), "");
  };
  std::vector<Change> changes;
  compare(settled(before), settled(now), changes);
  return changes;
}

bool EarlierRun::changed(const char* section) const {
  return std::ranges::any_of(changes, [&](const Change& c) { return inside(c.key, section); });
}

bool EarlierRun::same_score(const RunConfig& now) const {
  return !best_is_missing && config.monitor() == now.monitor() && config.watches_ema() == now.watches_ema() &&
         !changed("loss");
}

std::string EarlierRun::report(const RunConfig& now) const {
  std::string text;
  for (const Change& c : changes)
    text += "changed: " + c.text() + (inside_any(c.key, kRounding) ? "; results differ by rounding" : "") + "\n";
  if (!same_score(now) || changed("schedule.reduce_on_plateau.monitor"))
    text += std::string(best_is_missing ? "best.safetensors is missing" : "another loss or monitor") +
            ": the best value and the waiting for a better one start anew\n";
  return text;
}

std::string EarlierRun::report_choices(Device& device) const {
  const auto others = std::ranges::count_if(choices, [&](const auto& choice) {
    const auto now = device.choices().find(choice.first);
    return now != device.choices().end() && now->second != choice.second;
  });
  if (others == 0) return "";
  return "cuDNN here has not " + std::to_string(others) + " of the " + std::to_string(choices.size()) +
         " plans that the run went by; results differ by rounding\n";
}

void EarlierRun::check_data(const json& digests) const {
  std::vector<std::string> others, keys;
  for (const auto& [part, digest] : digests.items())
    if (state.at("data").value(part, "") != digest) others.push_back(part);
  if (others.empty()) return;
  for (const Change& c : changes)
    if (inside(c.key, "data")) keys.push_back(c.text());
  throw CheckpointError(checkpoint.origin + ": was trained on other data: " + join(others) + " differ" +
                        (keys.empty() ? "" : " (" + join(keys) + ")") +
                        "; resume with the data of that run, or start anew without --resume");
}

void check_run_folder(const std::string& folder) {
  if (!fs::is_directory(folder))
    throw IoError(folder + ": there is no such folder; --resume takes the run folder that an earlier run printed");
}

EarlierRun load_earlier_run(const std::string& folder, Network& network, const RunConfig& now) {
  EarlierRun run;
  const std::string path = folder + "/last.safetensors";
  if (!fs::exists(path))
    throw IoError(path + ": is missing, so there is nothing to go on from; start anew without --resume");
  run.checkpoint = load_checkpoint(path, Loading::when_used);
  run.state = json::parse(run.checkpoint.meta("run"), nullptr, false);
  if (!run.checkpoint.metadata.contains("config"))
    throw CheckpointError(path + ": was written by an earlier version, which did not keep its configuration; start " +
                          "anew without --resume");
  if (!run.state.is_object() || !run.state["data"].is_object())
    throw CheckpointError(path + ": its training state cannot be read; was it written by engine_run?");
  check_parameters(network, run.checkpoint);
  const std::string best = folder + "/best.safetensors";
  if (fs::exists(best))
    check_parameters(network, load_checkpoint(best, Loading::when_used));
  else
    run.best_is_missing = run.state.value(json::json_pointer("/stopping/best_epoch"), -1) >= 0;
  try {
    run.config = read_run_config(Yaml::load_string(run.checkpoint.meta("config"), path), ConfigUse::network);
  } catch (const ConfigError& e) {
    throw CheckpointError(std::string("the configuration that it keeps cannot be read: ") + e.what());
  }
  run.changes = changes_between(run.config, now);
  if (const std::string& version = run.checkpoint.meta("version"); version != kVersion)
    run.changes.push_back({"version", version, kVersion});
  if (run.checkpoint.metadata.contains("device")) {
    try {
      const json device = json::parse(run.checkpoint.meta("device"));
      run.choices = device.at("choices");
      for (const auto& [part, now_is] : network.device().versions())
        if (const std::string was = device.at("versions").value(part, "unknown"); was != now_is)
          run.changes.push_back({part, was, now_is});
    } catch (const json::exception&) {
      throw CheckpointError(path + ": what it says of its device cannot be read; was it written by engine_run?");
    }
  }
  std::vector<std::string> refused;
  for (const Change& c : run.changes)
    if (fixed(c.key)) refused.push_back(c.text());
  if (!refused.empty())
    throw CheckpointError(path + ": another experiment cannot go on from it: " + join(refused) +
                          "; resume with the configuration of that run, " + folder + "/config.yaml, or start anew " +
                          "without --resume, from its weights by train.init.from=" + folder);
  return run;
}

}  // namespace regolith
