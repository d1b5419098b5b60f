// A device that needs no GPU and is as unkind as one may be: what was enqueued runs later, in an order drawn from the
// seed among those that streams and events allow, and its memory is unreadable to host code. The semantics of streams,
// events and capture are those of the CUDA runtime; where that leaves a choice, the stricter one is taken.
#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <typeindex>
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "tests/support/guarded_memory.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

// --- Work ------------------------------------------------------------------------------------------------------------

struct Node {  // of a captured graph
  const char* name;
  std::function<void()> run;
  std::vector<size_t> after;
};
using Nodes = std::vector<Node>;
using Done = std::shared_ptr<bool>;  // of one record of an event

struct Task {  // one of: work, a replayed graph, a record, a wait
  const char* name = "";
  std::function<void()> run;
  std::shared_ptr<const Nodes> graph;
  std::vector<bool> finished;  // nodes of the graph
  Done record, wait;
};

struct Queue {  // of a stream; lives on in the machine until its work is done, as on CUDA
  std::deque<Task> tasks;
  bool capturing = false;
  std::vector<size_t> last;  // nodes of the capture that the next one follows
};

class SimulatedDevice;

struct SimulatedEvent : Event {
  explicit SimulatedEvent(SimulatedDevice& d) : device(d) {}
  void synchronize() override;
  SimulatedDevice& device;
  Done recorded;                 // by the most recent record; null: never
  uint64_t capture = 0;          // the capture that it was recorded in last, 0: none
  std::vector<size_t> captured;  // and the nodes before it
};

struct SimulatedStream : DeviceStream {
  explicit SimulatedStream(SimulatedDevice& d);
  Execution execution() const override;
  int processors() const override { return omp_get_max_threads(); }  // as the CPU device: equal grids, equal results
  void enqueue(const char* name, std::function<void()> work) override;
  void enqueue_copy(const char* name, std::function<void()> work);  // needs no kernel
  void check_argument(const char* kernel, const void* argument, size_t bytes, bool pointer) override;
  void record(Event& event) override;
  void wait(Event& event) override;
  void synchronize() override;
  SimulatedDevice& device;
  std::shared_ptr<Queue> queue;
};

struct SimulatedGraph : CapturedGraph {
  std::shared_ptr<const Nodes> nodes;
  void replay(DeviceStream& stream) override;
};

class SimulatedDevice : public Device {
 public:
  SimulatedDevice(uint64_t seed, Execution execution) : execution_(execution), seed_(seed), random_(seed) {
    constexpr double kEagerness[] = {0, 0.1, 0.5, 0.9};
    eagerness_ = kEagerness[random_() % 4];
  }
  ~SimulatedDevice() override {
    run_until([&] { return idle(); });
    if (error_) std::fprintf(stderr, "%s: work failed and nobody synchronized to hear of it\n", name().c_str());
  }

  DeviceKind kind() const override { return DeviceKind::simulated; }
  std::string name() const override { return "simulated device (seed " + std::to_string(seed_) + ")"; }
  std::map<std::string, std::string> versions() const override { return {{"gpu", "simulated"}, {"driver", "none"}}; }
  size_t free_bytes() const override {
    return static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  }

  void* allocate(size_t bytes) override {
    std::lock_guard lock(mutex_);
    if (nodes_) fail("memory is allocated while a graph is captured: allocate before");
    void* p = memory_.allocate(bytes);
    GuardedMemory::Unlock unlock(memory_);
    std::memset(p, 0xff, bytes);  // NaN: undefined contents are not zeros
    return p;
  }
  void release(void* memory) noexcept override {
    if (memory == nullptr) return;
    std::lock_guard lock(mutex_);
    if (nodes_ && !error_) {
      error_ = std::make_exception_ptr(DeviceError(name() + ": memory is released while a graph is captured"));
    }
    run_until([&] { return idle(); });  // cudaFree waits for the device
    memory_.release(memory);
  }
  void* allocate_host(size_t bytes) override {
    void* p = ::operator new(std::max<size_t>(bytes, 1), std::align_val_t(256));
    std::lock_guard lock(mutex_);
    pinned_[reinterpret_cast<uintptr_t>(p)] = bytes;
    return p;
  }
  void release_host(void* memory) noexcept override {
    if (memory == nullptr) return;
    std::lock_guard lock(mutex_);
    run_until([&] { return idle(); });
    pinned_.erase(reinterpret_cast<uintptr_t>(memory));
    ::operator delete(memory, std::align_val_t(256));
  }

