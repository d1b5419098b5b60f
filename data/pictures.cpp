#include "data/pictures.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "engine/base/error.h"
#include "engine/base/text.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

std::string counted(int64_t n, const std::string& what) { return std::to_string(n) + " " + what + (n == 1 ? "" : "s"); }
std::string text_of(const Rgb& c) { return "[" + join(std::array{c.r, c.g, c.b}) + "]"; }
bool is_grey(const Rgb& c) { return c.r == c.g && c.g == c.b; }

// Whether two names are the same text in two forms of Unicode: where one has a letter with its mark, the other has a
// plain letter and the mark after it (U+0300 to U+036F).
bool same_but_for_form(const std::string& a, const std::string& b) {
  const auto byte = [](const std::string& s, size_t i) { return i < s.size() ? static_cast<uint8_t>(s[i]) : 0; };
  const auto mark = [&](const std::string& s, size_t i) {
    return byte(s, i) == 0xcc || (byte(s, i) == 0xcd && byte(s, i + 1) < 0xb0);
  };
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (a[i] == b[j] && mark(a, i + 1) == mark(b, j + 1)) {
      ++i, ++j;
      continue;
    }
    const bool first = byte(a, i) >= 0xc3;  // the one with both in one
    if (first ? !mark(b, j + 1) : !(byte(b, j) >= 0xc3 && mark(a, i + 1))) return false;
    for (const auto& [s, at, whole] : {std::tuple{&a, &i, first}, {&b, &j, !first}}) {
      ++*at;
      while (whole ? (byte(*s, *at) & 0xc0) == 0x80 : mark(*s, *at)) *at += whole ? 1 : 2;
    }
  }
  return i == a.size() && j == b.size();
}

std::string spelt_otherwise(const std::map<std::string, std::string>& files, const std::string& stem) {
  for (const auto& [other, path] : files)
    if (same_but_for_form(other, stem))
      return path + " is spelt in another Unicode form (NFC, NFD); give both files the same bytes as their name";
  return "";
}

}  // namespace

