// A batch out of a data set that lives on the device as bytes: picks the samples of this step, augments those that are
// flagged, normalises, and converts, in one pass. The step is read from device memory, so that a captured step can be
// replayed. What an augmentation does, in which order, says augment_options.h.
//
// Random numbers are keyed by (seed, epoch, position in the epoch's order) and by what they are for: not by the batch,
// the slice, the block or the thread. Neighbours that blur and elastic fields need are made again where rows are
// divided among blocks, from the same numbers. A sample that draws nothing takes the path of one that is not flagged.
//
// Occupancy: at least 25% (128 threads, 16384 bytes of shared memory).
#pragma once

#include "kernels/augment_options.h"
#include "kernels/core/kernel.h"

namespace regolith::kernels {

// What an order holds: a row of the data set, and whether this occurrence is augmented.
constexpr int32_t sample_index(int64_t row, bool augment) { return static_cast<int32_t>(row * 2 + augment); }

struct SampleBatch {
  const uint8_t* images;  // (rows, H, W, C)
  const uint8_t* masks;   // (rows, H, W); null: every label is kAbsentClass
  const int32_t* order;   // (entries) of sample_index
  int entries;            // at least 1
  const int64_t* step;    // device, below 2^32; null is step 0
  // Step s is of epoch s / steps_per_epoch. The step s of an epoch takes positions s * batch .. (s + 1) * batch - 1,
  // which stand for entries of the order, begun again at its end. With drop_last the last positions are in no step;
  // where steps_per_epoch asks for more than the order has, an entry's second position is another picture.
  int steps_per_epoch;
  int batch;         // slots of a step
  int first = 0;     // slot of x's first image: a slice of the batch is x.N slots from here
  bool wrap = true;  // slots past the last entry start again at the first; else they are absent: zeros and kAbsentClass
  bool staged = false;  // order, images and masks hold this step's samples alone: entry i is that of slot i
  uint64_t seed = 0;
  Augment augment;
  // Rows that copy_paste takes its partners from; none: nothing is pasted.
  const int32_t* paste_rows = nullptr;  // (paste_count)
  int paste_count = 0;
  // If staged: the rows of each slot's partners of cutmix and copy_paste, as partners_of() chose them.
  const int32_t* partners = nullptr;  // (batch, 2)
  float divisor = 255, offset = 0;    // x = (byte - offset) / divisor
  TensorView x;                       // (N, H, W, C) fp32, bf16 or fp16, whole
  uint8_t* labels;                    // (N, H, W); may be null
};
// Throws KernelError for a sliced map, for sizes that do not fit together, and for options out of range.
REGOLITH_KERNEL(sample_batch, SampleBatch);

}  // namespace regolith::kernels