  std::unique_ptr<DeviceStream> make_stream() override { return std::make_unique<SimulatedStream>(*this); }
  std::unique_ptr<Event> make_event() override { return std::make_unique<SimulatedEvent>(*this); }

  // A pageable source is staged at the call, a pinned one is read when the work runs, as on CUDA.
  void upload(void* to, const void* from, size_t bytes, DeviceStream& s) override {
    std::lock_guard lock(mutex_);
    expect_device("upload", to, bytes);
    expect_host("upload", from, bytes, s);
    if (is_pinned(from, bytes)) {
      stream_of(s).enqueue_copy("upload", [=] { std::memcpy(to, from, bytes); });
    } else {
      const auto* source = static_cast<const unsigned char*>(from);
      stream_of(s).enqueue_copy("upload", [to, staged = std::vector<unsigned char>(source, source + bytes)] {
        std::memcpy(to, staged.data(), staged.size());
      });
    }
  }
  void download(void* to, const void* from, size_t bytes, DeviceStream& s) override {
    std::lock_guard lock(mutex_);
    expect_device("download", from, bytes);
    expect_host("download", to, bytes, s);
    stream_of(s).enqueue_copy("download", [=] { std::memcpy(to, from, bytes); });
  }
  void copy(void* to, const void* from, size_t bytes, DeviceStream& s) override {
    std::lock_guard lock(mutex_);
    expect_device("copy", to, bytes);
    expect_device("copy", from, bytes);
    stream_of(s).enqueue_copy("copy", [=] { std::memcpy(to, from, bytes); });
  }
  void fill(void* to, uint8_t byte, size_t bytes, DeviceStream& s) override {
    std::lock_guard lock(mutex_);
    expect_device("fill", to, bytes);
    stream_of(s).enqueue_copy("fill", [=] { std::memset(to, byte, bytes); });
  }

  std::unique_ptr<CapturedGraph> capture(DeviceStream& stream, const std::function<void()>& work) override {
    std::lock_guard lock(mutex_);
    if (nodes_) fail("a capture inside a capture");
    Queue& origin = *stream_of(stream).queue;
    struct Capture {  // ends also when `work` throws
      SimulatedDevice& device;
      ~Capture() {
        device.nodes_.reset();
        for (auto& q : device.queues_) {
          q->capturing = false;
          q->last.clear();
        }
      }
    } scope{*this};
    nodes_.emplace();
    ++capture_;
    origin.capturing = true;
    work();
    std::vector<bool> joined(nodes_->size(), false);
    for (size_t n : origin.last) joined[n] = true;
    for (size_t n = joined.size(); n-- > 0;) {  // nodes are numbered in an order that the dependencies allow
      if (!joined[n]) fail(std::string("captured work '") + (*nodes_)[n].name + "' of another stream is never joined");
      for (size_t before : (*nodes_)[n].after) joined[before] = true;
    }
    auto graph = std::make_unique<SimulatedGraph>();
    graph->nodes = std::make_shared<const Nodes>(std::move(*nodes_));
    return graph;
  }

  // --- What streams and events ask of the machine ---

