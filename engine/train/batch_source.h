// The images of one split, as batches on a device. A split that fits lives there as bytes (on the CPU, where it is); a
// larger one stays on the host and streams, a batch at a time, through pinned double buffers. Either way the same
// kernel picks, augments and normalises, and draws the same numbers.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "engine/tensor/device.h"
#include "kernels/sample.h"

namespace regolith {

// Host memory with the images and masks of a split.
struct SplitView {
  const uint8_t* images = nullptr;  // (count, H, W, C)
  const uint8_t* masks = nullptr;   // (count, H, W); null: none
  int64_t count = 0;
  int H = 0, W = 0, C = 1;
  size_t bytes() const { return static_cast<size_t>(count) * H * W * (C + (masks != nullptr)); }
};

enum class Streaming { automatic, on, off };  // automatic: where the split would take half of the device's free memory
constexpr std::array<const char*, 3> names_of(Streaming) { return {"auto", "on", "off"}; }

class BatchSource {
 public:
  // Batches of `batch` slots over orders of `entries` kernels::sample_index(). The split's host memory must live as
  // long as this. Throws DeviceError where the memory does not suffice.
  BatchSource(Device& device, DeviceStream& stream, const SplitView& split, int64_t entries, int batch,
              Streaming streaming);
  ~BatchSource();
  bool streams() const { return host_ != nullptr; }
  size_t bytes() const { return (in_place_ ? split_.bytes() : images_.bytes() + masks_.bytes()) + order_.bytes(); }

  void set_order(const std::vector<int32_t>& order);
  // Enqueues what the batch of step `in_epoch` needs on the device; nothing where the split lives there. Its slots are
  // entries in_epoch * batch and on, from the first again where they pass the last.
  void prefetch(int64_t in_epoch);
  // Names the data in a call of the kernel, the rest of which is the caller's: for batches that the step on the device
  // numbers, or for the one whose first entry is `first`.
  void bind(kernels::SampleBatch& call, int64_t steps_per_epoch) const;
  void bind_at(kernels::SampleBatch& call, int64_t first) const;

 private:
  struct Staging;
  Device& device_;
  DeviceStream& stream_;
  SplitView split_;
  int64_t entries_;
  int batch_;
  bool in_place_ = false;                // the device reads the host's memory
  DeviceBuffer images_, masks_, order_;  // of the split; where it streams, of one batch
  std::unique_ptr<Staging> host_;
};

}  // namespace regolith
