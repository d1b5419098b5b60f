// The learning rate over a run, and when to stop it.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>

namespace regolith {

struct ConstantSpec {};
// ReduceLROnPlateau of Keras: after `patience` epochs in which the monitored value has not fallen (or risen) by more
// than min_delta, the rate times `factor`, but no less than min_lr; then `cooldown` epochs without counting.
struct PlateauSpec {
  double factor = .1, min_lr = 0, min_delta = 1e-4;
  int patience = 10, cooldown = 0;
};
struct CosineSpec {  // half a cosine from the base rate to final_fraction of it
  double final_fraction = 0;
};
struct PolynomialSpec {  // (1 - t)^power from the base rate to final_fraction of it
  double power = 1, final_fraction = 0;
};
struct ScheduleSpec {
  std::variant<ConstantSpec, PlateauSpec, CosineSpec, PolynomialSpec> curve;
  int64_t warmup_steps = 0;  // over which the rate grows linearly to its full height
};

// A value that is better when it is lower (a loss), or higher (a mean IoU, accuracy, precision, recall): by its name.
// Throws TrainError for a name that is none of val_loss, val_miou, val_miou_foreground, val_miou_keras_ignore0,
// val_accuracy, loss.
bool higher_is_better(const std::string& monitor);

class Schedule {
 public:
  // total_steps: of the whole run; cosine and polynomial end there. `monitor` names what end_epoch is told.
  Schedule(const ScheduleSpec& spec, double base_rate, int64_t total_steps, const std::string& monitor = "val_loss");

  double learning_rate(int64_t step) const;  // of a step, counted from 0
  void end_epoch(double monitored);          // not finite: no better than before

  nlohmann::json state() const;
  void restore(const nlohmann::json& state);  // throws CheckpointError

 private:
  ScheduleSpec spec_;
  double base_;
  int64_t total_;
  bool maximise_;
  double reduced_;     // by plateaus so far: the rate that stands for the base
  double best_ = 0;    // as if lower were better
  bool seen_ = false;  // best_ holds a value
  int wait_ = 0, cooldown_ = 0;
};

struct EarlyStoppingSpec {
  std::string monitor = "val_loss";
  int patience = 0;      // epochs without an improvement before the run stops; 0: never
  double min_delta = 0;  // an improvement is more than this
};

// EarlyStopping of Keras. `improved` also says when to keep the best weights.
class EarlyStopping {
 public:
  explicit EarlyStopping(const EarlyStoppingSpec& spec);

  struct Verdict {
    bool improved, stop;
  };
  Verdict end_epoch(int64_t epoch, double monitored);  // not finite: no improvement
  double best() const { return best_; }                // NaN before the first value
  int64_t best_epoch() const { return best_epoch_; }   // -1 before the first value

  nlohmann::json state() const;
  void restore(const nlohmann::json& state);  // throws CheckpointError

 private:
  EarlyStoppingSpec spec_;
  bool maximise_;
  double best_ = std::numeric_limits<double>::quiet_NaN();
  int64_t best_epoch_ = -1;
  int wait_ = 0;
};

}  // namespace regolith
