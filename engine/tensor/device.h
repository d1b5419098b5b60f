// All that the engine asks of a device, behind one thin interface: the CPU and CUDA. Tests add a simulated device
// (tests/support), which needs no GPU and runs what was launched later, in any order that streams and events allow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "kernels/core/stream.h"

namespace regolith {

enum class DeviceKind { cpu, cuda, simulated };

class Event {
 public:
  virtual ~Event() = default;
  // Blocks the host until the work recorded before the event is done. An event never recorded is done.
  virtual void synchronize() = 0;
};

class DeviceStream : public Stream {
 public:
  virtual void record(Event& event) = 0;
  virtual void wait(Event& event) = 0;  // what follows on this stream waits; the host does not
  virtual void synchronize() = 0;       // the host waits; throws what the work threw
  // Whether what was enqueued last has spoilt the capture that the stream is in.
  virtual bool capture_failed() const { return false; }
};

// Work recorded once and replayed as a whole.
class CapturedGraph {
 public:
  virtual ~CapturedGraph() = default;
  virtual void replay(DeviceStream& stream) = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;
  virtual std::string name() const = 0;     // "AMD EPYC, 2 threads", "NVIDIA H200 (sm_90)"
  virtual Execution execution() const = 0;  // of its streams
  virtual int index() const { return 0; }   // among the devices of its kind
  // JSON, by which cuDNN plans for a device that need not be there; "": it is there.
  virtual std::string description() const { return ""; }
  virtual size_t free_bytes() const = 0;                              // what could be allocated now
  virtual size_t shared_memory() const { return size_t{227} << 10; }  // bytes, of a block of a kernel

  // What results depend on beside the program, by part: gpu, driver, cuDNN. Empty on the CPU.
  virtual std::map<std::string, std::string> versions() const { return {}; }
  // What was chosen here among kernels that round differently: by request, the name of cuDNN's plan. A request that
  // stands here before, as a run's checkpoint has it, gets that plan again where there is one.
  std::map<std::string, std::string>& choices() { return choices_; }

  // 256-byte aligned, contents undefined. Throws DeviceError when there is not enough.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory) noexcept = 0;
  // Host memory that asynchronous copies may use (pinned, on CUDA).
  virtual void* allocate_host(size_t bytes) = 0;
  virtual void release_host(void* memory) noexcept = 0;

  virtual std::unique_ptr<DeviceStream> make_stream() = 0;
  virtual std::unique_ptr<Event> make_event() = 0;

  // Asynchronous, in stream order. Host memory stays valid until the stream gets there.
  virtual void upload(void* device, const void* host, size_t bytes, DeviceStream& stream) = 0;
  virtual void download(void* host, const void* device, size_t bytes, DeviceStream& stream) = 0;
  virtual void copy(void* to, const void* from, size_t bytes, DeviceStream& stream) = 0;  // device to device
  virtual void fill(void* device, uint8_t byte, size_t bytes, DeviceStream& stream) = 0;

  // Tells a profiler that is attached (Nsight Systems, Nsight Compute) to begin and to end recording. The host waits
  // for what was enqueued before. Without a profiler, and on the CPU, nothing happens.
  virtual void profile(bool /*on*/) {}

  // Records what `work` enqueues on `stream` (and on streams that wait for its events, and are joined again) without
  // running it. Kernels must have run before: the first launch of one loads it, which a capture may not.
  virtual std::unique_ptr<CapturedGraph> capture(DeviceStream& stream, const std::function<void()>& work) = 0;

 private:
  std::map<std::string, std::string> choices_;
};

// A piece of device memory that is released with its owner. The device must outlive it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Device& device, size_t bytes) : device_(&device), bytes_(bytes), data_(device.allocate(bytes)) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_ != nullptr) device_->release(data_);
  }
  void swap(DeviceBuffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
  }
  size_t bytes() const { return bytes_; }
  template <class T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Device* device_ = nullptr;
  size_t bytes_ = 0;
  void* data_ = nullptr;
};

// The CPU: memory is host memory, a stream runs each piece of work at once. `execution`: fast, or checked in tests.
// threads 0: as many as the machine has (OMP_NUM_THREADS heeded).
std::unique_ptr<Device> make_cpu_device(int threads = 0, Execution execution = Execution::fast);

// A CUDA device. Throws DeviceError where there is none, or where the build has no CUDA.
std::unique_ptr<Device> make_cuda_device(int index = 0);
bool cuda_available();  // built with CUDA, a driver and at least one device

}  // namespace regolith
