// Picture files, for the data set of a run and for images one at a time: which of a folder are read, how their values
// become bytes, and how masks become class ids.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "data/sources.h"
#include "engine/io/image.h"

namespace regolith {

struct PictureListing {
  std::map<std::string, std::string> files;   // by stem, in the order of their names
  std::map<std::string, std::string> others;  // left out, by stem
  std::string note;                           // how many were left out, by kind
};
// Throws DataError for a folder without PNG and JPEG files, and for two of one stem.
PictureListing list_pictures(const std::string& folder);

struct PicturePair {
  std::string stem, image, mask;  // image, mask: paths
};
// Throws DataError for an image without a mask and the other way round. What is left out is added to the notes.
std::vector<PicturePair> pair_pictures(const FolderPair& folders, std::string& notes);

std::string shown_size(const ImageHeader& image);  // "8x16 (width x height, turned as its EXIF orientation 6 says)"

// Image files as bytes: by data.normalise, and of the model's channels.
class PictureFiles {
 public:
  // Throws DataError that names `path` for a model that does not take pictures.
  PictureFiles(const SourceContext& context, const std::string& path);
  // (H, W, channels): the values as they were read, where they are what is wanted. Grey from colour by Rec. 601.
  std::vector<uint8_t> bytes(ImageValues image, const std::string& path, int64_t i);
  // Throws DataError for values of the files so far beyond the range; begins anew.
  void settle(const ByteScale::Where& where);
  int channels() const { return channels_; }
  std::string notes(int64_t turned_masks) const;  // lines on what was turned, changed, remarked

 private:
  const Normalise normalise_;
  const int channels_;
  ByteScale wide_;  // of the files of 16 bits
  int64_t turned_ = 0, other_kind_ = 0, warned_ = 0;
  std::string warning_;  // the first
};

// Mask files as classes. What they hold may only be told by all of them: palettes have to be of one order.
class MaskFiles {
 public:
  explicit MaskFiles(const SourceContext& context);
  bool stored() const { return coding_.from == MaskCoding::ids; }  // as read_image() has to read them
  // mask: (H, W). Throws DataError, as finish() does.
  void read(const std::string& path, const ImageValues& image, uint8_t* mask);
  // After the last: indices that all masks use for greys which are ids themselves may be either.
  void finish() const;
  int64_t turned() const { return turned_; }

 private:
  struct Entry {
    Rgb colour;
    std::string path;  // of the first file that uses it
  };

  int64_t id_of_colour(const std::array<int, 3>& colour) const;  // -1: none
  [[noreturn]] void fail_greys(const std::string& path, const ImageValues& image) const;
  void check_palette(const std::string& path, const std::vector<Rgb>& palette, const std::vector<bool>& used);

  const ClassOptions coding_;
  MaskIds ids_;
  std::map<std::array<int, 3>, int64_t> by_colour_;
  std::map<size_t, Entry> entries_;  // of colour palettes, by index
  int64_t turned_ = 0;
};

}  // namespace regolith
