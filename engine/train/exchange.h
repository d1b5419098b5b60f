// The seam between the ranks of a run: the gradient of a step is the sum over all of its micro-batches, wherever each
// was computed. All that happens here is enqueued, in stream order.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "engine/comm/device_ranks.h"
#include "engine/graph/graph.h"
#include "engine/run/parameters.h"
#include "kernels/core/dtype.h"

namespace regolith {

// exact: the gradient of every micro-batch goes to all ranks, which add them in their order: the same bits on any
// number of ranks. ring: each rank adds up its own, and the library the ranks'. bf16: the same, rounded to bf16 on the
// way. automatic: exact up to kExactBytes of gradients.
enum class Reduce { automatic, exact, ring, bf16 };
constexpr std::array<const char*, 4> names_of(Reduce) { return {"auto", "exact", "ring", "bf16"}; }

// Of `count` things in order, those of a rank: a contiguous part.
struct Share {
  int first = 0, count = 0;
};
Share share_of(int count, int rank, int ranks);
// The micro-batches of a batch of N images, of `each` where there is one rank. A batch that would not be divided then
// is divided into a part for each rank, of nearly one size, if there are as many images.
std::vector<Share> divide_batch(int N, int each, int ranks);

// The rank of each micro-batch of a step, in their order.
using Owners = std::vector<int>;

class Exchange {
 public:
  static constexpr int64_t kExactBytes = 32 << 20;  // of the gradients of all micro-batches

  // Of gradients that are sent together: at least so many, and at most so many times, for each costs some 20 us.
  static constexpr int64_t kBucketBytes = 64 << 10, kBuckets = 8;

  // owners: of the largest step. All objects must outlive this one.
  Exchange(DeviceRanks& ranks, const Graph& graph, Parameters& parameters, Device& device, const Owners& owners,
           Reduce reduce);

  bool exact() const { return bytes_.reduce == Reduce::exact; }
  size_t memory() const { return mine_.bytes() + all_.bytes() + statistics_.bytes(); }

  // exact() alone: after the backward pass of the part-th of this rank's micro-batches.
  void keep(DeviceStream& stream, int part);
  // In the last backward pass of a step, after that of a node: the gradients that are whole now are sent on a stream of
  // their own, beside what follows. Without exact(), and where exchanges do not wait for the host.
  void send(DeviceStream& stream, int node);
  // The gradient's sum in place of the rank's own.
  void sum(DeviceStream& stream, const Owners& owners);
  // The running statistics: the mean of all ranks'.
  void average_statistics(DeviceStream& stream);

  // What a rank gives to each of the others in a step.
  struct Bytes {
    Reduce reduce = Reduce::ring;  // not automatic
    int64_t gradients = 0;
  };
  static Bytes bytes_of(int64_t weights, const Owners& owners, Reduce reduce);

 private:
  const int32_t* order_of(const Owners& owners, DeviceStream& stream);
  // Gradients from `begin` on, which are whole once the backward passes down to `node` have been made.
  struct Bucket {
    int64_t begin = 0, count = 0;
    int node = 0;
  };
  static std::vector<Bucket> buckets_of(const Graph& graph, const Parameters& parameters);
  void sum_of(DeviceStream& stream, const Bucket& bucket);

  DeviceRanks& ranks_;
  Parameters& parameters_;
  Device& device_;
  const int64_t count_;  // weights that are trained
  const Bytes bytes_;
  int most_ = 0;             // micro-batches of a rank
  DeviceBuffer mine_, all_;  // exact: (most, count) and (ranks, most, count); bf16: (count) and (ranks, count)
  DeviceBuffer statistics_;  // (ranks, statistics)
  std::map<Owners, DeviceBuffer> orders_;  // rows of all_, in the order of the micro-batches
  std::vector<Bucket> buckets_;            // as they become whole; where they are sent beside the backward pass
  size_t sent_ = 0;                        // of these, in this step
  std::unique_ptr<DeviceStream> own_stream_;
  std::unique_ptr<Event> whole_, summed_;
};

}  // namespace regolith
