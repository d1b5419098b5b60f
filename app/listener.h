// What may watch a training run: progress, history, best weights, early stopping, pictures.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/report/history.h"
#include "engine/train/metrics.h"
#include "engine/train/trainer.h"

namespace regolith {

class Training;

struct StepProgress {
  int64_t epoch;        // from 1
  int64_t step, steps;  // of the epoch
  double loss;          // mean over the images of the epoch's finite steps so far; NaN: none
  double lr, images_per_second;
  int64_t skipped;  // steps of the epoch, since it began or was resumed, whose gradients were not finite
};

struct EpochReport {
  EpochRecord record;
  bool validated = false;
  double monitored = EpochRecord::kNone;  // the watched value, where this epoch validated
  bool improved = false;                  // the best so far; always, where there is no validation
  bool stop = false;                      // set by a listener: the run ends here
};

struct SplitScores {
  std::vector<int64_t> confusion;  // (K, K) pixels, truth by row
  Scores scores;
  std::vector<Metric> metrics;
};

// What is known at the end: the best weights on the test images, or on the validation or training images without such.
struct FinalReport : SplitScores {
  std::string split;
  std::vector<int64_t> samples;           // that were evaluated
  std::vector<uint8_t> predictions;       // (samples, H, W) class ids
  std::optional<SplitScores> validation;  // the same weights on the validation images, where there are any
  std::vector<std::string> written;       // files of the run's folder, to be listed
};

class Listener {
 public:
  virtual ~Listener() = default;
  virtual void begin(Training&, bool /*resumed*/) {}  // the run's folder is there
  virtual void step(Training&, const StepProgress&) {}
  virtual void epoch(Training&, EpochReport&) {}  // in the order in which the listeners were given
  virtual void interrupted(Training&) {}          // or paused; last.safetensors is written
  virtual void before_evaluation(Training&) {}    // training is over
  virtual void end(Training&, FinalReport&) {}
  // What last.safetensors keeps under `key` for a run that goes on; null: nothing.
  virtual std::string key() const { return ""; }
  virtual nlohmann::json state() const { return nullptr; }
  // Throws CheckpointError or nlohmann::json::exception. Not called where loss or monitor are others than those of the
  // state: what was the best does not compare.
  virtual void restore(const nlohmann::json&) {}
};

}  // namespace regolith
