#include "app/command_line.h"
#include "app/preview.h"

using namespace regolith;

int main(int argc, char** argv) {
  CommandLine p(argc, argv, "engine_data", "Shows the data of a configuration before it trains.");
  p.subcommand("preview", "Draws training images as they are stored beside what augmentation makes of them.",
               "engine_data preview configs/quickstart.yaml data.augment.preset=massive\n"
               "engine_data preview CONFIG --count 20 --output sheet.png run.seed=7");
  PreviewOptions preview;
  p.config_arguments();
  p.option("--output", preview.output, "the PNG; default: preview.png");
  p.option("--count", preview.count, "images", {.min = 1, .max = 200});
  p.flag("--force", preview.force, "write over what is there");
  return p.run([&] {
    if (p.chosen("preview")) {
      Experiment experiment(p.load_config(ConfigUse::training), nullptr, true);
      write_preview(experiment, preview);
    }
    return 0;
  });
}
