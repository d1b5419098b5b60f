#include "data/images.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <utility>

#include "data/arrays.h"
#include "data/pictures.h"
#include "engine/base/error.h"
#include "engine/base/text.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

class Pictures : public ImageSource {
 public:
  Pictures(std::vector<PicturePair> files, bool labelled, std::string notes, const SourceContext& c)
      : files_(std::move(files)),
        labelled_(labelled),
        notes_(std::move(notes)),
        pictures_(c, files_[0].image),
        masks_(c) {}
  int64_t count() const override { return std::ssize(files_); }
  std::string name(int64_t i) const override { return files_[i].stem; }
  bool has_masks() const override { return labelled_; }
  std::string notes() const override { return notes_ + pictures_.notes(masks_.turned()); }

  NamedImage read(int64_t i) override {
    const std::string& path = files_[i].image;
    ImageValues image = read_image(path);
    NamedImage named{name(i), image.height, image.width, 0, {}};
    named.pixels = pictures_.bytes(std::move(image), path, i);
    named.channels = pictures_.channels();
    pictures_.settle([&](int64_t, int64_t pixel) { return path + ": " + place(pixel, named.width); });
    return named;
  }
  std::vector<uint8_t> read_mask(int64_t i) override {
    const PicturePair& file = files_[i];
    const ImageHeader image = read_image_header(file.image);
    const ImageValues values = read_image(file.mask, masks_.stored());
    if (values.height != image.height || values.width != image.width)
      throw DataError(file.mask + ": is " + shown_size(values) + "; its image " + file.image + " is " +
                      shown_size(image));
    std::vector<uint8_t> mask(static_cast<size_t>(image.height) * image.width);
    masks_.read(file.mask, values, mask.data());
    if (i + 1 == count()) masks_.finish();
    return mask;
  }

 private:
  std::vector<PicturePair> files_;
  bool labelled_;
  std::string notes_;
  PictureFiles pictures_;
  MaskFiles masks_;
};

// Reads an array from where it stands, and from its beginning where it has to go back.
class Cursor {
 public:
  explicit Cursor(OpenArray open) : open_(std::move(open)) {}
  // `read` takes `count` elements, from `first` on. Where it throws, the next one starts from the beginning.
  template <class F>
  void at(int64_t first, int64_t count, F&& read) {
    std::optional<NpyStream> stream = std::exchange(stream_, std::nullopt);
    if (!stream || first < position_) stream.emplace(open_()), position_ = 0;
    std::vector<uint8_t> skipped(first > position_ ? 1 << 16 : 0);
    for (int64_t part; position_ < first; position_ += part) {
      part = std::min<int64_t>(first - position_, std::ssize(skipped) / stream->header().item);
      stream->read(skipped.data(), part);
    }
    read(*stream);
    position_ = first + count;
    stream_ = std::move(stream);
  }

 private:
  OpenArray open_;
  std::optional<NpyStream> stream_;
  int64_t position_ = 0;
};

class Arrays : public ImageSource {
 public:
  // npz: where the arrays are of one, which then has to live as long. Without masks there is no truth, but that of an
  // array of both, where `labelled`.
  Arrays(std::shared_ptr<NpzReader> npz, const std::string& path, LabelledArrays arrays, bool labelled,
         const SourceContext& c)
      : npz_(std::move(npz)), labelled_(labelled), ids_(c.ids()), images_(arrays.images) {
    NpyHeader images = arrays.images().header();
    const std::vector<int64_t>& s = images.shape;
    const bool one = s.size() == 2 || (c.channels > 1 && s.size() == 3 && s[2] == c.channels);
    if (one) images.shape.insert(images.shape.begin(), 1);
    both_ = s.size() == 4 && s[3] != c.channels && s[1] == 2;
    size_ = size_of(images, both_);
    if (size_[3] != c.channels)
      throw DataError(images.where + ": holds images of " + std::to_string(size_[3]) + " channels, " +
                      shape_text(images.shape) + "; the model takes " + std::to_string(c.channels));
    if (one) stem_ = fs::path(path).stem().string();
    if (arrays.masks != nullptr) {
      NpyHeader masks = arrays.masks().header();
      if (one) masks.shape.insert(masks.shape.begin(), 1);
      check_masks(masks, size_);
      masks_.emplace(arrays.masks);
    } else if (labelled && !both_) {
      bad_shape(images, "(N, 2, H, W), images and masks, for no array of masks is named");
    }
    notes_ = images.where + ": " + std::to_string(size_[0]) + (size_[0] == 1 ? " image of " : " images of ") +
             size_text({size_[1], size_[2], size_[3]}) + "\n";
    choose_scale(images, c.normalise);
  }
  int64_t count() const override { return size_[0]; }
  std::string name(int64_t i) const override {
    if (!stem_.empty()) return stem_;
    const std::string row = std::to_string(i);
    return std::string(std::to_string(count() - 1).size() - row.size(), '0') + row;
  }
  bool has_masks() const override { return labelled_; }
  std::string notes() const override { return notes_; }

  NamedImage read(int64_t i) override {
    NamedImage image{name(i), static_cast<int>(size_[1]), static_cast<int>(size_[2]), static_cast<int>(size_[3]), {}};
    image.pixels.resize(static_cast<size_t>(elements()));
    read_pixels(i, image.pixels.data());
    return image;
  }
  std::vector<uint8_t> read_mask(int64_t i) override {
    const int64_t pixels = size_[1] * size_[2];
    std::vector<uint8_t> mask(static_cast<size_t>(pixels));
    const auto read = [&](NpyStream& from) {
      next_mask(from, {static_cast<int>(size_[1]), static_cast<int>(size_[2])}, i, ids_, mask.data());
    };
    masks_ ? masks_->at(i * pixels, pixels, read) : images_.at((2 * i + 1) * pixels, pixels, read);
    return mask;
  }

