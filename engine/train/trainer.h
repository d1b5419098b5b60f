// Trains a network on data that lives on its device. A step is: pick, augment and normalise a batch; forward; loss;
// backward (all that several times with `accumulate`); clip; optimizer; average of the weights. On CUDA and on the
// simulated device the step is captured when it runs the second time, and replayed. The host reads the results of a
// step while the next one runs.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "engine/train/ema.h"
#include "engine/train/evaluator.h"
#include "engine/train/exchange.h"
#include "engine/train/optimizer.h"

namespace regolith {

struct TrainerOptions : BatchOptions {
  int accumulate = 1;  // batches of a step, one after the other: its gradient is the mean over all their images
  bool drop_last = false;
  int64_t steps_per_epoch = 0;  // 0: the order once
  uint64_t seed = 0;
  OptimizerSpec optimizer;
  std::optional<EmaSpec> ema;
  kernels::Augment augment;                      // of samples whose entry of the order asks for it
  std::vector<int32_t> paste_rows;               // of the data, that copy_paste takes regions from
  bool capture = true;                           // if the device can
  bool image_losses = false;                     // reports have them
  int64_t profile_start = 0, profile_steps = 0;  // steps that a profiler records; 0 steps: none
  // Those that share the work; null: none. `batch` is of all of them together. Must outlive the trainer.
  Communicator* ranks = nullptr;
  Reduce reduce = Reduce::automatic;
  bool sync_batch_norm = false;  // batch norm's statistics are those of the images of all ranks
  std::function<std::unique_ptr<DeviceRanks>(Communicator&, Device&)> exchange_by = make_device_ranks;
};

// What the host knows of a finished step; state.step counts it.
struct StepReport {
  StepState state;
  double loss = 0;    // the mean over its images
  int64_t first = 0;  // the entry of the epoch's order that its first image is
  int images = 0;
  // (images) where TrainerOptions::image_losses asks for them, until the report returns: their mean is the loss.
  const double* image_loss = nullptr;
};

// Of all steps so far. augment: where the device does its work at once, part of step; elsewhere next to nothing.
struct StepSeconds {
  double read = 0, step = 0, augment = 0;
};

class Trainer {
 public:
  // Network, loss and data must outlive this object. `entries_per_epoch`: the length of the orders that will come.
  // Throws DeviceError if the device's memory does not suffice.
  Trainer(Network& network, const LossFunction& loss, DeviceData& data, int64_t entries_per_epoch,
          const TrainerOptions& options);
  ~Trainer();

  int64_t steps_per_epoch() const { return steps_per_epoch_; }

  // An epoch in the given order of kernels::sample_index(), from the step at which the state stands. Each step has its
  // own learning rate. `report` is called once for every step, after the next one was enqueued, and says whether to go
  // on. Returns false if it was stopped. Throws TrainError, naming a node, after 20 steps in a row without finite
  // gradients.
  bool run_epoch(const std::vector<int32_t>& order, const std::function<double(int64_t step)>& learning_rate,
                 const std::function<bool(const StepReport&)>& report);
  // The same error where not one step of the last epoch had finite gradients, and no loss scale can be the reason.
  void require_finite_epoch();
  // (K, K) pixels of the epoch's training batches so far, truth by row. run_epoch() begins anew; evaluate() leaves it.
  std::vector<int64_t> training_confusion();

  // `observer` sees every op of the training steps to come, which are then not captured. Null: none.
  void observe(RunObserver* observer) { observer_ = observer; }

  // The samples at `rows` of the data, as they are. `go_on` is asked before every batch (evaluator.h).
  Evaluation evaluate(const std::vector<int64_t>& rows, bool predictions, const std::function<bool()>& go_on = {}) {
    return evaluator_.evaluate(data_, rows, predictions, go_on, options_.ranks);
  }

  // With ranks: weights and statistics of rank 0 to all of them.
  void broadcast_weights();
  // How the ranks exchange (DeviceRanks::name()); "": it is alone.
  std::string exchanges() const { return ranks_ ? ranks_->name() : ""; }

