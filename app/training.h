// A training run from its first epoch to its last table. What it shows and keeps is its listeners' business.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "app/command_line.h"
#include "app/listeners.h"
#include "app/resume.h"
#include "engine/io/file_lock.h"
#include "engine/report/progress.h"
#include "engine/train/schedule.h"

namespace regolith {

struct TrainingOptions {
  std::string resume;                // a run folder to go on in; empty: a new one
  std::string command;               // that started the run, without --resume: for the advice how to go on
  Interrupts* interrupts = nullptr;  // at a signal the step is finished, last.safetensors written
  int64_t until = 0;                 // the run pauses after this epoch, on the schedule of all; 0: it does not
};

class Training {
 public:
  Training(Experiment& experiment, TrainingOptions options, Listeners listeners);
  // Prints as it goes. False where it was interrupted or paused. Throws what the parts throw; what was written before
  // stays.
  bool run();

  // For listeners.
  Experiment& experiment() { return experiment_; }
  Trainer& trainer() { return *trainer_; }
  std::string path(const std::string& file) const;  // in the run's folder
  // Weights, moments and the state of the run after `epochs` whole epochs, to last.safetensors.
  void save_last(int64_t epochs);
  int64_t epochs_done() const { return epoch_; }
  void stop() { stopped_ = true; }  // before the next epoch
  const EpochTimes& times();
  std::string memory_text();  // what was planned, and the most that the process took
  bool validates() { return !experiment_.data().validation.empty(); }

 private:
  EarlierRun read_earlier();
  void open_folder(const std::optional<EarlierRun>& earlier);
  void restore(const EarlierRun& earlier);
  // A signal came: to this process, or, as all ranks agreed, to one of them.
  bool interrupted() const {
    return ranks_ != nullptr ? any_interrupted_ : options_.interrupts != nullptr && options_.interrupts->signal != 0;
  }
  bool is_root() const { return ranks_ == nullptr || ranks_->is_root(); }
  bool agree(bool save = false);
  std::function<bool()> may_stop() const;
  void check_same_run();
  void print_ranks();
  std::string shared_folder();
  bool train_epochs();
  bool paused() const { return options_.until > 0 && epoch_ >= options_.until && epoch_ < config_.train.epochs; }
  StepProgress train_steps();
  std::optional<EpochReport> end_epoch(const StepProgress& last, double seconds);
  bool finish();

  Experiment& experiment_;
  const RunConfig& config_;
  Communicator* ranks_;  // null: it is alone. Rank 0 writes
  bool any_interrupted_ = false;
  RunConfig chosen_;  // config_ without auto for device, precision and threads
  TrainingOptions options_;
  Listeners listeners_;
  Phases phases_;
  std::optional<Loss> loss_;
  std::unique_ptr<Trainer> trainer_;
  std::optional<InitialWeights> initial_;  // of a new run
  std::optional<Schedule> schedule_;
  std::string folder_;
  FileLock lock_;  // of the folder
  nlohmann::json digests_;
  bool config_written_ = false;  // a run that goes on writes its own with its first checkpoint: they belong together
  std::chrono::steady_clock::time_point saved_;  // when last.safetensors was last written
  // The loop's own state, which a checkpoint holds beside weights and moments.
  int64_t epoch_ = 0, loss_images_ = 0;  // images of the epoch's steps with a finite loss
  double loss_sum_ = 0;                  // over them
  bool stopped_ = false;                 // early
  EpochTimes times_;
  // With data.hard_examples, by row of the data, NaN before it was seen: the loss of each image when it was seen last,
  // and as it stood before this epoch, whose order follows from that.
  std::vector<float> losses_, losses_before_;
};

}  // namespace regolith
