#include "deploy/pseudo.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "app/command_line.h"
#include "app/listeners.h"
#include "app/pseudo.h"
#include "app/training.h"
#include "deploy/run_folder.h"
#include "engine/io/npy.h"
#include "kernels/augment_options.h"
#include "tests/deploy/run.h"
#include "tests/support/message.h"

namespace regolith::testing {
namespace {

using ::testing::HasSubstr;

constexpr int kCount = 20, kMore = 4, kH = 16, kW = 24, kPixels = kH * kW;
constexpr uint8_t kDark = 20, kGrey = 128, kBright = 235, kNone = kernels::kAbsentClass;

// The teacher knows: class 1 below the middle grey, class 2 above it, and nothing of the middle itself.
class Pseudo : public ::testing::Test {
 protected:
  Pseudo() {
    pseudo_labeller = label_by_runs;
    std::vector<uint8_t> images(kCount * kPixels), masks(images.size()), more(kMore * kPixels), narrow(kPixels / 2);
    for (size_t i = 0; i < images.size(); ++i) {
      images[i] = i / kPixels % 2 == 0 ? kDark : kBright;
      masks[i] = images[i] == kDark ? 1 : 2;
    }
    for (int i = 0; i < kPixels; ++i) {
      more[i] = i % kW < kW / 2 ? kDark : kBright;
      more[kPixels + i] = kGrey;
      more[2 * kPixels + i] = i < kPixels / 4 ? kBright : kGrey;
      more[3 * kPixels + i] = kDark;
    }
    write_npz(folder / "data.npz", std::vector{npz_entry("image", {kCount, kH, kW}, images.data()),
                                               npz_entry("mask", {kCount, kH, kW}, masks.data()),
                                               npz_entry("more", {kMore, kH, kW}, more.data()),
                                               npz_entry("grey", {1, kH, kW}, more.data() + kPixels),
                                               npz_entry("narrow", {1, kH, kW / 2}, narrow.data())});
    teacher("teacher");
  }
  ~Pseudo() override { pseudo_labeller = nullptr; }

