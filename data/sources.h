// Where images and masks come from. Every reader converts to bytes as it reads, so that no other copy of the data is in
// memory; looks at the sizes of all that it is going to read before it reads a pixel; checks what it reads, and names
// the file and the array in its errors: DataError for a missing or damaged file, a missing array (with those found), a
// wrong shape, a mask of another size, an id that is no class (with its value and first place), an image value beyond
// its range. What becomes of the numbers in the files stands in values.h.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <variant>

#include "data/dataset.h"
#include "data/synthetic.h"
#include "data/values.h"
#include "engine/config/fields.h"

namespace regolith {

// Two arrays of an .npz, two files, two folders: images and their masks.
struct NpzPair {
  std::string images, masks;
};
struct NpyPair {
  FilePath images, masks;
};
struct FolderPair {
  FolderPath images, masks;
};
inline constexpr const char *kImagesDoc = "array (N, H, W) or (N, H, W, C)",
                            *kMasksDoc = "array (N, H, W) of class ids",
                            *kImageFolderDoc = "folder of PNG or JPEG images of one size",
                            *kMaskFolderDoc = "folder of PNG masks of the same names; see data.classes.from";
template <class V>
void fields(V& v, NpzPair& s) {
  v("images", s.images, {.doc = kImagesDoc, .required = true});
  v("masks", s.masks, {.doc = kMasksDoc, .required = true});
}
template <class V>
void fields(V& v, NpyPair& s) {
  v("images", s.images, {.doc = kImagesDoc, .required = true});
  v("masks", s.masks, {.doc = kMasksDoc, .required = true});
}
template <class V>
void fields(V& v, FolderPair& s) {
  v("images", s.images, {.doc = kImageFolderDoc, .required = true});
  v("masks", s.masks, {.doc = kMaskFolderDoc, .required = true});
}

// A source with the parts of the data that are given: the pair itself then is the training set. Parts that are not
// given are empty; without either, data.split divides the pair.
template <class Pair>
struct GivenParts {
  std::optional<Pair> validation, test;
  bool any() const { return validation || test; }
};
inline constexpr const char* kGivenDoc = "given as such, in place of data.split; what is above then trains";
template <class V, class Pair>
void part_fields(V& v, GivenParts<Pair>& s) {
  v("validation", s.validation, {.doc = kGivenDoc});
  v("test", s.test, {.doc = kGivenDoc});
}

inline constexpr const char* kAutoName = "auto";
struct NpzNames : GivenParts<NpzPair> {
  std::string training = kAutoName;                   // the study's layout
  std::string images = kAutoName, masks = kAutoName;  // a plain one

  bool names_pair() const { return images != kAutoName || masks != kAutoName; }
};
template <class V>
void fields(V& v, NpzNames& s) {
  v("training", s.training,
    {.doc = "array (N, 2, H, W) of image and mask; auto: training_set, where the file has it, else the pair below"});
  v("images", s.images, {.doc = "array (N, H, W) or (N, H, W, C), read in place of training; auto: image"});
  v("masks", s.masks, {.doc = "array (N, H, W) of class ids; auto: mask"});
  part_fields(v, s);
}

struct NpyFiles : NpyPair, GivenParts<NpyPair> {};
template <class V>
void fields(V& v, NpyFiles& s) {
  fields(v, static_cast<NpyPair&>(s));
  part_fields(v, s);
}

struct ImageFolders : FolderPair, GivenParts<FolderPair> {};
template <class V>
void fields(V& v, ImageFolders& s) {
  fields(v, static_cast<FolderPair&>(s));
  part_fields(v, s);
}

// What a source must know beside its own options.
struct SourceContext {
  int classes = 0, channels = 1;  // of the model's output and input
  uint64_t seed = 0;              // of the run
  NpzNames arrays = {};
  Normalise normalise = {};
  ClassOptions coding = {};
  int ignore = -1;         // loss.ignore
  std::string group = {};  // of an .npz: an array; of a folder: an expression for names; empty: no groups
  std::function<void(const Dataset&)> check = {};  // may refuse the sizes, before there is a pixel

  MaskIds ids() const { return {classes, ignore, coding.map}; }
};

// The study's layout if the file has the training array (N, 2, H, W), image and mask; else a plain one: images (N, H,
// W) or (N, H, W, C) and masks (N, H, W).
Dataset load_npz(const std::string& path, const SourceContext& context);
// Two .npy files of the plain layout, for each part.
Dataset load_npy(const NpyFiles& files, const SourceContext& context);
// PNG or JPEG images, and PNG masks of the same stem, in the order of the names. Channels: 1 (colour becomes grey, Rec.
// 601) or 3.
Dataset load_folder(const ImageFolders& folders, const SourceContext& context);

// The list of sources: a new one adds its type and its name here, and its load() in sources.cpp.
using DataSource = std::variant<std::monostate, FilePath, NpyFiles, ImageFolders, Terrain>;  // FilePath: an .npz
inline Alternatives source_names() {
  return {{"npz", {.doc = "NumPy archive: the study's layout, or an array of images and one of masks"}},
          {"npy", {.doc = "two NumPy files"}},
          {"folder", {.doc = "folders of pictures"}},
          {"synthetic", {.doc = "terrain made from a seed"}}};
}
Dataset load(const DataSource& source, const SourceContext& context);

// For the readers: a data set of this size, its pixels to be read, after the context's check.
Dataset start_dataset(const std::string& origin, int64_t count, int64_t height, int64_t width, int64_t channels,
                      const SourceContext& context);

}  // namespace regolith
