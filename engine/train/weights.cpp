#include "engine/train/weights.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/base/text.h"

namespace regolith {
namespace {

constexpr std::string_view kOptimizer = "optimizer/", kEma = "optimizer/ema/";

std::string moment_name(int moment, const std::string& param) {
  return std::string(kOptimizer) + std::to_string(moment) + "/" + param;
}

}  // namespace

bool is_moment(const std::string& tensor) { return tensor.starts_with(kOptimizer); }

void check_parameters(Network& network, const Checkpoint& checkpoint) {
  const Parameters& parameters = network.parameters();
  std::vector<std::string> names;
  for (const auto& e : parameters.entries()) names.push_back(e.name);
  for (const auto& [name, tensor] : checkpoint.tensors) {
    if (!is_moment(name) && std::find(names.begin(), names.end(), name) == names.end())
      throw CheckpointError(checkpoint.origin + ": is of another model: its parameter '" + name +
                            "' is not in this network" + did_you_mean(name, names));
  }
  for (const auto& e : parameters.entries()) {
    if (!checkpoint.tensors.contains(e.name))
      throw CheckpointError(checkpoint.origin + ": is of another model: it lacks the parameter '" + e.name + "' " +
                            shape_text(e.shape));
    checkpoint.tensor(e.name, DType::f32, e.shape);  // its error says what differs
  }
}

Checkpoint save_weights(Network& network, DeviceStream& stream) {
  Checkpoint c;
  const auto& entries = network.parameters().entries();
  for (size_t i = 0; i < entries.size(); ++i) {
    c.set(entries[i].name, entries[i].shape, [&network, &stream, i] {
      return network.parameters().read(static_cast<int>(i), ParamField::weight, stream);
    });
  }
  c.metadata["format"] = "regolith";
  c.metadata["parameters"] = std::to_string(network.graph().parameter_count());
  return c;
}

void load_weights(Network& network, const Checkpoint& checkpoint, DeviceStream& stream) {
  check_parameters(network, checkpoint);
  const auto& entries = network.parameters().entries();
  if (!network.options().training) {
    std::vector<CheckpointTensor> tensors;
    for (const auto& e : entries) tensors.push_back(checkpoint.tensor(e.name));
    return network.parameters().read_from(
        [tensors = std::move(tensors)](int param) { return tensors[param].floats(); });
  }
  for (size_t i = 0; i < entries.size(); ++i)
    network.parameters().write(static_cast<int>(i), ParamField::weight, checkpoint.floats(entries[i].name), stream);
  network.parameters().refresh_compute_copy(stream);
}

Checkpoint save_training(Network& network, Trainer& trainer) {
  Checkpoint c = save_weights(network, trainer.stream());
  const auto& entries = network.parameters().entries();
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i].trained()) continue;
    for (int m = 0; m < trainer.moments(); ++m) {
      c.set(moment_name(m, entries[i].name), entries[i].shape,
            [&trainer, m, i] { return trainer.read_moment(m, static_cast<int>(i)); });
    }
  }
  for (size_t i = 0; trainer.ema() != nullptr && i < entries.size(); ++i) {
    const auto param = static_cast<int>(i);
    if (trainer.ema()->averages(param))
      c.set(std::string(kEma) + entries[i].name, entries[i].shape,
            [&trainer, param] { return trainer.ema()->read(param); });
  }
  c.metadata["optimizer"] = to_json(trainer.state()).dump();
  return c;
}

void load_training(Network& network, Trainer& trainer, const Checkpoint& checkpoint) {
  check_parameters(network, checkpoint);
  const auto& entries = network.parameters().entries();
  for (const auto& e : entries) {
    for (int m = 0; e.trained() && m < trainer.moments(); ++m)
      checkpoint.tensor(moment_name(m, e.name), DType::f32, e.shape);
    if (const std::string average = std::string(kEma) + e.name; checkpoint.tensors.contains(average))
      checkpoint.tensor(average, DType::f32, e.shape);
  }
  const nlohmann::json state = nlohmann::json::parse(checkpoint.meta("optimizer"), nullptr, false);
  if (state.is_discarded()) throw CheckpointError(checkpoint.origin + ": the optimizer's state is not readable JSON");
  trainer.set_state(step_state_from_json(state));
  load_weights(network, checkpoint, trainer.stream());
  for (size_t i = 0; i < entries.size(); ++i) {
    for (int m = 0; entries[i].trained() && m < trainer.moments(); ++m)
      trainer.write_moment(m, static_cast<int>(i), checkpoint.floats(moment_name(m, entries[i].name)));
    if (Ema* ema = trainer.ema(); ema != nullptr && ema->averages(static_cast<int>(i))) {
      const std::string average = std::string(kEma) + entries[i].name;
      ema->write(static_cast<int>(i),
                 checkpoint.floats(checkpoint.tensors.contains(average) ? average : entries[i].name));
    }
  }
}

}  // namespace regolith
