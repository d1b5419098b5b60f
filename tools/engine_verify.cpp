// engine_verify CONFIG --weights W.safetensors --input BATCH.npz --output OUT.npz: logits, loss and the gradient of
// every parameter for one batch, to compare with another framework.
#include <cmath>
#include <cstdio>

#include "app/command_line.h"
#include "app/experiment.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/npy.h"
#include "engine/train/weights.h"

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
  for (const double id : mask.as_f64()) {
    const int64_t i = std::ssize(b.masks);
    if (!((id >= 0 && id < classes && id == std::floor(id)) || id == kernels::kAbsentClass ||
          (ignore >= 0 && id == ignore))) {
      throw DataError(mask.where + ": sample " + std::to_string(i / (in.H * in.W)) + ", row " +
                      std::to_string(i / in.W % in.H) + ", column " + std::to_string(i % in.W) + ": class id " +
                      number(id) + "; expected 0 to " + std::to_string(classes - 1));
    }
    b.masks.push_back(static_cast<uint8_t>(id));
  }
  return b;
}

int verify(RunConfig config, const std::string& weights, const std::string& input, const std::string& output,
           const std::string& mode, const std::string& save) {
  Experiment experiment(std::move(config));
  Network& network = experiment.network();
  const Graph& graph = network.graph();
  const int K = experiment.classes();
  std::vector<double> frequencies(K, 1.0 / K);
  Batch batch;
  if (!input.empty()) {
    batch = read_batch(input, graph.nodes[graph.input].shape(), K, experiment.config.loss.ignore);
    std::fill(frequencies.begin(), frequencies.end(), 0);
    for (uint8_t m : batch.masks)
      if (m < K) frequencies[m] += 1.0 / static_cast<double>(batch.masks.size());
  }
  const Loss loss = experiment.loss(frequencies);
  const auto stream = experiment.device().make_stream();
  Evaluator evaluator(network, *stream, loss, experiment.trainer_options());
  if (weights == "init") {
    network.parameters().initialise(experiment.config.run.seed, *stream);
  } else {
    load_weights(network, load_checkpoint(weights), *stream);
  }
  if (!save.empty()) save_checkpoint(save, save_weights(network, *stream));
  if (input.empty()) return 0;

  const Mode m = mode == "train" ? Mode::train_without_dropout : Mode::gradients_of_eval;
  const Evaluator::BatchResult r = evaluator.gradients(batch.images, batch.masks, batch.N, m);
  const Shape out = graph.nodes[graph.output].shape();
  std::vector<NpzEntry> entries{npz_entry("logits", {batch.N, out.H, out.W, K}, r.logits.data()),
                                npz_entry("loss", {}, &r.loss)};
  std::vector<std::vector<float>> gradients;
  const auto& params = network.parameters().entries();
  gradients.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    if (!params[i].trainable) continue;
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
  p.config_arguments();
  p.option("--weights", weights, "a .safetensors file, or init for fresh ones from run.seed", {.required = true});
  p.option("--input", input, "an .npz with image (N,H,W,C) and mask (N,H,W)");
  p.option("--output", output, "the .npz to write: logits, loss, grad/<parameter>");
  p.option("--mode", mode, "train: norms use the batch's statistics; eval: the running ones. Dropout is off",
           {.names = {"train", "eval"}});
  p.option("--precision", precision, "fp32, tf32, fp16 or bf16; over run.precision");
  p.option("--device", device, "cpu or cuda; over run.device");
  p.option("--save-weights", save, "write the weights to this .safetensors");
  return p.run([&] {
    if (input.empty() != output.empty() || (input.empty() && save.empty()))
      throw UsageError("expected --input BATCH.npz and --output OUT.npz, or --save-weights FILE");
    std::vector<std::string> overrides;
    if (!precision.empty()) overrides.push_back("run.precision=" + precision);
    if (!device.empty()) overrides.push_back("run.device=" + device);
    return verify(p.load_config(ConfigUse::network, overrides), weights, input, output, mode, save);
  });
}
