// The CUDA runtime as a device. A step is captured with cudaStreamBeginCapture (thread-local mode) and replayed.
#include <cuda_profiler_api.h>
#include <cuda_runtime.h>
#include <cudnn.h>

#include <fstream>
#include <string>
#include <utility>

#include "engine/base/error.h"
#include "engine/tensor/device.h"

namespace regolith {
namespace {

void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // what is not sticky shall not surface in the next call
  throw DeviceError("CUDA: " + what + ": " + cudaGetErrorName(status) + " (" + cudaGetErrorString(status) + ")");
}

struct CudaEvent : Event {
  CudaEvent() { check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event"); }
  ~CudaEvent() override { cudaEventDestroy(event); }
  void synchronize() override { check(cudaEventSynchronize(event), "waiting for an event"); }
  cudaEvent_t event = nullptr;
};

struct CudaStream : DeviceStream {
  CudaStream(int device, int count) : index(device), multiprocessors(count) {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  }
  ~CudaStream() override { cudaStreamDestroy(stream); }
  Execution execution() const override { return Execution::gpu; }
  int processors() const override { return multiprocessors; }
  void* native() const override {
    check(cudaSetDevice(index), "selecting the stream's device");
    return stream;
  }
  void enqueue(const char* name, std::function<void()>) override {
    throw DeviceError(std::string("CUDA: '") + name + "' is host work: a CUDA stream takes kernels and copies only");
  }
  void record(Event& event) override {
    check(cudaEventRecord(static_cast<CudaEvent&>(event).event, stream), "recording an event");
  }
  void wait(Event& event) override {
    check(cudaStreamWaitEvent(stream, static_cast<CudaEvent&>(event).event), "making a stream wait for an event");
  }
  void synchronize() override { check(cudaStreamSynchronize(stream), "waiting for a stream"); }
  bool capture_failed() const override {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t asked = cudaStreamIsCapturing(stream, &status);
    return asked != cudaSuccess || status == cudaStreamCaptureStatusInvalidated;
  }
  cudaStream_t stream = nullptr;
  int index, multiprocessors;
};

cudaStream_t native(DeviceStream& stream) { return static_cast<cudaStream_t>(stream.native()); }

struct CudaGraph : CapturedGraph {
  ~CudaGraph() override { cudaGraphExecDestroy(executable); }
  void replay(DeviceStream& stream) override {
    check(cudaGraphLaunch(executable, native(stream)), "replaying a captured graph");
  }
  cudaGraphExec_t executable = nullptr;
};

class CudaDevice : public Device {
 public:
  explicit CudaDevice(int index) : index_(index) {
    int count = 0;
    const cudaError_t found = cudaGetDeviceCount(&count);
    if (found != cudaSuccess || count == 0) {
      cudaGetLastError();
      throw DeviceError(std::string("no CUDA device: ") +
                        (found == cudaSuccess ? "the driver reports none" : cudaGetErrorString(found)) +
                        ": run with run.device=cpu, or install an NVIDIA driver");
    }
    if (index < 0 || index >= count) {
      throw DeviceError("no CUDA device " + std::to_string(index) + ": there are " + std::to_string(count) +
                        ", counted from 0");
    }
    select();
    check(cudaGetDeviceProperties(&properties_, index), "reading the properties of device " + std::to_string(index));
  }

  DeviceKind kind() const override { return DeviceKind::cuda; }
  Execution execution() const override { return Execution::gpu; }
  int index() const override { return index_; }
  std::string name() const override {
    return std::string(properties_.name) + " (sm_" + std::to_string(properties_.major) +
           std::to_string(properties_.minor) + ")";
  }
  std::map<std::string, std::string> versions() const override {
    const auto dotted = [](size_t version, size_t major, size_t minor) {
      return std::to_string(version / major) + "." + std::to_string(version % major / minor);
    };
    int cuda = 0;
    check(cudaDriverGetVersion(&cuda), "asking for the driver's version");
    std::string driver;  // "580.65.06", where the system tells
    std::ifstream("/sys/module/nvidia/version") >> driver;
    const size_t cudnn = cudnnGetVersion();
    return {{"gpu", name() + ", " + std::to_string(properties_.multiProcessorCount) + " multiprocessors"},
            {"driver", (driver.empty() ? "" : driver + ", ") + "CUDA " + dotted(cuda, 1000, 10)},
            {"cuDNN", dotted(cudnn, 10000, 100) + "." + std::to_string(cudnn % 100)}};
  }
  size_t free_bytes() const override {
    size_t free = 0, total = 0;
    select();
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    return free;
  }

