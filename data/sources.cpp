#include "data/sources.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <string_view>

#include "data/arrays.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/npy.h"
#include "kernels/sample.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

struct PartOfArrays {
  Part part;
  LabelledArrays arrays;
};

// The samples of a part, from `first` on.
void read_part(const LabelledArrays& part, Dataset& d, int64_t first, int64_t count, const SourceContext& c) {
  const MaskIds ids = c.ids();
  const NpyHeader header = part.images().header();
  ByteScale scale(c.normalise, header.kind, header.item, header.where);
  const int64_t pixels = d.mask_bytes();
  const auto mask = [&](int64_t i) { return d.masks.data() + (first + i) * pixels; };
  do {
    NpyStream a = part.images();
    for (int64_t i = 0; i < count; ++i) {
      next_image(a, d.image_bytes(), i, scale, d.images.data() + (first + i) * d.image_bytes());
      if (part.masks == nullptr) next_mask(a, {d.height, d.width}, i, ids, mask(i));
    }
  } while (!scale.settle(place_in(header, d.width, d.channels)));
  if (const std::string note = scale.note(); !note.empty()) d.notes += header.where + ": " + note + "\n";
  if (part.masks == nullptr) return;
  NpyStream m = part.masks();
  for (int64_t i = 0; i < count; ++i) next_mask(m, {d.height, d.width}, i, ids, mask(i));
}

Dataset load_arrays(const std::string& origin, const std::vector<PartOfArrays>& parts, const SourceContext& c) {
  std::vector<std::array<int64_t, 4>> sizes;
  int64_t count = 0;
  for (const PartOfArrays& p : parts) {
    const auto& s = sizes.emplace_back(size_of(p.arrays.images().header(), p.arrays.masks == nullptr));
    if (p.arrays.masks != nullptr) check_masks(p.arrays.masks().header(), s);
    count += s[0];
    if (!std::equal(s.begin() + 1, s.end(), sizes[0].begin() + 1))
      throw DataError(p.arrays.images().header().where + ": holds images of " + size_text({s[1], s[2], s[3]}) +
                      ", but " + parts[0].arrays.images().header().where + " of " +
                      size_text({sizes[0][1], sizes[0][2], sizes[0][3]}));
  }
  Dataset d = start_dataset(origin, count, sizes[0][1], sizes[0][2], sizes[0][3], c);
  int64_t first = 0;
  for (size_t i = 0; i < parts.size(); first += sizes[i++][0]) {
    std::iota(d.source.begin() + first, d.source.begin() + first + sizes[i][0], 0);
    if (parts.size() > 1) d.part.insert(d.part.end(), sizes[i][0], parts[i].part);
    read_part(parts[i].arrays, d, first, sizes[i][0], c);
  }
  return d;
}

}  // namespace

Dataset start_dataset(const std::string& origin, int64_t count, int64_t height, int64_t width, int64_t channels,
                      const SourceContext& c) {
  Dataset d;
  d.count = count;
  d.height = static_cast<int>(height);
  d.width = static_cast<int>(width);
  d.channels = static_cast<int>(channels);
  d.origin = origin;
  if (c.check) c.check(d);
  d.images.resize(static_cast<size_t>(count * d.image_bytes()));
  d.masks.resize(static_cast<size_t>(count * d.mask_bytes()), kernels::kAbsentClass);
  d.source = d.labelled_samples();
  return d;
}

Dataset load_npz(const std::string& path, const SourceContext& c) {
  const NpzReader npz(path);
  std::set<std::string> used;
  const auto open = [&](const std::string& name) {
    used.insert(name);
    return OpenArray([&npz, name] { return npz.open(name); });
  };
  const NpzNames& names = c.arrays;
  const NpzPair training = training_names(npz, path, names);
  std::vector<PartOfArrays> parts{
      {Part::train, {open(training.images), training.masks.empty() ? nullptr : open(training.masks)}}};
  for (const auto& [part, pair] : {std::pair{Part::validation, &names.validation}, {Part::test, &names.test}})
    if (*pair) parts.push_back({part, {open((*pair)->images), open((*pair)->masks)}});
  Dataset d = load_arrays(fs::path(path).filename().string(), parts, c);
  if (!c.group.empty()) {
    const NpyArray groups = npz.read(c.group);
    used.insert(c.group);
    if (groups.shape != std::vector<int64_t>{d.count})
      bad_shape(groups, "(" + std::to_string(d.count) + ",), a group for each image");
    std::map<std::string_view, int64_t> seen;  // by their bytes: doubles join times in nanoseconds
    for (int64_t i = 0; i < d.count; ++i) {
      const std::string_view group(reinterpret_cast<const char*>(&groups.bytes[i * groups.item]), groups.item);
      d.group.push_back(seen.emplace(group, std::ssize(seen)).first->second);
    }
    const std::vector<double> numbers = groups.as_f64();
    if (std::any_of(numbers.begin(), numbers.end(), [](double g) { return std::isnan(g); }))
      throw DataError(groups.where + ": holds nan: expected a group for each image");
  }
  std::vector<std::string> unread;
  for (const std::string& name : npz.names())
    if (!used.contains(name)) unread.push_back(name);
  if (!unread.empty()) d.notes += "arrays of the file that are not read: " + join(unread) + "\n";
  return d;
}

Dataset load_npy(const NpyFiles& files, const SourceContext& c) {
  const auto open = [](const FilePath& file) { return [path = file.path] { return open_npy(path); }; };
  std::vector<PartOfArrays> parts{{Part::train, {open(files.images), open(files.masks)}}};
  for (const auto& [part, pair] : {std::pair{Part::validation, &files.validation}, {Part::test, &files.test}})
    if (*pair) parts.push_back({part, {open((*pair)->images), open((*pair)->masks)}});
  return load_arrays(fs::path(files.images.path).filename().string(), parts, c);
}

namespace {

Dataset load(std::monostate, const SourceContext&) { throw DataError("the configuration names no data"); }
Dataset load(const FilePath& npz, const SourceContext& c) { return load_npz(npz.path, c); }
Dataset load(const NpyFiles& npy, const SourceContext& c) { return load_npy(npy, c); }
Dataset load(const ImageFolders& folders, const SourceContext& c) { return load_folder(folders, c); }
Dataset load(Terrain terrain, const SourceContext& c) {
  if (c.classes < kTerrainClasses && c.coding.map.ids.empty())
    throw DataError("data.synthetic: has " + std::to_string(kTerrainClasses) + " classes; the model's last layer has " +
                    std::to_string(c.classes));
  if (c.normalise.states_range())
    throw DataError("data.normalise: the synthetic terrain is bytes; bits, low and high are of files");
  if (terrain.seed < 0) terrain.seed = static_cast<int64_t>(c.seed);
  Dataset d = make_synthetic(terrain);
  c.ids().apply(d.masks.data(), std::ssize(d.masks), [](int64_t) { return std::string("data.synthetic"); });
  if (c.check) c.check(d);
  return d;
}

}  // namespace

Dataset load(const DataSource& source, const SourceContext& context) {
  return std::visit([&](const auto& chosen) { return load(chosen, context); }, source);
}

}  // namespace regolith