PictureListing list_pictures(const std::string& folder) {
  std::error_code error;
  fs::directory_iterator it(folder, error);
  if (error) throw DataError(folder + ": cannot be listed: " + error.message());
  PictureListing list;
  std::map<std::string, int64_t> left_out;  // by extension
  int64_t folders = 0, hidden = 0, special = 0;
  for (const fs::directory_entry& e : it) {
    const std::string name = e.path().filename().string(), stem = e.path().stem().string();
    std::string extension = e.path().extension().string();
    std::transform(extension.begin(), extension.end(), extension.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    if (name[0] == '.') {
      ++hidden;
    } else if (e.is_directory(error)) {
      ++folders;
    } else if (!e.is_regular_file(error)) {  // a pipe would be waited for
      ++special;
    } else if (extension != ".png" && extension != ".jpg" && extension != ".jpeg") {
      ++left_out[extension.empty() ? "without an extension" : extension];
      list.others.emplace(stem, e.path().string());
    } else if (const auto [at, fresh] = list.files.emplace(stem, e.path().string()); !fresh) {
      throw DataError(folder + ": two images of one name: " + at->second + " and " + e.path().string());
    }
  }
  std::vector<std::string> kinds;
  for (const auto& [extension, n] : left_out) kinds.push_back(std::to_string(n) + " " + extension);
  if (folders > 0) kinds.push_back(counted(folders, "folder"));
  if (hidden > 0) kinds.push_back(counted(hidden, "hidden file"));
  if (special > 0) kinds.push_back(std::to_string(special) + " that are no files");
  if (!kinds.empty()) list.note = folder + ": left out: " + join(kinds) + "\n";
  if (list.files.empty())
    throw DataError(folder + ": has no PNG or JPEG files" + (kinds.empty() ? "" : "; left out: " + join(kinds)));
  return list;
}

std::vector<PicturePair> pair_pictures(const FolderPair& folders, std::string& notes) {
  std::vector<PicturePair> pairs;
  PictureListing images = list_pictures(folders.images.path), masks = list_pictures(folders.masks.path);
  notes += images.note;
  if (folders.images.path != folders.masks.path) notes += masks.note;
  for (const auto& [stem, path] : images.files) {
    const auto mask = masks.files.find(stem);
    if (mask == masks.files.end()) {
      const std::string otherwise = spelt_otherwise(masks.files, stem);
      const auto other = masks.others.find(stem);
      throw DataError(path + (!otherwise.empty() ? ": its mask " + otherwise
                              : other != masks.others.end()
                                  ? ": its mask is there as " + other->second + ", but a mask must be a PNG"
                                  : ": has no mask: expected " + folders.masks.path + "/" + stem + ".png"));
    }
    pairs.push_back({stem, path, mask->second});
    masks.files.erase(mask);
  }
  if (masks.files.empty()) return pairs;
  const auto& [stem, path] = *masks.files.begin();
  if (const auto other = images.others.find(stem); other != images.others.end())
    throw DataError(path + ": its image is there as " + other->second + ", but PNG or JPEG is needed");
  throw DataError(path + ": has no image of this name in " + folders.images.path);
}

std::string shown_size(const ImageHeader& image) {
  return size_text({image.width, image.height}) + " (width x height" +
         (image.orientation > 1 ? ", turned as its EXIF orientation " + std::to_string(image.orientation) + " says"
                                : "") +
         ")";
}

PictureFiles::PictureFiles(const SourceContext& c, const std::string& path)
    : normalise_(c.normalise), channels_(c.channels), wide_(c.normalise, 'u', 2, "") {
  if (channels_ != 1 && channels_ != 3)
    throw DataError(path + ": pictures have 1 or 3 channels, not " + std::to_string(channels_) +
                    " as model.input.channels says");
}

std::vector<uint8_t> PictureFiles::bytes(ImageValues image, const std::string& path, int64_t i) {
  turned_ += image.orientation > 1;
  other_kind_ += image.channels != channels_;
  if (!image.warning.empty() && ++warned_ == 1) warning_ = path + ": " + image.warning;
  std::vector<uint8_t> bytes = std::move(image.bytes);
  if (image.bits > 8 || !ByteScale(normalise_, 'u', 1, path).keeps_bytes()) {
    bytes.resize(std::max(bytes.size(), image.words.size()));
    for (size_t at = 0; at < bytes.size(); ++at)
      bytes[at] =
          wide_.byte(image.bits > 8 ? image.words[at] : bytes[at], i, static_cast<int64_t>(at) / image.channels);
  }
  if (image.channels == channels_) return bytes;
  std::vector<uint8_t> other(bytes.size() / image.channels * channels_);
  const size_t pixels = bytes.size() / image.channels;
  for (size_t p = 0; p < pixels; ++p) {
    if (channels_ == 1) {
      const uint8_t* c = &bytes[3 * p];
      other[p] = static_cast<uint8_t>((299 * c[0] + 587 * c[1] + 114 * c[2] + 500) / 1000);
    } else {
      std::fill_n(&other[3 * p], 3, bytes[p]);
    }
  }
  return other;
}

void PictureFiles::settle(const ByteScale::Where& where) {
  std::exchange(wide_, ByteScale(normalise_, 'u', 2, "")).settle(where);
}

std::string PictureFiles::notes(int64_t turned_masks) const {
  std::string lines;
  if (turned_ + turned_masks > 0)
    lines += "turned as their EXIF orientation says: " + counted(turned_, "image") + ", " +
             counted(turned_masks, "mask") + "\n";
  if (other_kind_ > 0)
    lines += counted(other_kind_, channels_ == 1 ? "colour image" : "grey image") +
             (channels_ == 1 ? " turned to grey" : " repeated in three channels") + "\n";
  if (warned_ > 0)
    lines += counted(warned_, "JPEG file") + " with a remark of the decoder, pixels complete: " + warning_ + "\n";
  return lines;
}

MaskFiles::MaskFiles(const SourceContext& c) : coding_(c.coding), ids_(c.ids()) {
  if (stored()) return;
  for (int64_t id = 0; id < std::ssize(coding_.colours); ++id) {
    const Colour& colour = coding_.colours[id];
    if (!by_colour_.emplace(std::array<int, 3>{colour[0], colour[1], colour[2]}, id).second)
      throw OptionError("data", "classes.colours", "holds [" + join(colour) + "] twice; masks are read by it");
  }
}

void MaskFiles::read(const std::string& path, const ImageValues& image, uint8_t* mask) {
  turned_ += image.orientation > 1;
  if (!stored() && image.bits > 8) throw DataError(path + ": has 16 bits: expected colours of 8 bits");
  const bool grey_palette = std::all_of(image.palette.begin(), image.palette.end(), is_grey);
  std::vector<bool> used(image.palette.size());
  const int64_t pixels = static_cast<int64_t>(image.height) * image.width;
  for (int64_t p = 0; p < pixels; ++p) {
    const auto value = [&](int channel) { return image.value(p * image.channels + channel); };
    const auto where = [&] { return path + ": " + place(p, image.width); };
    int64_t id = value(0);
    if (!stored()) {
      const std::array colour{value(0), value(image.channels / 2), value(image.channels - 1)};
      id = id_of_colour(colour);
      if (id < 0) throw DataError(where() + ": colour [" + join(colour) + "] is none of data.classes.colours");
    } else if (!image.palette.empty()) {
      if (id >= std::ssize(image.palette))
        throw DataError(where() + ": index " + std::to_string(id) + " is not in the palette");
      used[id] = true;
      if (grey_palette) id = image.palette[id].r;
    } else if (image.channels == 3 && (value(1) != value(0) || value(2) != value(0))) {
      throw DataError(where() + ": colour [" + join(std::array{value(0), value(1), value(2)}) +
                      "]: a mask holds class ids; for one in colours list them in data.classes.colours and set " +
                      "data.classes.from: colours");
    }
    const int cls = ids_.find(static_cast<double>(id));
    if (cls < 0 && grey_palette && !image.palette.empty() && stored()) fail_greys(path, image);
    if (cls < 0) ids_.fail(where(), static_cast<double>(id));
    mask[p] = static_cast<uint8_t>(cls);
  }
  if (!grey_palette) check_palette(path, image.palette, used);
}

void MaskFiles::finish() const {
  const bool greys = std::all_of(entries_.begin(), entries_.end(), [&](const auto& e) {
    return is_grey(e.second.colour) && ids_.find(e.second.colour.r) >= 0;
  });
  const auto other =
      std::find_if(entries_.begin(), entries_.end(), [](const auto& e) { return e.first != e.second.colour.r; });
  if (!greys || entries_.size() < 2 || other == entries_.end()) return;
  throw DataError(other->second.path + ": index " + std::to_string(other->first) + " of its palette is the grey " +
                  std::to_string(other->second.colour.r) +
                  ": both may be the class id; save the masks as grey, or set data.classes.from: colours");
}

int64_t MaskFiles::id_of_colour(const std::array<int, 3>& colour) const {
  const auto found = by_colour_.find(colour);
  return found != by_colour_.end() ? found->second : -1;
}

void MaskFiles::fail_greys(const std::string& path, const ImageValues& image) const {
  std::map<int, int> greys;
  for (const uint8_t index : image.bytes)
    if (index < image.palette.size()) greys.emplace(image.palette[index].r, index);
  std::string list, map;
  for (const auto& [grey, index] : greys) {
    list += (list.empty() ? "" : ", ") + std::to_string(grey);
    map += (map.empty() ? "" : ", ") + std::to_string(grey) + ": " + std::to_string(index);
  }
  throw DataError(path + ": its palette has the greys " + list +
                  ", which are not all class ids; say which class each is, " +
                  "if it is the index: data.classes.map: {" + map + "}");
}

void MaskFiles::check_palette(const std::string& path, const std::vector<Rgb>& palette, const std::vector<bool>& used) {
  for (size_t i = 0; i < palette.size(); ++i) {
    if (!used[i]) continue;
    const auto [at, fresh] = entries_.emplace(i, Entry{palette[i], path});
    if (fresh || at->second.colour == palette[i]) continue;
    throw DataError(path + ": index " + std::to_string(i) + " of its palette is the colour " + text_of(palette[i]) +
                    ", in " + at->second.path + " it is " + text_of(at->second.colour) +
                    ": indices are class ids only where all masks have one palette; list the colours in " +
                    "data.classes.colours and set data.classes.from: colours");
  }
}

}  // namespace regolith
