// The optimizer of a network's parameters: its moments and the step's state, all in device memory.
#pragma once

#include <array>
#include <nlohmann/json_fwd.hpp>
#include <variant>

#include "engine/config/fields.h"
#include "engine/tensor/device.h"
#include "kernels/core/dtype.h"
#include "kernels/step_state.h"

namespace regolith {

// AdamW (Loshchilov and Hutter, 2019): the decay is decoupled from the gradient.
struct AdamW {
  enum class Preset { keras, torch };  // defaults of eps and weight_decay, and where eps stands (kernels/adamw.h)
  Preset preset = Preset::keras;
  double lr = 1e-3;
  std::array<double, 2> betas{0.9, 0.999};
  double eps = 1e-7, weight_decay = 0.004;

  AdamW& use(Preset p) {
    preset = p;
    eps = p == Preset::torch ? 1e-8 : 1e-7;
    weight_decay = p == Preset::torch ? 0.01 : 0.004;
    return *this;
  }
};
constexpr std::array<const char*, 2> names_of(AdamW::Preset) { return {"keras", "torch"}; }
template <class V>
void fields(V& v, AdamW& s) {
  v("preset", s.preset,
    {.doc = "whose AdamW: keras adds eps before the bias correction of the second moment, torch (eps 1e-8, "
            "weight_decay 0.01) after it"});
  v.after_reading([&] { s.use(s.preset); });
  v("lr", s.lr, {.doc = "learning rate", .min = 1e-12, .max = 10});
  v("betas", s.betas, {.doc = "decay of the two moments", .min = 0, .max = 0.999999});
  v("eps", s.eps, {.doc = "added to the root of the second moment", .min = 1e-12, .max = 1});
  v("weight_decay", s.weight_decay, {.doc = "decoupled: w -= lr * weight_decay * w", .min = 0, .max = 1});
}

// Gradient descent with momentum, as PyTorch's SGD: the decay is added to the gradient.
struct Sgd {
  double lr = 1e-2, momentum = 0, weight_decay = 0;
  bool nesterov = false;
};
template <class V>
void fields(V& v, Sgd& s) {
  v("lr", s.lr, {.doc = "learning rate", .min = 1e-12, .max = 100});
  v("momentum", s.momentum, {.doc = "share of the last update that is kept", .min = 0, .max = 0.9999});
  v("weight_decay", s.weight_decay, {.doc = "times the weights, added to the gradient", .min = 0, .max = 1});
  v("nesterov", s.nesterov, {.doc = "the momentum looks one step ahead"});
}

struct OptimizerSpec {
  std::variant<AdamW, Sgd> kind;
  double clip_norm = 0;  // of all gradients together; 0: not clipped

  int moments() const { return std::holds_alternative<AdamW>(kind) ? 2 : 1; }  // m and v, or the momentum
  double lr() const {
    return std::visit([](const auto& optimizer) { return optimizer.lr; }, kind);
  }
};
template <class V>
void fields(V& v, OptimizerSpec& s) {
  v.one_of(s.kind, {{"adamw", {.doc = "Adam with decoupled weight decay"}}, {"sgd", {.doc = "gradient descent"}}},
           {.doc = "default: adamw"});
  v("clip_norm", s.clip_norm, {.doc = "limit of the norm of the whole gradient", .min = 1e-6, .word = "none"});
}

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

  int moments() const { return spec_.moments(); }
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
