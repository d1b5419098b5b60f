// The providers `thin` and `reference`, through the interface: all directions, on the CPU and on the simulated device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/error.h"
#include "engine/conv/builtin.h"
#include "tests/support/conv_check.h"
#include "tests/support/simulated_device.h"

namespace regolith::testing {
namespace {

using ::testing::HasSubstr;

std::string reason(const ConvShape& shape) {
  const auto device = make_cpu_device(1);
  auto answer = thin_provider().create(*device, {.shape = shape});
  const auto* refusal = std::get_if<UnsupportedReason>(&answer);
  return refusal ? refusal->reason : "";
}

const ConvShape kFirstLayer{2, 9, 13, 1, 32, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}};
const ConvShape kClasses{2, 9, 13, 32, 5, 1, 1};
const ConvShape kInner{1, 5, 6, 8, 16, 3, 3, {2, 2}, {2, 2}, {1, 2}, {2, 1}};

TEST(ConvReference, AllDirections) {
  const auto device = make_cpu_device(2);
  for (const DType type : {DType::f32, DType::bf16}) {
    check(reference_provider(), *device, {.shape = kInner, .type = type, .bias = true, .relu = true});
    check(reference_provider(), *device, {.shape = kFirstLayer, .type = type});
  }
}

TEST(ConvThin, FirstLayer) {
  const auto device = make_cpu_device(2);
  for (const DType type : {DType::f32, DType::bf16}) {
    check(thin_provider(), *device, {.shape = kFirstLayer, .type = type, .bias = true, .relu = true});
    check(thin_provider(), *device, {.shape = {1, 6, 7, 3, 16, 2, 2, {1, 1}, {1, 1}, {0, 0}, {1, 1}}, .type = type});
  }
}

TEST(ConvThin, Classes) {
  const auto device = make_cpu_device(2);
  for (const DType type : {DType::f32, DType::bf16})
    check(thin_provider(), *device, {.shape = kClasses, .type = type, .bias = true});
}

TEST(ConvSimulated, BothProvidersOnTheSimulatedDevice) {
  const auto device = make_simulated_device(3);
  check(reference_provider(), *device, {.shape = kInner, .type = DType::bf16, .bias = true});
  check(thin_provider(), *device, {.shape = kFirstLayer, .type = DType::bf16, .bias = true, .relu = true});
  check(thin_provider(), *device, {.shape = kClasses, .type = DType::bf16, .bias = true});
}

TEST(ConvThin, SameBytesForEveryNumberOfThreads) {
  std::vector<std::vector<unsigned char>> first;
  for (const int threads : {1, 2, 3}) {
    const auto device = make_cpu_device(threads);
    Fixture fixture(*device, DType::f32, 11);
    const ConvOracle oracle{{4, 32, 48, 1, 32, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}}};
    const auto convolution = take(thin_provider(), *device, {.shape = oracle.shape});
    Buffer &x = fixture.input("x", oracle.x(), normal()), &dy = fixture.input("dy", oracle.y(), normal());
    Buffer &dw = fixture.output("dw", oracle.w(), DType::f32), &db = fixture.output("db", oracle.bias(), DType::f32);
    convolution->wgrad(fixture.stream(), x.map(), dy.map(), dw.as<float>(), db.as<float>(), false,
                       fixture.workspace(convolution->wgrad_workspace()));
    fixture.stream().synchronize();
    if (threads == 1) first = fixture.written();
    EXPECT_EQ(fixture.written(), first) << threads << " threads";
  }
}

TEST(ConvThin, RefusesWithAReason) {
  EXPECT_EQ(reason(kFirstLayer), "");
  EXPECT_EQ(reason(kClasses), "");
  EXPECT_THAT(reason({1, 8, 8, 32, 64, 3, 3}), HasSubstr("not thin"));
  EXPECT_THAT(reason({1, 8, 8, 32, 5, 3, 3}), HasSubstr("not thin"));
  EXPECT_THAT(reason({1, 8, 8, 32, 5, 1, 1, {1, 1}, {1, 1}, {1, 1}, {0, 0}}), HasSubstr("not thin"));
  EXPECT_THAT(reason({1, 8, 8, 1, 32, 3, 3, {2, 2}}), HasSubstr("strided"));
  EXPECT_THAT(reason({1, 8, 8, 1, 32, 3, 3, {1, 1}, {2, 2}}), HasSubstr("dilated"));
  EXPECT_THAT(reason({1, 8, 8, 1, 24, 3, 3}), HasSubstr("multiple of 16"));
  EXPECT_THAT(reason({1, 32, 32, 4, 64, 7, 7}), HasSubstr("too many"));
  EXPECT_THAT(reason({1, 8, 8192, 1, 32, 3, 3}), HasSubstr("too long"));
  EXPECT_THAT(reason({1, 2, 2, 1, 32, 3, 3}), HasSubstr("larger than the padded image"));
}

}  // namespace
}  // namespace regolith::testing