  size_t shared_memory() const override { return properties_.sharedMemPerBlockOptin; }

  void* allocate(size_t bytes) override {
    void* p = nullptr;
    select();
    const cudaError_t status = cudaMalloc(&p, bytes > 0 ? bytes : 1);  // 256-byte aligned
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw DeviceError(name() + ": no memory for " + std::to_string(bytes) + " bytes, " +
                        std::to_string(free_bytes()) + " are free: take a smaller train.batch");
    }
    check(status, "allocating " + std::to_string(bytes) + " bytes");
    return p;
  }
  void release(void* memory) noexcept override { cudaFree(memory); }
  void* allocate_host(size_t bytes) override {
    void* p = nullptr;
    select();
    check(cudaMallocHost(&p, bytes > 0 ? bytes : 1), "pinning " + std::to_string(bytes) + " bytes of host memory");
    return p;
  }
  void release_host(void* memory) noexcept override { cudaFreeHost(memory); }

  std::unique_ptr<DeviceStream> make_stream() override {
    select();
    return std::make_unique<CudaStream>(index_, properties_.multiProcessorCount);
  }
  std::unique_ptr<Event> make_event() override {
    select();
    return std::make_unique<CudaEvent>();
  }

  void upload(void* to, const void* from, size_t bytes, DeviceStream& s) override {
    expect_pinned_in_capture(from, s, "upload");
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, native(s)), "upload");
  }
  void download(void* to, const void* from, size_t bytes, DeviceStream& s) override {
    expect_pinned_in_capture(to, s, "download");
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, native(s)), "download");
  }
  void copy(void* to, const void* from, size_t bytes, DeviceStream& s) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, native(s)), "copy");
  }
  void fill(void* to, uint8_t byte, size_t bytes, DeviceStream& s) override {
    check(cudaMemsetAsync(to, byte, bytes, native(s)), "fill");
  }

  void profile(bool on) override {
    select();
    check(on ? cudaProfilerStart() : cudaProfilerStop(), on ? "starting the profiler" : "stopping the profiler");
  }

  std::unique_ptr<CapturedGraph> capture(DeviceStream& stream, const std::function<void()>& work) override {
    struct Recording {  // ends also when `work` throws
      cudaStream_t stream;
      cudaGraph_t graph = nullptr;
      bool open = true;
      cudaError_t end() {
        open = false;
        return cudaStreamEndCapture(stream, &graph);
      }
      ~Recording() {
        if (open) end();
        if (graph != nullptr) cudaGraphDestroy(graph);
        cudaGetLastError();
      }
    };
    check(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal), "beginning a capture");
    Recording recording{native(stream)};
    work();
    check(recording.end(), "ending a capture");
    auto captured = std::make_unique<CudaGraph>();
    check(cudaGraphInstantiate(&captured->executable, recording.graph, 0), "instantiating a captured graph");
    return captured;
  }

 private:
  void select() const { check(cudaSetDevice(index_), "selecting device " + std::to_string(index_)); }
  // A captured copy reads or writes its host memory at every replay: pageable memory would be staged, or gone.
  static void expect_pinned_in_capture(const void* host, DeviceStream& s, const char* what) {
    cudaStreamCaptureStatus status;
    check(cudaStreamIsCapturing(native(s), &status), what);
    if (status == cudaStreamCaptureStatusNone) return;
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, host), what);
    if (attributes.type == cudaMemoryTypeUnregistered) {
      throw DeviceError(std::string("CUDA: ") + what + ": a captured copy needs host memory of allocate_host()");
    }
  }
  int index_;
  cudaDeviceProp properties_{};
};

}  // namespace

std::unique_ptr<Device> make_cuda_device(int index) { return std::make_unique<CudaDevice>(index); }

bool cuda_available() {
  int count = 0;
  const bool found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  cudaGetLastError();
  return found;
}

}  // namespace regolith
