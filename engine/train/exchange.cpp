#include "engine/train/exchange.h"

#include <algorithm>

namespace regolith {

Share share_of(int parts, int rank, int ranks) {
  const auto begin = [&](int r) { return static_cast<int>(int64_t{parts} * r / ranks); };
  return {begin(rank), begin(rank + 1) - begin(rank)};
}

Exchange::Exchange(Communicator& ranks, Parameters& parameters, Device& device, int parts, Reduce reduce)
    : ranks_(ranks), parameters_(parameters), device_(device), reduce_(reduce), count_(parameters.trained_size()) {
  if (reduce == Reduce::automatic)
    reduce_ = parts * count_ * static_cast<int64_t>(sizeof(float)) <= kExactBytes ? Reduce::exact : Reduce::ring;
  for (int r = 0; r < ranks.size(); ++r) most_ = std::max(most_, share_of(parts, r, ranks.size()).count);
  if (reduce_ == Reduce::exact) {
    mine_.resize(most_ * count_);
    all_.resize(mine_.size() * ranks.size());
  } else if (reduce_ == Reduce::bf16) {
    low_.resize(count_);
    all_low_.resize(low_.size() * ranks.size());
    mine_.resize(count_);
  } else if (device.kind() != DeviceKind::cpu) {
    mine_.resize(count_);
  }
}

int64_t Exchange::bytes() const {
  return count_ * static_cast<int64_t>(reduce_ == Reduce::exact  ? most_ * sizeof(float)
                                       : reduce_ == Reduce::bf16 ? sizeof(bf16)
                                                                 : sizeof(float));
}

void Exchange::keep(DeviceStream& stream, int part) {
  device_.download(mine_.data() + part * count_, parameters_.grad(), count_ * sizeof(float), stream);
}

void Exchange::sum(DeviceStream& stream, int parts) {
  const int ranks = ranks_.size();
  const size_t bytes = count_ * sizeof(float);
  float* const grad = parameters_.grad();
  if (reduce_ == Reduce::exact) {
    stream.synchronize();
    ranks_.gather(mine_.data(), mine_.size() * sizeof(float), all_.data());
    bool first = true;
    for (int r = 0; r < ranks; ++r)
      for (int i = 0; i < share_of(parts, r, ranks).count; ++i) {
        const float* const from = all_.data() + (int64_t{r} * most_ + i) * count_;
        if (first)
          std::copy_n(from, count_, mine_.data());
        else
          for (int64_t k = 0; k < count_; ++k) mine_[k] += from[k];
        first = false;
      }
    device_.upload(grad, mine_.data(), bytes, stream);
  } else if (reduce_ == Reduce::bf16) {
    device_.download(mine_.data(), grad, bytes, stream);
    stream.synchronize();
    for (int64_t k = 0; k < count_; ++k) low_[k] = bf16(mine_[k]);
    ranks_.gather(low_.data(), count_ * sizeof(bf16), all_low_.data());
    for (int64_t k = 0; k < count_; ++k) {
      mine_[k] = static_cast<float>(all_low_[k]);
      for (int r = 1; r < ranks; ++r) mine_[k] += static_cast<float>(all_low_[r * count_ + k]);
    }
    device_.upload(grad, mine_.data(), bytes, stream);
  } else if (device_.kind() == DeviceKind::cpu) {
    ranks_.sum(grad, count_);
  } else {
    device_.download(mine_.data(), grad, bytes, stream);
    stream.synchronize();
    ranks_.sum(mine_.data(), count_);
    device_.upload(grad, mine_.data(), bytes, stream);
  }
  stream.synchronize();  // the host's memory is free again
}

void Exchange::average(DeviceStream& stream, float* values, int64_t count) {
  if (count == 0) return;
  std::vector<float> own(count), all(count * ranks_.size());
  device_.download(own.data(), values, count * sizeof(float), stream);
  stream.synchronize();
  ranks_.gather(own.data(), count * sizeof(float), all.data());
  for (int64_t k = 0; k < count; ++k) {
    double sum = 0;
    for (int r = 0; r < ranks_.size(); ++r) sum += all[r * count + k];
    own[k] = static_cast<float>(sum / ranks_.size());
  }
  device_.upload(values, own.data(), count * sizeof(float), stream);
  stream.synchronize();
}

void Exchange::broadcast(DeviceStream& stream, float* values, int64_t count) {
  std::vector<float> host(count);
  if (ranks_.is_root()) device_.download(host.data(), values, count * sizeof(float), stream);
  stream.synchronize();
  ranks_.broadcast(host.data(), count * sizeof(float), 0);
  if (!ranks_.is_root()) device_.upload(values, host.data(), count * sizeof(float), stream);
  stream.synchronize();
}

}  // namespace regolith
