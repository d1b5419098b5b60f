#include "tools/profile_prediction.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "app/experiment.h"
#include "engine/base/text.h"
#include "engine/io/atomic_file.h"
#include "engine/ops/freeze.h"
#include "engine/report/table.h"
#include "engine/train/weights.h"
#include "kernels/sample.h"
#include "models/reader.h"
#include "tools/node_times.h"
#include "tools/timing.h"

namespace regolith {
namespace {

using Clock = std::chrono::steady_clock;

// The frozen network of a configuration with its weights.
std::unique_ptr<Network> frozen_network(Experiment& experiment, const std::string& file, DeviceStream& stream) {
  Graph graph = read_model(experiment.config.model);
  NetworkOptions options = experiment.network_options();
  options.training = false;
  Checkpoint weights;
  if (file.empty()) {
    Network fresh(graph, experiment.device(), options);
    Parameters& parameters = fresh.parameters();
    parameters.initialise(options.seed, stream);
    for (size_t i = 0; i < parameters.entries().size(); ++i)
      weights.set<float>(parameters.entries()[i].name, parameters.entries()[i].shape,
                         parameters.read(static_cast<int>(i), ParamField::weight, stream));
  } else {
    weights = load_checkpoint(file, Loading::when_used);
  }
  freeze(graph, weights);
  auto network = std::make_unique<Network>(std::move(graph), experiment.device(), options);
  load_weights(*network, weights, stream);
  return network;
}

// Batches of random bytes, one after the other through the network.
class Batches {
 public:
  Batches(Network& network, DeviceStream& stream, const TrainerOptions& scale, int batch, int slice)
      : network_(network),
        stream_(stream),
        scale_(scale),
        batch_(batch),
        slice_(slice > 0 ? slice : network.prediction_slice(batch)) {
    const Graph& graph = network.graph();
    Device& device = network.device();
    std::vector<uint8_t> bytes(batch * pixels(graph.nodes[graph.input].shape()));
    std::mt19937 random(1);
    for (uint8_t& x : bytes) x = static_cast<uint8_t>(random());
    std::vector<int32_t> order(batch);
    for (int i = 0; i < batch; ++i) order[i] = kernels::sample_index(i, false);
    images_ = DeviceBuffer(device, bytes.size());
    order_ = DeviceBuffer(device, batch * sizeof(int32_t));
    logits_ = DeviceBuffer(device, batch * logit_bytes());
    device.upload(images_.as(), bytes.data(), bytes.size(), stream);
    device.upload(order_.as(), order.data(), order_.bytes(), stream);
    stream.synchronize();
  }

  int slice() const { return slice_; }

  // The logits of one batch; returns its milliseconds.
  double run(RunObserver* observer = nullptr) {
    const auto began = Clock::now();
    for (int first = 0; first < batch_; first += slice_) {
      const int count = std::min(slice_, batch_ - first);
      Program& program = network_.program(count, Mode::eval);
      program.pack(stream_);
      program.observe(observer);
      kernels::SampleBatch sample{};
      sample.images = images_.as<uint8_t>();
      sample.order = order_.as<int32_t>();
      sample.entries = sample.batch = batch_;
      sample.steps_per_epoch = 1;
      sample.first = first;
      sample.divisor = scale_.divisor, sample.offset = scale_.offset;
      sample.x = program.image();
      kernels::sample_batch(stream_, sample);
      program.forward(stream_);
      network_.device().copy(logits_.as<unsigned char>() + first * logit_bytes(),
                             program.value(program.graph().output).data, count * logit_bytes(), stream_);
    }
    stream_.synchronize();
    return milliseconds(Clock::now() - began);
  }

 private:
  static size_t pixels(const Shape& s) { return static_cast<size_t>(s.H) * s.W * s.C; }
  size_t logit_bytes() const {  // of one image
    const Graph& graph = network_.graph();
    return pixels(graph.nodes[graph.output].shape()) * size_of(network_.options().type);
  }

