// Ranks over NCCL: the library itself, and on a GPU one rank of its own.
#include <gtest/gtest.h>

#include "engine/comm/nccl.h"
#include "tests/support/message.h"

namespace regolith {
namespace {

TEST(Nccl, IsThereOrSaysWhyNot) {
  if (const std::string refusal = nccl_refusal(); !refusal.empty()) {
    EXPECT_NE(refusal.find("NCCL"), std::string::npos) << refusal;
  }
}

TEST(NcclCuda, MovesWhatARankHas) {
  if (!cuda_available()) GTEST_SKIP() << "no CUDA device";
  if (!nccl_refusal().empty()) GTEST_SKIP() << nccl_refusal();
  const std::unique_ptr<Device> device = make_cuda_device();
  const std::unique_ptr<DeviceStream> stream = device->make_stream();
  const std::unique_ptr<Communicator> one = std::move(make_local(1)[0]);
  const std::unique_ptr<DeviceRanks> ranks = make_nccl_ranks(*one, *device);
  EXPECT_EQ(ranks->name().substr(0, 5), "NCCL ");
  std::vector<float> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const size_t bytes = values.size() * sizeof(float);
  DeviceBuffer mine(*device, bytes), all(*device, bytes);
  device->upload(mine.as(), values.data(), bytes, *stream);
  const auto graph = device->capture(*stream, [&] {
    ranks->gather(*stream, mine.as(), bytes, all.as());
    ranks->sum(*stream, all.as<float>(), 1000);
    ranks->broadcast(*stream, all.as(), bytes, 0);
  });
  graph->replay(*stream);
  std::vector<float> back(values.size());
  device->download(back.data(), all.as(), bytes, *stream);
  stream->synchronize();
  EXPECT_EQ(back, values);
}

}  // namespace
}  // namespace regolith
