#include "data/sources.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <numeric>

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/image.h"
#include "engine/io/npy.h"
#include "kernels/sample.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

using OpenArray = std::function<NpyStream()>;

std::string place(int64_t pixel, int width) {
  return "row " + std::to_string(pixel / width) + ", column " + std::to_string(pixel % width);
}
std::string place(int64_t sample, int64_t pixel, int width) {
  return "sample " + std::to_string(sample) + ", " + place(pixel, width);
}

// The next `n` elements: bytes as they are, other types through `convert(value, index)`.
template <class F>
void read_bytes(NpyStream& a, uint8_t* to, int64_t n, F&& convert) {
  if (a.header().kind == 'u' && a.header().item == 1) return a.read(to, n);
  std::array<double, 2048> values;
  for (int64_t begin = 0, part; begin < n; begin += part) {
    part = std::min<int64_t>(n - begin, values.size());
    a.read(values.data(), part);
    for (int64_t i = 0; i < part; ++i) to[begin + i] = convert(values[i], begin + i);
  }
}

[[noreturn]] void bad_class(const std::string& where, double id, int classes, const std::string& at) {
  throw DataError(where + ": " + at + ": class id " + format("%g", id) + ": expected 0 to " +
                  std::to_string(classes - 1) + "; correct the mask or the number of classes");
}

// The first pixel whose class is not known, or null.
const uint8_t* find_odd(const uint8_t* mask, int64_t pixels, int classes) {
  const uint8_t* end = mask + pixels;
  const uint8_t* odd = std::find_if(mask, end, [&](uint8_t id) { return id >= classes; });
  return odd == end ? nullptr : odd;
}

void read_mask(NpyStream& a, Dataset& d, int64_t i, int classes) {
  uint8_t* mask = d.masks.data() + i * d.mask_bytes();
  const auto fail = [&](double id, int64_t pixel) {
    bad_class(a.header().where, id, classes, place(i, pixel, d.width));
  };
  read_bytes(a, mask, d.mask_bytes(), [&](double id, int64_t pixel) {
    if (!(id >= 0 && id < classes) || id != std::floor(id)) fail(id, pixel);
    return static_cast<uint8_t>(id);
  });
  if (const uint8_t* odd = find_odd(mask, d.mask_bytes(), classes)) fail(*odd, odd - mask);
}

// Samples first..end-1 from an array of images, each followed by its mask if `classes` is not 0. Floats are taken as
// 0..1 if `scale` is 255; false: one of them is larger.
bool read_samples(NpyStream a, Dataset& d, int64_t first, int64_t end, int classes, double scale) {
  const bool expects_fractions = a.header().kind == 'f' && scale == 255;
  bool larger = false;
  std::string fault;  // thrown at the end: until then the scale may be another
  for (int64_t i = first; i < end && !larger; ++i) {
    read_bytes(a, d.images.data() + i * d.image_bytes(), d.image_bytes(), [&](double x, int64_t at) -> uint8_t {
      larger |= expects_fractions && x > 1;
      const double byte = std::floor(x * scale + 0.5);
      if (byte >= 0 && byte <= 255) return static_cast<uint8_t>(byte);
      if (fault.empty())
        fault = a.header().where + ": " + place(i - first, at / d.channels, d.width) + ": image value " +
                format("%g", x) + ": expected 0 to 255, or floats of 0 to 1; rescale the array";
      return 0;
    });
    if (classes > 0 && !larger) read_mask(a, d, i, classes);
  }
  if (!larger && !fault.empty()) throw DataError(fault);
  return !larger;
}

void read_images(const OpenArray& open, Dataset& d, int64_t first, int64_t end, int classes = 0) {
  NpyStream a = open();
  const bool fractions = a.header().kind == 'f' || a.header().kind == 'b';
  if (!read_samples(std::move(a), d, first, end, classes, fractions ? 255 : 1))
    read_samples(open(), d, first, end, classes, 1);
}

[[noreturn]] void bad_shape(const NpyHeader& a, const std::string& expected) {
  throw DataError(a.where + ": expected shape " + expected + ", found " + shape_text(a.shape));
}

void check_size(const NpyHeader& a, int64_t height, int64_t width, const std::string& expected) {
  if (height < 1 || width < 1 || height > 1 << 15 || width > 1 << 15)
    bad_shape(a, expected + " with sides of 1 to 32768");
}

