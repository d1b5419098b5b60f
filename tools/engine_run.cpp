// engine_run CONFIG [key.path=value ...] [--resume RUN_FOLDER] | --explain CONFIG | --help-config
#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdio>

#include "engine/base/error.h"
#include "engine/config/run_config.h"
#include "models/reader.h"
#include "tools/fit.h"
#include "tools/session.h"

namespace {

std::atomic<bool> interrupted{false};
void on_signal(int) {
  if (interrupted.exchange(true)) std::_Exit(130);  // a second one does not wait for the step
}

int run(int argc, char** argv) {
  using namespace regolith;
  CLI::App app{"Trains the network that a YAML file describes.", "engine_run"};
  std::string config_file;
  std::vector<std::string> overrides;
  bool explain_only = false, help_config = false;
  FitOptions options;
  app.add_option("config", config_file, "the run's YAML file");
  app.add_option("overrides", overrides, "key.path=value, over what the file says");
  app.add_flag("--explain", explain_only,
               "print the graph, shapes, parameters, FLOPs, providers and the arena, and stop");
  app.add_flag("--help-config", help_config, "print every key with type, default and meaning, and stop");
  app.add_option("--resume", options.resume, "a run folder to go on in");
  app.footer("engine_run configs/quickstart.yaml train.epochs=3\nengine_run CONFIG --resume runs/quickstart");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help
    std::fprintf(stderr, "engine_run: %s; --help tells more\n", e.what());
    return 2;
  }
  if (help_config) {
    std::printf("%s\n%s", config::help_config().c_str(), help_models().c_str());
    return 0;
  }
  if (config_file.empty()) {
    std::fprintf(stderr, "engine_run: name a configuration, for example configs/quickstart.yaml; --help tells more\n");
    return 2;
  }
  const auto use = explain_only ? config::ConfigUse::network : config::ConfigUse::training;
  const config::RunConfig c = config::load_run_config(config_file, overrides, use);
  if (explain_only) {
    const auto device = open_device(c.run);
    Network network(read_model(c.model), *device, network_options(c, *device));
    std::fputs(explain(network, c.train.batch).c_str(), stdout);
    return 0;
  }
  options.command = shell_word(argv[0]) + " " + shell_word(config_file);
  for (const std::string& o : overrides) options.command += " " + shell_word(o);
  options.interrupted = &interrupted;
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  return fit(c, options).interrupted ? 130 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "engine_run: %s\n", e.what());
    return 1;
  }
}
