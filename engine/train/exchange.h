// The seam between the ranks of a run: the gradient of a step is the sum over all of its micro-batches, wherever each
// was computed.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/comm/communicator.h"
#include "engine/run/parameters.h"
#include "kernels/core/dtype.h"

namespace regolith {

// exact: the gradient of every micro-batch goes to all ranks, which add them in their order: the same bits on any
// number of ranks. ring: each rank adds up its own, and the library the ranks'. bf16: the same, rounded to bf16 on the
// way. automatic: exact up to kExactBytes of gradients.
enum class Reduce { automatic, exact, ring, bf16 };
constexpr std::array<const char*, 4> names_of(Reduce) { return {"auto", "exact", "ring", "bf16"}; }

// The micro-batches of a rank: a contiguous part of those of a step.
struct Share {
  int first = 0, count = 0;
};
Share share_of(int parts, int rank, int ranks);

class Exchange {
 public:
  static constexpr int64_t kExactBytes = 32 << 20;  // of the gradients of all micro-batches

  // parts: the most micro-batches of a step. All objects must outlive this one.
  Exchange(Communicator& ranks, Parameters& parameters, Device& device, int parts, Reduce reduce);

  bool exact() const { return reduce_ == Reduce::exact; }
  // Bytes that a rank gives to the others in a step.
  int64_t bytes() const;

  // exact() alone: after the backward pass of the part-th of this rank's micro-batches.
  void keep(DeviceStream& stream, int part);
  // Of a step of that many micro-batches: the gradient's sum in place of the rank's own. Waits for the stream.
  void sum(DeviceStream& stream, int parts);
  // Of values in device memory, which each rank has others of: the mean of all ranks', and those of rank 0.
  void average(DeviceStream& stream, float* values, int64_t count);
  void broadcast(DeviceStream& stream, float* values, int64_t count);

 private:
  Communicator& ranks_;
  Parameters& parameters_;
  Device& device_;
  Reduce reduce_;
  int64_t count_;                    // weights that are trained
  int most_ = 0;                     // micro-batches of a rank
  std::vector<float> mine_, all_;    // exact: (most, count) and (ranks, most, count); else (count), where it is needed
  std::vector<bf16> low_, all_low_;  // (count), (ranks, count)
};

}  // namespace regolith
