// The optimizer of a network's parameters: its moments and the step's state, all in device memory.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <variant>

#include "engine/tensor/device.h"
#include "kernels/core/dtype.h"
#include "kernels/step_state.h"

namespace regolith {

struct AdamWSpec {  // defaults of Keras
  double learning_rate = 1e-3, beta1 = .9, beta2 = .999, epsilon = 1e-7, weight_decay = .004;
  static AdamWSpec torch() { return {1e-3, .9, .999, 1e-8, .01}; }
};
struct SgdSpec {
  double learning_rate = 1e-2, momentum = .9, weight_decay = 0;
  bool nesterov = false;
};
struct OptimizerSpec {
  std::variant<AdamWSpec, SgdSpec> algorithm;
  double clip_norm = 0;  // of all gradients together; 0: not clipped

  double learning_rate() const;
};

// Holds what a step needs beside the weights. Its kernels know no host value that changes from step to step, so that
// `update` can be captured and replayed.
class Optimizer {
 public:
  // For `count` parameters. The loss scale is dynamic, from 2^16, where the precision is fp16, else 1.
  Optimizer(Device& device, DeviceStream& stream, const OptimizerSpec& spec, int64_t count, DType precision);
  ~Optimizer();
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // One update: weights (count) from gradient (count), both fp32 and 16-byte aligned; copy: their low-precision copy of
  // the optimizer's precision, null in fp32. Nothing changes but the counters where a gradient is not finite.
  void update(DeviceStream& stream, float* weights, const float* gradient, void* copy);

  // From the stream's next work on. Not to be captured.
  void set_learning_rate(DeviceStream& stream, double value);

  const StepState* state() const { return state_.as<StepState>(); }  // device memory
  const float* loss_scale() const { return &state()->loss_scale; }   // device memory
  StepState read_state(DeviceStream& stream);                        // waits for the stream
  void write_state(DeviceStream& stream, const StepState& state);    // waits for the stream

  int moments() const;                                                               // 2 (m, v) or 1 (momentum)
  float* moment(int index) const { return moments_.as<float>() + index * stride_; }  // (count), device memory

 private:
  Device& device_;
  OptimizerSpec spec_;
  int64_t count_, stride_;
  DType precision_;
  DeviceBuffer state_, moments_, partials_;
  StepState* host_;
};

// For checkpoints; step_state_from_json throws CheckpointError.
nlohmann::json to_json(const StepState& state);
StepState step_state_from_json(const nlohmann::json& json);

}  // namespace regolith
