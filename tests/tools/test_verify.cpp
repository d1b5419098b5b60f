// engine_verify: weights out, logits, loss and gradients of a batch back; and every batch that it refuses.
#include <algorithm>
#include <cmath>

#include "engine/io/npy.h"
#include "engine/io/safetensors.h"
#include "tests/tools/tiny.h"

namespace regolith::testing {
namespace {

class Verify : public Cli {
 protected:
  static constexpr int64_t kN = 3, kH = 16, kW = 32, kPixels = kN * kH * kW;

  Verify() : bytes_(kPixels), floats_(kPixels), ids_(kPixels) {
    for (int64_t i = 0; i < kPixels; ++i) {
      bytes_[i] = static_cast<uint8_t>(i * 37 % 256);
      floats_[i] = static_cast<float>(bytes_[i]) / 255;
      ids_[i] = i / 7 % 5;
    }
  }
  template <class T>
  void batch(const std::vector<T>& images, std::vector<int64_t> shape, std::vector<int64_t> masks = {kN, kH, kW}) {
    write_npz(folder_ / "batch.npz", std::vector{npz_entry("image", std::move(shape), images.data()),
                                                 npz_entry("mask", std::move(masks), ids_.data())});
  }
  std::vector<std::string> words(std::vector<std::string> more = {}) const {
    std::vector<std::string> all{"engine_verify", "tiny.yaml", "--weights", "w.safetensors", "--input",
                                 "batch.npz",     "--output",  "out.npz",   "--force"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  void init(const std::string& file = "w.safetensors", const std::string& seed = "3") const {
    const Outcome o =
        run({"engine_verify", "tiny.yaml", "run.seed=" + seed, "--weights", "init", "--save-weights", file, "--force"});
    ASSERT_EQ(o.code, 0) << o.err;
  }

  std::vector<uint8_t> bytes_;
  std::vector<float> floats_;
  std::vector<int64_t> ids_;
};

TEST_F(Verify, WritesLogitsLossAndGradients) {
  init();
  batch(bytes_, {kN, kH, kW});
  const Outcome o = run(words());
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(o.err, "");
  const Checkpoint weights = load_checkpoint(folder_ / "w.safetensors");
  const NpzReader out(folder_ / "out.npz");
  const NpyArray logits = out.read("logits");
  EXPECT_EQ(logits.shape, (std::vector<int64_t>{kN, kH, kW, 5}));
  EXPECT_EQ(logits.type_name(), "float32");
  for (const double x : logits.as_f64()) ASSERT_TRUE(std::isfinite(x));
  const NpyArray loss = out.read("loss");
  EXPECT_TRUE(loss.shape.empty());
  EXPECT_GT(loss.as_f64()[0], 0);
  EXPECT_LT(loss.as_f64()[0], 1);
  std::vector<std::string> expected{"logits", "loss"};
  for (const auto& [name, tensor] : weights.tensors) {
    if (name.find("running") != name.npos) continue;  // no gradient is taken of the statistics
    expected.push_back("grad/" + name);
    const NpyArray gradient = out.read("grad/" + name);
    EXPECT_EQ(gradient.shape, tensor.shape) << name;
    const std::vector<double> values = gradient.as_f64();
    const bool cancelled = name == "e/1/conv/bias";  // the batch norm after it takes the bias out again
    EXPECT_EQ(std::any_of(values.begin(), values.end(), [](double g) { return g != 0; }), !cancelled) << name;
    for (const double g : values) EXPECT_TRUE(std::isfinite(g)) << name;
  }
  EXPECT_THAT(out.names(), ::testing::UnorderedElementsAreArray(expected));
}

// The loss is that of the logits it stands beside: the focal loss without class 0, over pixels times four classes.
TEST_F(Verify, TheLossIsThatOfTheLogits) {
  init();
  batch(bytes_, {kN, kH, kW});
  ASSERT_EQ(run(words()).code, 0);
  const NpzReader out(folder_ / "out.npz");
  const std::vector<double> logits = out.read("logits").as_f64();
  double sum = 0;
  for (int64_t i = 0; i < kPixels; ++i) {
    double total = 0;
    for (int k = 0; k < 5; ++k) total += std::exp(logits[i * 5 + k]);
    const double p = std::exp(logits[i * 5 + ids_[i]]) / total;
    if (ids_[i] != 0) sum -= 0.25 * (1 - p) * (1 - p) * std::log(p);
  }
  EXPECT_NEAR(out.read("loss").as_f64()[0], sum / (kPixels * 4), 1e-6);
}

// The reader is that of training.
TEST_F(Verify, ReadsNumbersAsTrainingDoes) {
  init();
  batch(bytes_, {kN, kH, kW});
  ASSERT_EQ(run(words()).code, 0);
  const std::string of_bytes = folder_.read("out.npz");
  ASSERT_EQ(run(words({"data.normalise.scale=0.01"})).code, 0);
  EXPECT_FALSE(folder_.read("out.npz") == of_bytes);
  const auto same = [&](const std::vector<std::string>& more = {}) {
    const Outcome o = run(words(more));
    EXPECT_EQ(o.code, 0) << o.err;
    EXPECT_TRUE(folder_.read("out.npz") == of_bytes);
  };
  batch(floats_, {kN, kH, kW, 1});
  same();
  batch(std::vector<int64_t>(bytes_.begin(), bytes_.end()), {kN, kH, kW});
  same();
  for (int64_t& id : ids_) id = id == 3 ? 7 : id;
  batch(bytes_, {kN, kH, kW});
  refuses(words(), {"class id 7: expected 0 to 4"});
  same({"data.classes.map={7: 3}"});
  floats_[7] = 1.05F;
  batch(floats_, {kN, kH, kW, 1});
  EXPECT_THAT(run(words({"data.classes.map={7: 3}"})).out, ::testing::HasSubstr("1 image values beyond 0 to 1"));
  for (float& x : floats_) x *= 2;
  batch(floats_, {kN, kH, kW, 1});
  refuses(words(), {"floats of 0 to 1 or of 0 to 255"});
}

TEST_F(Verify, LeavesIgnoredPixelsOut) {
  init();
  ids_[5] = 255;
  batch(bytes_, {kN, kH, kW});
  refuses(words(), {"class id 255: expected 0 to 4", "loss.ignore"});
  EXPECT_EQ(run(words({"loss.ignore=255"})).code, 0);
}

TEST_F(Verify, ModesAndSeedsDiffer) {
  init();
  init("same.safetensors");
  init("other.safetensors", "4");
  EXPECT_EQ(folder_.read("w.safetensors"), folder_.read("same.safetensors"));
  EXPECT_NE(folder_.read("w.safetensors"), folder_.read("other.safetensors"));
  batch(bytes_, {kN, kH, kW});
  ASSERT_EQ(run(words({"--mode", "train"})).code, 0);
  const std::string train = folder_.read("out.npz");
  ASSERT_EQ(run(words({"--mode", "eval"})).code, 0);
  EXPECT_FALSE(folder_.read("out.npz") == train);  // the norm's statistics: of the batch, and the running ones
}

TEST_F(Verify, ReadsWhatTrainingWrote) {
  ASSERT_EQ(run({"tiny.yaml", "train.epochs=1"}).code, 0);
  batch(bytes_, {kN, kH, kW});
  for (const char* file : {"best", "last"}) {
    std::vector<std::string> w = words();
    w[3] = std::string("runs/tiny/") + file + ".safetensors";
    const Outcome o = run(w);
    EXPECT_EQ(o.code, 0) << file << ": " << o.err;
  }
}

TEST_F(Verify, RefusesBadBatches) {
  init();
  folder_.write("out.npz", "precious");
  batch(bytes_, {kN, kW, kH}, {kN, kW, kH});
  refuses(words(), {"model.input: the model takes images of 16x32x1; batch.npz has 32x16x1"});
  batch(bytes_, {kPixels});
  refuses(words(), {"batch.npz: array 'image': ", "(1536,)"});
  batch(bytes_, {kN, kH, kW}, {kN, kH, kW - 1});
  refuses(words(), {"batch.npz: array 'mask': ", "(3, 16, 31)", "(3, 16, 32)"});
  ids_[kH * kW + 2 * kW + 3] = 5;
  batch(bytes_, {kN, kH, kW});
  refuses(words(), {"batch.npz: array 'mask': sample 1, row 2, column 3: class id 5: expected 0 to 4"});
  ids_[kH * kW + 2 * kW + 3] = -1;
  batch(bytes_, {kN, kH, kW});
  refuses(words(), {"batch.npz: array 'mask': sample 1, row 2, column 3: class id -1"});
  write_npz(folder_ / "batch.npz", std::vector{npz_entry("image", {kN, kH, kW}, bytes_.data()),
                                               npz_entry("labels", {kN, kH, kW}, ids_.data())});
  refuses(words(), {"batch.npz: has no array 'mask'; found: image, labels"});
  folder_.write("batch.npz", "these are not arrays at all");
  refuses(words(), {"batch.npz: not an .npz file"});
  ids_[kH * kW + 2 * kW + 3] = 0;
  batch(bytes_, {kN, kH, kW});
  const std::string good = folder_.read("batch.npz");
  folder_.write("batch.npz", good.substr(0, good.size() / 2));
  refuses(words(), {"batch.npz: ", "truncated"});
  std::vector<std::string> w = words();
  w[5] = "nowhere.npz";
  refuses(w, {"nowhere.npz: cannot be opened"});
  EXPECT_EQ(folder_.read("out.npz"), "precious");
}

TEST_F(Verify, RefusesBadWeightsAndWords) {
  init();
  batch(bytes_, {kN, kH, kW});
  folder_.write("out.npz", "precious");
  refuses(words({"model.nodes.e.filters=4"}), {"w.safetensors: ", "e/", "another"});
  const std::string good = folder_.read("w.safetensors");
  folder_.write("w.safetensors", good.substr(0, good.size() - 4));
  refuses(words(), {"w.safetensors: ", "truncated"});
  std::vector<std::string> w = words();
  w[3] = "nowhere.safetensors";
  refuses(w, {"nowhere.safetensors: "});
  refuses(words({"--mode", "tain"}), {"--mode", "tain", "train"});
  refuses({"engine_verify", "tiny.yaml", "--weights", "init", "--input", "batch.npz"}, {"--output"});
  refuses({"engine_verify", "tiny.yaml", "--weights", "init"}, {"--save-weights"});
  refuses(words({"--precision", "fp8"}), {"run.precision", "fp8"});
  EXPECT_EQ(folder_.read("out.npz"), "precious");
}

TEST_F(Verify, NothingIsWrittenOverUnasked) {
  init();
  batch(bytes_, {kN, kH, kW});
  const std::string weights = folder_.read("w.safetensors"), images = folder_.read("batch.npz");
  std::vector<std::string> w = words();
  w.pop_back();  // --force
  ASSERT_EQ(run(w).code, 0);
  refuses(w, {"out.npz: is there already; --force"});
  refuses({"engine_verify", "tiny.yaml", "--weights", "init", "--save-weights", "w.safetensors"},
          {"w.safetensors: is there already"});
  w.push_back("--force");
  w[7] = "./batch.npz";
  refuses(w, {"./batch.npz: is what is read"});
  refuses(words({"--save-weights", "w.safetensors"}), {"w.safetensors: is what is read"});
  EXPECT_EQ(folder_.read("w.safetensors"), weights);
  EXPECT_EQ(folder_.read("batch.npz"), images);
}

TEST_F(Verify, KeepsTheEarlierResultOnAFullDisk) {
  init();
  batch(bytes_, {kN, kH, kW});
  folder_.write("out.npz", "precious");
  refuses(words(), {"out.npz: cannot be written"}, 1024);
  EXPECT_EQ(folder_.read("out.npz"), "precious");
}

}  // namespace
}  // namespace regolith::testing
