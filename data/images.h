// Images to be predicted, with masks or without, one at a time and of any size. Which files and arrays are read, and
// what becomes of their numbers, is as for training (sources.h, values.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/sources.h"

namespace regolith {

struct NamedImage {
  std::string name;
  int height = 0, width = 0, channels = 1;
  std::vector<uint8_t> pixels;  // (height, width, channels)
};

class ImageSource {
 public:
  virtual ~ImageSource() = default;
  virtual int64_t count() const = 0;
  // For files that are written about it: the stem of a picture; the row of an array, "0017", in as many digits as the
  // last one needs; the stem of an array's file for the one image of an array (H, W).
  virtual std::string name(int64_t i) const = 0;
  // In any order, the order of i being the fastest. Throw DataError for what is wrong with this image alone: damaged,
  // of a wrong size, values beyond the range, ids that are no classes. The next one can be read then.
  virtual NamedImage read(int64_t i) = 0;
  virtual bool has_masks() const = 0;
  // (height, width) of read(i): classes, kernels::kAbsentClass where there is no truth.
  virtual std::vector<uint8_t> read_mask(int64_t i) = 0;
  // Lines on what is read and what is left out, and on what was changed in the images read so far.
  virtual std::string notes() const = 0;
};

// path: a PNG or JPEG file, a folder of them, an .npy of (N, H, W), (N, H, W, C) or one image (H, W), (H, W, C), or an
// .npz of such arrays. key: which of an .npz's; empty: that of data.arrays.test, else test_set, else the images that
// training reads, else its only array of images. An array of the study's layout gives its images. A file of 16 bits is
// looked at by itself: a range that is not stated is 0 to 255. Throws DataError for what cannot be opened or holds no
// images; a damaged picture only shows when it is read.
std::unique_ptr<ImageSource> open_images(const std::string& path, const std::string& key, const SourceContext& context);
// The same with truth. masks: of a picture, the PNG file; of a folder, the folder; of an .npy, the .npy; of an .npz,
// the array, empty: the other half of the study's layout, or data.arrays.masks. An empty key is the images that
// training reads.
std::unique_ptr<ImageSource> open_labelled(const std::string& path, const std::string& key, const std::string& masks,
                                           const SourceContext& context);

}  // namespace regolith
