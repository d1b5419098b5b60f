// A data set on a device, and the batches taken from it. It is uploaded once, for training and every evaluation, and
// lives there as bytes; a CPU reads the host's memory in place. A set too large for the device stays on the host and
// streams, one batch at a time, through two pinned buffers. The same kernel then picks, augments and normalises the
// samples and draws the same random numbers.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "engine/tensor/device.h"
#include "engine/train/data_view.h"
#include "kernels/sample.h"

namespace regolith {

enum class Streaming { automatic, on, off };  // automatic: if the data would take half of a GPU's free memory
constexpr std::array<const char*, 3> names_of(Streaming) { return {"auto", "on", "off"}; }

// The samples of an epoch or of an evaluation, in the order in which batches take them: kernels::sample_index() each.
struct Order {
  int64_t count = 0;
  DeviceBuffer entries;       // (count) int32_t, if the data is on the device
  std::vector<int32_t> host;  // (count), if the data streams
};

// How samples of a training epoch get parts of others: what a batch that streams needs to know beside its order.
struct Mixing {
  const kernels::Augment& augment;
  uint64_t seed;
  const Order& paste;  // rows that copy_paste takes its partners from
};

constexpr int partners_of(const kernels::Augment& a) { return a.cutmix.on + a.copy_paste.on; }

class DeviceData {
 public:
  // `batch`: the most samples of a batch. `partners`: the most other samples that each of them gets parts of
  // (partners_of). The data must outlive this object. Throws DeviceError if the device's memory does not suffice.
  DeviceData(Device& device, const DataView& data, int batch, Streaming streaming = Streaming::automatic,
             int partners = 0);
  ~DeviceData();

  const DataView& host() const { return data_; }
  bool streams() const { return staging_ != nullptr; }
  size_t bytes() const { return in_place_ ? data_.bytes() : images_.bytes() + masks_.bytes(); }

  // Writes `order`, whose device memory stays at its address while the number of entries does. Waits for the stream.
  void set(Order& order, const std::vector<int32_t>& entries, DeviceStream& stream) const;
  // If the data streams: enqueues the copies of the `batch` samples from position `first` of that epoch on, and of
  // their partners. Past the last entry follows the first one again.
  void prefetch(const Order& order, int64_t first, int batch, DeviceStream& stream, const Mixing* mixing = nullptr,
                int64_t epoch = 0);
  // Fill images, masks, order and sizes of `call`. bind(): the batch is chosen by the step counter on the device, which
  // the caller names. bind_at(): the batch starts at entry `first`.
  void bind(kernels::SampleBatch& call, const Order& order, int batch, int64_t steps_per_epoch) const;
  void bind_at(kernels::SampleBatch& call, const Order& order, int batch, int64_t first) const;

 private:
  struct Staging;
  Device& device_;
  DataView data_;
  bool in_place_ = false;                  // the device reads the host's memory
  DeviceBuffer images_, masks_, entries_;  // of the data; if it streams, of one batch: its order and partners
  std::unique_ptr<Staging> staging_;
};

}  // namespace regolith
