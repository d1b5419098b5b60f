#include "engine/train/device_data.h"

#include <array>
#include <cstring>

#include "engine/base/error.h"
#include "kernels/augment.h"

namespace regolith {

// Two batches in memory that asynchronous copies may read: one is filled while the other may be on its way.
struct DeviceData::Staging {
  struct Slot {
    uint8_t* memory;  // images, masks, entries and partners
    std::unique_ptr<Event> copied;
  };
  Staging(Device& d, const DataView& data, int most, int partners)
      : device(d),
        batch(most),
        samples(static_cast<size_t>(most) * (1 + partners)),
        masks_at((data.image_bytes() * samples + 255) / 256 * 256),
        entries_at(masks_at + (data.mask_bytes() * samples + 255) / 256 * 256) {
    for (Slot& slot : slots) {
      slot.memory = static_cast<uint8_t*>(d.allocate_host(entries_at + entries_bytes()));
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
  size_t entries_bytes() const { return 3 * sizeof(int32_t) * batch; }  // (batch) of the order, (batch, 2) partners
  Device& device;
  int batch;
  size_t samples;  // with their partners
  size_t masks_at, entries_at;
  std::array<Slot, 2> slots{};
  int turn = 0;
};

DeviceData::DeviceData(Device& device, const DataView& data, int batch, Streaming streaming, int partners)
    : device_(device), data_(data) {
  const bool streams =
      streaming == Streaming::on || (streaming == Streaming::automatic && device.kind() == DeviceKind::cuda &&
                                     data.bytes() > device.free_bytes() / 2);
  in_place_ = device.kind() == DeviceKind::cpu && !streams;
  if (in_place_) return;
  if (streams) staging_ = std::make_unique<Staging>(device, data, batch, partners);
  const size_t samples = streams ? staging_->samples : data.count;
  images_ = DeviceBuffer(device, samples * data.image_bytes());
  if (data.masks != nullptr) masks_ = DeviceBuffer(device, samples * data.mask_bytes());
  if (streams) {
    entries_ = DeviceBuffer(device, staging_->entries_bytes());
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

void DeviceData::prefetch(const Order& order, int64_t first, int batch, DeviceStream& stream, const Mixing* mixing,
                          int64_t epoch) {
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
  int32_t* partners = entries + s.batch;
  size_t staged = 0;
  const auto stage = [&](int64_t row) {
    if (staged == s.samples)
      throw TrainError("a batch with its partners cannot stream: the data was prepared for none");
    std::memcpy(slot.memory + staged * image, data_.images + row * image, image);
    if (mask > 0) std::memcpy(slot.memory + s.masks_at + staged * mask, data_.masks + row * mask, mask);
    return static_cast<int32_t>(staged++);
  };
  for (int b = 0; b < batch; ++b) {
    const int32_t entry = order.host[(first + b) % order.count];
    entries[b] = kernels::sample_index(stage(entry >> 1), (entry & 1) != 0);
  }
  for (int b = 0; b < batch; ++b) {
    partners[2 * b] = partners[2 * b + 1] = b;
    if (mixing == nullptr || (entries[b] & 1) == 0) continue;
    const kernels::SampleKey key{mixing->seed, static_cast<uint32_t>(epoch), static_cast<uint32_t>(first + b)};
    const kernels::PartnerDraw d = draw_partners(mixing->augment, key);
    const auto chosen = [](const Order& from, uint32_t word) {
      return from.host[kernels::chosen(word, static_cast<int>(from.count))];
    };
    if (d.cutmix) partners[2 * b] = stage(chosen(order, d.cutmix_word) >> 1);
    if (d.paste && mixing->paste.count > 0 && mask > 0)
      partners[2 * b + 1] = stage(chosen(mixing->paste, d.paste_word));
  }
  device_.upload(images_.as(), slot.memory, staged * image, stream);
  if (mask > 0) device_.upload(masks_.as(), slot.memory + s.masks_at, staged * mask, stream);
  device_.upload(entries_.as(), entries, s.entries_bytes(), stream);
  stream.record(*slot.copied);
}

void DeviceData::bind(kernels::SampleBatch& call, const Order& order, int batch, int64_t steps_per_epoch) const {
  call.images = in_place_ ? data_.images : images_.as<uint8_t>();
  call.masks = in_place_ ? data_.masks : masks_.as<uint8_t>();
  call.order = staging_ ? entries_.as<int32_t>() : order.entries.as<int32_t>();
  call.entries = staging_ ? batch : static_cast<int>(order.count);
  call.staged = staging_ != nullptr;
  call.partners = staging_ ? entries_.as<int32_t>() + staging_->batch : nullptr;
  call.batch = batch;
  call.steps_per_epoch = static_cast<int>(steps_per_epoch);
}

void DeviceData::bind_at(kernels::SampleBatch& call, const Order& order, int batch, int64_t first) const {
  bind(call, order, batch, 1);
  call.step = nullptr;
  if (staging_) return;  // the batch is all that is there
  call.order += first;
  call.entries -= static_cast<int>(first);
}

}  // namespace regolith
