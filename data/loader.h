// A data set on a device, and the order in which its samples are taken.
#pragma once

#include <array>
#include <memory>

#include "data/dataset.h"
#include "data/split.h"
#include "engine/tensor/device.h"
#include "kernels/sample.h"

namespace regolith {

// The bytes of a data set in device memory. The device must outlive it.
class DeviceDataset {
 public:
  // Copies, and waits for it. Throws DeviceError where the memory does not suffice.
  DeviceDataset(Device& device, DeviceStream& stream, const Dataset& data);
  int64_t count() const { return count_; }
  int height() const { return height_; }
  int width() const { return width_; }
  int channels() const { return channels_; }
  const uint8_t* images() const { return images_.as<uint8_t>(); }  // device, (count, H, W, C)
  const uint8_t* masks() const { return masks_.as<uint8_t>(); }    // device, (count, H, W); null without masks
  size_t bytes() const { return images_.bytes() + masks_.bytes(); }

 private:
  int64_t count_;
  int height_, width_, channels_;
  DeviceBuffer images_, masks_;
};

// Batches of a list of occurrences. One epoch is steps_per_epoch() steps; `shuffle` gives each its own order, without
// waiting for the device. Must outlive the work on its streams.
class Sampler {
 public:
  // `wrap`: the last batch is filled up with the first samples of the epoch, else with absent ones (kAbsentClass).
  // The network sees byte * scale + shift.
  Sampler(Device& device, const DeviceDataset& data, std::vector<Occurrence> occurrences, int batch, bool wrap,
          uint64_t seed, const kernels::Augment& augment = {}, double scale = 1.0 / 255, double shift = 0);
  ~Sampler();
  int64_t count() const { return static_cast<int64_t>(occurrences_.size()); }
  int steps_per_epoch() const { return steps_; }
  int64_t present(int step_of_epoch) const;  // samples of this batch that are not absent (wrapped ones count)

  // Uploads the order of an epoch: by epoch_order(seed, epoch), or as listed. In stream order, so that steps enqueued
  // before still see the old one.
  void shuffle(int64_t epoch, DeviceStream& stream);
  void in_order(DeviceStream& stream);

  // Enqueues the pass for slots first .. first + x.N - 1 of the batch of step *step (device; a global count, from which
  // the place in the epoch follows). Arguments are fixed, so that this may be captured. `labels`: device, (N, H, W).
  void sample(DeviceStream& stream, const int64_t* step, const Map& x, uint8_t* labels, int first = 0) const;

 private:
  template <class F>
  void upload(DeviceStream& stream, F&& index_at);
  Device& device_;
  const DeviceDataset& data_;
  std::vector<Occurrence> occurrences_;
  int batch_, steps_;
  bool wrap_;
  uint64_t seed_;
  kernels::Augment augment_;
  float divisor_, offset_;
  DeviceBuffer order_;                // (count) int32, order_entry
  std::array<int32_t*, 2> staged_{};  // host memory for copies: one is filled while the other may be on its way
  std::array<std::unique_ptr<Event>, 2> copied_;
  int turn_ = 0;
};

}  // namespace regolith
