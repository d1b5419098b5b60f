// engine_verify CONFIG --weights W.safetensors --input BATCH.npz --output OUT.npz: logits, loss and the gradient of
// every parameter for one batch, to compare with another framework.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>

#include "engine/base/error.h"
#include "engine/config/run_config.h"
#include "engine/io/npy.h"
#include "engine/train/weights.h"
#include "models/reader.h"
#include "tools/session.h"

namespace {

using namespace regolith;

struct Batch {
  std::vector<float> images;   // (N,H,W,C)
  std::vector<uint8_t> masks;  // (N,H,W)
  int N = 0;
};

std::string dims(const Shape& s, int rank) {
  std::vector<int64_t> d{s.N, s.H, s.W, s.C};
  d.resize(rank);
  return shape_text(d);
}

// image (N,H,W,C) or (N,H,W): bytes are divided by 255 as in training, other numbers are taken as they are. mask
// (N,H,W) of classes below `classes`, of `ignore`, or of kAbsentClass.
Batch read_batch(const std::string& file, const Shape& in, int classes, int ignore) {
  const NpzReader npz(file);
  const NpyArray image = npz.read("image"), mask = npz.read("mask");
  Batch b;
  const auto fail = [](const NpyArray& a, const std::string& expected) {
    throw DataError(a.where + ": has shape " + shape_text(a.shape) + "; expected " + expected);
  };
  if (image.shape.empty() || image.shape[0] < 1) fail(image, "(N, H, W, C)");
  b.N = static_cast<int>(image.shape[0]);
  const Shape whole{b.N, in.H, in.W, in.C};
  const bool flat = in.C == 1 && image.shape == std::vector<int64_t>{b.N, in.H, in.W};
  if (!flat && image.shape != std::vector<int64_t>{b.N, in.H, in.W, in.C})
    fail(image, dims(whole, 4) + (in.C == 1 ? " or " + dims(whole, 3) : "") + " for this model");
  if (mask.shape != std::vector<int64_t>{b.N, in.H, in.W}) fail(mask, dims(whole, 3) + ", like the images");
  b.images = image.as_f32();
  if (image.kind == 'u' && image.item == 1)
    for (float& x : b.images) x /= 255;
  b.masks.resize(static_cast<size_t>(mask.count()));
  for (int64_t i = 0; i < mask.count(); ++i) {
    const double id = mask.at(i);
    if (!((id >= 0 && id < classes && id == std::floor(id)) || id == kernels::kAbsentClass ||
          (ignore >= 0 && id == ignore))) {
      char value[32];
      std::snprintf(value, sizeof value, "%.9g", id);
      throw DataError(mask.where + ": sample " + std::to_string(i / (in.H * in.W)) + ", row " +
                      std::to_string(i / in.W % in.H) + ", column " + std::to_string(i % in.W) + ": class id " + value +
                      "; expected 0 to " + std::to_string(classes - 1));
    }
    b.masks[i] = static_cast<uint8_t>(id);
  }
  return b;
}

int run(int argc, char** argv) {
  CLI::App app{"Logits, loss and gradients of one batch.", "engine_verify"};
  std::string config_file, weights, input, output, mode = "train", save;
  std::vector<std::string> overrides;
  std::string precision, device_name;
  app.add_option("config", config_file, "the run's YAML file")->required();
  app.add_option("overrides", overrides, "key.path=value");
  app.add_option("--weights", weights, "a .safetensors file, or init for fresh ones from run.seed")->required();
  app.add_option("--input", input, "an .npz with image (N,H,W,C) and mask (N,H,W)");
  app.add_option("--output", output, "the .npz to write: logits, loss, grad/<parameter>");
  app.add_option("--mode", mode, "train: norms use the batch's statistics; eval: the running ones. Dropout is off")
      ->check(CLI::IsMember({"train", "eval"}));
  app.add_option("--precision", precision, "fp32, tf32, fp16 or bf16; over run.precision");
  app.add_option("--device", device_name, "cpu or cuda; over run.device");
  app.add_option("--save-weights", save, "write the weights to this .safetensors");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help
    std::fprintf(stderr, "engine_verify: %s; --help tells more\n", e.what());
    return 2;
  }
  if (input.empty() != output.empty() || (input.empty() && save.empty())) {
    std::fprintf(stderr, "engine_verify: expected --input BATCH.npz and --output OUT.npz, or --save-weights FILE\n");
    return 2;
  }
  if (!precision.empty()) overrides.push_back("run.precision=" + precision);
  if (!device_name.empty()) overrides.push_back("run.device=" + device_name);
  const config::RunConfig c = config::load_run_config(config_file, overrides, config::ConfigUse::network);
  const auto device = open_device(c.run);
  Network network(read_model(c.model), *device, network_options(c, *device));
  const Graph& graph = network.graph();
  const int K = graph.classes();
  const Shape in = graph.nodes[graph.input].shape();

  std::vector<double> uniform(K, 1.0 / K);
  Batch batch;
  if (!input.empty()) {
    batch = read_batch(input, in, K, c.loss.ignore);
    std::fill(uniform.begin(), uniform.end(), 0);
    for (uint8_t m : batch.masks)
      if (m < K) uniform[m] += 1.0 / static_cast<double>(batch.masks.size());
  }
  Trainer trainer(network, loss_function(c, graph, uniform), trainer_options(c, {}));
  if (weights == "init") {
    network.parameters().initialise(c.run.seed, trainer.stream());
  } else {
    load_weights(network, load_checkpoint(weights), trainer.stream());
  }
  if (!save.empty()) save_checkpoint(save, save_weights(network, trainer.stream()));
  if (input.empty()) return 0;

  const float scale = trainer.state().loss_scale;  // gradients are written without it
  const Mode m = mode == "train" ? Mode::train_without_dropout : Mode::gradients_of_eval;
  const Trainer::BatchResult r = trainer.gradients(batch.images, batch.masks, batch.N, m);
  const Shape out = graph.nodes[graph.output].shape();
  std::vector<NpzEntry> entries{npz_entry("logits", {batch.N, out.H, out.W, K}, r.logits.data()),
                                npz_entry("loss", {}, &r.loss)};
  std::vector<std::vector<float>> gradients;
  const auto& params = network.parameters().entries();
  gradients.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    if (!params[i].trainable) continue;
    gradients.push_back(network.parameters().read(static_cast<int>(i), ParamField::gradient, trainer.stream()));
    for (float& g : gradients.back()) g /= scale;
    entries.push_back(npz_entry("grad/" + params[i].name, params[i].shape, gradients.back().data()));
  }
  write_npz(output, entries);
  std::printf("%s: logits %s, loss %.9g, gradients of %zu parameters\n", output.c_str(),
              shape_text(entries[0].shape).c_str(), r.loss, gradients.size());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "engine_verify: %s\n", e.what());
    return 1;
  }
}
