// The run configuration: what a good file gives, what a bad one is told, and that the table documents every key.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <sstream>
#include <string>

#include "app/run_config.h"
#include "engine/base/error.h"
#include "places.h"

namespace regolith {
namespace {
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

const std::string kFolder = std::string(REGOLITH_SOURCE_DIR) + "/tests/data/config/";

RunConfig read(const std::string& text, const std::vector<std::string>& overrides = {},
               ConfigUse use = ConfigUse::network) {
  return read_run_config(Yaml::load_string(text + "\nmodel: {input: {}}\n", "t.yaml").with_overrides(overrides), use);
}

std::string error(const std::string& text, const std::vector<std::string>& overrides = {},
                  ConfigUse use = ConfigUse::network) {
  try {
    read(text, overrides, use);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(RunConfig, ReadsTheStudyRecipe) {
  const RunConfig c = load_run_config(kFolder + "study.yaml", {"run.seed=7"}, ConfigUse::network);
  EXPECT_EQ(c.run.name, "se_unet_mars");
  EXPECT_EQ(c.run.seed, 7u);
  EXPECT_EQ(c.run.precision, Precision::bf16);
  EXPECT_TRUE(c.data.clean.drop_shared_masks);
  ASSERT_TRUE(c.data.oversample);
  EXPECT_EQ(c.data.oversample->class_id, 4);
  EXPECT_EQ(c.data.oversample->augment.flip, kernels::Flip::horizontal);
  EXPECT_EQ(c.data.oversample->augment.zoom.low, -0.1f);
  EXPECT_EQ(c.data.oversample->augment.rotation.high, 0.05f);
  EXPECT_EQ(c.data.oversample->augment.translation.width, 0.1f);
  const auto terms = c.loss.terms();
  ASSERT_EQ(terms.size(), 1u);
  const auto& focal = std::get<Focal>(terms[0].kind);
  EXPECT_THAT(focal.exclude, ElementsAre(0));
  EXPECT_THAT(focal.alpha, ElementsAre(0.25));
  EXPECT_EQ(focal.reduction, Reduction::mean_elements);
  EXPECT_EQ(c.optimizer.lr(), 4e-4);
  EXPECT_EQ(std::get<AdamW>(c.optimizer.kind).eps, 1e-7);
  EXPECT_EQ(std::get<ReduceOnPlateau>(c.schedule.kind).min_lr, 1e-5);
  EXPECT_EQ(c.train.early_stopping->patience, 30);
  EXPECT_EQ(c.model.at("nodes").items()[0].key, "e1");
  EXPECT_FALSE(c.data.augment);
  EXPECT_FALSE(c.profile);
}

TEST(RunConfig, PresetsGiveWayToWhatIsWritten) {
  const auto torch = std::get<AdamW>(read("optimizer: {adamw: {weight_decay: 0.5, preset: torch}}").optimizer.kind);
  EXPECT_EQ(torch.eps, 1e-8);
  EXPECT_EQ(torch.weight_decay, 0.5);
  EXPECT_EQ(torch.lr, 1e-3);
}

TEST(RunConfig, CombinedLossesAndWeights) {
  const RunConfig c = read(
      "loss:\n  ignore: 255\n  combined:\n    - {weight: 0.5, focal: {alpha: [1, 2, 3]}}\n"
      "    - dice: {sums: batch, weights: inverse_frequency}\n    - cross_entropy: {weights: [1, 0.5], exclude: 1}\n");
  const auto terms = c.loss.terms();
  ASSERT_EQ(terms.size(), 3u);
  EXPECT_EQ(c.loss.ignore, 255);
  EXPECT_EQ(terms[0].weight, 0.5);
  EXPECT_THAT(std::get<Focal>(terms[0].kind).alpha, ElementsAre(1, 2, 3));
  EXPECT_TRUE(std::get<Dice>(terms[1].kind).weights.inverse_frequency);
  EXPECT_EQ(std::get<Dice>(terms[1].kind).sums, Dice::Sums::batch);
  EXPECT_THAT(std::get<CrossEntropy>(terms[2].kind).weights.values, ElementsAre(1, 0.5));
}

TEST(RunConfig, HeadsAndSamplingByRarityOrLoss) {
  const RunConfig c = read(
      "loss: {focal: {}, heads: {x01: {tversky: {gamma: 1.5}}, x02: {combined: [{lovasz: {}}, {dice: {}}]}}}\n"
      "data: {balance: {threshold: 0.25, augment: {flip: both}}, hard_examples: {share: 0.5}}");
  ASSERT_EQ(c.loss.heads.size(), 2u);
  EXPECT_EQ(std::get<Tversky>(c.loss.heads.at("x01").kind).gamma, 1.5);
  EXPECT_EQ(terms_of(c.loss.heads.at("x02").kind).size(), 2u);
  EXPECT_TRUE(c.loss.couples_images());
  EXPECT_EQ(c.data.balance->threshold, .25);
  EXPECT_EQ(c.data.hard_examples->share, .5);
  EXPECT_THAT(error("data: {balance: {}, oversample: {class: 1}}"),
              HasSubstr("t.yaml:1:17: data.balance: excludes oversample"));
  EXPECT_THAT(error("loss: {heads: {x01: {focl: {}}}}"),
              HasSubstr("t.yaml:1:22: loss.heads.x01.focl: unknown key; did you mean 'focal'?"));
}

TEST(RunConfig, TheCommandLineChoosesAmongAlternatives) {
  const std::string file = "data: {npz: a.npz}\nloss: {focal: {}}\nschedule: {cosine: {}}\ntrain: {early_stopping: {}}";
  const RunConfig c = read(file, {"data.synthetic.count=12", "loss.dice={}", "schedule.constant={}",
                                  "train.early_stopping=null", "run.threads=3"});
  EXPECT_EQ(std::get<Terrain>(c.data.source).count, 12);
  EXPECT_TRUE(std::holds_alternative<Dice>(c.loss.terms()[0].kind));
  EXPECT_TRUE(std::holds_alternative<ConstantSchedule>(c.schedule.kind));
  EXPECT_FALSE(c.train.early_stopping);
  EXPECT_EQ(c.run.threads, 3);
  EXPECT_EQ(read(file, {"run.threads=auto"}).run.threads, 0);
}

TEST(RunConfig, BadInputGetsPlacePathAndExpectation) {
  EXPECT_EQ(error("train:\n  batch: many"),
            "t.yaml:2:10: train.batch: expected a whole number from 1 to 65536, found 'many'");
  EXPECT_EQ(error("train: {batch: 0}"), "t.yaml:1:16: train.batch: expected a whole number from 1 to 65536, found '0'");
  EXPECT_EQ(error("train: {bacth: 3}"), "t.yaml:1:9: train.bacth: unknown key; did you mean 'batch'?");
  EXPECT_EQ(error("trian: {}"), "t.yaml:1:1: trian: unknown key; did you mean 'train'?");
  EXPECT_EQ(error("train: 3"), "t.yaml:1:8: train: expected a map, found '3'");
  EXPECT_THAT(error("train:"), HasSubstr("train: expected a map of keys, found no value"));
  EXPECT_EQ(error("data: {oversample: {factor: 3}}"),
            "t.yaml:1:20: data.oversample.class: this key is missing and has no default");
  EXPECT_EQ(error("data: {npz: a, synthetic: {}}"),
            "t.yaml:1:16: data.synthetic: excludes 'npz', which is set at t.yaml:1:8; keep one of them");
  EXPECT_THAT(error("loss: {focal: {}, combined: [dice: {}]}"), HasSubstr("loss.combined: excludes 'focal'"));
  EXPECT_THAT(error("loss: {focal: }"), HasSubstr("loss.focal: no value; give it one, or {}"));
  EXPECT_THAT(error("loss: {combined: []}"), HasSubstr("loss.combined: expected a list of at least one"));
  EXPECT_THAT(error("loss: {combined: [{dice: {}}, {dce: {}}]}"),
              HasSubstr("loss.combined.1.dce: unknown key; did you mean 'dice'?"));
  EXPECT_THAT(error("loss: {dice: {weights: inverse}}"), HasSubstr("expected inverse_frequency or a list"));
  EXPECT_THAT(
      error("run: {precision: fp166}"),
      HasSubstr("run.precision: expected one of auto, fp32, tf32, fp16, bf16; found 'fp166'; did you mean 'fp16'"));
  EXPECT_THAT(error("train: {steps_per_epoch: 1000000000}"),
              StartsWith("t.yaml:1:9: train.steps_per_epoch: times train.batch is more than 2147483647 images"));
  EXPECT_THAT(error("run: {name: a/b}"), HasSubstr("run.name: expected a name that can be a folder's"));
  EXPECT_THAT(error("run: {seed: -3}"), HasSubstr("run.seed: expected a whole number of at least 0"));
  EXPECT_THAT(error("optimizer: {adamw: {betas: [0.9]}}"), HasSubstr("optimizer.adamw.betas: expected a list of two"));
  EXPECT_THAT(error("optimizer: {adamw: {betas: [0.9, 1.0]}}"), HasSubstr("betas.1: expected a number from 0 to 0.99"));
  EXPECT_THAT(error("data: {augment: {zoom: [1, 2, 3]}}"),
              HasSubstr("expected one number (either way) or [low, high]"));
  EXPECT_THAT(error("data: {split: {train: 0.9}}"),
              HasSubstr("data.split: train + validation + test is 1.1; expected 1"));
  EXPECT_THAT(error("data: {split: {train: 0.9, validation: 0}}\ntrain: {early_stopping: {}}"),
              StartsWith("t.yaml:2:9: train.early_stopping: needs validation images"));
  EXPECT_THAT(error("data: {split: {train: 0.9, validation: 0}}\nschedule: {reduce_on_plateau: {}}"),
              StartsWith("t.yaml:2:12: schedule.reduce_on_plateau: needs validation images"));
  EXPECT_THAT(error("data: {classes: {names: [a, b], colours: [[1, 2, 3]]}}"), HasSubstr("expected 2 colours"));
  EXPECT_THAT(error("data: {classes: {colours: [[1, 2]]}}"), HasSubstr("expected a colour [red, green, blue]"));
  EXPECT_THAT(error("data: {classes: {names: [a, b]}, oversample: {class: 2}}"), HasSubstr("only classes 0 to 1"));
  EXPECT_THAT(error("", {"train.epochs=1.5"}), StartsWith("command line: train.epochs: expected a whole number"));
  try {
    read_run_config(Yaml::load_string("run: {}\n", "t.yaml"), ConfigUse::network);
    ADD_FAILURE() << "a file without a model was taken";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "t.yaml:1:1: model: this key is missing and has no default");
  }
}

TEST(RunConfig, TrainingNeedsDataThatExists) {
  EXPECT_EQ(error("data: {npz: none.npz}"), "no error");
  EXPECT_THAT(error("data: {npz: none.npz}", {}, ConfigUse::training),
              HasSubstr("t.yaml:1:13: data.npz: no such file: /"));
  EXPECT_THAT(error("run: {}", {}, ConfigUse::training),
              HasSubstr("data: no data; expected one of npz, npy, folder, synth"));
  EXPECT_THAT(error("run: {}", {"data.folder={images: '" + kFolder + "', masks: nowhere}"}, ConfigUse::training),
              StartsWith("command line: data.folder.masks: no such folder: /"));
  EXPECT_THAT(error("run: {}", {"data.npz='" + kFolder + "'"}, ConfigUse::training),
              HasSubstr("is a folder, expected a file; folders of pictures go to data.folder"));
  EXPECT_THAT(error("data: {npy: {images: a.npy}}"), HasSubstr("data.npy.masks: this key is missing"));
  EXPECT_EQ(error("data: {synthetic: {}}", {}, ConfigUse::training), "no error");
  // A path of a file is found beside that file.
  const RunConfig c = read_run_config(Yaml::load_string("model: {}\ndata: {npz: base.yaml}", kFolder + "some.yaml"),
                                      ConfigUse::training);
  EXPECT_EQ(std::get<FilePath>(c.data.source).path, kFolder + "base.yaml");
}

TEST(RunConfig, KeysOfDataThatContradictOrDoNothing) {
  const std::string given = "npz: a.npz, arrays: {images: x, masks: y, test: {images: u, masks: v}}";
  EXPECT_EQ(error("data: {" + given + "}"), "no error");
  EXPECT_THAT(error("data: {" + given + ", split: {train: 0.7, validation: 0.2}}"),
              HasSubstr("data.split: has no effect: the source gives validation or test as such"));
  EXPECT_THAT(error("data: {" + given + ", split: {group: scene}}"), HasSubstr("data.split.group: has no effect"));
  EXPECT_THAT(error("data: {" + given + ", split: {files: {test: t.txt}}}"), HasSubstr("split.files: has no effect"));
  EXPECT_THAT(error("data: {" + given + "}\ntrain: {early_stopping: {}}"),
              HasSubstr("train.early_stopping: needs validation images, but none are given"));
  EXPECT_THAT(error("data: {npz: a.npz, split: {files: {test: t.txt}, test: 0.2, train: 0.7}}"),
              HasSubstr("data.split: has no effect beside data.split.files"));
  EXPECT_THAT(error("data: {folder: {images: a, masks: b, validation: {images: a, masks: c}}}"),
              HasSubstr("must be of different images"));
  EXPECT_THAT(error("data: {split: {files: {}}}"), HasSubstr("data.split.files: names no list"));
  EXPECT_THAT(error("data: {folder: {images: a, masks: a}}"), HasSubstr("data: images and masks are the same"));
  EXPECT_THAT(error("data: {npy: {images: a, masks: b}, split: {group: g}}"),
              HasSubstr("data.split.group: is overlap, or needs"));
  EXPECT_EQ(error("data: {npy: {images: a, masks: b}, split: {group: overlap}}"), "no error");
  for (const char* arrays : {"masks: m", "training: t", "test: {images: u, masks: v}"})
    EXPECT_THAT(error("data: {synthetic: {}, arrays: {" + std::string(arrays) + "}}"),
                HasSubstr("data.arrays: names arrays of data.npz, but the data is another source"));
  EXPECT_THAT(error("data: {arrays: {training: t, masks: m}}"), HasSubstr("data.arrays.training: excludes images"));
  EXPECT_THAT(error("data: {npz: a.npz, classes: {from: colours, colours: [[1, 2, 3]]}}"),
              HasSubstr("data.classes.from: colours are of mask files"));
  EXPECT_THAT(error("data: {folder: {images: a, masks: b}, classes: {from: colours}}"),
              HasSubstr("data.classes.from: needs classes.colours"));
  EXPECT_THAT(error("data: {normalise: {low: 3}}"), HasSubstr("data.normalise: low and high go together"));
  EXPECT_THAT(error("data: {normalise: {low: 3, high: 3}}"), HasSubstr("data.normalise.low: expected less than high"));
  EXPECT_THAT(error("data: {normalise: {low: 3, high: 4, bits: 8}}"), HasSubstr("bits: excludes low and high"));
  EXPECT_THAT(error("data: {classes: {map: {one: 1}}}"), HasSubstr("data.classes.map.one: expected an id"));
  EXPECT_THAT(error("data: {classes: {map: {1: none}}}"), HasSubstr("data.classes.map.1: expected a whole number"));
  const IdMap map = read("data: {classes: {map: {255: 1, -1: ignore}}}").data.classes.map;
  EXPECT_EQ(map.ids, (std::map<int64_t, int>{{-1, IdMap::kIgnore}, {255, 1}}));
}

TEST(RunConfig, TheConfigurationsOfTheProjectLoad) {
  const std::filesystem::path configs = std::filesystem::path(REGOLITH_SOURCE_DIR) / "configs";
  EXPECT_TRUE(std::holds_alternative<Terrain>(
      load_run_config(configs / "quickstart.yaml", {}, ConfigUse::training).data.source));
  for (const char* name : {"unet", "se_unet", "unet_plus_plus", "double_unet"}) {
    if (!std::filesystem::exists(configs / "models" / (std::string(name) + ".yaml"))) continue;
    const RunConfig c = load_run_config(configs / "table1" / (std::string(name) + ".yaml"),
                                        {"data.npz=" + kFolder + "base.yaml"}, ConfigUse::training);
    EXPECT_EQ(c.run.name, std::string(name) + "_mars");
    EXPECT_EQ(c.train.batch, 128);
    EXPECT_EQ(c.data.classes.names.size(), 5u);
    EXPECT_TRUE(c.model.find("nodes")) << name;
  }
}

void collect(const Yaml& yaml, std::vector<std::string>& paths) {
  if (!yaml.is_map()) return paths.push_back(yaml.path());
  for (const Yaml::Item& item : yaml.items()) collect(item.value, paths);
}

TEST(RunConfig, WritesItselfAndTheReferenceKnowsEveryKey) {
  const std::string help = help_config();
  const std::vector<std::vector<std::string>> runs = {
      {"data.npz=a.npz", "loss.focal={}", "schedule.cosine={}", "train.early_stopping={}",
       "data.oversample={class: 1}"},
      {"data.npy={images: a, masks: b}", "loss.dice={}", "schedule.polynomial={}", "profile={}", "data.augment={}"},
      {"data.folder={images: a, masks: \"b: c\"}", "optimizer.sgd={}", "schedule.reduce_on_plateau={}"},
      {"data.synthetic={}", "loss.heads={a: {lovasz: {}}}", "data.balance={}", "data.hard_examples={}"},
      {"data.synthetic={}", "loss.cross_entropy={boundary: {}, hard: {}}"},
      {"data.synthetic={}", "loss.combined=[{dice: {}}, {weight: 2, focal: {}}]", "run.name=\"7 \\\" : #\""},
      {"run.name=\"true\"", "optimizer.adamw={preset: torch, lr: 0.1}", "schedule.constant={}", "loss.ignore=255"},
      {"data.npz=a.npz", "data.arrays={images: x, masks: y, test: {images: u, masks: v}}",
       "data.classes.map={3: ignore, 4: 3}", "data.normalise={low: -1, high: 1}"},
      {"data.folder={images: a, masks: b}", "data.classes={from: colours, colours: [[1, 2, 3]]}",
       "data.normalise.bits=12", "data.split.files={validation: v.txt}"}};
  for (const auto& overrides : runs) {
    const RunConfig config = read("", overrides);
    const std::string text = config.to_yaml();
    const Yaml written = Yaml::load_string(text, "written.yaml");
    EXPECT_EQ(read_run_config(written, ConfigUse::network).to_yaml(), text);
    std::vector<std::string> paths;
    collect(written, paths);
    EXPECT_GT(paths.size(), 49u);
    for (const std::string& path : paths)
      if (!path.starts_with("model") && !path.starts_with("data.classes.map.") && !path.starts_with("loss.heads.")) {
        EXPECT_THAT("\n" + help, HasSubstr("\n" + path + ": "));
      }
  }
  std::istringstream lines(help);
  for (std::string key, doc; std::getline(lines, key) && std::getline(lines, doc);)
    EXPECT_GT(doc.size(), 8u) << "no meaning of " << key;
}

}  // namespace
}  // namespace regolith
