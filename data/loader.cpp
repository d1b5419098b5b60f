#include "data/loader.h"

#include "kernels/core/error.h"

namespace regolith {

DeviceDataset::DeviceDataset(Device& device, DeviceStream& stream, const Dataset& data)
    : count_(data.count),
      height_(data.height),
      width_(data.width),
      channels_(data.channels),
      images_(device, data.images.size()) {
  if (count_ > INT32_MAX / 2) throw DataError(data.origin + ": at most 2^30 samples fit a device");
  device.upload(images_.as(), data.images.data(), data.images.size(), stream);
  if (!data.masks.empty()) {
    masks_ = DeviceBuffer(device, data.masks.size());
    device.upload(masks_.as(), data.masks.data(), data.masks.size(), stream);
  }
  stream.synchronize();
}

Sampler::Sampler(Device& device, const DeviceDataset& data, std::vector<Occurrence> occurrences, int batch, bool wrap,
                 uint64_t seed, const kernels::Augment& augment, double scale, double shift)
    : device_(device),
      data_(data),
      occurrences_(std::move(occurrences)),
      batch_(batch),
      steps_(static_cast<int>((count() + batch - 1) / batch)),
      wrap_(wrap),
      seed_(seed),
      augment_(augment),
      divisor_(static_cast<float>(1 / scale)),
      offset_(static_cast<float>(-shift / scale)),
      order_(device, occurrences_.size() * sizeof(int32_t)) {
  if (occurrences_.empty()) throw DataError("no samples to take batches from");
  for (const Occurrence& o : occurrences_) {
    if (o.index < 0 || o.index >= data.count()) {
      throw DataError("sample " + std::to_string(o.index) + " of a data set of " + std::to_string(data.count()));
    }
  }
  for (int i = 0; i < 2; ++i) {
    staged_[i] = static_cast<int32_t*>(device.allocate_host(order_.bytes()));
    copied_[i] = device.make_event();
  }
}

Sampler::~Sampler() {
  for (int32_t* memory : staged_) {
    if (memory != nullptr) device_.release_host(memory);
  }
}

int64_t Sampler::present(int step_of_epoch) const {
  return wrap_ ? batch_ : std::min<int64_t>(batch_, count() - int64_t{step_of_epoch} * batch_);
}

template <class F>
void Sampler::upload(DeviceStream& stream, F&& index_at) {
  turn_ ^= 1;
  copied_[turn_]->synchronize();
  for (int64_t i = 0; i < count(); ++i) {
    const Occurrence& o = occurrences_[index_at(i)];
    staged_[turn_][i] = kernels::order_entry(o.index, o.augment);
  }
  device_.upload(order_.as(), staged_[turn_], order_.bytes(), stream);
  stream.record(*copied_[turn_]);
}

void Sampler::shuffle(int64_t epoch, DeviceStream& stream) {
  const std::vector<int64_t> order = epoch_order(seed_, epoch, count());
  upload(stream, [&](int64_t i) { return order[i]; });
}

void Sampler::in_order(DeviceStream& stream) {
  upload(stream, [](int64_t i) { return i; });
}

void Sampler::sample(DeviceStream& stream, const int64_t* step, const Map& x, uint8_t* labels, int first) const {
  if (x.H != data_.height() || x.W != data_.width() || x.C != data_.channels()) {
    throw DataError("the network takes images of " + std::to_string(x.H) + "x" + std::to_string(x.W) + "x" +
                    std::to_string(x.C) + " (height x width x channels), the data are " +
                    std::to_string(data_.height()) + "x" + std::to_string(data_.width()) + "x" +
                    std::to_string(data_.channels()));
  }
  kernels::sample_batch(stream, {.images = data_.images(),
                                 .masks = data_.masks(),
                                 .order = order_.as<int32_t>(),
                                 .entries = static_cast<int>(count()),
                                 .step = step,
                                 .steps_per_epoch = steps_,
                                 .batch = batch_,
                                 .first = first,
                                 .wrap = wrap_,
                                 .seed = seed_,
                                 .augment = augment_,
                                 .divisor = divisor_,
                                 .offset = offset_,
                                 .x = x,
                                 .labels = labels});
}

}  // namespace regolith
