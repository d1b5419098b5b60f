// engine_export RUN --output MODEL.onnx [...] | engine_export RUN --check MODEL.onnx: a trained network as an ONNX
// file.
#include <cstdio>
#include <filesystem>
#include <sstream>

#include "app/command_line.h"
#include "app/resume.h"
#include "deploy/onnx/check.h"
#include "deploy/onnx/export.h"
#include "deploy/run_folder.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/atomic_file.h"
#include "engine/ops/freeze.h"
#include "engine/train/weights.h"
#include "models/reader.h"

namespace {

using namespace regolith;
namespace fs = std::filesystem;

void write(Experiment& experiment, Checkpoint weights, const std::string& output, const OnnxOptions& options,
           bool all_classes) {
  const TrainerOptions trained = experiment.trainer_options();
  const OnnxCard card{experiment.config.run.name,
                      kVersion,
                      experiment.class_names(),
                      experiment.class_colours(),
                      all_classes ? std::vector<int>{} : experiment.config.loss.unlearnt(experiment.classes()),
                      trained.divisor,
                      trained.offset};
  Graph graph = read_model(experiment.config.model);
  graph.infer(1);
  freeze(graph, weights);
  graph.infer(1);
  std::string summary;
  const std::string bytes = to_onnx(graph, weights, card, options, &summary);
  write_file_atomically(output, bytes);
  std::printf("%s: %s bytes, ONNX opset %d, IR version %d\n%s", output.c_str(),
              thousands(static_cast<int64_t>(bytes.size())).c_str(), kOnnxOpset, kOnnxIr, summary.c_str());
  if (!card.excluded.empty())
    std::printf("never predicted, as the loss leaves it out: class %s (--all-classes)\n", join(card.excluded).c_str());
}

int check(Experiment& experiment, const Checkpoint& weights, const std::string& file) {
  Network& network = experiment.network();
  load_weights(network, weights, *experiment.device().make_stream());
  const TrainerOptions trained = experiment.trainer_options();
  const OnnxCheck c = check_onnx(file, network, trained.divisor, trained.offset);
  std::printf("%s: ", file.c_str());
  if (c.output != "classes")
    std::printf("%s differ from the engine's by at most %.2g, ", c.output.c_str(), c.difference);
  std::printf("%.4f%% of the pixels have the same class\n", 100 * c.agreeing);
  if (!c.good())
    throw IoError(file + ": is not this network; expected a difference of at most 1e-4 and 99.99% of the pixels");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine p(argc, argv, "engine_export", "Writes a trained network as an ONNX file.",
                "engine_export runs/quickstart --output quickstart.onnx --input uint8 --argmax --dynamic batch");
  std::string folder, output, input = "float32", dynamic, weights = "best", file;
  bool all_classes = false, force = false;
  OnnxOptions o;
  p.option("run", folder, "a run folder: config.yaml and weights", {.required = true});
  p.option("--output", output, "the .onnx to write");
  p.option("--input", input, "of image: float32 (N,C,H,W) or uint8 (N,H,W,C); numbers from 0 to 255 either way",
           {.names = {"float32", "uint8"}});
  p.flag("--argmax", o.argmax, "output classes, uint8 (N,H,W), in place of probabilities (N,K,H,W)");
  p.flag("--logits", o.logits, "output logits (N,K,H,W) too");
  p.option("--dynamic", dynamic, "what is left free: batch, size, or batch,size");
  p.flag("--all-classes", all_classes, "predict classes too that the loss left out");
  p.option("--weights", weights, "best, last, or a .safetensors file");
  p.flag("--force", force, "replace the output where it is there already");
  p.option("--check", file, "compare this .onnx, in Python's onnxruntime, with the engine; exit 1 beyond 1e-4");
  return p.run([&] {
    if (output.empty() && file.empty()) throw UsageError("expected --output MODEL.onnx or --check MODEL.onnx");
    if (!output.empty() && fs::path(output).extension() != ".onnx")
      throw UsageError("--output " + output + ": expected a name that ends in .onnx");
    if (!output.empty() && !force && fs::exists(output))
      throw IoError(output + ": is there already; --force replaces it");
    if (fs::exists(output) && !fs::is_regular_file(output))
      throw IoError(output + ": is no file that could be replaced");
    o.bytes = input == "uint8";
    std::istringstream parts(dynamic);
    for (std::string part; std::getline(parts, part, ',');) {
      if (part != "batch" && part != "size")
        throw UsageError("--dynamic: expected batch, size, or batch,size, not '" + dynamic + "'");
      (part == "batch" ? o.any_batch : o.any_size) = true;
    }
    const TrainedRun run = open_run(folder, weights, {"run.device=cpu", "run.precision=fp32", "conv.provider=auto"});
    Experiment experiment(run.config, make_cpu_device());
    check_parameters(experiment.network(), run.weights);
    if (!output.empty()) write(experiment, run.weights, output, o, all_classes);
    return file.empty() ? 0 : check(experiment, run.weights, file);
  });
}