  // The moving average of the weights; null: none.
  Ema* ema() { return ema_ ? &*ema_ : nullptr; }
  // While it lives, the network runs with the averaged weights, where there is an average: at least one update was
  // made.
  class Averaged {
   public:
    explicit Averaged(Trainer& trainer);
    ~Averaged();
    Averaged(const Averaged&) = delete;

   private:
    Ema* ema_;
  };

  void set_learning_rate(double lr) { optimizer_.set_learning_rate(*stream_, lr); }
  StepState state() { return optimizer_.read_state(*stream_); }
  void set_state(const StepState& state) { optimizer_.write_state(*stream_, state); }
  // The optimizer's moments of one parameter, for checkpoints: blocking copies.
  int moments() const { return optimizer_.moments(); }
  std::vector<float> read_moment(int moment, int param);
  void write_moment(int moment, int param, const std::vector<float>& values);
  DeviceStream& stream() { return *stream_; }
  const StepSeconds& seconds() const { return seconds_; }

  // Memory of the data, its order and the losses.
  size_t data_bytes() const {
    return data_.bytes() + order_.entries.bytes() + evaluator_.bytes() + (exchange_ ? exchange_->memory() : 0);
  }
  size_t ema_bytes() const { return ema_ ? ema_->bytes() : 0; }

 private:
  struct MicroBatch : Evaluator::MicroBatch {
    int rank = 0;          // that computes it
    int batch_images = 0;  // of its batch, on all ranks
  };
  using MicroBatches = std::vector<MicroBatch>;
  // Of a step: what this rank computes, with programs, and what all do.
  struct StepParts {
    MicroBatches own, all;
    int images = 0;
  };
  void mark_profile(int64_t step);
  void enqueue_gradients(const MicroBatches& parts, int64_t images);
  void finish_step(const MicroBatches& all);
  void enqueue_step(const StepParts& parts);
  void collect_losses(const MicroBatches& all, int slot);
  bool couples_ranks() const;
  // Exchanges wait for the host, so that they are no part of a captured step.
  bool exchanges_on_host() const { return exchange_ && !ranks_->asynchronous(); }
  int step_images() const { return options_.batch * options_.accumulate; }
  // Of a step of that many images, those of all ranks, without programs. Only the parts of a batch are slices of one:
  // each batch has norms and sums of its own.
  MicroBatches divide(int images);
  StepParts parts_of(int images);
  // The programs of a whole step and of the last one of an epoch, where that has fewer images; without images: not
  // needed.
  std::pair<StepParts, StepParts> compile_steps();
  [[noreturn]] void explain_divergence(const std::string& when);

  Network& network_;
  Device& device_;
  DeviceData& data_;
  TrainerOptions options_;
  std::unique_ptr<DeviceStream> stream_;
  Optimizer optimizer_;
  Evaluator evaluator_;
  std::optional<Ema> ema_;
  std::unique_ptr<DeviceRanks> ranks_;  // with more ranks than one, as the next two
  std::optional<Exchange> exchange_;
  DeviceBuffer all_image_loss_;  // (ranks, images of a step)
  int64_t entries_, steps_per_epoch_;
  int rest_ = 0;  // images of the last step of an epoch; 0: as many as of the others
  Order order_, paste_;
  DeviceBuffer confusion_, image_loss_;
  struct Pinned;
  std::unique_ptr<Pinned> pinned_;
  struct Step {
    std::unique_ptr<CapturedGraph> graph;
    bool has_run = false;  // as it is enqueued, before it is captured
  };
  std::unique_ptr<CapturedGraph> capture(const StepParts& parts);
  Step full_, tail_;
  std::pair<const void*, int>
      captured_memory_;  // the arena and evaluator_.moves() that the captured steps were made for
  RunObserver* observer_ = nullptr;
  StepSeconds seconds_;
};

}  // namespace regolith
