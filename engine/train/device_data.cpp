#include "engine/train/device_data.h"

#include <array>
#include <cstring>

#include "engine/base/error.h"

namespace regolith {

// Two batches in memory that asynchronous copies may read: one is filled while the other may be on its way.
struct DeviceData::Staging {
  struct Slot {
    uint8_t* memory;  // images, masks, entries
    std::unique_ptr<Event> copied;
  };
  Staging(Device& d, const DataView& data, int most)
      : device(d),
        batch(most),
        masks_at((data.image_bytes() * batch + 255) / 256 * 256),
        entries_at(masks_at + (data.mask_bytes() * batch + 255) / 256 * 256) {
    for (Slot& slot : slots) {
      slot.memory = static_cast<uint8_t*>(d.allocate_host(entries_at + batch * sizeof(int32_t)));
      slot.copied = d.make_event();
    }
  }
  ~Staging() {
    for (Slot& slot : slots) {
      try {
        slot.copied->synchronize();
      } catch (const Error&) {  // whoever runs steps has heard of it
      }
      device.release_host(slot.memory);
    }
  }
  Device& device;
  int batch;
  size_t masks_at, entries_at;
  std::array<Slot, 2> slots{};
  int turn = 0;
};

DeviceData::DeviceData(Device& device, const DataView& data, int batch, Streaming streaming)
    : device_(device), data_(data) {
  const bool streams =
      streaming == Streaming::on || (streaming == Streaming::automatic && device.kind() == DeviceKind::cuda &&
                                     data.bytes() > device.free_bytes() / 2);
  in_place_ = device.kind() == DeviceKind::cpu && !streams;
  if (in_place_) return;
  const size_t samples = streams ? batch : data.count;
  images_ = DeviceBuffer(device, samples * data.image_bytes());
  if (data.masks != nullptr) masks_ = DeviceBuffer(device, samples * data.mask_bytes());
  if (streams) {
    entries_ = DeviceBuffer(device, batch * sizeof(int32_t));
    staging_ = std::make_unique<Staging>(device, data, batch);
    return;
  }
  const auto stream = device.make_stream();
  device.upload(images_.as(), data.images, images_.bytes(), *stream);
  if (data.masks != nullptr) device.upload(masks_.as(), data.masks, masks_.bytes(), *stream);
  stream->synchronize();
}

DeviceData::~DeviceData() = default;

void DeviceData::set(Order& order, const std::vector<int32_t>& entries, DeviceStream& stream) const {
  order.count = static_cast<int64_t>(entries.size());
  if (staging_) {
    order.host = entries;
    return;
  }
  const size_t bytes = entries.size() * sizeof(int32_t);
  if (order.entries.bytes() != bytes) order.entries = DeviceBuffer(device_, bytes);
  device_.upload(order.entries.as(), entries.data(), bytes, stream);
  stream.synchronize();  // `entries` is the caller's
}

void DeviceData::prefetch(const Order& order, int64_t first, int batch, DeviceStream& stream) {
  if (!staging_) return;
  Staging& s = *staging_;
  if (batch > s.batch)
    throw TrainError("a batch of " + std::to_string(batch) + " samples cannot stream: the data was prepared for " +
                     std::to_string(s.batch));
  Staging::Slot& slot = s.slots[s.turn];
  s.turn = 1 - s.turn;
  slot.copied->synchronize();
  const size_t image = data_.image_bytes(), mask = data_.mask_bytes();
  auto* entries = reinterpret_cast<int32_t*>(slot.memory + s.entries_at);
  for (int b = 0; b < batch; ++b) {
    const int32_t entry = order.host[(first + b) % order.count];
    const int64_t row = entry >> 1;
    std::memcpy(slot.memory + b * image, data_.images + row * image, image);
    if (mask > 0) std::memcpy(slot.memory + s.masks_at + b * mask, data_.masks + row * mask, mask);
    entries[b] = kernels::sample_index(b, (entry & 1) != 0);
  }
  device_.upload(images_.as(), slot.memory, batch * image, stream);
  if (mask > 0) device_.upload(masks_.as(), slot.memory + s.masks_at, batch * mask, stream);
  device_.upload(entries_.as(), entries, batch * sizeof(int32_t), stream);
  stream.record(*slot.copied);
}

void DeviceData::bind(kernels::SampleBatch& call, const Order& order, int batch, int64_t steps_per_epoch) const {
  call.images = in_place_ ? data_.images : images_.as<uint8_t>();
  call.masks = in_place_ ? data_.masks : masks_.as<uint8_t>();
  call.order = staging_ ? entries_.as<int32_t>() : order.entries.as<int32_t>();
  call.entries = staging_ ? batch : static_cast<int>(order.count);
  call.batch = batch;
  call.steps_per_epoch = staging_ ? 1 : static_cast<int>(steps_per_epoch);
}

void DeviceData::bind_at(kernels::SampleBatch& call, const Order& order, int batch, int64_t first) const {
  bind(call, order, batch, 1);
  call.step = nullptr;
  if (staging_) return;  // the batch is all that is there
  call.order += first;
  call.entries -= static_cast<int>(first);
}

}  // namespace regolith
