#include "tests/support/described_device.h"

#include <cstdlib>
#include <utility>

#include "engine/base/error.h"

namespace regolith {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw DeviceError("a device that is only described: " + what); }

struct DescribedStream : DeviceStream {
  Execution execution() const override { return Execution::gpu; }
  int processors() const override { return 132; }
  void enqueue(const char* name, std::function<void()>) override { refuse(name); }
  void record(Event&) override {}
  void wait(Event&) override {}
  void synchronize() override {}
};

class DescribedDevice : public Device {
 public:
  DescribedDevice(std::string name, std::string json) : name_(std::move(name)), json_(std::move(json)) {}
  DeviceKind kind() const override { return DeviceKind::cuda; }
  Execution execution() const override { return Execution::gpu; }
  std::string name() const override { return name_ + " (described)"; }
  std::string description() const override { return json_; }
  size_t free_bytes() const override { return size_t{64} << 30; }
  // Addresses to plan with: nobody writes there.
  void* allocate(size_t bytes) override { return std::aligned_alloc(256, (bytes / 256 + 1) * 256); }
  void release(void* memory) noexcept override { std::free(memory); }
  void* allocate_host(size_t bytes) override { return allocate(bytes); }
  void release_host(void* memory) noexcept override { release(memory); }
  std::unique_ptr<DeviceStream> make_stream() override { return std::make_unique<DescribedStream>(); }
  std::unique_ptr<Event> make_event() override { refuse("an event"); }
  void upload(void*, const void*, size_t, DeviceStream&) override { refuse("upload"); }
  void download(void*, const void*, size_t, DeviceStream&) override { refuse("download"); }
  void copy(void*, const void*, size_t, DeviceStream&) override { refuse("copy"); }
  void fill(void*, uint8_t, size_t, DeviceStream&) override {}
  std::unique_ptr<CapturedGraph> capture(DeviceStream&, const std::function<void()>&) override { refuse("capture"); }

 private:
  std::string name_, json_;
};

}  // namespace

std::unique_ptr<Device> make_described_device(const std::string& name, const std::string& json) {
  return std::make_unique<DescribedDevice>(name, json);
}

}  // namespace regolith
