// The CPU as a device: its memory is host memory, and a stream runs each piece of work when it is enqueued.
#include <omp.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <utility>
#include <vector>

#include "engine/tensor/device.h"
#include "kernels/core/error.h"

namespace regolith {
namespace {

struct Work {
  const char* name;
  std::function<void()> run;
};

struct CpuEvent : Event {
  void synchronize() override {}
};

class CpuStream : public DeviceStream {
 public:
  CpuStream(Execution execution, int threads) : execution_(execution), threads_(threads) {}
  Execution execution() const override { return execution_; }
  int processors() const override { return threads_; }
  void enqueue(const char* name, std::function<void()> work) override {
    if (recording_ != nullptr) {
      recording_->push_back({name, std::move(work)});
    } else {
      work();
    }
  }
  void record(Event&) override {}
  void wait(Event&) override {}
  void synchronize() override {}
  void record_into(std::vector<Work>* list) { recording_ = list; }

 private:
  Execution execution_;
  int threads_;
  std::vector<Work>* recording_ = nullptr;
};

struct CpuGraph : CapturedGraph {
  std::vector<Work> works;
  void replay(DeviceStream&) override {
    for (const Work& w : works) w.run();
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
  std::string name() const override {
    return processor_name() + ", " + std::to_string(threads_) + (threads_ == 1 ? " thread" : " threads");
  }
  size_t free_bytes() const override {
    return static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  }
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
    auto& s = static_cast<CpuStream&>(stream);
    struct Recording {  // ends also when `work` throws
      CpuStream& stream;
      ~Recording() { stream.record_into(nullptr); }
    } recording{s};
    s.record_into(&graph->works);
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
