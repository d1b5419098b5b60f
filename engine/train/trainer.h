// Runs training steps and evaluations of a network over data that lives on its device. A step is: pick, augment and
// normalise a batch; forward; loss; backward; clip; optimizer. On CUDA and on the simulated device it is captured once
// and replayed; what the host reads of it, it reads one step late.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/run/network.h"
#include "engine/train/batch_source.h"
#include "engine/train/optimizer.h"
#include "kernels/sample.h"
#include "kernels/softmax_loss.h"

namespace regolith {

// The loss of head `head`: fills in the terms of the call and runs the kernel. `images`: of the whole batch or split.
struct LossFunction {
  std::function<void(Stream&, int head, kernels::SoftmaxLoss call, int64_t images)> run;
  std::function<size_t(int N, int H, int W)> workspace_bytes;
  bool couples_images = false;  // sums over the batch: it cannot be run in slices
};

struct TrainerOptions {
  int batch = 32;
  bool drop_last = false;
  int64_t steps_per_epoch = 0;  // 0: the order once
  uint64_t seed = 0;
  OptimizerSpec optimizer;
  kernels::Augment augment;
  float divisor = 255, offset = 0;  // image = (byte - offset) / divisor
  bool capture = true;              // where the device can
  Streaming streaming = Streaming::automatic;
  int64_t profile_start = 0, profile_steps = 0;  // steps that a profiler records; 0 steps: none
};

// What the host knows of a finished step.
struct StepReport {
  int64_t step = 0;  // steps done, this one included
  double loss = 0;
  double gradient_norm = 0;
  float loss_scale = 1;
  int64_t skipped = 0, skipped_in_a_row = 0;
};

struct Evaluation {
  double loss = 0;
  std::vector<int64_t> confusion;    // (K, K) pixels, truth by row
  std::vector<uint8_t> predictions;  // (count, H, W) where asked for
};

class Trainer {
 public:
  Trainer(Network& network, LossFunction loss, const TrainerOptions& options);
  ~Trainer();

  // Copies the split to the device, or reads it where it is: the host's memory must live as long as this.
  // entries_per_epoch: the length of the orders that will come.
  void set_training_data(const SplitView& split, int64_t entries_per_epoch);
  int64_t steps_per_epoch() const { return steps_per_epoch_; }

  // An epoch in the given order of kernels::sample_index(). Goes on from the step that the state is at, each at its own
  // learning rate; `report` hears of every step (one step late, the last at the end) and says whether to go on.
  // Returns false if stopped. Throws TrainError, naming a node, after a run of steps without finite gradients.
  bool run_epoch(const std::vector<int32_t>& order, const std::function<double(int64_t step)>& learning_rate,
                 const std::function<bool(const StepReport&)>& report);
  // Of the epoch's training pixels, gathered as it ran; cleared by run_epoch's start.
  std::vector<int64_t> training_confusion();

  // `observer` is told of every op of the training steps to come, which are then not captured; null: nobody is.
  void observe(RunObserver* observer) { observer_ = observer; }

  Evaluation evaluate(const SplitView& split, bool predictions);

  void set_learning_rate(double lr) { optimizer_.set_learning_rate(*stream_, lr); }
  StepState state() { return optimizer_.read_state(*stream_); }
  void set_state(const StepState& state) { optimizer_.write_state(*stream_, state); }
  // The optimizer's moments of one parameter, for checkpoints: blocking copies.
  int moments() const { return optimizer_.moments(); }
  std::vector<float> read_moment(int moment, int param);
  void write_moment(int moment, int param, const std::vector<float>& values);
  DeviceStream& stream() { return *stream_; }

  // One batch of a caller's own: forward, loss, gradients into the parameters. For engine_verify and the tests.
  struct BatchResult {
    std::vector<float> logits;  // (N,H,W,K)
    double loss = 0;
  };
  BatchResult gradients(const std::vector<float>& images, const std::vector<uint8_t>& masks, int N, Mode mode);

  // Device memory of the data, the orders and the losses' workspaces.
  size_t data_bytes() const;

 private:
  struct MicroBatch {
    Program* program;
    int first, count;
  };
  std::vector<MicroBatch> micro_batches_of(int N, Mode mode);
  void reserve_batch(int N);
  void drop_captures();
  void mark_profile(int64_t step);
  BatchSource& evaluation_data(const SplitView& split);
  void enqueue_sample(kernels::SampleBatch call, const MicroBatch& slice);
  void enqueue_step(const std::vector<MicroBatch>& slices);
  void enqueue_losses(const MicroBatch& slice, int64_t images, bool gradient, uint8_t* prediction);
  void read_report(int slot, StepReport& report);
  [[noreturn]] void explain_divergence(const std::vector<MicroBatch>& slices);

  Network& network_;
  Device& device_;
  LossFunction loss_;
  TrainerOptions options_;
  std::unique_ptr<DeviceStream> stream_;
  Optimizer optimizer_;
  DeviceBuffer loss_value_, confusion_, labels_, loss_workspace_;
  std::unique_ptr<BatchSource> training_;
  std::vector<std::pair<const uint8_t*, std::unique_ptr<BatchSource>>>
      evaluation_;  // by the host address of the images
  int64_t entries_ = 0, steps_per_epoch_ = 0;
  struct Pinned;
  std::unique_ptr<Pinned> pinned_;
  std::unique_ptr<CapturedGraph> full_graph_, tail_graph_;
  const void* captured_arena_ = nullptr;  // that the captured steps write to
  RunObserver* observer_ = nullptr;
};

}  // namespace regolith
