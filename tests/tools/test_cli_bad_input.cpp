// What a user can get wrong: each is one message that says where, and leaves what was there as it was.
#include <filesystem>
#include <map>

#include "engine/io/npy.h"
#include "engine/tensor/device.h"
#include "places.h"
#include "tests/tools/tiny.h"

namespace regolith::testing {
namespace {

namespace fs = std::filesystem;

class CliBadInput : public Cli {
 protected:
  static constexpr int kCount = 12, kPixels = 16 * 32;

  // tiny.yaml with `from` replaced by `to`.
  void edit(const std::string& from, const std::string& to) const {
    std::string text = kTiny;
    const size_t at = text.find(from);
    ASSERT_NE(at, text.npos) << from;
    folder_.write("tiny.yaml", text.replace(at, from.size(), to));
  }
  void data(const std::string& file, std::vector<int64_t> images, std::vector<int64_t> masks, uint8_t id = 1) const {
    const std::vector<uint8_t> pixels(kCount * kPixels * 2, 100);
    std::vector<uint8_t> ids(pixels.size(), 1);
    ids[kPixels + 2 * 32 + 3] = id;
    write_npz(folder_ / file, std::vector{npz_entry("image", std::move(images), pixels.data()),
                                          npz_entry("mask", std::move(masks), ids.data())});
    edit("synthetic: {count: 24, height: 16, width: 32}", "npz: " + file);
  }
  // Names and contents of all files under `folder`.
  std::map<std::string, std::string> contents(const std::string& folder) const {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(folder_ / folder)) {
      const std::string name = fs::relative(entry.path(), folder_.path()).string();
      all[name] = entry.is_regular_file() ? folder_.read(name) : "";
    }
    return all;
  }
};

TEST_F(CliBadInput, CommandLine) {
  refuses({}, {"name a configuration"});
  refuses({"--no-such-flag", "tiny.yaml"}, {"--no-such-flag", "--help"});
  refuses({"nowhere.yaml"}, {"nowhere.yaml"});
  refuses({"tiny.yaml", "--resume", ""}, {"--resume: expected text, found none"});
  refuses({"tiny.yaml", "train.epoch=3"}, {"command line", "train.epoch", "did you mean 'epochs'?"});
  refuses({"tiny.yaml", "trian.epochs=3"}, {"command line", "trian", "did you mean 'train'?"});
  refuses({"tiny.yaml", "train.epochs=many"}, {"command line", "train.epochs", "many"});
  refuses({"tiny.yaml", "epochs"}, {"epochs", "="});
  EXPECT_FALSE(folder_.has("runs"));
}

TEST_F(CliBadInput, Configuration) {
  edit("    e: {block: conv_norm, in: input, filters: 8,", "    e: {block: conv_norm, in: input,");
  refuses({"tiny.yaml"}, {"tiny.yaml:13:8: model.nodes.e", "filters"});
  edit("batch: 4", "batch: four");
  refuses({"tiny.yaml"}, {"tiny.yaml:9:16: train.batch: ", "whole number", "four"});
  edit("block: conv_norm", "block: conv_nrom");
  refuses({"tiny.yaml"}, {"tiny.yaml:13:16: model.nodes.e", "conv_nrom", "did you mean 'conv_norm'?"});
  edit("op: conv,", "op: convv,");
  refuses({"tiny.yaml"}, {"tiny.yaml:14:", "convv", "did you mean 'conv'?"});
  edit("in: e,", "in: f,");
  refuses({"tiny.yaml"}, {"tiny.yaml:14:", "model.nodes.logits", "'f'"});
  edit("batch: 4", "batch: 0");
  refuses({"tiny.yaml"}, {"tiny.yaml:9:16: train.batch: ", "0"});
  edit("patience: 1,", "patience: 1, patients: 2,");
  refuses({"tiny.yaml"}, {"tiny.yaml:8:", "patients", "did you mean 'patience'?"});
  edit("{batch: 4,", "{batch: 4,,,}");
  refuses({"tiny.yaml"}, {"tiny.yaml:9:"});
  edit("synthetic: {count: 24, height: 16, width: 32}", "split: {train: 0.9}");
  refuses({"tiny.yaml"}, {"tiny.yaml:", "data"});
  edit("filters: 5", "filters: 3");
  refuses({"tiny.yaml"}, {"tiny.yaml:4:", "data.classes.names: has 5 entries", "3 classes"});
  edit("batch: 4", "slices: 2, batch: 4");
  refuses({"tiny.yaml"}, {"tiny.yaml:9:", "train.slices: ", "batch norm", "norm: group"});
  refuses({"--explain", "tiny.yaml"}, {"train.slices: ", "batch norm"});
  refuses({"tiny.yaml", "model.nodes.e.norm=group", "loss={combined: [{focal: {}}, {dice: {sums: batch}}]}"},
          {"train.slices: ", "Dice", "per_image"});
  EXPECT_FALSE(folder_.has("runs"));
}

TEST_F(CliBadInput, Data) {
  data("wide.npz", {kCount, 16, 64}, {kCount, 16, 64});
  refuses({"tiny.yaml"}, {"tiny.yaml:11:10: model.input: ", "16x32x1", "wide.npz", "16x64x1"});
  data("odd.npz", {kCount, 16, 32}, {kCount, 16, 32}, 9);
  refuses({"tiny.yaml"}, {"odd.npz: array 'mask': sample 1, row 2, column 3: class id 9", "0 to 4"});
  data("cut.npz", {kCount, 16, 32}, {kCount, 16, 31});
  refuses({"tiny.yaml"}, {"cut.npz: array 'mask': ", "(12, 16, 32)", "(12, 16, 31)"});
  data("good.npz", {kCount, 16, 32}, {kCount, 16, 32});
  const std::string bytes = folder_.read("good.npz");
  for (const size_t size : {bytes.size() / 2, bytes.size() - 10, size_t{0}}) {
    folder_.write("good.npz", bytes.substr(0, size));
    refuses({"tiny.yaml"}, {"good.npz: ", "truncated"});
  }
  folder_.write("good.npz", "these are not arrays at all");
  refuses({"tiny.yaml"}, {"good.npz: not an .npz file"});
  refuses({"tiny.yaml", "data.npz=nowhere.npz"}, {"data.npz", "nowhere.npz"});
  const std::vector<uint8_t> pixels(kPixels, 0);
  write_npz(folder_ / "good.npz", std::vector{npz_entry("photos", {1, 16, 32}, pixels.data())});
  refuses({"tiny.yaml"}, {"good.npz: ", "image", "photos"});
  EXPECT_FALSE(folder_.has("runs"));
}

TEST_F(CliBadInput, KeysThatDoNotFitTheClasses) {
  refuses({"tiny.yaml", "data.classes.names=[a, b]"}, {"data.classes.names: has 2 entries", "5 classes"});
  refuses({"tiny.yaml", "data.classes.colours=[[1, 2, 3]]", "data.classes.names=[]"},
          {"data.classes.colours: has 1 entries", "5 classes"});
  refuses({"tiny.yaml", "data.oversample.class=5", "data.classes.names=[]"}, {"data.oversample.class", "0 to 4"});
  refuses({"tiny.yaml", "data.oversample.class=4", "loss.ignore=4"}, {"data.oversample.class: is loss.ignore"});
  refuses({"tiny.yaml", "data.classes.map={4: 7}"}, {"command line: data.classes.map.4: expected a class, 0 to 4"});
  EXPECT_FALSE(folder_.has("runs"));
}

TEST_F(CliBadInput, OutputFolder) {
  folder_.write("file", "precious");
  refuses({"tiny.yaml", "run.output=file/runs"}, {"file/runs: ", "folder"});
  EXPECT_EQ(folder_.read("file"), "precious");
}

TEST_F(CliBadInput, NoSpaceLeft) {
  ASSERT_EQ(run({"tiny.yaml"}).code, 0);
  const auto before = contents("runs");
  refuses({"tiny.yaml", "train.epochs=4", "--resume", "runs/tiny"}, {"safetensors", "space"}, 2048);
  auto after = contents("runs");
  const std::string last = "runs/tiny/last.safetensors";  // the best weights are small enough to be written anew
  EXPECT_TRUE(before.at(last) == after[last]) << last << " has changed";
  for (const auto& [name, bytes] : after) EXPECT_TRUE(before.contains(name)) << name << " was left behind";
  // The line of the epoch that was not kept is dropped, and the run goes on as if the disk had never been full.
  ASSERT_EQ(run({"tiny.yaml", "train.epochs=4", "--resume", "runs/tiny"}).code, 0);
  ASSERT_EQ(run({"tiny.yaml", "train.epochs=4", "run.name=whole"}).code, 0);
  EXPECT_TRUE(folder_.read("runs/tiny/last.safetensors") == folder_.read("runs/whole/last.safetensors"));
  const std::string lines = folder_.read("runs/tiny/history.jsonl");
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 4);
}

