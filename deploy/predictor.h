// A trained network that only predicts: bytes in, probabilities of the classes out.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "engine/io/safetensors.h"
#include "engine/run/network.h"

namespace regolith {

struct PredictorOptions {
  NetworkOptions network;           // `training` is ignored
  float divisor = 255, offset = 0;  // the network reads (byte - offset) / divisor
  std::vector<int> excluded;        // classes whose probability is 0; the others share it
};

class Predictor {
 public:
  // graph: as read_model made it; its input is the size of an image. Throws CheckpointError for weights of another
  // model, GraphError, DeviceError.
  Predictor(Graph graph, Checkpoint weights, Device& device, const PredictorOptions& options);

  const Shape& image() const;  // (1, H, W, C)
  int classes() const { return network_.graph().classes(); }
  Network& network() { return network_; }

  // Enqueues a batch; at most kAhead may be under way. images: (N, H, W, C) bytes in host memory, read before the call
  // returns.
  static constexpr int kAhead = 2;
  void submit(const uint8_t* images, int N);
  // Waits for the batch that was submitted first: (N, H, W, K) probabilities, until the next submit().
  const float* collect();
  void drop();  // what is under way

 private:
  struct HostMemory {  // that copies may run beside the host with
    HostMemory(Device& d, size_t n) : device(d), bytes(n), data(d.allocate_host(n)) {}
    ~HostMemory() { device.release_host(data); }
    HostMemory(const HostMemory&) = delete;
    Device& device;
    size_t bytes;
    void* data;
  };
  struct Slot {
    std::unique_ptr<HostMemory> images, probabilities;
    std::unique_ptr<Event> done;
  };
  void reserve(Slot& slot, int N);

  Device& device_;
  PredictorOptions options_;
  std::unique_ptr<DeviceStream> stream_;
  Network network_;
  DeviceBuffer images_, order_, excluded_, probabilities_;  // of a batch
  std::array<Slot, kAhead> slots_;
  int64_t submitted_ = 0, collected_ = 0;
};

}  // namespace regolith
