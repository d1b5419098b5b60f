// The networks against PyTorch in float64: logits, loss, gradients, ten steps of AdamW; and their sizes.
#include <gtest/gtest.h>

#include <cmath>

#include "golden.h"
#include "models/reader.h"
#include "places.h"

namespace regolith::golden {
namespace {

class Golden : public testing::TestWithParam<Setting> {};
class GoldenSteps : public Golden {};
class GoldenBf16 : public Golden {};
class GoldenBf16Steps : public Golden {};

TEST_P(Golden, LogitsLossAndGradientsAreThoseOfPyTorch) { Fixture(GetParam()).expect_batch(fp32_bounds()); }
TEST_P(GoldenSteps, TenStepsHaveTheLossesOfPyTorch) { Fixture(GetParam()).expect_steps(1e-4, 1e-3); }

TEST_P(GoldenBf16, StaysWithinItsRounding) {
  Fixture fixture(GetParam());
  fixture.expect_batch(bf16_bounds(fixture.graph()));
}
// Training corrects the errors of the step before: they do not add up.
TEST_P(GoldenBf16Steps, TenStepsStayWithinTheRoundingOfOne) {
  Fixture fixture(GetParam());
  const Bounds bounds = bf16_bounds(fixture.graph());
  // The statistics are those of the last few steps, whose weights ten roundings of the gradients have moved at random.
  fixture.expect_steps(bounds.loss, std::sqrt(10.0) * bounds.logits);
}

Setting fp32(const std::string& file, const std::string& way, const std::string& key,
             const std::string& loss = "focal") {
  return {file, "", loss, way, {"run.precision=fp32", key}};
}
std::vector<Setting> networks(const std::string& precision) {
  std::vector<Setting> all;
  for (const char* name :
       {"unet", "unet_plus_plus", "se_unet", "double_unet", "unet_plus_plus_full", "unet_transformer"})
    all.push_back({name, "", "focal", precision, {"run.precision=" + precision}});
  return all;
}
// The base U-Net in every way there is to run it.
const Setting kPlain = fp32("unet", "fp32", "run.device=cpu"),
              kFusionOff = fp32("unet", "fusion_off", "graph.fuse=false"),
              kViewsOff = fp32("unet", "views_off", "graph.views=false"),
              kPlanOff = fp32("unet", "plan_off", "graph.plan=false"),
              kReference = fp32("unet", "reference", "conv.provider=reference"),
              kSimulated = fp32("unet", "simulated", "run.device=cpu"),
              kCrossEntropy = fp32("unet", "cross_entropy", "run.device=cpu", "cross_entropy"),
              kBf16{"unet", "", "focal", "bf16", {"run.precision=bf16"}},
              kSimulatedBf16{"unet", "", "focal", "simulated", {"run.precision=bf16"}};
// Where convolutions take the norms.
std::vector<Setting> simulated() {
  std::vector<Setting> all{kSimulatedBf16};
  for (const char* name : {"unet_plus_plus", "se_unet", "double_unet"})
    all.push_back({name, "", "focal", "simulated", {"run.precision=bf16"}});
  return all;
}

const auto name = [](const auto& info) { return info.param.file + "_" + info.param.way; };
INSTANTIATE_TEST_SUITE_P(Networks, Golden, testing::ValuesIn(networks("fp32")), name);
INSTANTIATE_TEST_SUITE_P(Networks, GoldenBf16, testing::ValuesIn(networks("bf16")), name);
INSTANTIATE_TEST_SUITE_P(Ways, Golden,
                         testing::Values(kFusionOff, kViewsOff, kPlanOff, kReference, kSimulated, kCrossEntropy), name);
INSTANTIATE_TEST_SUITE_P(FusionOff, Golden,
                         testing::Values(fp32("unet_plus_plus", "fusion_off", "graph.fuse=false"),
                                         fp32("se_unet", "fusion_off", "graph.fuse=false"),
                                         fp32("double_unet", "fusion_off", "graph.fuse=false")),
                         name);
INSTANTIATE_TEST_SUITE_P(Ways, GoldenSteps, testing::Values(kPlain, kFusionOff, kViewsOff, kReference, kSimulated),
                         name);
INSTANTIATE_TEST_SUITE_P(Simulated, GoldenBf16, testing::ValuesIn(simulated()), name);
INSTANTIATE_TEST_SUITE_P(Ways, GoldenBf16Steps, testing::Values(kBf16, kSimulatedBf16), name);

struct Size {
  const char* file;
  int64_t parameters;
};
class Sizes : public testing::TestWithParam<Size> {};

TEST_P(Sizes, AreThoseThatKerasCounts) {
  Graph g = read_model(
      Yaml::load(std::string(REGOLITH_SOURCE_DIR) + "/configs/models/" + GetParam().file + ".yaml").at("model"));
  g.infer(1);
  EXPECT_EQ(g.parameter_count(), GetParam().parameters);
  EXPECT_EQ(g.nodes[g.output].shape(), (Shape{1, 64, 128, 5}));
  double heads = 0;
  for (const LossHead& head : g.heads) heads += head.weight;
  EXPECT_EQ(heads, 1);
}
INSTANTIATE_TEST_SUITE_P(Networks, Sizes,
                         testing::Values(Size{"unet", 473669}, Size{"unet_plus_plus", 1837509},
                                         Size{"se_unet", 1029172}, Size{"double_unet", 19484230},
                                         Size{"unet_plus_plus_full", 9056820}, Size{"unet_transformer", 934469}),
                         [](const auto& info) { return info.param.file; });

}  // namespace
}  // namespace regolith::golden
