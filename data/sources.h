// Where images and masks come from. Every reader converts to bytes as it reads, so that no other copy of the data is in
// memory, checks what it reads, and names the file and the array in its errors: DataError for a missing or damaged
// file, a missing array (with those found), a wrong shape, a mask of another size, a class id that is not one of
// 0..classes-1 (with its value and first place), an image value beyond a byte.
//
// Images of floats whose largest value is at most 1 are taken as 0..1 and become bytes; other numbers are 0..255.
#pragma once

#include <string>
#include <variant>

#include "data/dataset.h"
#include "data/synthetic.h"
#include "engine/config/fields.h"

namespace regolith {

struct NpzNames {
  std::string training = "training_set", test = "test_set";  // the study's layout
  std::string images = "image", masks = "mask";              // a plain one
};
template <class V>
void fields(V& v, NpzNames& s) {
  v("training", s.training,
    {.doc = "array (N, 2, H, W) of image and mask; where it is missing, the pair below is read"});
  v("test", s.test, {.doc = "array (M, H, W) of images without masks; may be missing"});
  v("images", s.images, {.doc = "array (N, H, W) or (N, H, W, C)"});
  v("masks", s.masks, {.doc = "array (N, H, W)"});
}

struct NpyFiles {
  FilePath images, masks;
};
template <class V>
void fields(V& v, NpyFiles& s) {
  v("images", s.images, {.doc = "array (N, H, W) or (N, H, W, C)", .required = true});
  v("masks", s.masks, {.doc = "array (N, H, W) of class ids", .required = true});
}

struct ImageFolders {
  FolderPath images, masks;
};
template <class V>
void fields(V& v, ImageFolders& s) {
  v("images", s.images, {.doc = "folder of PNG or JPEG images of one size", .required = true});
  v("masks", s.masks,
    {.doc = "folder of PNG masks of the same names; the grey value is the class id", .required = true});
}

// The study's layout if the file has the training array (N, 2, H, W), image and mask. The images of its test array
// (M, H, W) follow as unlabelled samples if `test_too`. Else a plain layout: images (N, H, W) or (N, H, W, C) and masks
// (N, H, W); images alone if `names.masks` is empty.
Dataset load_npz(const std::string& path, int classes, const NpzNames& names = {}, bool test_too = false);

// Two .npy files of the plain layout; `masks` may be empty.
Dataset load_npy(const std::string& images, const std::string& masks, int classes);

// PNG or JPEG images, and PNG masks of class ids (grey or palette) of the same stem; `masks` may be empty. In the order
// of the names. `channels`: 1 (colour becomes grey, Rec. 601) or 3.
Dataset load_folder(const std::string& images, const std::string& masks, int classes, int channels = 1);

// The list of sources: a new one adds its type and its name here, and its load() in sources.cpp.
using DataSource = std::variant<std::monostate, FilePath, NpyFiles, ImageFolders, Terrain>;  // FilePath: an .npz
inline Alternatives source_names() {
  return {{"npz", {.doc = "NumPy archive: the study's layout, or an array of images and one of masks"}},
          {"npy", {.doc = "two NumPy files"}},
          {"folder", {.doc = "folders of pictures"}},
          {"synthetic", {.doc = "terrain made from a seed"}}};
}
// What a source must know beside its own options.
struct SourceContext {
  int classes = 0, channels = 1;  // of the model's output and input
  uint64_t seed = 0;              // of the run
  NpzNames arrays;
};
Dataset load(const DataSource& source, const SourceContext& context);

}  // namespace regolith
