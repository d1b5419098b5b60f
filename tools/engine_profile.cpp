// engine_profile CONFIG [--steps N] [--json FILE] [key.path=value ...]: how long a training step takes, and which nodes
// take it, beside the floor that their bytes and multiplications set; --predict: the same of a batch's logits. Random
// bytes stand in for the data.
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>

#include "app/command_line.h"
#include "app/experiment.h"
#include "engine/base/text.h"
#include "engine/io/atomic_file.h"
#include "engine/report/table.h"
#include "tools/node_times.h"
#include "tools/profile_prediction.h"
#include "tools/timing.h"

namespace {

using namespace regolith;
using Clock = std::chrono::steady_clock;

// As many random images as two batches have.
Dataset noise(const Shape& image, int classes, int batch) {
  Dataset d;
  d.count = 2 * batch;
  d.height = image.H, d.width = image.W, d.channels = image.C;
  std::mt19937 random(1);
  d.images.resize(d.count * d.image_bytes());
  d.masks.resize(d.count * d.mask_bytes());
  for (uint8_t& x : d.images) x = static_cast<uint8_t>(random());
  for (uint8_t& m : d.masks) m = static_cast<uint8_t>(random() % classes);
  return d;
}

int profile(RunConfig config, int steps, int warmup, const std::string& json_file) {
  config.train.steps_per_epoch = 0;
  config.train.accumulate = 1;
  Experiment experiment(std::move(config));
  const RunConfig& c = experiment.config;
  Device& device = experiment.device();
  const Precision precision = c.run.precision == Precision::automatic ? best_precision(device) : c.run.precision;
  const DType type = storage_type(precision);
  const MachineRates rates = measure_rates(device, type, precision == Precision::tf32);  // while memory is free
  Network& network = experiment.network();
  const Graph& graph = network.graph();
  const int batch = c.train.batch, K = graph.classes();
  const Loss loss = experiment.loss(std::vector<double>(K, 1.0 / K));
  const Dataset data = noise(graph.nodes[graph.input].shape(), K, batch);
  TrainerOptions options = experiment.trainer_options();
  if (c.data.augment) options.augment = *c.data.augment;
  if (kernels::CopyPaste& paste = options.augment.copy_paste; paste.on) {  // any class does, and every image has it
    if (paste.class_id < 0 || paste.class_id >= K) paste.class_id = K - 1;
    for (int i = 0; i < data.count; ++i) options.paste_rows.push_back(i);
  }
  std::vector<int32_t> order;
  for (int64_t i = 0; i < static_cast<int64_t>(warmup + steps) * batch; ++i)
    order.push_back(kernels::sample_index(i % data.count, c.data.augment.has_value()));
  DeviceData device_data(device, data.view(), batch, c.data.streaming, partners_of(options.augment));
  Trainer trainer(network, loss, device_data, std::ssize(order), options);
  network.parameters().initialise(c.run.seed, trainer.stream());
  // A step is from one begin to the next: on a GPU, which runs behind, the host waits once a step.
  std::vector<Clock::time_point> begins;
  const auto epoch = [&] {
    begins.clear();
    trainer.run_epoch(
        order,
        [&](int64_t) {
          begins.push_back(Clock::now());
          return c.optimizer.lr();
        },
        [](const StepReport&) { return true; });
    begins.push_back(Clock::now());
    std::vector<double> ms;
    for (size_t i = warmup; i + 1 < begins.size(); ++i) ms.push_back(milliseconds(begins[i + 1] - begins[i]));
    return ms;
  };
  const std::vector<double> times = epoch();
  const double step = median(times);

  NodeTimes nodes(trainer.stream(), graph, size_of(type));
  trainer.observe(&nodes);
  const StepSeconds before = trainer.seconds();
  epoch();
  trainer.observe(nullptr);
  const StepSeconds after = trainer.seconds();
  // Known where the device works at once: elsewhere the images are made behind the host's back.
  const bool divided = device.kind() == DeviceKind::cpu;
  const double input =
      divided ? 1e3 * (after.read - before.read + after.augment - before.augment) / (warmup + steps) : 0;
  const double whole = milliseconds(begins.back() - begins.front()) / (warmup + steps);

  Table table({"node", "op", "output", "provider", "forward ms", "floor", "backward ms", "floor", "share", "GFLOP/s",
               "backward"});
  nlohmann::json rows = nlohmann::json::array();
  double sum = 0, floors = 0;
  for (const NodeTimes::Time& t : nodes.times) {
    const Node& n = *t.node;
    double ms[2], gflops[2], bytes[2], floor[2];
    for (int d : {0, 1}) {
      ms[d] = t.ms[d] / (warmup + steps);
      gflops[d] = t.ms[d] > 0 ? 2e-6 * t.macs[d] / t.ms[d] : 0;
      bytes[d] = t.bytes[d] / (warmup + steps);
      floor[d] = 1e3 * rates.floor_seconds(bytes[d], 2 * t.macs[d] / (warmup + steps));
      floors += floor[d];
    }
    sum += ms[0] + ms[1];
    const double share = (ms[0] + ms[1]) / whole;
    const Shape& s = n.shape();
    const std::string size = size_text({s.H, s.W, s.C});
    const std::string provider = n.inferred.macs > 0 ? n.op->provider() : "";
    table.add({n.name, std::string(n.op->kind()), size, provider, fixed(ms[0], 2), fixed(floor[0], 2), fixed(ms[1], 2),
               fixed(floor[1], 2), fixed(100 * share, 1, "%"), fixed(gflops[0], 0), fixed(gflops[1], 0)});
    rows.push_back({{"node", n.name},
                    {"op", n.op->kind()},
                    {"output", {s.H, s.W, s.C}},
                    {"provider", provider},
                    {"forward_ms", ms[0]},
                    {"backward_ms", ms[1]},
                    {"forward_bytes", bytes[0]},
                    {"backward_bytes", bytes[1]},
                    {"forward_floor_ms", floor[0]},
                    {"backward_floor_ms", floor[1]},
                    {"forward_gflops", gflops[0]},
                    {"backward_gflops", gflops[1]}});
  }
  table.add_rule();
  const auto rest = [&](const char* what, double ms) {
    table.add({what, "", "", "", "", "", fixed(ms, 2), "", fixed(100 * ms / whole, 1, "%")});
  };
  if (divided) rest(c.data.augment ? "images, augmented" : "images", input);
  rest(divided ? "weights' copies, loss, optimizer" : "images, weights' copies, loss, optimizer", whole - sum - input);
  const std::string precision_name(name_of(precision));
  const double rate = 1e3 * batch / step;
  std::printf("%s\n%s, %s, batch %d: %.1f ms a step (median of %d), %.1f images/s\n", table.text().c_str(),
              device.name().c_str(), precision_name.c_str(), batch, step, steps, rate);
  std::printf("floor of the nodes %.1f ms: %s\n", floors, to_string(rates).c_str());
  if (json_file.empty()) return 0;
  const nlohmann::json json{{"device", device.name()},
                            {"precision", precision_name},
                            {"batch", batch},
                            {"step_ms", step},
                            {"steps_ms", times},
                            {"images_per_second", rate},
                            {"arena_bytes", network.arena_bytes()},
                            {"observed_step_ms", whole},
                            {"input_ms", divided ? nlohmann::json(input) : nlohmann::json(nullptr)},
                            {"rates",
                             {{"copy_bytes_per_second", rates.copy},
                              {"matrix_flops_per_second", rates.matrix},
                              {"matrix_by", rates.matrix_by}}},
                            {"floor_ms", floors},
                            {"nodes", rows}};
  write_file_atomically(json_file, json.dump(1) + "\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine p(argc, argv, "engine_profile", "Times training steps, or predictions, node by node.",
                "engine_profile configs/models/unet.yaml train.batch=32 run.precision=fp32\n"
                "engine_profile configs/models/unet.yaml --predict --batch 1");
  int steps = 10, warmup = 2;
  bool predict = false;
  PredictionProfile prediction;
  std::string json_file;
  p.config_arguments();
  p.option("--steps", steps, "training steps, or batches, to time", {.min = 1, .max = 100000});
  p.option("--warmup", warmup, "steps before those", {.min = 1, .max = 100000});
  p.option("--json", json_file, "write the numbers there too");
  p.flag("--predict", predict, "time the network frozen for inference, from bytes to logits");
  p.option("--batch", prediction.batch, "images of a prediction", {.min = 1, .max = 65536});
  p.option("--slice", prediction.slice, "images that go through the network at a time; 0: its own choice",
           {.min = 0, .max = 65536});
  p.option("--weights", prediction.weights, "of the prediction: a .safetensors file; default: fresh ones");
  return p.run([&] {
    if (const PredictionProfile own; !predict && (prediction.batch != own.batch || prediction.slice != own.slice ||
                                                  prediction.weights != own.weights))
      throw UsageError("--batch, --slice, --weights: are of --predict; a training step has train.batch=N");
    check_json_output(json_file);
    RunConfig config = p.load_config(ConfigUse::network);
    if (!predict) return profile(std::move(config), steps, warmup, json_file);
    prediction.steps = steps, prediction.warmup = warmup, prediction.json_file = json_file;
    return profile_prediction(std::move(config), prediction);
  });
}
