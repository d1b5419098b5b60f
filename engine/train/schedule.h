// The learning rate over a run, and when to stop it.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>

#include "engine/config/fields.h"

namespace regolith {

struct ConstantSchedule {};
template <class V>
void fields(V&, ConstantSchedule&) {}

// What a schedule, early stopping and the best weights can watch: the loss and the metrics of the validation set, as
// val_loss, val_miou, ... (metrics.h).
std::vector<std::string> monitor_names();
bool higher_is_better(const std::string& monitor);  // throws TrainError for a name that is none of them
// It leaves out the pixels whose truth is class 0: what is wrongly found there does not count.
bool ignores_background(const std::string& monitor);

// ReduceLROnPlateau of Keras: after `patience` validations in which the monitored value has not improved by more than
// min_delta, the rate times `factor`, but no less than min_lr; then `cooldown` validations without counting.
struct ReduceOnPlateau {
  std::string monitor = "val_loss";
  double factor = 0.5;
  int patience = 6;
  double min_lr = 0, min_delta = 1e-4;
  int cooldown = 0;
};
template <class V>
void fields(V& v, ReduceOnPlateau& s) {
  v("monitor", s.monitor, {.doc = "what must improve", .names = monitor_names()});
  v("factor", s.factor, {.doc = "lr *= factor when the monitored value has not improved", .min = 0.001, .max = 0.999});
  v("patience", s.patience,
    {.doc = "validations (see train.validate_every) without improvement before that", .min = 1, .max = 100000});
  v("min_lr", s.min_lr, {.doc = "never below", .min = 0, .max = 10});
  v("min_delta", s.min_delta, {.doc = "an improvement is more than this", .min = 0});
  v("cooldown", s.cooldown, {.doc = "validations after a reduction that do not count", .min = 0, .max = 100000});
}

// Half a cosine from the base rate to min_lr; with restarts several, as SGDR has them (Loshchilov and Hutter, 2017).
// The last one ends with the run, whatever its length.
struct CosineSchedule {
  double min_lr = 0;
  int restarts = 0;
  double growth = 2;
};
template <class V>
void fields(V& v, CosineSchedule& s) {
  v("min_lr", s.min_lr, {.doc = "at the last step", .min = 0, .max = 10});
  v("restarts", s.restarts, {.doc = "warm restarts: how often the rate is back at lr", .min = 0, .max = 1000});
  v("growth", s.growth, {.doc = "a restart's share of the run, over that of the one before", .min = 0.1, .max = 10});
}

struct PolynomialSchedule {  // (1 - t)^power from the base rate to end_lr
  double power = 1, end_lr = 0;
};
template <class V>
void fields(V& v, PolynomialSchedule& s) {
  v("power", s.power, {.doc = "of the share of the run that is left", .min = 0, .max = 20});
  v("end_lr", s.end_lr, {.doc = "at the last step", .min = 0, .max = 10});
}

struct ScheduleSpec {
  std::variant<ConstantSchedule, ReduceOnPlateau, CosineSchedule, PolynomialSchedule> kind;
  int64_t warmup_steps = 0;  // over which the rate grows linearly to its full height
};
template <class V>
void fields(V& v, ScheduleSpec& s) {
  v.one_of(s.kind,
           {{"constant", {.doc = "write constant: {}"}},
            {"reduce_on_plateau", {.doc = "lower the rate when the monitored value stays"}},
            {"cosine", {.doc = "half a cosine from lr to min_lr"}},
            {"polynomial", {.doc = "from lr to end_lr"}}},
           {.doc = "default: constant"});
  v("warmup_steps", s.warmup_steps, {.doc = "steps in which the rate rises from 0 to lr", .min = 0, .max = 1e9});
}

class Schedule {
 public:
  // total_steps: of the whole run; cosine and polynomial end at the last.
  Schedule(const ScheduleSpec& spec, double base_rate, int64_t total_steps);

  double learning_rate(int64_t step) const;  // of a step, counted from 0
  std::string monitor() const;               // what end_epoch is to be told
  void end_epoch(double monitored);          // after a validation; not finite: no better than before

  nlohmann::json state() const;
  void restore(const nlohmann::json& state);  // throws CheckpointError

 private:
  double reduced() const;  // the base rate, times what plateaus left of it

  ScheduleSpec spec_;
  double base_;
  int64_t total_;
  bool maximise_;
  double reduction_ = 1;  // by plateaus so far; not the rate, so that a run may go on with another base
  double best_ = 0;       // as if lower were better
  bool seen_ = false;     // best_ holds a value
  int wait_ = 0, cooldown_ = 0;
};

struct EarlyStoppingSpec {
  std::string monitor = "val_loss";
  int patience = 30;     // validations without an improvement before the run stops; 0: never
  double min_delta = 0;  // an improvement is more than this
};
template <class V>
void fields(V& v, EarlyStoppingSpec& s) {
  v("monitor", s.monitor,
    {.doc =
         "what must improve; it also says which weights are the best. val_miou_foreground and val_miou_keras_ignore0 "
         "leave out the pixels whose truth is class 0: what is wrongly found there does not count",
     .names = monitor_names()});
  v("patience", s.patience,
    {.doc = "validations (see train.validate_every) without improvement before the run stops",
     .min = 1,
     .max = 100000});
  v("min_delta", s.min_delta, {.doc = "an improvement is more than this", .min = 0});
}

// EarlyStopping of Keras. `improved` also says when to keep the best weights.
class EarlyStopping {
 public:
  explicit EarlyStopping(const EarlyStoppingSpec& spec);

  struct Verdict {
    bool improved, stop;
  };
  Verdict end_epoch(int64_t epoch, double monitored);  // not finite: no improvement
  bool out_of_patience() const { return spec_.patience > 0 && wait_ >= spec_.patience; }
  double best() const { return best_; }               // NaN before the first value
  int64_t best_epoch() const { return best_epoch_; }  // -1 before the first value

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
