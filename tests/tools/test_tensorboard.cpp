// The event files of run.tensorboard, read back by TensorBoard itself.
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "places.h"
#include "tests/tools/tiny.h"

namespace regolith::testing {
namespace {

using nlohmann::json;

class Events : public Cli {
 protected:
  Events() { ::setenv("PYTHONPATH", REGOLITH_PYTHON_PACKAGES, 0); }
  void SetUp() override {
    const std::string import = "python3 -c 'import tensorboard.backend.event_processing.event_accumulator' 2>/dev/null";
    if (std::system(import.c_str()) != 0)
      GTEST_SKIP() << "python3 has no TensorBoard; tools/setup.sh --tests installs it";
  }
  // Of all event files of a run folder: {"scalars": {tag: [[step, value], ...]}, "images": {tag: [height, width]}}.
  json read(const std::string& run) const {
    folder_.write("read.py",
                  "import json, sys\n"
                  "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
                  "e = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'images': 0})\n"
                  "e.Reload()\n"
                  "t = e.Tags()\n"
                  "json.dump({'scalars': {k: [[s.step, s.value] for s in e.Scalars(k)] for k in t['scalars']},\n"
                  "           'images': {k: [[i.step, i.height, i.width, i.encoded_image_string[1:4].decode()]\n"
                  "                          for i in e.Images(k)] for k in t['images']}}, open(sys.argv[2], 'w'))\n");
    const std::string command = "python3 '" + folder_ / "read.py" + "' '" + folder_ / run + "' '" +
                                folder_ / "read.json" + "' 2> '" + folder_ / "read.err" + "'";
    EXPECT_EQ(std::system(command.c_str()), 0) << folder_.read("read.err");
    return json::parse(folder_.read("read.json"));
  }
};

TEST_F(Events, AreWhatTheHistoryHolds) {
  ASSERT_EQ(run({"tiny.yaml", "run.tensorboard=true", "train.ema={decay: 0.9}", "--until", "1"}).code, 0);
  const Outcome o = run({"--resume", "runs/tiny"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, ::testing::HasSubstr("events.out.tfevents."));
  const json events = read("runs/tiny");
  std::istringstream lines(folder_.read("runs/tiny/history.jsonl"));
  for (int epoch = 1; epoch <= 2; ++epoch) {
    std::string line;
    std::getline(lines, line);
    const json record = json::parse(line);
    const auto expect = [&](const std::string& tag, const json& value) {
      ASSERT_TRUE(events.at("scalars").contains(tag)) << tag << events.dump();
      const json& point = events.at("scalars").at(tag).at(epoch - 1);
      EXPECT_EQ(point.at(0), epoch) << tag;
      EXPECT_FLOAT_EQ(point.at(1).get<float>(), value.get<float>()) << tag;
    };
    expect("loss/train", record.at("loss"));
    expect("learning_rate", record.at("lr"));
    expect("loss/validation", record.at("val_loss"));
    expect("validation/miou_foreground", record.at("val_miou_foreground"));
    expect("validation_iou/soil", record.at("val_iou").at(1));
    expect("loss/validation_ema", record.at("val_ema_loss"));
    expect("validation_ema/miou", record.at("val_ema_miou"));
    expect("validation_ema_iou/soil", record.at("val_ema_iou").at(1));
  }
  const json scores = json::parse(folder_.read("runs/tiny/scores.json"));
  EXPECT_FLOAT_EQ(events.at("scalars").at("test_best/miou").at(0).at(1).get<float>(), scores.at("miou").get<float>());
  const json& panel = events.at("images").at("panels").at(0);
  EXPECT_EQ(panel.at(0), 2);
  EXPECT_GE(panel.at(2), 3 * 32);
  EXPECT_EQ(panel.at(3), "PNG");
}

}  // namespace
}  // namespace regolith::testing