  Network& network_;
  DeviceStream& stream_;
  const TrainerOptions scale_;
  int batch_, slice_;
  DeviceBuffer images_, order_, logits_;
};

size_t peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) * 1024;
}

}  // namespace

int profile_prediction(RunConfig config, const PredictionProfile& o) {
  Experiment experiment(std::move(config));
  Device& device = experiment.device();
  const auto stream = device.make_stream();
  const std::unique_ptr<Network> network = frozen_network(experiment, o.weights, *stream);
  Batches batches(*network, *stream, experiment.trainer_options(), o.batch, o.slice);
  for (int i = 0; i < o.warmup; ++i) batches.run();
  std::vector<double> times;
  for (int i = 0; i < o.steps; ++i) times.push_back(batches.run());
  const double ms = median(times), rate = 1e3 * o.batch / ms;
  const size_t peak = peak_bytes();

  NodeTimes nodes(*stream, network->graph(), size_of(network->options().type));
  double whole = 0;
  for (int i = 0; i < o.steps; ++i) whole += batches.run(&nodes) / o.steps;
  const MachineRates rates = measure_rates(device, network->options().type, network->options().tf32);

  Table table({"node", "op", "output", "provider", "ms", "floor", "share", "GFLOP/s"});
  nlohmann::json rows = nlohmann::json::array();
  double sum = 0, floors = 0;
  for (const NodeTimes::Time& t : nodes.times) {
    const Node& n = *t.node;
    const Shape& s = n.shape();
    const double took = t.ms[0] / o.steps, flops = 2 * t.macs[0] / o.steps,
                 floor = 1e3 * rates.floor_seconds(t.bytes[0] / o.steps, flops);
    const double gflops = took > 0 ? 1e-6 * flops / took : 0;
    const std::string provider = n.inferred.macs > 0 ? n.op->provider() : "";
    sum += took, floors += floor;
    table.add({n.name, std::string(n.op->kind()), size_text({s.H, s.W, s.C}), provider, fixed(took, 2), fixed(floor, 2),
               fixed(100 * took / whole, 1, "%"), fixed(gflops, 0)});
    rows.push_back({{"node", n.name},
                    {"op", n.op->kind()},
                    {"output", {s.H, s.W, s.C}},
                    {"provider", provider},
                    {"ms", took},
                    {"floor_ms", floor},
                    {"gflops", gflops}});
  }
  table.add_rule();
  table.add({"images from bytes, logits' copy", "", "", "", fixed(whole - sum, 2), "",
             fixed(100 * (1 - sum / whole), 1, "%")});
  const std::string precision(name_of(network->options().precision));
  const size_t arena = network->arena_bytes(), packed = network->parameters().prepacked_bytes(),
               weights = network->parameters().bytes();
  std::printf("%s\n%s, %s, batch %d in slices of %d: %.2f ms (median of %d), %.1f images/s\n", table.text().c_str(),
              device.name().c_str(), precision.c_str(), o.batch, batches.slice(), ms, o.steps, rate);
  std::printf("floor of the nodes %.2f ms: %s\n", floors, to_string(rates).c_str());
  std::printf("memory: arena %s, prepacked weights %s, weights %s; peak of the process %s\n", mebibytes(arena).c_str(),
              mebibytes(packed).c_str(), mebibytes(weights).c_str(), mebibytes(peak).c_str());
  if (o.json_file.empty()) return 0;
  const nlohmann::json json{{"device", device.name()},
                            {"precision", precision},
                            {"batch", o.batch},
                            {"slice", batches.slice()},
                            {"ms", ms},
                            {"times_ms", times},
                            {"images_per_second", rate},
                            {"arena_bytes", arena},
                            {"prepacked_bytes", packed},
                            {"weight_bytes", weights},
                            {"peak_bytes", peak},
                            {"observed_ms", whole},
                            {"floor_ms", floors},
                            {"nodes", rows}};
  write_file_atomically(o.json_file, json.dump(1) + "\n");
  return 0;
}

}  // namespace regolith
