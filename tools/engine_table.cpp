#include <filesystem>

#include "app/command_line.h"
#include "study/study.h"

using namespace regolith;

int main(int argc, char** argv) {
  CommandLine p(
      argc, argv, "engine_table", "Trains a set of configurations, several seeds each, and prints their table.",
      "engine_table configs/table1/*.yaml data.npz=FILE --output table1\n"
      "engine_table a.yaml b.yaml --seeds 5 --jobs 2 --hidden LABELS.npz train.epochs=50\n\n"
      "Run it again to go on after Ctrl-C or to add seeds and configurations: what is finished is not run again.\n"
      "A configuration may hold a `sweep` (engine_run --help-config): a row for each of its combinations.\n"
      "Writes table.md, table.csv, table.html, and a run folder and a log for each seed of each row.");
  StudyOptions o;
  std::vector<std::string> words;
  std::vector<std::string> scores;
  for (const Metric& m : metrics({}, 0, 0))
    if (m.higher_is_better) scores.push_back(m.name);
  p.option("configs", words, "YAML files; key.path=value over what they say", {.required = true});
  p.option("--seeds", o.seeds, "runs of each, with the seeds run.seed, run.seed + 1, ...", {.min = 1, .max = 1000});
  p.option("--jobs", o.jobs, "runs at once; 0: one per GPU, or one", {.min = 0, .max = 1024});
  p.option("--output", o.output, "folder of the table and its runs; default: study");
  p.option("--hidden", o.hidden, ".npz with the masks (N,H,W) of data.npz's test_set, to be scored too");
  p.option("--score", o.score, "of the table's columns; default: miou_foreground", {.names = scores});
  return p.run([&] {
    for (const std::string& word : words)
      (word.find('=') == word.npos || std::filesystem::exists(word) ? o.configs : o.overrides).push_back(word);
    if (o.configs.empty()) throw UsageError("name a configuration, for example configs/quickstart.yaml");
    return run_study(o);
  });
}
