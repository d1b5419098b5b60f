// Where a network's tensors lie: views instead of copies, and plans that need more memory than there is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/error.h"
#include "engine/report/explain.h"
#include "places.h"
#include "tests/engine/small_training.h"

namespace regolith {
namespace {

using namespace small;

// Of configs/models.
Network unet(Device& device) {
  NetworkOptions options;
  options.conv.provider = "reference";
  return {read_model(Yaml::load(REGOLITH_SOURCE_DIR "/configs/models/unet.yaml").at("model")), device, options};
}

TEST(Views, ConcatOfTheUnetCopiesNothing) {
  auto cpu = make_cpu_device(1);
  Network network = unet(*cpu);
  for (Mode mode : {Mode::train, Mode::eval}) {
    Program& p = network.program(1, mode);
    EXPECT_EQ(p.plan().concat_copies, 0);
    EXPECT_EQ(p.plan().extra_adds, 0);
    int parts = 0;
    for (size_t i = 0; i < p.graph().nodes.size(); ++i) {
      const Node& n = p.graph().nodes[i];
      if (n.op->kind() != "concat") continue;
      int channel = 0;
      for (int in : n.inputs) {
        const TensorView whole = p.value(static_cast<int>(i)), part = p.value(in);
        EXPECT_EQ(part.data, whole.as<float>() + channel) << n.name;
        EXPECT_EQ(part.pitch, whole.C);
        if (mode == Mode::train) {
          EXPECT_EQ(p.gradient(in).data, p.gradient(static_cast<int>(i)).as<float>() + channel);
        }
        channel += part.C;
        ++parts;
      }
    }
    EXPECT_EQ(parts, 4);
  }
}

TEST(Memory, TooLargeABatchNamesTensorsAndOneThatFits) {
  auto cpu = make_cpu_device(1);
  Network network = unet(*cpu);
  try {
    network.program(1 << 14, Mode::train);
    FAIL() << "expected a DeviceError";
  } catch (const DeviceError& e) {
    EXPECT_THAT(e.what(),
                testing::AllOf(testing::HasSubstr("c1"), testing::ContainsRegex("A batch of [0-9]+ would fit$")));
  }
}

// The plan is told whole, and needs none of the memory; slices are advised only where they change nothing.
TEST(Memory, ExplainsABatchThatDoesNotFit) {
  auto cpu = make_cpu_device(1);
  for (const bool couples : {false, true}) {
    NetworkOptions options;
    options.conv.provider = "reference";
    options.reserve = false;
    options.couples_images = couples;
    if (!couples) {  // of its own accord it takes slices, which always fit
      Network sliced(small_unet("group"), *cpu, options);
      EXPECT_THAT(explain(sliced, 1 << 30, 2), testing::Not(testing::HasSubstr("does not fit")));
      options.micro_batches = 1;
    }
    Network network(small_unet("group"), *cpu, options);
    const std::string small = explain(network, 4, 2), large = explain(network, 1 << 30, 2);
    for (const std::string& text : {small, large})
      EXPECT_THAT(text, testing::AllOf(testing::HasSubstr("\narena  "), testing::HasSubstr("\nlargest  ")));
    EXPECT_THAT(small, testing::Not(testing::HasSubstr("does not fit")));
    EXPECT_THAT(large, testing::ContainsRegex(couples ? "\ndoes not fit .* would fit\n$"
                                                      : "\ndoes not fit .*; or set train.slices\n$"));
    EXPECT_EQ(network.arena(), nullptr);
  }
}

}  // namespace
}  // namespace regolith
