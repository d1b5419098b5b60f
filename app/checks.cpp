#include "app/checks.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "engine/base/text.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

constexpr int kFewGreys = 16;  // of 256: images of less contrast are of another range than was read

// The folder itself is made when there is something to write into it.
void check_output(const std::string& output, const std::string& name) {
  std::error_code error;
  const fs::path folder = fs::path(output) / name;
  if (fs::exists(folder, error) && !fs::is_directory(folder, error))
    throw IoError(folder.string() + ": cannot make the run's folder: a file of that name is in the way");
  fs::path there = fs::absolute(output);
  while (!fs::exists(there, error) && there.has_relative_path()) there = there.parent_path();
  const std::string message = output + ": cannot make the folder of the runs: " + there.string();
  if (!fs::is_directory(there, error)) throw IoError(message + " is not a folder");
  if (::access(there.c_str(), W_OK | X_OK) != 0) throw IoError(message + ": " + std::strerror(errno));
}

}  // namespace

void check_before_data(Experiment& experiment, bool new_run) {
  experiment.loss(std::vector<double>(experiment.classes(), 1.0 / experiment.classes()));
  if (new_run) check_output(experiment.config.run.output, experiment.config.run.name);
}

std::string warnings(Experiment& experiment, int64_t steps_per_epoch) {
  const RunConfig& c = experiment.config;
  const ExperimentData& data = experiment.data();
  if (data.validation.empty())
    c.refuse_without_validation("of " + std::to_string(data.train.size() + data.test.size()) +
                                " images data.split.validation = " + number(c.data.split.validation) + " leaves none");
  std::string text;
  const auto warn = [&](bool holds, const std::string& what) {
    if (holds) text += "warning: " + what + "\n";
  };
  const int64_t steps = steps_per_epoch * c.train.epochs;
  const int validations = (c.train.epochs + c.train.validate_every - 1) / c.train.validate_every;
  const std::string run = "the run's " + std::to_string(steps) + " steps";
  const auto patience = [&](const std::string& key, int value) {  // the first validation is the best so far
    warn(value >= validations, key + ": " + std::to_string(value) + " needs more than the run's " +
                                   std::to_string(validations) + " validations");
  };
  const auto floor = [&](const char* key, double rate) {
    warn(rate >= c.optimizer.lr(), std::string("schedule.") + key + ": " + number(rate) +
                                       " is not below the optimizer's lr, " + number(c.optimizer.lr()));
  };

  const auto [least, most] = std::minmax_element(data.images.images.begin(), data.images.images.end());
  warn(*most - *least < kFewGreys, "the images' bytes only go from " + std::to_string(*least) + " to " +
                                       std::to_string(*most) + ": data.normalise states the range of numbers in files");
  warn(data.validation.empty(), "there are no validation images: the weights that are kept are the last ones");
  warn(!data.validation.empty() && c.train.validate_every > c.train.epochs,
       "train.validate_every: the run ends before, and is validated only then");
  if (c.train.early_stopping) patience("train.early_stopping.patience", c.train.early_stopping->patience);
  if (const auto* plateau = std::get_if<ReduceOnPlateau>(&c.schedule.kind)) {
    patience("schedule.reduce_on_plateau.patience", plateau->patience);
    floor("reduce_on_plateau.min_lr", plateau->min_lr);
  }
  if (const auto* cosine = std::get_if<CosineSchedule>(&c.schedule.kind)) floor("cosine.min_lr", cosine->min_lr);
  if (const auto* p = std::get_if<PolynomialSchedule>(&c.schedule.kind)) floor("polynomial.end_lr", p->end_lr);
  warn(c.schedule.warmup_steps >= steps,
       "schedule.warmup_steps: " + std::to_string(c.schedule.warmup_steps) + " are not over within " + run);
  if (c.profile)
    warn(c.profile->start + c.profile->steps > steps, "profile: steps " + std::to_string(c.profile->start) + " to " +
                                                          std::to_string(c.profile->start + c.profile->steps - 1) +
                                                          " are not all among " + run);
  warn(c.data.oversample && data.epoch.size() == data.train.size() && c.data.oversample->factor > 1,
       "data.oversample: no training image has so many pixels of that class");
  warn(c.data.balance && data.draws == std::ssize(data.train),
       "data.balance: every class is in so many training images that none of them is seen more often");
  const auto foreground = [&](const std::string& section, const std::string& monitor) {
    warn(experiment.classes() == 2 && ignores_background(monitor),
         section + ".monitor " + monitor + " is 1 for a network that finds class 1 everywhere: with two classes " +
             "val_miou tells more");
  };
  foreground("train.early_stopping", c.monitor());
  if (const auto* plateau = std::get_if<ReduceOnPlateau>(&c.schedule.kind))
    foreground("schedule.reduce_on_plateau", plateau->monitor);
  const std::vector<std::string> names = experiment.class_names();
  for (size_t k = 0; k < names.size(); ++k)
    warn(data.frequencies[k] == 0,
         "class " + std::to_string(k) + " (" + names[k] + ") has no pixels in the training images");
  return text;
}

}  // namespace regolith