  Execution execution() const override { return execution_; }
  std::recursive_mutex& mutex() { return mutex_; }
  std::shared_ptr<Queue> add_queue() {
    std::lock_guard lock(mutex_);
    return queues_.emplace_back(std::make_shared<Queue>());
  }
  void enqueue_kernel(Queue& queue, Task task) {
    const std::pair kernel{std::string(task.name), std::type_index(task.run.target_type())};
    if (!queue.capturing)
      launched_.insert(kernel);
    else if (!launched_.contains(kernel))
      fail("kernel " + kernel.first +
           " is launched for the first time inside a capture, which cannot load it: let it " + "run once before");
    enqueue(queue, std::move(task));
  }
  void enqueue(Queue& queue, Task task) {
    if (queue.capturing) {
      nodes_->push_back({task.name, std::move(task.run), std::exchange(queue.last, {nodes_->size()})});
      return;
    }
    queue.tasks.push_back(std::move(task));
    std::uniform_real_distribution<double> uniform;
    run_until([&] { return uniform(random_) >= eagerness_; });
  }
  void record(Queue& queue, SimulatedEvent& event) {
    event.recorded.reset();
    event.capture = 0;
    if (queue.capturing) {
      event.capture = capture_;
      event.captured = queue.last;
      return;
    }
    event.recorded = std::make_shared<bool>(false);
    Task task;
    task.record = event.recorded;
    enqueue(queue, std::move(task));
  }
  void wait(Queue& queue, SimulatedEvent& event) {
    if (event.capture != 0) {
      if (!nodes_ || event.capture != capture_) fail("wait for an event that was last recorded in a capture, now over");
      queue.capturing = true;  // the stream joins the capture
      for (size_t n : event.captured) {
        if (std::find(queue.last.begin(), queue.last.end(), n) == queue.last.end()) queue.last.push_back(n);
      }
    } else if (queue.capturing) {
      fail("a captured stream waits for an event that was not recorded in the capture");
    } else if (event.recorded) {  // the wait for an event never recorded does nothing
      Task task;
      task.wait = event.recorded;
      enqueue(queue, std::move(task));
    }
  }
  void replay(Queue& queue, std::shared_ptr<const Nodes> nodes) {
    if (queue.capturing) fail("a replay inside a capture");
    Task task;
    task.finished.resize(nodes->size(), false);
    task.graph = std::move(nodes);
    enqueue(queue, std::move(task));
  }
  template <class Reached>
  void synchronize(bool captured, Reached reached) {
    if (captured) fail("the host waits for work that is being captured");
    run_until(reached);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  void check_argument(const char* kernel, const void* argument, size_t bytes, bool pointer) const {
    // Inside a struct any word that is an address of this process is taken for a pointer: addresses of position
    // independent programs, of their heaps and stacks are so high that two packed integers do not look like one.
    constexpr uintptr_t kLowest = 0x550000000000, kHighest = 0x7fffffffffff;
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    for (size_t at = 0; at + sizeof(void*) <= bytes; at += sizeof(void*)) {
      const void* p;
      std::memcpy(&p, static_cast<const char*>(argument) + at, sizeof p);
      if (p == nullptr || memory_.contains(p, 0) || is_pinned(p, 0)) continue;
      const auto address = reinterpret_cast<uintptr_t>(p);
      unsigned char resident;
      if (!pointer && (address < kLowest || address > kHighest ||
                       mincore(reinterpret_cast<void*>(address / page * page), 1, &resident) != 0)) {
        continue;
      }
      fail(std::string("kernel ") + kernel + " is given a pointer that is not into device memory");
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw DeviceError(name() + ": " + what); }
  static SimulatedStream& stream_of(DeviceStream& s) { return static_cast<SimulatedStream&>(s); }
  bool is_pinned(const void* memory, size_t bytes) const {
    const auto p = reinterpret_cast<uintptr_t>(memory);
    auto it = pinned_.upper_bound(p);
    return it != pinned_.begin() && p + bytes <= std::prev(it)->first + std::prev(it)->second;
  }
  void expect_device(const char* what, const void* memory, size_t bytes) const {
    if (!memory_.contains(memory, bytes)) {
      fail(std::string(what) + ": " + std::to_string(bytes) + " bytes that do not lie in one device allocation");
    }
  }
  void expect_host(const char* what, const void* memory, size_t bytes, DeviceStream& s) const {
    if (memory_.contains(memory, 0)) fail(std::string(what) + ": device memory where host memory is expected");
    if (stream_of(s).queue->capturing && !is_pinned(memory, bytes)) {
      fail(std::string(what) + ": a captured copy needs host memory of allocate_host()");
    }
  }

  bool idle() const {
    return std::all_of(queues_.begin(), queues_.end(), [](const auto& q) { return q->tasks.empty(); });
  }
  // Runs tasks in a random order until `reached` or until there is none.
  template <class Reached>
  void run_until(Reached reached) {
    if (busy_) return;
    std::optional<GuardedMemory::Unlock> unlock;
    while (!reached()) {
      std::vector<size_t> ready;
      for (size_t i = 0; i < queues_.size(); ++i) {
        const auto& tasks = queues_[i]->tasks;
        if (!tasks.empty() && (!tasks.front().wait || *tasks.front().wait)) ready.push_back(i);
      }
      if (ready.empty()) break;
      if (!unlock) unlock.emplace(memory_);
      Queue& queue = *queues_[ready[random_() % ready.size()]];
      if (run(queue.tasks.front())) queue.tasks.pop_front();
    }
    std::erase_if(queues_, [](const auto& q) { return q.use_count() == 1 && q->tasks.empty(); });
  }
  bool run(Task& task) {  // whether all of it is done
    if (task.record) *task.record = true;
    if (task.run) guarded(task.name, task.run);
    if (!task.graph) return true;
    std::vector<size_t> ready;
    for (size_t n = 0; n < task.finished.size(); ++n) {
      const auto& after = (*task.graph)[n].after;
      const auto done = [&](size_t before) { return task.finished[before]; };
      if (!task.finished[n] && std::all_of(after.begin(), after.end(), done)) ready.push_back(n);
    }
    if (ready.empty()) return true;
    const size_t n = ready[random_() % ready.size()];
    guarded((*task.graph)[n].name, (*task.graph)[n].run);
    task.finished[n] = true;
    return std::find(task.finished.begin(), task.finished.end(), false) == task.finished.end();
  }
  void guarded(const char* name, const std::function<void()>& work) {
    busy_ = true;
    GuardedMemory::name_work(name);
    try {
      work();
    } catch (...) {
      if (!error_) error_ = std::current_exception();
    }
    GuardedMemory::name_work(nullptr);
    busy_ = false;
  }

  Execution execution_;
  uint64_t seed_;
  std::mt19937_64 random_;
  double eagerness_;  // how likely a task runs when one is enqueued
  std::recursive_mutex mutex_;
  GuardedMemory memory_;
  std::map<uintptr_t, size_t> pinned_;
  std::vector<std::shared_ptr<Queue>> queues_;
  std::optional<Nodes> nodes_;  // of the capture in progress
  uint64_t capture_ = 0;
  std::set<std::pair<std::string, std::type_index>> launched_;  // kernels, by name and instantiation
  std::exception_ptr error_;                                    // the first that work threw since the host last waited
  bool busy_ = false;
};

void SimulatedEvent::synchronize() {
  std::lock_guard lock(device.mutex());
  device.synchronize(capture != 0, [done = recorded] { return !done || *done; });
}

SimulatedStream::SimulatedStream(SimulatedDevice& d) : device(d), queue(d.add_queue()) {}
Execution SimulatedStream::execution() const { return device.execution(); }
void SimulatedStream::enqueue(const char* name, std::function<void()> work) {
  std::lock_guard lock(device.mutex());
  Task task;
  task.name = name;
  task.run = std::move(work);
  device.enqueue_kernel(*queue, std::move(task));
}
void SimulatedStream::enqueue_copy(const char* name, std::function<void()> work) {
  Task task;
  task.name = name;
  task.run = std::move(work);
  device.enqueue(*queue, std::move(task));
}
void SimulatedStream::check_argument(const char* kernel, const void* argument, size_t bytes, bool pointer) {
  std::lock_guard lock(device.mutex());
  device.check_argument(kernel, argument, bytes, pointer);
}
void SimulatedStream::record(Event& event) {
  std::lock_guard lock(device.mutex());
  device.record(*queue, static_cast<SimulatedEvent&>(event));
}
void SimulatedStream::wait(Event& event) {
  std::lock_guard lock(device.mutex());
  device.wait(*queue, static_cast<SimulatedEvent&>(event));
}
void SimulatedStream::synchronize() {
  std::lock_guard lock(device.mutex());
  device.synchronize(queue->capturing, [&] { return queue->tasks.empty(); });
}

void SimulatedGraph::replay(DeviceStream& stream) {
  auto& s = static_cast<SimulatedStream&>(stream);
  std::lock_guard lock(s.device.mutex());
  s.device.replay(*s.queue, nodes);
}

}  // namespace

std::unique_ptr<Device> make_simulated_device(uint64_t seed, Execution execution) {
  return std::make_unique<SimulatedDevice>(seed, execution);
}

}  // namespace regolith
