#include "data/arrays.h"

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/text.h"

namespace regolith {
namespace {

// The next `n` elements as numbers.
template <class F>
void read_numbers(NpyStream& a, int64_t n, F&& convert) {
  std::array<double, 2048> values;
  for (int64_t begin = 0, part; begin < n; begin += part) {
    part = std::min<int64_t>(n - begin, values.size());
    a.read(values.data(), part);
    for (int64_t i = 0; i < part; ++i) convert(values[i], begin + i);
  }
}

}  // namespace

void bad_shape(const NpyHeader& a, const std::string& expected) {
  throw DataError(a.where + ": expected shape " + expected + ", found " + shape_text(a.shape));
}

std::array<int64_t, 4> size_of(const NpyHeader& a, bool both) {
  const std::string expected = both ? "(N, 2, H, W)" : "(N, H, W) or (N, H, W, C)";
  std::vector<int64_t> s = a.shape;
  if (both && (s.size() != 4 || s[1] != 2)) bad_shape(a, expected);
  if (both) s = {s[0], s[2], s[3]};
  if (s.size() == 3) s.push_back(1);
  if (s.size() != 4 || s[3] < 1 || s[3] > 16) bad_shape(a, expected);
  if (s[0] < 1) throw DataError(a.where + ": holds no images: " + shape_text(a.shape));
  if (std::min(s[1], s[2]) < 1 || std::max(s[1], s[2]) > 1 << 15) bad_shape(a, expected + " with sides of 1 to 32768");
  return {s[0], s[1], s[2], s[3]};
}

void check_masks(const NpyHeader& masks, const std::array<int64_t, 4>& images) {
  const std::vector<int64_t> wanted{images[0], images[1], images[2]};
  std::vector<int64_t> shape = masks.shape;
  if (shape.size() == 4 && shape[3] == 1) shape.pop_back();
  if (shape != wanted) bad_shape(masks, shape_text(wanted) + " to match the images");
}

NpzPair training_names(const NpzReader& npz, const std::string& path, const NpzNames& names) {
  const std::string training = names.training == kAutoName ? "training_set" : names.training;
  const std::string images = names.images == kAutoName ? "image" : names.images;
  if (!names.names_pair() && (names.training != kAutoName || npz.has(training))) return {training, ""};
  if (names.names_pair() || npz.has(images)) return {images, names.masks == kAutoName ? "mask" : names.masks};
  throw DataError(path + ": has neither '" + training + "' (the study's layout) nor '" + images + "'; found: " +
                  (npz.names().empty() ? "no arrays" : join(npz.names())) + "; name the arrays in the configuration");
}

void next_image(NpyStream& from, int64_t elements, int64_t i, ByteScale& scale, uint8_t* to) {
  if (scale.keeps_bytes()) return from.read(to, elements);
  read_numbers(from, elements, [&](double x, int64_t at) { to[at] = scale.byte(x, i, at); });
}

void next_mask(NpyStream& from, std::array<int, 2> size, int64_t i, const MaskIds& ids, uint8_t* to) {
  const auto where = [&](int64_t pixel) {
    return from.header().where + ": sample " + std::to_string(i) + ", " + place(pixel, size[1]);
  };
  const int64_t pixels = static_cast<int64_t>(size[0]) * size[1];
  if (from.header().kind == 'u' && from.header().item == 1) {
    from.read(to, pixels);
    return ids.apply(to, pixels, where);
  }
  read_numbers(from, pixels, [&](double id, int64_t pixel) {
    const int cls = ids.find(id);
    if (cls < 0) ids.fail(where(pixel), id);
    to[pixel] = static_cast<uint8_t>(cls);
  });
}

ByteScale::Where place_in(const NpyHeader& array, int width, int channels) {
  return [=, where = array.where](int64_t i, int64_t at) {
    return where + ": sample " + std::to_string(i) + ", " + place(at / channels, width);
  };
}

}  // namespace regolith
