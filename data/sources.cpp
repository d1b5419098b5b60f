#include "data/sources.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/image.h"
#include "engine/io/npy.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

std::string place(int64_t sample, int64_t pixel, int width) {
  return "sample " + std::to_string(sample) + ", row " + std::to_string(pixel / width) + ", column " +
         std::to_string(pixel % width);
}

// Elements `first`, `first + stride` .. of `a`, runs of `run` elements each, as bytes through `convert`.
template <class F>
std::vector<uint8_t> gather(const NpyArray& a, int64_t runs, int64_t first, int64_t stride, int64_t run, F&& convert) {
  std::vector<uint8_t> out(static_cast<size_t>(runs * run));
  const bool plain = a.kind == 'u' && a.item == 1;
  for (int64_t r = 0; r < runs; ++r) {
    for (int64_t i = 0; i < run; ++i) {
      const int64_t from = first + r * stride + i;
      out[r * run + i] = convert(plain ? a.bytes[from] : a.at(from), r, i);
    }
  }
  return out;
}

struct Layout {  // where one sample after the other lies in an array
  int64_t count, first, stride;
  int height, width, channels;
};

std::vector<uint8_t> images_of(const NpyArray& a, const Layout& l) {
  const int64_t run = static_cast<int64_t>(l.height) * l.width * l.channels;
  double scale = a.kind == 'b' ? 255 : 1;
  if (a.kind == 'f') {
    double largest = 0;
    for (int64_t r = 0; r < l.count; ++r) {
      for (int64_t i = 0; i < run; ++i) largest = std::max(largest, a.at(l.first + r * l.stride + i));
    }
    if (largest <= 1) scale = 255;
  }
  return gather(a, l.count, l.first, l.stride, run, [&](double x, int64_t r, int64_t i) {
    const double byte = std::floor(x * scale + 0.5);
    if (!(byte >= 0 && byte <= 255)) {
      throw DataError(a.where + ": " + place(r, i / l.channels, l.width) + ": image value " + format("%g", x) +
                      ": expected 0 to 255, or floats of 0 to 1; rescale the array");
    }
    return static_cast<uint8_t>(byte);
  });
}

[[noreturn]] void bad_class(const std::string& where, double id, int classes, const std::string& at) {
  throw DataError(where + ": " + at + ": class id " + number(id) + ": expected 0 to " + std::to_string(classes - 1) +
                  "; correct the mask or the number of classes");
}

std::vector<uint8_t> masks_of(const NpyArray& a, const Layout& l, int classes) {
  return gather(a, l.count, l.first, l.stride, static_cast<int64_t>(l.height) * l.width,
                [&](double x, int64_t r, int64_t i) {
                  if (!(x >= 0 && x < classes) || x != std::floor(x)) {
                    bad_class(a.where, x, classes, place(r, i, l.width));
                  }
                  return static_cast<uint8_t>(x);
                });
}

[[noreturn]] void bad_shape(const NpyArray& a, const std::string& expected) {
  throw DataError(a.where + ": expected shape " + expected + ", found " + shape_text(a.shape));
}

void check_size(const NpyArray& a, int64_t height, int64_t width, const std::string& expected) {
  if (height < 1 || width < 1 || height > 1 << 15 || width > 1 << 15)
    bad_shape(a, expected + " with sides of 1 to 32768");
}

Dataset start(const std::string& origin, int64_t count, int height, int width, int channels) {
  Dataset d;
  d.count = count;
  d.height = height;
  d.width = width;
  d.channels = channels;
  d.origin = origin;
  d.source.resize(static_cast<size_t>(count));
  std::iota(d.source.begin(), d.source.end(), 0);
  return d;
}

Dataset plain_images(const NpyArray& a, const std::string& origin,
                     const std::string& expected = "(N, H, W) or (N, H, W, C)") {
  const auto& s = a.shape;
  const int64_t channels = s.size() == 4 ? s[3] : 1;
  if (s.size() < 3 || s.size() > 4 || s[0] < 1 || channels < 1 || channels > 16) bad_shape(a, expected);
  check_size(a, s[1], s[2], expected);
  Dataset d = start(origin, s[0], static_cast<int>(s[1]), static_cast<int>(s[2]), static_cast<int>(channels));
  d.images = images_of(a, {d.count, 0, d.image_bytes(), d.height, d.width, d.channels});
  return d;
}

void add_plain_masks(Dataset& d, const NpyArray& a, int classes) {
  std::vector<int64_t> expected{d.count, d.height, d.width};
  std::vector<int64_t> shape = a.shape;
  if (shape.size() == 4 && shape[3] == 1) shape.pop_back();
  if (shape != expected) bad_shape(a, shape_text(expected) + " to match the images");
  d.masks = masks_of(a, {d.count, 0, d.mask_bytes(), d.height, d.width, 1}, classes);
}