// Room for the images of `count` samples, without masks.
Dataset start(const std::string& origin, int64_t count, int64_t height, int64_t width, int64_t channels) {
  Dataset d;
  d.count = d.unlabelled = count;
  d.height = static_cast<int>(height);
  d.width = static_cast<int>(width);
  d.channels = static_cast<int>(channels);
  d.origin = origin;
  d.images.resize(static_cast<size_t>(count * d.image_bytes()));
  d.source.resize(static_cast<size_t>(count));
  std::iota(d.source.begin(), d.source.end(), 0);
  return d;
}

// Room for masks of all but the last `unlabelled` samples.
void add_masks(Dataset& d, int64_t unlabelled = 0) {
  d.unlabelled = unlabelled;
  d.masks.resize(static_cast<size_t>(d.count * d.mask_bytes()), kernels::kAbsentClass);
}

Dataset load_plain(const OpenArray& images, const OpenArray& masks, const std::string& origin, int classes) {
  const NpyHeader a = images().header();
  const std::string expected = "(N, H, W) or (N, H, W, C)";
  const auto& s = a.shape;
  const int64_t channels = s.size() == 4 ? s[3] : 1;
  if (s.size() < 3 || s.size() > 4 || s[0] < 1 || channels < 1 || channels > 16) bad_shape(a, expected);
  check_size(a, s[1], s[2], expected);
  Dataset d = start(origin, s[0], s[1], s[2], channels);
  read_images(images, d, 0, d.count);
  if (masks == nullptr) return d;
  NpyStream m = masks();
  std::vector<int64_t> wanted{d.count, d.height, d.width}, shape = m.header().shape;
  if (shape.size() == 4 && shape[3] == 1) shape.pop_back();
  if (shape != wanted) bad_shape(m.header(), shape_text(wanted) + " to match the images");
  add_masks(d);
  for (int64_t i = 0; i < d.count; ++i) read_mask(m, d, i, classes);
  return d;
}

Dataset load_study(const NpzReader& npz, const std::string& path, int classes, const NpzNames& names, bool test_too) {
  const NpyHeader a = npz.open(names.training).header();
  const auto& s = a.shape;
  const std::string expected = "(N, 2, H, W)";
  if (s.size() != 4 || s[0] < 1 || s[1] != 2) bad_shape(a, expected);
  check_size(a, s[2], s[3], expected);
  int64_t tests = 0;
  if (test_too && npz.has(names.test)) {
    const NpyHeader t = npz.open(names.test).header();
    if (t.shape.size() != 3 || t.shape[1] != s[2] || t.shape[2] != s[3])
      bad_shape(t, "(M, " + std::to_string(s[2]) + ", " + std::to_string(s[3]) + ")");
    tests = t.shape[0];
  }
  Dataset d = start(fs::path(path).filename().string(), s[0] + tests, s[2], s[3], 1);
  add_masks(d, tests);
  std::iota(d.source.begin() + s[0], d.source.end(), 0);
  read_images([&] { return npz.open(names.training); }, d, 0, s[0], classes);
  if (tests > 0) read_images([&] { return npz.open(names.test); }, d, s[0], d.count);
  return d;
}

// Files of a folder by stem, in the order of their names.
std::map<std::string, std::string> files_by_stem(const std::string& folder) {
  std::error_code error;
  fs::directory_iterator it(folder, error);
  if (error) throw DataError(folder + ": cannot be listed: " + error.message());
  std::map<std::string, std::string> files;
  for (const fs::directory_entry& e : it) {
    std::string extension = e.path().extension().string();
    std::transform(extension.begin(), extension.end(), extension.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    if (extension != ".png" && extension != ".jpg" && extension != ".jpeg") continue;
    const auto [at, fresh] = files.emplace(e.path().stem().string(), e.path().string());
    if (!fresh) throw DataError(folder + ": two images of one name: " + at->second + " and " + e.path().string());
  }
  if (files.empty()) throw DataError(folder + ": has no PNG or JPEG files");
  return files;
}

// Grey from colour, or colour from grey, where the image is of another kind.
void store(const ImageBytes& image, int channels, uint8_t* to) {
  if (image.channels == channels) {
    std::copy(image.bytes.begin(), image.bytes.end(), to);
    return;
  }
  const size_t pixels = static_cast<size_t>(image.height) * image.width;
  for (size_t p = 0; p < pixels; ++p) {
    if (channels == 1) {
      const uint8_t* c = &image.bytes[3 * p];
      to[p] = static_cast<uint8_t>((299 * c[0] + 587 * c[1] + 114 * c[2] + 500) / 1000);
    } else {
      std::fill_n(to + 3 * p, 3, image.bytes[p]);
    }
  }
}

}  // namespace

