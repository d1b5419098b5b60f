// engine_export: from a run folder to an .onnx, the comparison with the engine, and what it refuses.
#include <stdlib.h>

#include <cstdlib>

#include <filesystem>
#include "places.h"
#include "tests/tools/tiny.h"

namespace regolith::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Export : public Cli {
 protected:
  Export() { ::setenv("PYTHONPATH", REGOLITH_PYTHON_PACKAGES, 0); }
  void train() const { ASSERT_EQ(run({"tiny.yaml", "train.epochs=1"}).code, 0); }
  static std::vector<std::string> words(std::vector<std::string> more) {
    more.insert(more.begin(), {"engine_export", "runs/tiny"});
    return more;
  }
};

TEST_F(Export, WritesWhatOnnxRuntimeComputesAlike) {
  train();
  const Outcome o = run(words({"--output", "m.onnx", "--dynamic", "batch,size", "--logits"}));
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, AllOf(HasSubstr("m.onnx: "), HasSubstr("opset 13, IR version 7"),
                           HasSubstr("input  image: float32 (batch, 1, height, width)"),
                           HasSubstr("output logits: float32 (batch, 5, height, width)"),
                           HasSubstr("never predicted, as the loss leaves it out: class 0")));
  if (std::system("python3 -c 'import onnxruntime' 2>/dev/null") != 0)
    GTEST_SKIP() << "python3 has no onnxruntime; tools/setup.sh --tests installs it";
  for (const std::vector<std::string>& way : std::vector<std::vector<std::string>>{
           {}, {"--input", "uint8", "--argmax"}, {"--input", "uint8", "--all-classes", "--weights", "last"}}) {
    std::vector<std::string> w = words({"--output", "n.onnx", "--check", "n.onnx", "--force"});
    w.insert(w.end(), way.begin(), way.end());
    const Outcome checked = run(w);
    EXPECT_EQ(checked.code, 0) << checked.err;
    EXPECT_THAT(checked.out, HasSubstr("of the pixels have the same class"));
  }
  EXPECT_THAT(run(words({"--check", "m.onnx"})).out, HasSubstr("logits differ from the engine's by at most "));
  // Weights of another moment.
  ASSERT_EQ(run({"tiny.yaml", "run.name=other", "run.seed=8", "train.epochs=1"}).code, 0);
  refuses(words({"--check", "m.onnx", "--weights", "runs/other/best.safetensors"}), {"m.onnx: is not this network"});
  ::setenv("PYTHONPATH", "/nowhere", 1);
  refuses(words({"--check", "m.onnx"}), {"python3 cannot run ONNX Runtime: ", "PYTHONPATH"});
  ::setenv("PYTHONPATH", REGOLITH_PYTHON_PACKAGES, 1);
  folder_.write("m.onnx", "these are no nodes at all");
  refuses(words({"--check", "m.onnx"}), {"m.onnx: "});
}

TEST_F(Export, RefusesBadWordsFoldersAndWeights) {
  refuses(words({"--output", "m.onnx"}), {"runs/tiny: expected a run folder"});
  train();
  refuses(words({}), {"--output", "--check"});
  refuses(words({"--output", "m.onnx", "--dynamic", "width"}), {"--dynamic", "width"});
  refuses(words({"--output", "m.onnx", "--input", "int8"}), {"--input", "int8"});
  refuses(words({"--output", "m.onnx", "--weights", "gone.safetensors"}), {"gone.safetensors: "});
  ASSERT_EQ(run({"tiny.yaml", "run.name=wider", "model.nodes.e.filters=6", "train.epochs=1"}).code, 0);
  refuses(words({"--output", "m.onnx", "--weights", "runs/wider/best.safetensors"}),
          {"runs/wider/best.safetensors: ", "another"});
  std::filesystem::remove(folder_ / "runs/tiny/best.safetensors");
  refuses(words({"--output", "m.onnx"}), {"runs/tiny/best.safetensors: is missing", "--weights last is there"});
  std::filesystem::remove(folder_ / "runs/tiny/config.yaml");
  refuses(words({"--output", "m.onnx"}), {"runs/tiny/config.yaml"});
  EXPECT_FALSE(folder_.has("m.onnx"));
}

TEST_F(Export, KeepsWhatIsThere) {
  train();
  folder_.write("m.onnx", "precious");
  refuses(words({"--output", "m.onnx"}), {"m.onnx: is there already; --force replaces it"});
  refuses(words({"--output", "m.onnx", "--force"}), {"m.onnx: "}, 1024);  // a full disk
  EXPECT_EQ(folder_.read("m.onnx"), "precious");
  EXPECT_FALSE(folder_.has("m.onnx.tmp"));
  refuses(words({"--output", "nowhere/m.onnx"}), {"nowhere/m.onnx"});
  std::filesystem::create_directory(folder_ / "folder.onnx");
  refuses(words({"--output", "folder.onnx", "--force"}), {"folder.onnx: is no file"});
  refuses(words({"--output", "runs/tiny/best.safetensors", "--force"}), {"expected a name that ends in .onnx"});
  ASSERT_EQ(run(words({"--output", "m.onnx", "--force"})).code, 0);
  EXPECT_NE(folder_.read("m.onnx"), "precious");
}

}  // namespace
}  // namespace regolith::testing
