// The words that users read and scripts parse: the resolved configuration of every file under configs/, and the
// reference of all keys. They stand in tests/app/golden; a change on purpose is written anew by
//   REGOLITH_WRITE_GOLDEN=1 build/release/tests/test_app --gtest_filter='Resolved.*'
// and read in the diff before it is committed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "app/run_config.h"
#include "models/reader.h"
#include "places.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;
const fs::path kSource = REGOLITH_SOURCE_DIR;

std::string contents(const fs::path& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

void expect_golden(const std::string& name, std::string text) {
  for (size_t at; (at = text.find(kSource.string())) != std::string::npos;)  // paths are absolute in a resolved file
    text.replace(at, kSource.string().size(), "SOURCE");
  const fs::path path = kSource / "tests/app/golden" / name;
  if (std::getenv("REGOLITH_WRITE_GOLDEN") != nullptr) std::ofstream(path) << text;
  std::istringstream expected(contents(path)), actual(text);
  std::string a, b;
  for (int line = 1; std::getline(expected, a) && std::getline(actual, b); ++line)
    ASSERT_EQ(a, b) << path << ":" << line;
  EXPECT_EQ(contents(path).size(), text.size()) << path << ": one of them goes on";
}

TEST(Resolved, EveryConfigurationOfTheTree) {
  fs::current_path(kSource);
  int found = 0;
  for (const auto& entry : fs::recursive_directory_iterator(kSource / "configs")) {
    const std::string name = fs::relative(entry.path(), kSource / "configs").string();
    if (entry.path().extension() != ".yaml" || name == "experiments/mars.yaml") continue;  // which is shared, no run
    SCOPED_TRACE(name);
    std::string flat = name;
    std::replace(flat.begin(), flat.end(), '/', '.');
    expect_golden(flat, load_run_config(entry.path(), {}, ConfigUse::network).to_yaml());
    ++found;
  }
  EXPECT_GE(found, 22);
}

TEST(Resolved, EveryAlternativeAndSection) {
  const std::vector<std::vector<std::string>> sets{
      {"loss.combined=[{weight: 2, dice: {sums: batch, weights: inverse_frequency}}, {focal: {alpha: [1, 2, 3, 4, "
       "5]}}]",
       "loss.ignore=255", "train.init={match: shape, freeze: ['*/bias']}", "optimizer.sgd={momentum: 0.9}",
       "optimizer.clip_norm=1", "schedule.polynomial={power: 2}", "schedule.warmup_steps=5",
       "data.oversample={class: 4}", "data.augment={fill: wrap, zoom: [0, 0.1]}", "profile={}"},
      {"loss.dice.weights=[1, 2, 3, 4, 5]", "optimizer.adamw.preset=torch", "schedule.reduce_on_plateau={}",
       "data.folder={images: im, masks: ma}", "train.early_stopping={monitor: val_miou}", "train.slices=2",
       "data.split.seed=3"},
      {"loss.cross_entropy={label_smoothing: 0.1, weights: [1, 2, 3, 4, 5]}", "schedule.constant={}",
       "data.npy={images: im.npy, masks: ma.npy}", "run.threads=2"}};
  fs::current_path(kSource);
  for (size_t i = 0; i < sets.size(); ++i)
    expect_golden("alternatives." + std::to_string(i) + ".yaml",
                  load_run_config("configs/quickstart.yaml", sets[i], ConfigUse::network).to_yaml());
}

TEST(Resolved, HelpNamesEveryKey) { expect_golden("help.txt", help_config() + "\n" + help_models()); }

}  // namespace
}  // namespace regolith