TEST_F(CliBadInput, NoSpaceLeftForWhatIsPrinted) {
  const std::string program = REGOLITH_BINARY_DIR "/bin/engine_run ", error = folder_ / "error";
  for (const std::string words : {"--help", "--help-config"}) {
    EXPECT_EQ(WEXITSTATUS(std::system((program + words + " >/dev/full 2>'" + error + "'").c_str())), 1);
    EXPECT_THAT(folder_.read("error"), ::testing::StartsWith("engine_run: standard output: cannot be written"));
  }
  // A reader that has seen enough is no error.
  EXPECT_EQ(std::system(("bash -c 'set -o pipefail; " + program + "--help-config | head -1 >/dev/null'").c_str()), 0);
}

TEST_F(CliBadInput, NoSpaceLeftForTheHistory) {
  refuses({"tiny.yaml"}, {"cannot write runs/tiny/config.yaml", "space"}, 100);
  EXPECT_EQ(contents("runs"), (std::map<std::string, std::string>{{"runs/tiny", ""}}));
}

TEST_F(CliBadInput, Checkpoint) {
  refuses({"tiny.yaml", "--resume", "runs/none"}, {"runs/none: ", "--resume"});
  folder_.write("file", "precious");
  refuses({"tiny.yaml", "--resume", "file"}, {"file: ", "folder"});
  ASSERT_EQ(run({"tiny.yaml"}).code, 0);
  const std::string last = "runs/tiny/last.safetensors", good = folder_.read(last);
  const auto refused = [&](std::vector<std::string> words, const std::vector<std::string>& parts) {
    const auto before = contents("runs");
    words.insert(words.end(), {"train.epochs=4", "--resume", "runs/tiny"});
    refuses(words, parts);
    EXPECT_TRUE(contents("runs") == before) << parts[0];
  };
  folder_.write(last, good.substr(0, good.size() / 2));
  refused({"tiny.yaml"}, {last + ": ", "truncated"});
  folder_.write(last, good.substr(0, 5));
  refused({"tiny.yaml"}, {last + ": ", "truncated"});
  folder_.write(last, "");
  refused({"tiny.yaml"}, {last + ": ", "truncated"});
  folder_.write(last, std::string(2000, 'x'));
  refused({"tiny.yaml"}, {last + ": ", "safetensors"});
  folder_.write(last, folder_.read("runs/tiny/best.safetensors"));
  refused({"tiny.yaml"}, {last + ": ", "weights, not a training state"});
  fs::remove(folder_ / last);
  refused({"tiny.yaml"}, {last + ": "});
  folder_.write(last, good);
  refused({"tiny.yaml", "run.seed=8"}, {last + ": ", "seed", "runs/tiny/config.yaml"});
  refused({"tiny.yaml", "train.batch=8"}, {last + ": ", "batch", "runs/tiny/config.yaml"});
  edit("filters: 8", "filters: 16");
  refused({"tiny.yaml"}, {last + ": ", "another", "(16, 3, 3, 1)", "(8, 3, 3, 1)"});
  edit("    e: {", "    enc: {");
  folder_.write("other.yaml", folder_.read("tiny.yaml"));
  refused({"other.yaml", "model.nodes.logits.in=enc"}, {last + ": is of another model", "e/"});
}

TEST_F(CliBadInput, NoGpu) {
  if (cuda_available()) GTEST_SKIP() << "there is a GPU here";
  refuses({"tiny.yaml", "run.device=cuda"}, {"CUDA", "run.device=cpu"});
  EXPECT_FALSE(folder_.has("runs"));
}

}  // namespace
}  // namespace regolith::testing
