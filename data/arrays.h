// Arrays of images and masks, a sample at a time, for the data set of a run and for images one at a time.
#pragma once

#include <array>
#include <functional>
#include <string>

#include "data/sources.h"
#include "data/values.h"
#include "engine/io/npy.h"

namespace regolith {

using OpenArray = std::function<NpyStream()>;

// An array of images and one of masks, or one (N, 2, H, W) of both: masks is null then.
struct LabelledArrays {
  OpenArray images, masks;
};

// (N, H, W, C) of an array of images, or of one of both. Throws DataError for shapes that are none of these.
std::array<int64_t, 4> size_of(const NpyHeader& images, bool both);
void check_masks(const NpyHeader& masks, const std::array<int64_t, 4>& images);  // DataError: of another size
// The arrays that train: masks is empty where one has both. Throws DataError where the file has neither kind.
NpzPair training_names(const NpzReader& npz, const std::string& path, const NpzNames& names);
[[noreturn]] void bad_shape(const NpyHeader& array, const std::string& expected);

// The next sample. Its numbers become bytes by `scale`, which has to settle after the last; or classes. i: the sample's
// row, for messages.
void next_image(NpyStream& from, int64_t elements, int64_t i, ByteScale& scale, uint8_t* to);
void next_mask(NpyStream& from, std::array<int, 2> size, int64_t i, const MaskIds& ids, uint8_t* to);  // size: (H, W)
ByteScale::Where place_in(const NpyHeader& array, int width, int channels);  // of a number of an image

}  // namespace regolith
