// A sheet of training images as they are stored and as an epoch shows them.
#pragma once

#include <array>
#include <string>

#include "app/experiment.h"
#include "kernels/augment.h"

namespace regolith {

struct PreviewOptions {
  std::string output = "preview.png";
  int count = 8;       // rows
  bool force = false;  // write over what is there
};

// A row for each of the first samples of the first epoch: image and classes as stored, and as a run of this
// configuration trains on them, to the bit in fp32; the caption says what was done to them. Throws IoError where the
// file is there already or cannot be written, and what Experiment::data() throws.
void write_preview(Experiment& experiment, const PreviewOptions& options);

// "flipped, zoom 1.1, cutmix with sample 7": what was drawn. partners: names of the images of cutmix and copy_paste.
std::string describe(const kernels::AugmentDraw& draw, const std::array<std::string, 2>& partners);

}  // namespace regolith
