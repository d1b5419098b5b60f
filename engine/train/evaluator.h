// Runs a network forward with its loss, over samples of a data set or over one batch of the caller's own, of which it
// can also take the gradients. It needs no optimizer; the trainer makes its steps of the same parts.
#pragma once

#include <functional>
#include <vector>

#include "engine/comm/communicator.h"
#include "engine/run/network.h"
#include "engine/train/device_data.h"
#include "engine/train/loss_function.h"
#include "kernels/step_state.h"

namespace regolith {

struct BatchOptions {
  int batch = 32;
  float divisor = 255, offset = 0;  // image = (byte - offset) / divisor
};

struct Evaluation {
  bool whole = true;  // false: it was stopped
  double loss = 0;
  std::vector<int64_t> confusion;    // (K, K) pixels, truth by row
  std::vector<uint8_t> predictions;  // (samples, H, W) class ids, if asked for
};

class Evaluator {
 public:
  // Network, stream and loss must outlive this object. `state`: an optimizer's, in device memory; without one, no step
  // is counted, and the loss scale is 2^16 in fp16, else 1.
  Evaluator(Network& network, DeviceStream& stream, const LossFunction& loss, const BatchOptions& options,
            const StepState* state = nullptr);

  // The samples at `rows` of the data, as they are. The loss is the mean over them. `go_on`, where there is one, is
  // asked before every batch; what is returned where it says no is not whole. ranks: each does its part of the samples,
  // and all return the same.
  Evaluation evaluate(DeviceData& data, const std::vector<int64_t>& rows, bool predictions,
                      const std::function<bool()>& go_on = {}, Communicator* ranks = nullptr);

  struct BatchResult {
    std::vector<float> logits;  // (N,H,W,K)
    double loss = 0;
  };
  // Forward, loss and, in a mode with gradients, backward. images: (N,H,W,C) as the network takes them; masks: (N,H,W).
  BatchResult gradients(const std::vector<float>& images, const std::vector<uint8_t>& masks, int N, Mode mode);
  // Of a parameter, as the last gradients() made it, without the loss scale.
  std::vector<float> read_gradient(int param);

  // A part of a batch that runs through the network at once.
  struct MicroBatch {
    Program* program;
    int first, count;  // samples within the batch
    int index = 0;     // among its parts
  };
  // Compiles the programs of a batch of N, and makes room for its labels and losses.
  std::vector<MicroBatch> micro_batches(int N, Mode mode);
  // The same without programs, and at least so many parts, if there are as many images: if fewer would do, these many
  // of nearly one size.
  std::vector<MicroBatch> divide(int N, Mode mode, int ranks = 1);
  // Rises when labels or losses move in memory: captured steps are then stale.
  int moves() const { return moves_; }

  // Of `call`, what does not depend on the micro-batch is the caller's. Then forward, and the losses of all heads.
  void enqueue_sample(kernels::SampleBatch call, const MicroBatch& part);
  struct LossOutputs {
    bool gradients = false;         // of the logits, into the program
    bool accumulate = false;        // loss() keeps what it had
    int64_t* confusion = nullptr;   // (K, K) device memory, added to
    uint8_t* prediction = nullptr;  // (N, H, W) device memory
    double* image_loss = nullptr;   // (images of the batch) device memory: the sum of its heads' losses for each
    // That have the other images of the batch, where the loss sums over it; null: there are none.
    kernels::BatchRanks* ranks = nullptr;
  };
  void enqueue_losses(const MicroBatch& part, int64_t images, const LossOutputs& outputs);
  const double* loss() const {
    return loss_value_.as<double>();
  }  // device memory: the sum over a batch's parts and heads

  bool loss_couples_images() const { return loss_.couples_images(); }

  size_t bytes() const { return labels_.bytes() + workspace_.bytes(); }

 private:
  // Of `samples` to be evaluated, those of a rank. Whole batches where a loss sums over them.
  std::pair<int64_t, int64_t> part_of(int64_t samples, int rank, int ranks) const;
  void add_up(Evaluation& e, std::vector<double>& losses, int64_t pixels, Communicator& ranks) const;

  Network& network_;
  Device& device_;
  DeviceStream& stream_;
  const LossFunction& loss_;
  BatchOptions options_;
  const float* loss_scale_ = nullptr;
  DeviceBuffer fixed_scale_, loss_value_, confusion_, labels_, workspace_;
  int moves_ = 0;
};

}  // namespace regolith
