// A batch out of a data set that lives on the device as bytes: picks the samples of this step, augments those that are
// flagged, normalises, and converts, in one pass. The step is read from device memory, so that a captured step can be
// replayed.
//
// Augmentation has the semantics of Keras' RandomFlip, RandomZoom, RandomTranslation and RandomRotation, composed in
// this order into one affine map from output to input about ((W-1)/2, (H-1)/2), so that a picture is resampled once:
// the input is flipped, then zoomed, translated and rotated. Images bilinear, masks nearest (halves away from zero).
// The picture is extended without end as `fill` says, and then interpolated.
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

enum class Fill : int {
  reflect,   // d c b a | a b c d | d c b a
  nearest,   // a a a a | a b c d | d d d d
  constant,  // k k k k | a b c d | k k k k
  wrap,      // a b c d | a b c d | a b c d
};

enum class Flip : int { none, horizontal, vertical, both };
struct Interval {
  float low = 0, high = 0;
};
struct Extent {
  float height = 0, width = 0;
};

struct Augment {
  Flip flip = Flip::none;   // left to right, upside down: each with probability 1/2
  Interval zoom = {};       // scale in U(1 + low, 1 + high); above 1 zooms out
  Extent translation = {};  // in U(-t, t) of the height and width; positive moves down and right
  Interval rotation = {};   // in U(low, high) turns; positive counter-clockwise
  Fill fill = Fill::reflect, mask_fill = Fill::reflect;
  float fill_value = 0;  // of `constant`, in the units of the bytes
  int mask_fill_value = 0;
};

// input = (xx * x + xy * y + x0, yx * x + yy * y + y0) of an output pixel (x, y).
struct Affine {
  float xx, xy, x0, yx, yy, y0;
};

inline constexpr uint8_t kAbsentClass = 255;  // the label of pixels that no loss and no score counts

// What an order holds: a row of the data set, and whether this occurrence is augmented.
constexpr int32_t sample_index(int64_t row, bool augment) { return static_cast<int32_t>(row * 2 + augment); }

struct SampleBatch {
  const uint8_t* images;  // (rows, H, W, C)
  const uint8_t* masks;   // (rows, H, W); null: every label is kAbsentClass
  const int32_t* order;   // (entries) of sample_index
  int entries;            // at least 1
  const int64_t* step;    // device, below 2^32; null is step 0
  int steps_per_epoch;    // step s of an epoch takes entries s * batch .. (s + 1) * batch - 1
  int batch;              // slots of a step
  int first = 0;          // slot of x's first image: a slice of the batch is x.N slots from here
  bool wrap = true;  // slots past the last entry start again at the first; else they are absent: zeros and kAbsentClass
  uint64_t seed = 0;  // with step and slot the key of the random numbers
  Augment augment;
  float divisor = 255, offset = 0;  // x = (byte - offset) / divisor
  TensorView x;                     // (N, H, W, C) fp32, bf16 or fp16, whole
  uint8_t* labels;                  // (N, H, W); may be null
};
// Throws KernelError for a sliced map or for sizes that do not fit together.
REGOLITH_KERNEL(sample_batch, SampleBatch);

}  // namespace regolith::kernels
