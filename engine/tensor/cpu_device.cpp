// The CPU as a device: its memory is host memory, and a stream runs each piece of work when it is enqueued.
#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "engine/tensor/device.h"
#include "engine/tensor/host_memory.h"

namespace regolith {
namespace {

struct Work {
  const char* name;
  std::function<void()> run;
};

struct Recording {
  std::vector<Work> works;
  bool open = true;
};

struct CpuEvent : Event {
  void synchronize() override {}
  std::shared_ptr<Recording> recording;  // of the stream that recorded the event
};

class CpuStream : public DeviceStream {
 public:
  CpuStream(Execution execution, int threads) : execution_(execution), threads_(threads) {}
  Execution execution() const override { return execution_; }
  int processors() const override { return threads_; }
  void enqueue(const char* name, std::function<void()> work) override {
    if (recording_ && recording_->open) {
      recording_->works.push_back({name, std::move(work)});
    } else {
      work();
    }
  }
  void record(Event& event) override { static_cast<CpuEvent&>(event).recording = recording_; }
  void wait(Event& event) override {  // joins the capture that the event belongs to
    const auto& of_event = static_cast<CpuEvent&>(event).recording;
    if (of_event && of_event->open) recording_ = of_event;
  }
  void synchronize() override {}
  void record_into(std::shared_ptr<Recording> recording) { recording_ = std::move(recording); }

 private:
  Execution execution_;
  int threads_;
  std::shared_ptr<Recording> recording_;
};

struct CpuGraph : CapturedGraph {
  std::shared_ptr<Recording> recording = std::make_shared<Recording>();
  void replay(DeviceStream&) override {
    for (const Work& w : recording->works) w.run();
  }
};

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(": ") + 2);
  }
  return "CPU";
}

class CpuDevice : public Device {
 public:
  CpuDevice(int threads, Execution execution)
      : execution_(execution), threads_(threads > 0 ? threads : omp_get_max_threads()) {
    omp_set_num_threads(threads_);
  }
  DeviceKind kind() const override { return DeviceKind::cpu; }
  Execution execution() const override { return execution_; }
  std::string name() const override {
    return processor_name() + ", " + std::to_string(threads_) + (threads_ == 1 ? " thread" : " threads");
  }
  size_t free_bytes() const override { return available_memory(); }
  void* allocate(size_t bytes) override {
    void* p = ::operator new(bytes > 0 ? bytes : 1, std::align_val_t(256), std::nothrow);
    if (p == nullptr) throw DeviceError("CPU: no memory for " + std::to_string(bytes) + " bytes");
    return p;
  }
  void release(void* p) noexcept override { ::operator delete(p, std::align_val_t(256)); }
  void* allocate_host(size_t bytes) override { return allocate(bytes); }
  void release_host(void* p) noexcept override { release(p); }
  std::unique_ptr<DeviceStream> make_stream() override { return std::make_unique<CpuStream>(execution_, threads_); }
  std::unique_ptr<Event> make_event() override { return std::make_unique<CpuEvent>(); }
  void upload(void* to, const void* from, size_t bytes, DeviceStream& s) override { move(to, from, bytes, s); }
  void download(void* to, const void* from, size_t bytes, DeviceStream& s) override { move(to, from, bytes, s); }
  void copy(void* to, const void* from, size_t bytes, DeviceStream& s) override { move(to, from, bytes, s); }
  void fill(void* to, uint8_t byte, size_t bytes, DeviceStream& s) override {
    s.enqueue("fill", [=] { std::memset(to, byte, bytes); });
  }
  std::unique_ptr<CapturedGraph> capture(DeviceStream& stream, const std::function<void()>& work) override {
    auto graph = std::make_unique<CpuGraph>();
    struct Scope {  // ends also when `work` throws
      Recording& recording;
      ~Scope() { recording.open = false; }
    } scope{*graph->recording};
    static_cast<CpuStream&>(stream).record_into(graph->recording);
    work();
    return graph;
  }

 private:
  static void move(void* to, const void* from, size_t bytes, DeviceStream& s) {
    s.enqueue("copy", [=] { std::memmove(to, from, bytes); });
  }
  Execution execution_;
  int threads_;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads, Execution execution) {
  return std::make_unique<CpuDevice>(threads, execution);
}

}  // namespace regolith
