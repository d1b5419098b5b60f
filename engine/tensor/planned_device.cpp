#include "engine/tensor/planned_device.h"

#include "engine/base/error.h"

namespace regolith {
namespace {

// What runs on any GPU is what the simulated device runs: kernels of our own, and loops in place of a library.
class PlannedDevice : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::simulated; }
  Execution execution() const override { return Execution::gpu; }
  std::string name() const override { return "a GPU that is only planned for"; }
  size_t free_bytes() const override { return 0; }
  void* allocate(size_t) override { refuse(); }
  void release(void*) noexcept override {}
  void* allocate_host(size_t) override { refuse(); }
  void release_host(void*) noexcept override {}
  std::unique_ptr<DeviceStream> make_stream() override { refuse(); }
  std::unique_ptr<Event> make_event() override { refuse(); }
  void upload(void*, const void*, size_t, DeviceStream&) override { refuse(); }
  void download(void*, const void*, size_t, DeviceStream&) override { refuse(); }
  void copy(void*, const void*, size_t, DeviceStream&) override { refuse(); }
  void fill(void*, uint8_t, size_t, DeviceStream&) override { refuse(); }
  std::unique_ptr<CapturedGraph> capture(DeviceStream&, const std::function<void()>&) override { refuse(); }

 private:
  [[noreturn]] void refuse() const { throw DeviceError(name() + ": nothing runs there"); }
};

}  // namespace

std::unique_ptr<Device> make_planned_device() { return std::make_unique<PlannedDevice>(); }

}  // namespace regolith
