#include "deploy/run_folder.h"

#include <filesystem>

#include "engine/base/error.h"
#include "engine/train/weights.h"

namespace regolith {

namespace fs = std::filesystem;

SourceContext TrainedRun::source_context(int channels, int classes) const {
  return {.classes = classes,
          .channels = channels,
          .seed = config.run.seed,
          .arrays = config.data.arrays,
          .normalise = config.data.normalise,
          .coding = config.data.classes,
          .ignore = config.loss.ignore};
}

TrainedRun open_run(const std::string& folder, const std::string& weights, const std::vector<std::string>& overrides) {
  if (!fs::is_directory(folder))
    throw IoError(folder + ": expected a run folder, as engine_run writes it; there is no such folder");
  const fs::path config = fs::path(folder) / "config.yaml";
  if (!fs::exists(config)) throw IoError(config.string() + ": is missing: " + folder + " is no folder of a run");
  TrainedRun run{.folder = folder,
                 .config = load_run_config(config, overrides, ConfigUse::network),
                 .weights_file = weights,
                 .weights = {}};
  const bool named = weights == "best" || weights == "last";
  if (named) run.weights_file = (fs::path(folder) / (weights + ".safetensors")).string();
  if (!fs::exists(run.weights_file)) {
    const std::string other = weights == "best" ? "last" : "best";
    const bool has_other = named && fs::exists(fs::path(folder) / (other + ".safetensors"));
    throw IoError(run.weights_file + ": is missing" +
                  (has_other ? "; --weights " + other + " is there"
                   : named   ? ": the run has no weights yet; engine_run --resume " + folder + " goes on with it"
                             : ""));
  }
  run.weights = load_checkpoint(run.weights_file, Loading::when_used);
  std::erase_if(run.weights.tensors, [](const auto& tensor) { return is_moment(tensor.first); });
  return run;
}

RunConfig training_config(const std::string& folder) {
  return load_run_config(fs::path(folder) / "config.yaml", {"run.device=cpu", "run.precision=fp32", "data.pseudo=off"},
                         ConfigUse::training);
}

}  // namespace regolith