Loaded loaded(Dataset d) {
  Loaded l;
  (d.masks.empty() ? l.unlabelled : l.labelled) = std::move(d);
  return l;
}

Loaded load_study(const NpzReader& npz, const std::string& path, int classes, const NpzNames& names) {
  Loaded l;
  const std::string origin = fs::path(path).filename().string(), expected = "(N, 2, H, W)";
  {
    const NpyArray a = npz.read(names.training);
    const auto& s = a.shape;
    if (s.size() != 4 || s[0] < 1 || s[1] != 2) bad_shape(a, expected);
    check_size(a, s[2], s[3], expected);
    Dataset& d = l.labelled = start(origin, s[0], static_cast<int>(s[2]), static_cast<int>(s[3]), 1);
    d.images = images_of(a, {d.count, 0, 2 * d.mask_bytes(), d.height, d.width, 1});
    d.masks = masks_of(a, {d.count, d.mask_bytes(), 2 * d.mask_bytes(), d.height, d.width, 1}, classes);
  }
  if (npz.has(names.test)) {
    const NpyArray a = npz.read(names.test);
    const std::string wanted =
        "(M, " + std::to_string(l.labelled.height) + ", " + std::to_string(l.labelled.width) + ")";
    if (a.shape.size() != 3 || a.shape[1] != l.labelled.height || a.shape[2] != l.labelled.width) bad_shape(a, wanted);
    if (a.shape[0] > 0) l.unlabelled = plain_images(a, origin + " " + names.test, wanted);
  }
  return l;
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

std::vector<uint8_t> with_channels(const ImageBytes& image, int channels) {
  if (image.channels == channels) return image.bytes;
  const size_t pixels = static_cast<size_t>(image.height) * image.width;
  std::vector<uint8_t> out(pixels * channels);
  for (size_t p = 0; p < pixels; ++p) {
    if (channels == 1) {
      const uint8_t* c = &image.bytes[3 * p];
      out[p] = static_cast<uint8_t>((299 * c[0] + 587 * c[1] + 114 * c[2] + 500) / 1000);
    } else {
      std::fill_n(&out[3 * p], 3, image.bytes[p]);
    }
  }
  return out;
}

}  // namespace

Loaded load_npz(const std::string& path, int classes, const NpzNames& names) {
  const NpzReader npz(path);
  if (npz.has(names.training)) return load_study(npz, path, classes, names);
  if (!npz.has(names.images)) {
    throw DataError(path + ": has neither '" + names.training + "' (the study's layout) nor '" + names.images +
                    "'; found: " + (npz.names().empty() ? "no arrays" : join(npz.names())) +
                    "; name the arrays in the configuration");
  }
  Dataset d = plain_images(npz.read(names.images), fs::path(path).filename().string());
  if (!names.masks.empty()) add_plain_masks(d, npz.read(names.masks), classes);
  return loaded(std::move(d));
}

Loaded load_npy(const std::string& images, const std::string& masks, int classes) {
  Dataset d = plain_images(read_npy(images), fs::path(images).filename().string());
  if (!masks.empty()) add_plain_masks(d, read_npy(masks), classes);
  return loaded(std::move(d));
}

Loaded load_folder(const std::string& images, const std::string& masks, int classes, int channels) {
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
  for (const auto& [stem, path] : files) {
    const ImageBytes image = read_image(path);
    if (first.empty()) {
      first = path;
      d = start(images, static_cast<int64_t>(files.size()), image.height, image.width, channels);
      d.images.reserve(static_cast<size_t>(d.count * d.image_bytes()));
    }
    check(image, path);
    const std::vector<uint8_t> bytes = with_channels(image, channels);
    d.images.insert(d.images.end(), bytes.begin(), bytes.end());
    if (masks.empty()) continue;
    const auto at = mask_files.find(stem);
    if (at == mask_files.end()) throw DataError(path + ": has no mask: expected " + masks + "/" + stem + ".png");
    const ImageBytes mask = read_image(at->second, true);
    check(mask, at->second);
    const auto odd = std::find_if(mask.bytes.begin(), mask.bytes.end(), [&](uint8_t id) { return id >= classes; });
    if (odd != mask.bytes.end()) {
      const int64_t pixel = odd - mask.bytes.begin();
      bad_class(at->second, *odd, classes,
                "row " + std::to_string(pixel / d.width) + ", column " + std::to_string(pixel % d.width));
    }
    d.masks.insert(d.masks.end(), mask.bytes.begin(), mask.bytes.end());
    mask_files.erase(at);
  }
  if (!mask_files.empty()) {
    throw DataError(mask_files.begin()->second + ": has no image of this name in " + images);
  }
  return loaded(std::move(d));
}

}  // namespace regolith
