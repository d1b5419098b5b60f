#include "engine/comm/device_ranks.h"

#include <algorithm>
#include <vector>

#include "engine/comm/socket.h"
#ifdef REGOLITH_CUDA
#include "engine/comm/nccl.h"
#endif

namespace regolith {
namespace {

class HostRanks : public DeviceRanks {
 public:
  HostRanks(Communicator& ranks, Device& device, std::string why)
      : ranks_(ranks), device_(device), why_(std::move(why)) {}
  int size() const override { return ranks_.size(); }
  std::string name() const override { return "through the host" + why_; }

  void gather(Stream& s, const void* mine, size_t bytes, void* all) override {
    auto& stream = static_cast<DeviceStream&>(s);  // as all streams of the engine
    if (is_host()) return ranks_.gather(mine, bytes, all);
    own_.resize(bytes);
    all_.resize(bytes * size());
    download(own_.data(), mine, bytes, stream);
    ranks_.gather(own_.data(), bytes, all_.data());
    upload(all, all_.data(), all_.size(), stream);
  }
  void sum(DeviceStream& stream, float* values, int64_t count) override {
    if (is_host()) return ranks_.sum(values, count);
    own_.resize(count * sizeof(float));
    download(own_.data(), values, own_.size(), stream);
    ranks_.sum(reinterpret_cast<float*>(own_.data()), count);
    upload(values, own_.data(), own_.size(), stream);
  }
  void broadcast(DeviceStream& stream, void* data, size_t bytes, int from) override {
    if (is_host()) return ranks_.broadcast(data, bytes, from);
    own_.resize(bytes);
    if (ranks_.rank() == from) download(own_.data(), data, bytes, stream);
    ranks_.broadcast(own_.data(), bytes, from);
    if (ranks_.rank() != from) upload(data, own_.data(), bytes, stream);
  }

 private:
  // Its streams run each piece of work at once.
  bool is_host() const { return device_.kind() == DeviceKind::cpu; }
  void download(void* host, const void* data, size_t bytes, DeviceStream& stream) {
    device_.download(host, data, bytes, stream);
    stream.synchronize();
  }
  void upload(void* data, const void* host, size_t bytes, DeviceStream& stream) {
    device_.upload(data, host, bytes, stream);
    stream.synchronize();  // the host's memory is free again
  }

  Communicator& ranks_;
  Device& device_;
  std::string why_;
  std::vector<unsigned char> own_, all_;
};

}  // namespace

std::unique_ptr<DeviceRanks> make_device_ranks(Communicator& ranks, Device& device) {
  std::string refusal = "no CUDA device", gpu;
#ifdef REGOLITH_CUDA
  if (device.kind() == DeviceKind::cuda) refusal = nccl_refusal(), gpu = gpu_of(device);
#endif
  // All of them must come to the same answer.
  const std::vector<std::string> refusals = ranks.gather(refusal);
  std::vector<std::string> gpus = ranks.gather("GPU " + gpu + " of " + host_name());
  if (const auto refused = std::ranges::find_if(refusals, [](const auto& r) { return !r.empty(); });
      refused != refusals.end())
    return std::make_unique<HostRanks>(ranks, device, gpu.empty() ? "" : " (" + *refused + ")");
  std::ranges::sort(gpus);
  if (const auto shared = std::ranges::adjacent_find(gpus); shared != gpus.end())  // which NCCL refuses
    return std::make_unique<HostRanks>(ranks, device, " (several ranks share " + *shared + ")");
#ifdef REGOLITH_CUDA
  return make_nccl_ranks(ranks, device);
#else
  return nullptr;  // not reached: there are CUDA devices
#endif
}

}  // namespace regolith