 private:
  int64_t elements() const { return size_[1] * size_[2] * size_[3]; }  // of an image
  void read_pixels(int64_t i, uint8_t* to) {
    images_.at(i * elements() * (both_ ? 2 : 1), elements(),
               [&](NpyStream& from) { next_image(from, elements(), i, *scale_, to); });
  }
  // Which only all numbers tell, as in training.
  void choose_scale(const NpyHeader& images, const Normalise& normalise) {
    scale_.emplace(normalise, images.kind, images.item, images.where);
    if (scale_->keeps_bytes()) return;
    std::vector<uint8_t> pixels(static_cast<size_t>(elements()));
    do {
      for (int64_t i = 0; i < count(); ++i) read_pixels(i, pixels.data());
    } while (!scale_->settle(place_in(images, static_cast<int>(size_[2]), static_cast<int>(size_[3]))));
    if (const std::string note = scale_->note(); !note.empty()) notes_ += images.where + ": " + note + "\n";
  }

  std::shared_ptr<NpzReader> npz_;
  bool labelled_, both_ = false;  // both: the study's layout
  MaskIds ids_;
  Cursor images_;
  std::optional<Cursor> masks_;
  std::array<int64_t, 4> size_{};  // (N, H, W, C)
  std::optional<ByteScale> scale_;
  std::string stem_, notes_;
};

// The array to predict of a file that has no name for it.
std::string only_images(const NpzReader& npz, const std::string& path) {
  std::vector<std::string> found, all;
  for (const std::string& name : npz.names()) {
    try {
      const NpyHeader header = npz.open(name).header();
      all.push_back(name + " " + shape_text(header.shape));
      if (header.shape.size() == 3 || header.shape.size() == 4) found.push_back(name);
    } catch (const DataError&) {  // text or objects
      all.push_back(name);
    }
  }
  if (found.size() == 1) return found[0];
  throw DataError(path + ": which array holds the images? Found: " + (all.empty() ? "no arrays" : join(all)) +
                  "; give its name");
}

std::unique_ptr<ImageSource> open_npz(const std::string& path, std::string key, std::string masks, bool labelled,
                                      const SourceContext& c) {
  const auto npz = std::make_shared<NpzReader>(path);
  if (labelled && key.empty()) {
    const NpzPair pair = training_names(*npz, path, c.arrays);
    key = pair.images;
    if (masks.empty()) masks = pair.masks;
  } else if (key.empty()) {
    const NpzNames& names = c.arrays;
    const std::array<std::string, 4> order{names.test ? names.test->images : "test_set", "test_set",
                                           names.images == kAutoName ? "image" : names.images,
                                           names.training == kAutoName ? "training_set" : names.training};
    const auto known = std::find_if(order.begin(), order.end(), [&](const auto& name) { return npz->has(name); });
    key = known != order.end() ? *known : only_images(*npz, path);
  }
  const auto open = [&](const std::string& name) -> OpenArray {
    if (name.empty()) return nullptr;
    return [npz = npz.get(), name] { return npz->open(name); };
  };
  return std::make_unique<Arrays>(npz, path, LabelledArrays{open(key), open(masks)}, labelled, c);
}

std::unique_ptr<ImageSource> open(const std::string& path, const std::string& key, const std::string& masks,
                                  bool labelled, const SourceContext& c) {
  std::error_code error;
  const bool folder = fs::is_directory(path, error);
  if (!folder && !fs::exists(path, error)) throw DataError(path + ": there is no such file or folder");
  const std::string extension = folder ? "" : fs::path(path).extension().string();
  if (extension == ".npz") return open_npz(path, key, masks, labelled, c);
  if (!key.empty()) throw DataError(path + ": is no .npz, of which '" + key + "' could be an array");
  if (labelled && masks.empty()) throw DataError(path + ": its masks are not named, of which the truth is read");
  if (extension == ".npy") {
    const auto stream = [](const std::string& file) { return OpenArray([file] { return open_npy(file); }); };
    const LabelledArrays arrays{stream(path), labelled ? stream(masks) : nullptr};
    return std::make_unique<Arrays>(nullptr, path, arrays, labelled, c);
  }
  std::vector<PicturePair> files;
  std::string notes;
  if (!folder) {
    files.push_back({fs::path(path).stem().string(), path, masks});
  } else if (labelled) {
    FolderPair pair;
    pair.images.path = path, pair.masks.path = masks;
    files = pair_pictures(pair, notes);
  } else {
    const PictureListing list = list_pictures(path);
    for (const auto& [stem, file] : list.files) files.push_back({stem, file, ""});
    notes = list.note;
  }
  return std::make_unique<Pictures>(std::move(files), labelled, notes, c);
}

}  // namespace

std::unique_ptr<ImageSource> open_images(const std::string& path, const std::string& key, const SourceContext& c) {
  return open(path, key, "", false, c);
}

std::unique_ptr<ImageSource> open_labelled(const std::string& path, const std::string& key, const std::string& masks,
                                           const SourceContext& c) {
  return open(path, key, masks, true, c);
}

}  // namespace regolith
