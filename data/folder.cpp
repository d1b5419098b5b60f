// Folders of pictures: PNG or JPEG images, and PNG masks of the same names.
#include <algorithm>
#include <filesystem>
#include <map>
#include <regex>

#include "data/pictures.h"
#include "data/sources.h"
#include "engine/base/error.h"
#include "engine/base/text.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

struct Sample {
  Part part;
  std::string image, mask;  // paths
};

void read_groups(Dataset& d, const std::string& expression) {
  std::regex pattern;
  try {
    pattern = expression;
  } catch (const std::regex_error& e) {
    throw DataError("data.split.group: '" + expression + "' is no regular expression: " + e.what());
  }
  std::map<std::string, int64_t> groups;
  for (const std::string& name : d.names) {
    std::smatch match;
    const std::string group = std::regex_search(name, match, pattern) ? match.str(match.size() > 1 ? 1 : 0) : "";
    if (group.empty())
      throw DataError(d.origin + "/" + name + ": data.split.group, '" + expression + "', finds nothing in its name");
    d.group.push_back(groups.emplace(group, std::ssize(groups)).first->second);
  }
}

}  // namespace

Dataset load_folder(const ImageFolders& folders, const SourceContext& c) {
  PictureFiles pictures(c, folders.images.path);
  std::vector<Sample> samples;
  std::string notes;
  const auto list_part = [&](Part part, const FolderPair& pair) {
    for (PicturePair& p : pair_pictures(pair, notes)) samples.push_back({part, std::move(p.image), std::move(p.mask)});
  };
  list_part(Part::train, folders);
  if (folders.validation) list_part(Part::validation, *folders.validation);
  if (folders.test) list_part(Part::test, *folders.test);

  MaskFiles masks(c);
  ImageHeader first;  // that every other has to match
  const auto check = [&](const ImageHeader& image, const std::string& path) {
    if (image.height == first.height && image.width == first.width) return;
    throw DataError(path + ": is " + shown_size(image) + "; " + samples[0].image + " is " + shown_size(first) +
                    ": all images and masks must be of one size");
  };
  for (const Sample& s : samples) {
    const ImageHeader image = read_image_header(s.image), mask = read_image_header(s.mask, true);
    if (first.width == 0) check_sides(first = image, s.image);
    check(image, s.image);
    check(mask, s.mask);
  }
  Dataset d = start_dataset(folders.images.path, std::ssize(samples), first.height, first.width, c.channels, c);
  d.notes = notes;

  for (int64_t i = 0; i < d.count; ++i) {
    const Sample& s = samples[i];
    ImageValues image = read_image(s.image);
    check(image, s.image);
    const std::vector<uint8_t> bytes = pictures.bytes(std::move(image), s.image, i);
    std::copy(bytes.begin(), bytes.end(), d.images.data() + i * d.image_bytes());
    const ImageValues mask = read_image(s.mask, masks.stored());
    check(mask, s.mask);
    masks.read(s.mask, mask, d.masks.data() + i * d.mask_bytes());
    d.names.push_back(fs::path(s.image).filename().string());
    if (folders.any()) d.part.push_back(s.part);
  }
  pictures.settle([&](int64_t i, int64_t pixel) { return samples[i].image + ": " + place(pixel, d.width); });
  masks.finish();
  d.notes += pictures.notes(masks.turned());
  if (!c.group.empty()) read_groups(d, c.group);
  return d;
}

}  // namespace regolith
