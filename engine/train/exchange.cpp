#include "engine/train/exchange.h"

#include <algorithm>

#include "kernels/cast.h"
#include "kernels/sum_rows.h"

namespace regolith {
namespace {

int most_of_a_rank(const Owners& owners) {
  int most = 0;
  for (const int r : owners) most = std::max(most, static_cast<int>(std::count(owners.begin(), owners.end(), r)));
  return most;
}

}  // namespace

Share share_of(int count, int rank, int ranks) {
  const auto begin = [&](int r) { return static_cast<int>(int64_t{count} * r / ranks); };
  return {begin(rank), begin(rank + 1) - begin(rank)};
}

Exchange::Bytes Exchange::bytes_of(int64_t weights, const Owners& owners, Reduce reduce) {
  const int64_t each = weights * static_cast<int64_t>(sizeof(float));
  if (reduce == Reduce::automatic)
    reduce = static_cast<int64_t>(owners.size()) * each <= kExactBytes ? Reduce::exact : Reduce::ring;
  return {reduce, reduce == Reduce::exact  ? most_of_a_rank(owners) * each
                  : reduce == Reduce::bf16 ? weights * static_cast<int64_t>(sizeof(bf16))
                                           : each};
}

Exchange::Exchange(DeviceRanks& ranks, Parameters& parameters, Device& device, const Owners& owners, Reduce reduce)
    : ranks_(ranks),
      parameters_(parameters),
      device_(device),
      count_(parameters.trained_size()),
      bytes_(bytes_of(count_, owners, reduce)),
      most_(most_of_a_rank(owners)),
      statistics_(device, parameters.statistics_size() * ranks.size() * sizeof(float)) {
  if (bytes_.reduce == Reduce::ring) return;
  mine_ = DeviceBuffer(device, bytes_.gradients);
  all_ = DeviceBuffer(device, bytes_.gradients * ranks.size());
}

void Exchange::keep(DeviceStream& stream, int part) {
  device_.copy(mine_.as<float>() + part * count_, parameters_.grad(), count_ * sizeof(float), stream);
}

const int32_t* Exchange::order_of(const Owners& owners, DeviceStream& stream) {
  DeviceBuffer& order = orders_[owners];
  if (order.bytes() > 0) return order.as<int32_t>();
  std::vector<int32_t> rows;
  std::vector<int> done(ranks_.size());
  for (const int r : owners) rows.push_back(r * most_ + done[r]++);
  order = DeviceBuffer(device_, rows.size() * sizeof(int32_t));
  device_.upload(order.as(), rows.data(), order.bytes(), stream);
  stream.synchronize();
  return order.as<int32_t>();
}

void Exchange::sum(DeviceStream& stream, const Owners& owners) {
  float* const grad = parameters_.grad();
  kernels::SumRows sum{.rows = all_.as(), .count = count_, .out = grad};
  switch (bytes_.reduce) {
    case Reduce::exact:
      sum.order = order_of(owners, stream);
      sum.terms = static_cast<int>(owners.size());
      break;
    case Reduce::bf16:
      kernels::cast(stream,
                    {.from = grad, .from_type = DType::f32, .to = mine_.as(), .to_type = DType::bf16, .n = count_});
      sum.type = DType::bf16;
      sum.terms = ranks_.size();
      break;
    default:
      return ranks_.sum(stream, grad, count_);
  }
  ranks_.gather(stream, mine_.as(), mine_.bytes(), all_.as());
  kernels::sum_rows(stream, sum);
}

void Exchange::average_statistics(DeviceStream& stream) {
  const int64_t count = parameters_.statistics_size();
  if (count == 0) return;
  ranks_.gather(stream, parameters_.statistics(), count * sizeof(float), statistics_.as());
  kernels::sum_rows(stream, {.rows = statistics_.as(),
                             .terms = ranks_.size(),
                             .count = count,
                             .mean = true,
                             .out = parameters_.statistics()});
}

}  // namespace regolith
