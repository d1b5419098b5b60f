// engine_run CONFIG [key.path=value ...] | [CONFIG] [key.path=value ...] --resume RUN_FOLDER | --explain CONFIG |
// --help-config
#include <cstdio>
#include <filesystem>

#include "app/command_line.h"
#include "app/listeners.h"
#ifdef REGOLITH_TENSORBOARD
#include "app/tensorboard/tensorboard.h"
#endif
#include "app/pseudo.h"
#include "app/ranks.h"
#include "app/training.h"
#include "deploy/pseudo.h"
#include "engine/report/explain.h"
#include "models/reader.h"

int main(int argc, char** argv) {
  using namespace regolith;
  CommandLine p(argc, argv, "engine_run", "Trains the network that a YAML file describes.",
                "engine_run configs/quickstart.yaml train.epochs=3\nengine_run --resume runs/quickstart");
  bool explain_only = false, help = false;
  std::string resume;
  int until = 0;
  p.config_arguments(false);
  p.flag("--explain", explain_only, "print the graph, shapes, parameters, FLOPs, providers and the arena, and stop");
  p.flag("--help-config", help, "print every key with type, default and meaning, and stop");
  p.option("--resume", resume, "a run folder to go on in, with its own configuration unless CONFIG is there");
  p.option("--until", until, "pause after this epoch, on the schedule of the whole run; --resume goes on; 0: do not",
           {.min = 0});
  return p.run([&] {
    if (help) {
      std::printf("%s\n%s", help_config().c_str(), help_models().c_str());
      return 0;
    }
    if (!p.has_config() && resume.empty())
      throw UsageError("name a configuration, for example configs/quickstart.yaml");
    if (explain_only) {
      Experiment experiment(p.load_config(ConfigUse::network), nullptr, true);
      const RunConfig& c = experiment.config;
      std::fputs(explain(experiment.network(), c.train.batch, c.optimizer.moments()).c_str(), stdout);
      const ExchangeOptions exchange{c.run.devices, c.train.accumulate, c.run.reduce, c.train.sync_batch_norm};
      std::fputs(explain_exchange(experiment.network(), c.train.batch, exchange).c_str(), stdout);
      return 0;
    }
    return as_ranks([&](Ranks& ranks) {
      if (!resume.empty()) check_run_folder(resume);
      const std::string own = resume.empty() ? "" : (std::filesystem::path(resume) / "config.yaml").string();
      Interrupts& interrupts = catch_interrupts(ranks.communicator() == nullptr || ranks.communicator()->is_root());
      RunConfig config = p.load_config(ConfigUse::training, {}, own);
      if (ranks.communicator() == nullptr && config.run.devices > 1) ranks.start(config.run.devices, argv);
      config.settle_batch(ranks.communicator() == nullptr ? 1 : ranks.communicator()->size());
      Experiment experiment(std::move(config));
      if (ranks.communicator() != nullptr) experiment.share_with(*ranks.communicator(), ranks.local_rank());
      pseudo_labeller = label_by_runs;
#ifdef REGOLITH_TENSORBOARD
      tensorboard_events = make_tensorboard_events;
#endif
      Training training(experiment, {resume, p.command(), &interrupts, until}, all_listeners(experiment));
      return training.run() || interrupts.signal == 0 ? 0 : 128 + interrupts.signal;
    });
  });
}