  std::string teacher(const std::string& name, const std::string& more = "") const {
    return make_run(folder, name, kPixelModel + more, 1, know_greys);
  }
  RunConfig config(const std::string& pseudo, std::vector<std::string> overrides = {}) const {
    const std::string yaml = std::string(kPixelModel) +
                             "run: {device: cpu, precision: fp32, threads: 1, name: student}\n"
                             "train: {batch: 4, epochs: 3, panels: 0}\n"
                             "data: {npz: data.npz, split: {train: 0.6, validation: 0.2, test: 0.2}, pseudo: " +
                             pseudo + "}\n";
    overrides.push_back("run.output=" + folder.path.string());
    return read_run_config(Yaml::load_string(yaml, folder / "c.yaml").with_overrides(overrides), ConfigUse::training);
  }
  bool train(const RunConfig& config, const std::string& resume = "", int until = 0) const {
    Experiment experiment(config);
    return Training(experiment, {resume, "engine_run", nullptr, until}, all_listeners(experiment)).run();
  }
  std::string error(const std::string& pseudo, std::vector<std::string> overrides = {}) const {
    return message([&] { Experiment(config(pseudo, std::move(overrides))).data(); });
  }
  std::string read(const std::string& file) const {
    std::ifstream in(folder / file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  Folder folder{"regolith_pseudo"};
};

TEST_F(Pseudo, LabelsWhatTheNetworkIsSureOf) {
  Experiment experiment(config("{run: teacher, images: more}"));
  const ExperimentData& d = experiment.data();
  ASSERT_EQ(d.images.count, kCount + kMore);
  const auto expect = [&](int image, auto&& wanted) {
    for (int i = 0; i < kPixels; ++i) ASSERT_EQ(d.images.mask(kCount + image)[i], wanted(i)) << image << ": " << i;
  };
  expect(0, [](int i) { return i % kW < kW / 2 ? 1 : 2; });
  expect(1, [](int) { return kNone; });
  expect(2, [](int i) { return i < kPixels / 4 ? 2 : kNone; });
  expect(3, [](int) { return 1; });
  // Image 1 has nothing to teach.
  EXPECT_EQ(d.pseudo, (std::vector<int64_t>{kCount, kCount + 2, kCount + 3}));
  EXPECT_EQ(d.draws, 12 + 3);
  EXPECT_EQ(d.train.size() + d.validation.size() + d.test.size(), size_t{kCount});
  EXPECT_THAT(d.frequencies, ::testing::ElementsAre(0, .5, .5)) << "of the truth alone";
  EXPECT_THAT(d.report, HasSubstr("pseudo-labels: 4 images of "));
  EXPECT_THAT(d.report, HasSubstr(": 56.2% of the pixels have one: class 1 66.67%, class 2 33.33%\n"));
  EXPECT_THAT(d.list(), HasSubstr("\n0,\"\",pseudo,1\n2,\"\",pseudo,1\n3,\"\",pseudo,1\n"));
  EXPECT_EQ(d.images.name(kCount + 2), "unlabelled sample 2");
  std::vector<int32_t> order = experiment.order(0);
  EXPECT_EQ(std::ranges::count_if(order, [](int32_t entry) { return entry >> 1 >= kCount; }), 3);
}

TEST_F(Pseudo, ManyNetworksAgreeByTheirMean) {
  make_run(folder, "blank", kPixelModel, 1, [](Checkpoint& c) {
    for (auto& [name, tensor] : c.tensors) c.set<float>(name, tensor.shape, std::vector<float>(c.floats(name).size()));
  });
  // Sure and without an opinion: (1 + 1/3) / 2.
  Experiment less(config("{run: [teacher, blank], images: more, min_confidence: 0.66}"));
  EXPECT_EQ(less.data().images.mask(kCount)[0], 1);
  EXPECT_THAT(error("{run: [teacher, blank], images: more, min_confidence: 0.67}"),
              HasSubstr("data.npz: no pixel's class has a probability of data.pseudo.min_confidence = 0.67 or more"));
}

TEST_F(Pseudo, BalanceCountsThemOnce) {
  Experiment experiment(config("{run: teacher, images: more}", {"data.balance={threshold: 1}"}));
  const ExperimentData& d = experiment.data();
  ASSERT_EQ(d.repeats.size(), d.epoch.size());
  EXPECT_EQ(d.repeats.back(), 1);
  EXPECT_EQ(d.draws, std::llround(std::accumulate(d.repeats.begin(), d.repeats.end(), 0.)));
}

TEST_F(Pseudo, ARunGoesOnWithoutItsTeacher) {
  const std::string pseudo = "{run: teacher, images: more}";
  ASSERT_TRUE(train(config(pseudo, {"run.name=whole"})));
  const RunConfig parts = config(pseudo, {"run.name=parts"});
  ASSERT_FALSE(train(parts, "", 2));
  std::filesystem::rename(folder / "teacher", folder / "gone");
  ASSERT_TRUE(train(parts, folder / "parts"));
  for (const char* file : {"/last.safetensors", "/scores.json", "/pseudo.npz"})
    EXPECT_TRUE(read(std::string("parts") + file) == read(std::string("whole") + file)) << file;
  // Its masks alone are scored when it is read again.
  EXPECT_FALSE(training_config(folder / "parts").data.pseudo);

  std::filesystem::remove(folder / "parts/pseudo.npz");
  EXPECT_THAT(message([&] { train(parts, folder / "parts"); }),
              HasSubstr("data.pseudo.run: there is no such run folder: "));
  const std::vector<uint8_t> other(kPixels);
  write_npz(folder / "parts/pseudo.npz", std::vector{npz_entry("mask", {1, kH, kW}, other.data())});
  EXPECT_THAT(message([&] { train(parts, folder / "parts"); }),
              HasSubstr("pseudo.npz: array 'mask': are not the labels of the 4 images that data.pseudo names"));
}

TEST_F(Pseudo, WhatCannotBeLabelled) {
  EXPECT_THAT(error("{images: more}"), HasSubstr("data.pseudo.run: this key is missing"));
  EXPECT_THAT(error("{run: []}"), HasSubstr("data.pseudo.run: names no run"));
  EXPECT_THAT(error("{run: nowhere, images: more}"), HasSubstr("there is no such run folder: "));
  EXPECT_THAT(error("{run: teacher, images: nothing}"), HasSubstr("nothing"));
  EXPECT_THAT(error("{run: teacher, images: narrow}"), HasSubstr("image 0 is 16x12x1; expected 16x24x1"));
  EXPECT_THAT(error("{run: teacher, images: grey}"), HasSubstr("no pixel's class has a probability"));
  EXPECT_THAT(error("{run: teacher, images: more, min_confidence: 1.5}"), HasSubstr("min_confidence"));
  EXPECT_THAT(message([&] {
                read_run_config(Yaml::load_string(std::string(kPixelModel) +
                                                      "data: {synthetic: {height: 16, width: 24}, pseudo: {run: t}}",
                                                  folder / "c.yaml"),
                                ConfigUse::training);
              }),
              HasSubstr("data.pseudo.from: is needed: auto is data.npz, but the data is another source"));
  teacher("named", "data: {classes: {names: [a, b, c]}}\n");
  EXPECT_THAT(error("{run: named, images: more}"),
              HasSubstr("named has 1 channels and the classes a, b, c; this run has 1 and class 0, class 1, class 2"));
  pseudo_labeller = nullptr;
  EXPECT_THAT(error("{run: teacher, images: more}"),
              HasSubstr("data.pseudo: this program applies no trained networks"));
}

}  // namespace
}  // namespace regolith::testing
