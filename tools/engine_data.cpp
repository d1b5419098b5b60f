#include "app/command_line.h"
#include "app/preview.h"
#include "app/pseudo.h"
#include "deploy/pseudo.h"
#include "deploy/segmenter_arguments.h"
#include "deploy/suspects.h"

using namespace regolith;

int main(int argc, char** argv) {
  CommandLine p(argc, argv, "engine_data", "Looks at the data that networks are trained on.");
  p.subcommand("preview", "Draws training images as they are stored beside what augmentation makes of them.",
               "engine_data preview configs/quickstart.yaml data.augment.preset=massive\n"
               "engine_data preview CONFIG --count 20 --output sheet.png run.seed=7");
  PreviewOptions preview;
  p.config_arguments();
  p.option("--output", preview.output, "the PNG; default: preview.png");
  p.option("--count", preview.count, "images", {.min = 1, .max = 200});
  p.flag("--force", preview.force, "write over what is there");
  p.subcommand(
      "suspects", "Finds the masks that trained networks doubt most: where labels may be wrong.",
      "engine_data suspects runs/a runs/b runs/c --output suspects\n\n"
      "An image is judged by the runs that did not train on it: five runs of other data.split.seed and half of\n"
      "the images held out judge nearly all. Writes suspects.csv and suspects.png, the most doubted first.");
  SuspectsOptions suspects;
  p.option("runs", suspects.runs, "run folders, on the same images", {.required = true});
  p.option("--output", suspects.output, "a folder; default: suspects");
  p.option("--count", suspects.count, "images in the sheet", {.min = 1, .max = 200});
  p.flag("--force", suspects.force, "write over what is there");
  const SegmenterArguments segmenter(p);
  return p.run([&] {
    if (p.chosen("suspects")) {
      suspects.segmenter = segmenter.options();
      find_suspects(suspects);
    }
    if (p.chosen("preview")) {
      pseudo_labeller = label_by_runs;
      Experiment experiment(p.load_config(ConfigUse::training), nullptr, true);
      write_preview(experiment, preview);
    }
    return 0;
  });
}
