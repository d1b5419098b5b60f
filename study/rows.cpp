#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "app/command_line.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "study/study.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

constexpr size_t kLongestName = 200;

// Characters that any file system and shell takes.
std::string plain(std::string text) {
  for (char& c : text)
    if (!std::isalnum(static_cast<unsigned char>(c)) && std::string("._=+-").find(c) == std::string::npos) c = '_';
  return text;
}

// "lr=0.0004", or with more of the key where that alone would not tell it from another's.
std::string short_key(const std::string& key, const std::vector<SweepAxis>& axes) {
  const auto last = [](const std::string& k) { return k.substr(k.rfind('.') + 1); };
  const auto same = std::ranges::count_if(axes, [&](const SweepAxis& a) { return last(a.key) == last(key); });
  return same > 1 ? key : last(key);
}

StudyRow row_of(const std::string& file, const Yaml& yaml, const StudyOptions& options) {
  StudyRow row;
  row.file = file;
  row.name = plain(fs::path(file).stem().string());
  RunConfig config = read_run_config(yaml, ConfigUse::training);
  const auto seed = static_cast<int64_t>(config.run.seed & 0x7fffffffffffffff);
  if (config.data.split.seed < 0) config.data.split.seed = seed;
  if (auto* terrain = std::get_if<Terrain>(&config.data.source); terrain && terrain->seed < 0) terrain->seed = seed;
  row.until = config.train.epochs;
  for (int i = 0; i < options.seeds; ++i) row.runs.emplace_back().seed = config.run.seed + static_cast<uint64_t>(i);
  row.config = std::move(config);
  return row;
}

}  // namespace

std::vector<StudyRow> study_rows(const StudyOptions& options) {
  std::vector<StudyRow> rows;
  std::set<std::string> names;
  int group = 0;
  for (const std::string& file : options.configs) {
    const std::string name = plain(fs::path(file).stem().string());
    if (!names.insert(name).second)
      throw UsageError("two configurations are called " + name + ", which names their rows and folders; rename one");
    try {
      const Yaml yaml = Yaml::load(file).with_overrides(options.overrides);
      const std::optional<SweepSpec> sweep = read_sweep(yaml.find("sweep"));
      const uint64_t seed =
          yaml.find("run").find("seed").exists() ? yaml.find("run").find("seed").as<uint64_t>() : RunOptions{}.seed;
      std::vector<std::vector<std::string>> all{{}};
      if (sweep) all = sweep->rows(seed);
      for (size_t n = 0; n < all.size(); ++n) {
        std::vector<std::string> overrides;
        std::string label = name;
        for (size_t i = 0; i < all[n].size(); ++i) {
          overrides.push_back(sweep->axes[i].key + "=" + all[n][i]);
          label += "-" + plain(short_key(sweep->axes[i].key, sweep->axes) + "=" + all[n][i]);
        }
        if (label.size() > kLongestName || (sweep && names.contains(label))) label = name + "-" + std::to_string(n + 1);
        names.insert(label);
        StudyRow row;
        row.name = label, row.file = file, row.overrides = overrides;
        try {
          overrides.push_back("sweep=off");
          row = row_of(file, yaml.with_overrides(overrides), options);
          row.name = label;
          row.overrides = {overrides.begin(), overrides.end() - 1};
          if (sweep && sweep->halving)
            row.until = std::min<int64_t>(row.until, sweep->halving->first_epochs), row.halving = sweep->halving;
        } catch (const Error& e) {
          row.error = e.what();
        }
        row.group = group;
        for (StudyRun& run : row.runs) run.name = label + "-seed" + std::to_string(run.seed);
        rows.push_back(std::move(row));
      }
    } catch (const Error& e) {
      StudyRow& row = rows.emplace_back();
      row.name = name, row.file = file, row.error = e.what(), row.group = group;
    }
    ++group;
  }
  return rows;
}

std::vector<size_t> survivors(const std::vector<StudyRow>& rows, const std::vector<size_t>& alive, int64_t until,
                              const std::string& score, int factor) {
  std::vector<std::pair<double, size_t>> ranked;  // the worst value is the best score
  for (const size_t r : alive) {
    double sum = 0;
    for (const StudyRun& run : rows[r].runs) {
      const EpochRecord* best = best_record(run.results.history, *rows[r].config, until);
      double value = EpochRecord::kNone;
      if (best != nullptr && run.state != RunState::failed)
        value = value_of(best->watched(rows[r].config->watches_ema()), score);
      sum += value;
    }
    if (std::isfinite(sum)) ranked.emplace_back(-sum, r);
  }
  std::ranges::sort(ranked);
  ranked.resize(std::min(ranked.size(), (alive.size() + factor - 1) / factor));
  std::vector<size_t> best;
  for (const auto& [value, r] : ranked) best.push_back(r);
  std::ranges::sort(best);
  return best;
}

}  // namespace regolith