Dataset load_npz(const std::string& path, int classes, const NpzNames& names, bool test_too) {
  const NpzReader npz(path);
  if (npz.has(names.training)) return load_study(npz, path, classes, names, test_too);
  if (!npz.has(names.images)) {
    throw DataError(path + ": has neither '" + names.training + "' (the study's layout) nor '" + names.images +
                    "'; found: " + (npz.names().empty() ? "no arrays" : join(npz.names())) +
                    "; name the arrays in the configuration");
  }
  OpenArray masks;
  if (!names.masks.empty()) masks = [&] { return npz.open(names.masks); };
  return load_plain([&] { return npz.open(names.images); }, masks, fs::path(path).filename().string(), classes);
}

Dataset load_npy(const std::string& images, const std::string& masks, int classes) {
  OpenArray open_masks;
  if (!masks.empty()) open_masks = [&] { return open_npy(masks); };
  return load_plain([&] { return open_npy(images); }, open_masks, fs::path(images).filename().string(), classes);
}

Dataset load_folder(const std::string& images, const std::string& masks, int classes, int channels) {
  if (channels != 1 && channels != 3)
    throw DataError(images + ": images have 1 or 3 channels, not " + std::to_string(channels));
  const auto files = files_by_stem(images);
  std::map<std::string, std::string> mask_files;
  if (!masks.empty()) mask_files = files_by_stem(masks);
  Dataset d;
  std::string first;  // the file that every other has to match
  const auto check = [&](const ImageBytes& image, const std::string& path) {
    if (image.height == d.height && image.width == d.width) return;
    throw DataError(path + ": is " + size_text({image.width, image.height}) + " (width x height); " + first + " is " +
                    size_text({d.width, d.height}) + ": all images and masks must be of one size");
  };
  int64_t i = 0;
  for (const auto& [stem, path] : files) {
    const ImageBytes image = read_image(path);
    if (first.empty()) {
      first = path;
      d = start(images, static_cast<int64_t>(files.size()), image.height, image.width, channels);
      if (!masks.empty()) add_masks(d);
    }
    check(image, path);
    store(image, channels, d.images.data() + i * d.image_bytes());
    if (!masks.empty()) {
      const auto at = mask_files.find(stem);
      if (at == mask_files.end()) throw DataError(path + ": has no mask: expected " + masks + "/" + stem + ".png");
      const ImageBytes mask = read_image(at->second, true);
      check(mask, at->second);
      if (const uint8_t* odd = find_odd(mask.bytes.data(), d.mask_bytes(), classes))
        bad_class(at->second, *odd, classes, place(odd - mask.bytes.data(), d.width));
      store(mask, 1, d.masks.data() + i * d.mask_bytes());
      mask_files.erase(at);
    }
    ++i;
  }
  if (!mask_files.empty()) {
    throw DataError(mask_files.begin()->second + ": has no image of this name in " + images);
  }
  return d;
}

namespace {

Dataset load(std::monostate, const SourceContext&) { throw DataError("the configuration names no data"); }
Dataset load(const FilePath& npz, const SourceContext& c) { return load_npz(npz.path, c.classes, c.arrays); }
Dataset load(const NpyFiles& npy, const SourceContext& c) {
  return load_npy(npy.images.path, npy.masks.path, c.classes);
}
Dataset load(const ImageFolders& folders, const SourceContext& c) {
  return load_folder(folders.images.path, folders.masks.path, c.classes, c.channels);
}
Dataset load(Terrain terrain, const SourceContext& c) {
  if (c.classes < kTerrainClasses)
    throw DataError("data.synthetic: has " + std::to_string(kTerrainClasses) + " classes; the model's last layer has " +
                    std::to_string(c.classes));
  if (terrain.seed < 0) terrain.seed = static_cast<int64_t>(c.seed);
  return make_synthetic(terrain);
}

}  // namespace

Dataset load(const DataSource& source, const SourceContext& context) {
  return std::visit([&](const auto& chosen) { return load(chosen, context); }, source);
}

}  // namespace regolith
