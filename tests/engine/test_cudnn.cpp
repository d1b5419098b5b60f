// The provider `cudnn`, through the interface, where there is a GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/conv/builtin.h"
#include "tests/support/conv_check.h"

namespace regolith::testing {
namespace {

// Small, so that weight gradients are exact in 16 bits too; channels as the engines for tensor cores like them.
const ConvShape kShapes[] = {
    {2, 8, 8, 16, 32, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}},  // "same"
    {2, 8, 8, 16, 16, 2, 2, {1, 1}, {1, 1}, {0, 0}, {1, 1}},  // pads on the right and below only
    {1, 8, 8, 16, 16, 3, 3, {1, 1}, {2, 2}, {2, 2}, {2, 2}},  // dilated
    {2, 8, 8, 32, 16, 3, 3, {2, 2}, {1, 1}, {0, 0}, {1, 1}},  // strided: its dgrad is a transposed convolution
    {2, 8, 8, 32, 16, 1, 1},
};

TEST(CudnnCuda, AllDirections) {
  if (!cuda_available()) GTEST_SKIP() << "no CUDA device";
  const auto device = make_cuda_device();
  for (const ConvShape& shape : kShapes) {
    for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
      SCOPED_TRACE(to_string(shape));
      check(cudnn_provider(), *device, {.shape = shape, .type = type});
      check(cudnn_provider(), *device, {.shape = shape, .type = type, .bias = true, .relu = true});
    }
    check(cudnn_provider(), *device, {.shape = shape, .tf32 = true});  // small integers are exact in tf32
  }
}

TEST(Cudnn, OtherDevicesAreRefused) {
  const auto cpu = make_cpu_device(1);
  const auto answer = cudnn_provider().create(*cpu, {.shape = kShapes[0]});
  ASSERT_TRUE(std::holds_alternative<UnsupportedReason>(answer));
  EXPECT_THAT(std::get<UnsupportedReason>(answer).reason, ::testing::HasSubstr("CUDA device"));
}

}  // namespace
}  // namespace regolith::testing
