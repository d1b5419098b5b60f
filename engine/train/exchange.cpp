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

std::vector<Share> divide_batch(int N, int each, int ranks) {
  std::vector<Share> parts;
  if (each >= N && N >= ranks) {
    for (int r = 0; r < ranks; ++r) parts.push_back(share_of(N, r, ranks));
    return parts;
  }
  each = std::min(each, (N + ranks - 1) / ranks);
  for (int first = 0; first < N; first += each) parts.push_back({first, std::min(each, N - first)});
  return parts;
}

Exchange::Bytes Exchange::bytes_of(int64_t weights, const Owners& owners, Reduce reduce) {
  const int64_t each = weights * static_cast<int64_t>(sizeof(float));
  if (reduce == Reduce::automatic)
    reduce = static_cast<int64_t>(owners.size()) * each <= kExactBytes ? Reduce::exact : Reduce::ring;
  return {reduce, reduce == Reduce::exact  ? most_of_a_rank(owners) * each
                  : reduce == Reduce::bf16 ? weights * static_cast<int64_t>(sizeof(bf16))
                                           : each};
}

// A bucket is whole when the first node of the graph that uses one of its parameters has been passed: backward goes
// from the last to the first.
std::vector<Exchange::Bucket> Exchange::buckets_of(const Graph& graph, const Parameters& parameters) {
  const auto& entries = parameters.entries();
  std::vector<int> first(entries.size(), static_cast<int>(graph.nodes.size()));
  for (int n = static_cast<int>(graph.nodes.size()) - 1; n >= 0; --n)
    for (const int p : graph.nodes[n].params) first[p] = n;
  std::map<int64_t, int> nodes;  // by where the gradient begins
  for (size_t p = 0; p < entries.size(); ++p)
    if (entries[p].trained()) nodes[entries[p].offset] = first[p];
  std::vector<Bucket> buckets;
  int64_t end = parameters.trained_size();
  const int64_t least = std::max(kBucketBytes / static_cast<int64_t>(sizeof(float)), end / kBuckets);
  int node = static_cast<int>(graph.nodes.size());
  for (auto at = nodes.rbegin(); at != nodes.rend(); ++at) {
    node = std::min(node, at->second);
    if (end - at->first < least && at->first > 0) continue;
    buckets.push_back({at->first, end - at->first, node});
    end = at->first;
  }
  return buckets;
}

Exchange::Exchange(DeviceRanks& ranks, const Graph& graph, Parameters& parameters, Device& device, const Owners& owners,
                   Reduce reduce)
    : ranks_(ranks),
      parameters_(parameters),
      device_(device),
      count_(parameters.trained_size()),
      bytes_(bytes_of(count_, owners, reduce)),
      most_(most_of_a_rank(owners)),
      statistics_(device, parameters.statistics_size() * ranks.size() * sizeof(float)) {
  if (!exact() && ranks.asynchronous()) {
    buckets_ = buckets_of(graph, parameters);
    own_stream_ = device.make_stream();
    whole_ = device.make_event();
    summed_ = device.make_event();
  }
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

void Exchange::send(DeviceStream& stream, int node) {
  for (; sent_ < buckets_.size() && buckets_[sent_].node >= node; ++sent_) {
    stream.record(*whole_);
    own_stream_->wait(*whole_);
    sum_of(*own_stream_, buckets_[sent_]);
  }
}

void Exchange::sum(DeviceStream& stream, const Owners& owners) {
  if (exact()) {
    ranks_.gather(stream, mine_.as(), mine_.bytes(), all_.as());
    return kernels::sum_rows(stream, {.rows = all_.as(),
                                      .order = order_of(owners, stream),
                                      .terms = static_cast<int>(owners.size()),
                                      .count = count_,
                                      .out = parameters_.grad()});
  }
  if (buckets_.empty()) return sum_of(stream, {0, count_, 0});
  send(stream, 0);
  sent_ = 0;
  own_stream_->record(*summed_);
  stream.wait(*summed_);
}

void Exchange::sum_of(DeviceStream& stream, const Bucket& bucket) {
  float* const grad = parameters_.grad() + bucket.begin;
  if (bytes_.reduce == Reduce::ring) return ranks_.sum(stream, grad, bucket.count);
  bf16* const mine = mine_.as<bf16>() + bucket.begin;
  bf16* const all = all_.as<bf16>() + bucket.begin * ranks_.size();
  kernels::cast(stream, {.from = grad, .from_type = DType::f32, .to = mine, .to_type = DType::bf16, .n = bucket.count});
  ranks_.gather(stream, mine, bucket.count * sizeof(bf16), all);
  kernels::sum_rows(stream,
                    {.rows = all, .type = DType::bf16, .terms = ranks_.size(), .count = bucket.count, .out = grad});
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
