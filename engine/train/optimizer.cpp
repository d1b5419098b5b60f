#include "engine/train/optimizer.h"

#include <nlohmann/json.hpp>

#include "engine/base/error.h"
#include "kernels/adamw.h"
#include "kernels/gradient_norm.h"

namespace regolith {

Optimizer::Optimizer(Device& device, DeviceStream& stream, const OptimizerSpec& spec, int64_t count, DType precision)
    : device_(device),
      spec_(spec),
      count_(count),
      stride_((count + 63) / 64 * 64),
      precision_(precision),
      state_(device, sizeof(StepState)),
      moments_(device, static_cast<size_t>(stride_ * moments()) * sizeof(float)),
      partials_(device, static_cast<size_t>(kernels::gradient_norm_partials(count)) * sizeof(double)),
      host_(static_cast<StepState*>(device.allocate_host(sizeof(StepState)))) {
  device.fill(moments_.as(), 0, moments_.bytes(), stream);
  StepState initial;
  initial.learning_rate = static_cast<float>(spec.lr());
  if (precision == DType::f16) initial.loss_scale = 0x1p16f;
  write_state(stream, initial);
}

Optimizer::~Optimizer() { device_.release_host(host_); }

void Optimizer::update(DeviceStream& stream, float* weights, const float* gradient, void* copy) {
  auto* state = state_.as<StepState>();
  kernels::BeginUpdate begin{.state = state,
                             .gradient = gradient,
                             .count = count_,
                             .clip_norm = static_cast<float>(spec_.clip_norm),
                             .workspace = partials_.as<double>()};
  if (const auto* adamw = std::get_if<AdamW>(&spec_.kind)) {
    begin.beta1 = adamw->betas[0];
    begin.beta2 = adamw->betas[1];
    kernels::begin_update(stream, begin);
    kernels::adamw(stream, {.state = state,
                            .weights = weights,
                            .gradient = gradient,
                            .m = moment(0),
                            .v = moment(1),
                            .copy = copy,
                            .copy_type = precision_,
                            .count = count_,
                            .beta1 = adamw->betas[0],
                            .beta2 = adamw->betas[1],
                            .epsilon = static_cast<float>(adamw->eps),
                            .weight_decay = static_cast<float>(adamw->weight_decay),
                            .epsilon_hat = adamw->preset == AdamW::Preset::keras});
  } else {
    const auto& sgd = std::get<Sgd>(spec_.kind);
    kernels::begin_update(stream, begin);
    kernels::sgd(stream, {.state = state,
                          .weights = weights,
                          .gradient = gradient,
                          .m = moment(0),
                          .copy = copy,
                          .copy_type = precision_,
                          .count = count_,
                          .momentum = static_cast<float>(sgd.momentum),
                          .weight_decay = static_cast<float>(sgd.weight_decay),
                          .nesterov = sgd.nesterov});
  }
  kernels::end_update(stream, {.state = state, .dynamic_scale = precision_ == DType::f16});
}

void Optimizer::set_learning_rate(DeviceStream& stream, double value) {
  kernels::set_learning_rate(stream, {state_.as<StepState>(), static_cast<float>(value)});
}

StepState Optimizer::read_state(DeviceStream& stream) {
  device_.download(host_, state(), sizeof(StepState), stream);
  stream.synchronize();
  return *host_;
}

void Optimizer::write_state(DeviceStream& stream, const StepState& state) {
  *host_ = state;
  device_.upload(state_.as(), host_, sizeof(StepState), stream);
  stream.synchronize();
}

nlohmann::json to_json(const StepState& s) {
  return {{"step", s.step},
          {"updates", s.updates},
          {"skipped", s.skipped},
          {"skipped_in_a_row", s.skipped_in_a_row},
          {"clean_steps", s.clean_steps},
          {"learning_rate", s.learning_rate},
          {"loss_scale", s.loss_scale}};
}

StepState step_state_from_json(const nlohmann::json& json) try {
  StepState s;
  json.at("step").get_to(s.step);
  json.at("updates").get_to(s.updates);
  json.at("skipped").get_to(s.skipped);
  json.at("skipped_in_a_row").get_to(s.skipped_in_a_row);
  json.at("clean_steps").get_to(s.clean_steps);
  json.at("learning_rate").get_to(s.learning_rate);
  json.at("loss_scale").get_to(s.loss_scale);
  return s;
} catch (const nlohmann::json::exception& e) {
  throw CheckpointError(std::string("the optimizer's state is not readable: ") + e.what());
}

}  // namespace regolith
