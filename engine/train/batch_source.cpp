#include "engine/train/batch_source.h"

#include <algorithm>
#include <cstring>

#include "engine/base/error.h"

namespace regolith {

// Two batches in memory that asynchronous copies may read: one is filled while the other may be on its way.
struct BatchSource::Staging {
  struct Slot {
    uint8_t* memory;  // images, masks, order
    std::unique_ptr<Event> copied;
  };
  Staging(Device& d, const SplitView& s, int batch) : device(d), split(s), image(static_cast<size_t>(s.H) * s.W * s.C) {
    mask = split.masks != nullptr ? static_cast<size_t>(split.H) * split.W : 0;
    masks_at = (image * batch + 255) / 256 * 256;
    order_at = masks_at + (mask * batch + 255) / 256 * 256;
    for (Slot& slot : slots) {
      slot.memory = static_cast<uint8_t*>(d.allocate_host(order_at + batch * sizeof(int32_t)));
      slot.copied = d.make_event();
    }
  }
  ~Staging() {
    for (Slot& slot : slots) device.release_host(slot.memory);
  }
  Device& device;
  SplitView split;
  size_t image, mask;  // bytes of one
  size_t masks_at, order_at;
  std::array<Slot, 2> slots{};
  std::vector<int32_t> order;
  int turn = 0;
};

BatchSource::BatchSource(Device& device, DeviceStream& stream, const SplitView& split, int64_t entries, int batch,
                         Streaming streaming)
    : device_(device), stream_(stream), split_(split), entries_(entries), batch_(batch) {
  const bool streams =
      streaming == Streaming::on || (streaming == Streaming::automatic && device.kind() == DeviceKind::cuda &&
                                     split.bytes() > device.free_bytes() / 2);
  in_place_ = device.kind() == DeviceKind::cpu && !streams;
  const int64_t images = in_place_ ? 0 : streams ? batch : split.count;
  const size_t pixels = static_cast<size_t>(images) * split.H * split.W;
  images_ = DeviceBuffer(device, pixels * split.C);
  if (split.masks != nullptr) masks_ = DeviceBuffer(device, pixels);
  order_ = DeviceBuffer(device, (streams ? batch : entries) * sizeof(int32_t));
  if (streams) {
    host_ = std::make_unique<Staging>(device, split, batch);
    return;
  }
  if (in_place_) return;
  device.upload(images_.as(), split.images, images_.bytes(), stream);
  if (split.masks != nullptr) device.upload(masks_.as(), split.masks, masks_.bytes(), stream);
  stream.synchronize();
}

BatchSource::~BatchSource() {
  try {
    if (host_) stream_.synchronize();  // copies may still read the staging memory
  } catch (const Error&) {             // whoever runs steps has heard of it
  }
}

void BatchSource::set_order(const std::vector<int32_t>& order) {
  if (static_cast<int64_t>(order.size()) != entries_)
    throw TrainError("an epoch's order has " + std::to_string(order.size()) + " entries; expected " +
                     std::to_string(entries_));
  if (host_) {
    host_->order = order;
  } else {
    device_.upload(order_.as(), order.data(), order.size() * sizeof(int32_t), stream_);
    stream_.synchronize();  // `order` is the caller's
  }
}

void BatchSource::prefetch(int64_t in_epoch) {
  if (!host_) return;
  Staging& h = *host_;
  Staging::Slot& slot = h.slots[h.turn];
  h.turn = 1 - h.turn;
  slot.copied->synchronize();
  auto* order = reinterpret_cast<int32_t*>(slot.memory + h.order_at);
  for (int b = 0; b < batch_; ++b) {
    const int32_t entry = h.order[(in_epoch * batch_ + b) % entries_];
    const int64_t row = entry >> 1;
    std::memcpy(slot.memory + b * h.image, h.split.images + row * h.image, h.image);
    if (h.mask > 0) std::memcpy(slot.memory + h.masks_at + b * h.mask, h.split.masks + row * h.mask, h.mask);
    order[b] = kernels::sample_index(b, (entry & 1) != 0);
  }
  device_.upload(images_.as(), slot.memory, images_.bytes(), stream_);
  if (h.mask > 0) device_.upload(masks_.as(), slot.memory + h.masks_at, masks_.bytes(), stream_);
  device_.upload(order_.as(), order, order_.bytes(), stream_);
  stream_.record(*slot.copied);
}

void BatchSource::bind(kernels::SampleBatch& call, int64_t steps_per_epoch) const {
  call.images = in_place_ ? split_.images : images_.as<uint8_t>();
  call.masks = in_place_ ? split_.masks : masks_.as<uint8_t>();
  call.order = order_.as<int32_t>();
  call.batch = batch_;
  call.entries = host_ ? batch_ : static_cast<int>(entries_);
  call.steps_per_epoch = host_ ? 1 : static_cast<int>(steps_per_epoch);
}

void BatchSource::bind_at(kernels::SampleBatch& call, int64_t first) const {
  bind(call, 1);
  call.step = nullptr;
  if (host_) return;  // brought alone
  call.order += first;
  call.entries -= static_cast<int>(first);
}

}  // namespace regolith
