// engine_bench and engine_profile: what they measure is in their JSON.
#include <nlohmann/json.hpp>

#include "tests/tools/tiny.h"

namespace regolith::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(Cli, BenchTimesACaseBesideItsFloor) {
  const Outcome o = run({"engine_bench", "--all", "--filter", "^add_whole$", "--dtype", "bf16", "--device", "cpu",
                         "--threads", "1", "--seconds", "0", "--json", "bench.json"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, HasSubstr("add_whole"));
  EXPECT_THAT(o.out, HasSubstr("bf16: copy "));
  const json result = json::parse(folder_.read("bench.json"));
  const json& rates = result.at("rates").at("bf16");
  EXPECT_GT(rates.at("copy_bytes_per_second"), 1e8);
  EXPECT_GT(rates.at("matrix_flops_per_second"), 1e8);
  ASSERT_EQ(result.at("cases").size(), 1U);
  const json& row = result.at("cases")[0];
  EXPECT_EQ(row.at("case"), "add_whole");
  EXPECT_EQ(row.at("dtype"), "bf16");
  EXPECT_EQ(row.at("bytes"), 3 * 2 * 3 * 5 * 16 * 2);
  EXPECT_EQ(row.at("flops"), 2 * 3 * 5 * 16);
  EXPECT_GE(row.at("buffers"), 2);
  const double ms = row.at("median_ms"), floor = row.at("floor_ms"), bytes = row.at("bytes");
  EXPECT_GT(ms, 0);
  EXPECT_NEAR(floor, 1e3 * bytes / rates.at("copy_bytes_per_second").get<double>(), 1e-6 * floor);
  EXPECT_NEAR(row.at("of_floor"), floor / ms, 1e-6 * floor / ms);
  EXPECT_NEAR(row.at("gb_per_second"), 1e-6 * bytes / ms, 1e-6 * bytes / ms);
}

TEST_F(Cli, BenchListsLargeCasesUnlessAskedForAll) {
  const Outcome large = run({"engine_bench", "--list"}), all = run({"engine_bench", "--list", "--all"});
  ASSERT_EQ(large.code, 0) << large.err;
  ASSERT_EQ(all.code, 0) << all.err;
  // Each fused kernel is reported.
  for (const char* kernel :
       {"adamw_large", "add_images_large", "add_large", "batch_norm_forward_large", "begin_update_large",
        "bias_forward_large", "group_norm_backward_large", "image_sum_large", "max_pool_backward_large",
        "multiply_forward_large", "relu_forward_large", "resize_forward_bilinear_large", "sample_",
        "sigmoid_forward_large", "softmax_forward_large", "softmax_loss_", "resize_backward_bilinear_twice_large"})
    EXPECT_THAT(large.out, HasSubstr(kernel));
  EXPECT_THAT(large.out, Not(HasSubstr("add_whole")));
  EXPECT_THAT(all.out, HasSubstr("add_whole"));
}

TEST_F(Cli, BenchRefusesWhatItCannotTime) {
  refuses({"engine_bench", "--filter", "no_such_kernel"}, {"no case matches 'no_such_kernel'", "--list"});
  refuses({"engine_bench", "--filter", "("}, {"'('", "regular expression"});
  refuses({"engine_bench", "--filter", "add", "--device", "cpu", "--dtype", "fp16"}, {"fp16", "bf16"});
}

TEST_F(Cli, ProfileRefusesWhatItWouldLeaveOutOrWriteOver) {
  const std::string config = folder_.read("tiny.yaml");
  refuses({"engine_profile", "tiny.yaml", "--batch", "3"}, {"--batch, --slice, --weights: are of --predict"});
  refuses({"engine_profile", "tiny.yaml", "--json", "tiny.yaml"}, {"--json tiny.yaml: expected a name", ".json"});
  refuses({"engine_bench", "--json", "nowhere/b.json"}, {"nowhere/b.json"});
  EXPECT_EQ(folder_.read("tiny.yaml"), config);
}

TEST_F(Cli, ProfilePutsAFloorBesideEachNode) {
  const Outcome o = run({"engine_profile", "tiny.yaml", "--steps", "2", "--warmup", "1", "--json", "profile.json"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, HasSubstr("floor"));
  const json result = json::parse(folder_.read("profile.json"));
  const double copy = result.at("rates").at("copy_bytes_per_second");
  EXPECT_GT(copy, 1e8);
  bool seen = false;
  for (const json& row : result.at("nodes")) {
    if (row.at("node") != "logits") continue;
    seen = true;
    // 4 images of 16x32: 8 channels in, 5 out, 5 * 8 weights and 5 biases; backward reads both maps and the weights and
    // writes one map and the gradients.
    const double pixels = 4.0 * 16 * 32;
    EXPECT_EQ(row.at("forward_bytes"), 4 * (pixels * (8 + 5) + 45));
    EXPECT_EQ(row.at("backward_bytes"), 4 * (pixels * (8 + 5 + 8) + 2 * 45));
    EXPECT_GT(row.at("forward_floor_ms"), 0);
    EXPECT_GE(row.at("backward_floor_ms").get<double>(), 0.999e3 * row.at("backward_bytes").get<double>() / copy);
  }
  EXPECT_TRUE(seen);
}

}  // namespace
}  // namespace regolith::testing
