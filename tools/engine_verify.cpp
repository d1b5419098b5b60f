// engine_verify CONFIG --weights W.safetensors --input BATCH.npz --output OUT.npz: logits, loss and the gradient of
// every parameter for one batch, to compare with another framework.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "app/command_line.h"
#include "app/experiment.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/npy.h"
#include "engine/train/weights.h"

namespace {

using namespace regolith;

int verify(RunConfig config, const std::string& weights, const std::string& input, const std::string& output,
           const std::string& mode, const std::string& save) {
  Experiment experiment(std::move(config));
  Network& network = experiment.network();
  const Graph& graph = network.graph();
  const int K = experiment.classes();
  std::vector<double> frequencies(K, 1.0 / K);
  Dataset batch;  // read and normalised as in training
  std::vector<float> images;
  if (!input.empty()) {
    SourceContext context = experiment.source_context();
    context.arrays = {};
    context.arrays.images = "image", context.arrays.masks = "mask";
    context.group.clear();
    batch = load_npz(input, context);
    std::fputs(batch.notes.c_str(), stdout);
    frequencies = class_frequencies(batch, batch.labelled_samples(), K);
    const TrainerOptions o = experiment.trainer_options();
    for (const uint8_t byte : batch.images) images.push_back((static_cast<float>(byte) - o.offset) / o.divisor);
  }
  const Loss loss = experiment.loss(frequencies);
  const auto stream = experiment.device().make_stream();
  Evaluator evaluator(network, *stream, loss, experiment.trainer_options());
  if (weights == "init") {
    network.parameters().initialise(experiment.config.run.seed, *stream);
  } else {
    load_weights(network, load_checkpoint(weights), *stream);
  }
  if (!save.empty()) {
    Checkpoint checkpoint = save_weights(network, *stream);
    nlohmann::json order;  // in which the nodes run; the file has them by name
    for (const auto& e : network.parameters().entries()) order.push_back(e.name);
    checkpoint.metadata["order"] = order.dump();
    save_checkpoint(save, checkpoint);
    std::printf("%s: %zu parameters\n", save.c_str(), order.size());
  }
  if (input.empty()) return 0;

  const int N = static_cast<int>(batch.count);
  const Mode m = mode == "train" ? Mode::train_without_dropout : Mode::gradients_of_eval;
  const Evaluator::BatchResult r = evaluator.gradients(images, batch.masks, N, m);
  const Shape out = graph.nodes[graph.output].shape();
  std::vector<NpzEntry> entries{npz_entry("logits", {N, out.H, out.W, K}, r.logits.data()),
                                npz_entry("loss", {}, &r.loss)};
  std::vector<std::vector<float>> gradients;
  const auto& params = network.parameters().entries();
  gradients.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    if (!params[i].trained()) continue;
    gradients.push_back(evaluator.read_gradient(static_cast<int>(i)));
    entries.push_back(npz_entry("grad/" + params[i].name, params[i].shape, gradients.back().data()));
  }
  write_npz(output, entries);
  std::printf("%s: logits %s, loss %.9g, gradients of %zu parameters\n", output.c_str(),
              shape_text(entries[0].shape).c_str(), r.loss, gradients.size());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine p(argc, argv, "engine_verify", "Logits, loss and gradients of one batch.");
  std::string weights, input, output, mode = "train", save, precision, device;
  bool force = false;
  p.config_arguments();
  p.option("--weights", weights, "a .safetensors file, or init for fresh ones from run.seed", {.required = true});
  p.option("--input", input, "an .npz with image (N,H,W,C) and mask (N,H,W)");
  p.option("--output", output, "the .npz to write: logits, loss, grad/<parameter>");
  p.option("--mode", mode, "train: norms use the batch's statistics; eval: the running ones. Dropout is off",
           {.names = {"train", "eval"}});
  p.option("--precision", precision, "fp32, tf32, fp16 or bf16; over run.precision");
  p.option("--device", device, "cpu or cuda; over run.device");
  p.option("--save-weights", save, "write the weights to this .safetensors");
  p.flag("--force", force, "replace what is there already");
  return p.run([&] {
    if (input.empty() != output.empty() || (input.empty() && save.empty()))
      throw UsageError("expected --input BATCH.npz and --output OUT.npz, or --save-weights FILE");
    for (const std::string& file : {output, save}) refuse_existing(file, force, {input, weights});
    std::vector<std::string> overrides;
    if (!precision.empty()) overrides.push_back("run.precision=" + precision);
    if (!device.empty()) overrides.push_back("run.device=" + device);
    return verify(p.load_config(ConfigUse::network, overrides), weights, input, output, mode, save);
  });
}
