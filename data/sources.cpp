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

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/npy.h"
#include "kernels/sample.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

using OpenArray = std::function<NpyStream()>;

// One part of the data: an array of images and one of masks, or one (N, 2, H, W) of both.
struct ArrayPart {
  Part part;
  OpenArray images, masks;  // masks: null for one of both
};

// The next `n` elements: bytes as they are, other types through `convert(value, index)`.
template <class F>
void read_numbers(NpyStream& a, int64_t n, F&& convert) {
  std::array<double, 2048> values;
  for (int64_t begin = 0, part; begin < n; begin += part) {
    part = std::min<int64_t>(n - begin, values.size());
    a.read(values.data(), part);
    for (int64_t i = 0; i < part; ++i) convert(values[i], begin + i);
  }
}

void read_mask(NpyStream& a, Dataset& d, int64_t i, int64_t row, const MaskIds& ids) {
  uint8_t* mask = d.masks.data() + i * d.mask_bytes();
  const auto where = [&](int64_t pixel) {
    return a.header().where + ": sample " + std::to_string(row) + ", " + place(pixel, d.width);
  };
  if (a.header().kind == 'u' && a.header().item == 1) {
    a.read(mask, d.mask_bytes());
    return ids.apply(mask, d.mask_bytes(), where);
  }
  read_numbers(a, d.mask_bytes(), [&](double id, int64_t pixel) {
    const int cls = ids.find(id);
    if (cls < 0) ids.fail(where(pixel), id);
    mask[pixel] = static_cast<uint8_t>(cls);
  });
}

// The samples of a part, from `first` on.
void read_part(const ArrayPart& part, Dataset& d, int64_t first, int64_t count, const SourceContext& c) {
  const MaskIds ids = c.ids();
  const NpyHeader header = part.images().header();
  ByteScale scale(c.normalise, header.kind, header.item, header.where);
  const auto where = [&](int64_t i, int64_t at) {
    return header.where + ": sample " + std::to_string(i) + ", " + place(at / d.channels, d.width);
  };
  do {
    NpyStream a = part.images();
    for (int64_t i = 0; i < count; ++i) {
      uint8_t* image = d.images.data() + (first + i) * d.image_bytes();
      if (scale.keeps_bytes()) {
        a.read(image, d.image_bytes());
      } else {
        read_numbers(a, d.image_bytes(), [&](double x, int64_t at) { image[at] = scale.byte(x, i, at); });
      }
      if (part.masks == nullptr) read_mask(a, d, first + i, i, ids);
    }
  } while (!scale.settle(where));
  if (const std::string note = scale.note(); !note.empty()) d.notes += header.where + ": " + note + "\n";
  if (part.masks == nullptr) return;
  NpyStream m = part.masks();
  for (int64_t i = 0; i < count; ++i) read_mask(m, d, first + i, i, ids);
}

[[noreturn]] void bad_shape(const NpyHeader& a, const std::string& expected) {
  throw DataError(a.where + ": expected shape " + expected + ", found " + shape_text(a.shape));
}

std::array<int64_t, 4> size_of(const ArrayPart& part) {  // (N, H, W, C)
  const NpyHeader a = part.images().header();
  const bool both = part.masks == nullptr;
  const std::string expected = both ? "(N, 2, H, W)" : "(N, H, W) or (N, H, W, C)";
  std::vector<int64_t> s = a.shape;
  if (both && (s.size() != 4 || s[1] != 2)) bad_shape(a, expected);
  if (both) s = {s[0], s[2], s[3]};
  if (s.size() == 3) s.push_back(1);
  if (s.size() != 4 || s[3] < 1 || s[3] > 16) bad_shape(a, expected);
  if (s[0] < 1) throw DataError(a.where + ": holds no images: " + shape_text(a.shape));
  if (std::min(s[1], s[2]) < 1 || std::max(s[1], s[2]) > 1 << 15) bad_shape(a, expected + " with sides of 1 to 32768");
  if (!both) {
    const NpyHeader m = part.masks().header();
    const std::vector<int64_t> wanted{s[0], s[1], s[2]};
    std::vector<int64_t> shape = m.shape;
    if (shape.size() == 4 && shape[3] == 1) shape.pop_back();
    if (shape != wanted) bad_shape(m, shape_text(wanted) + " to match the images");
  }
  return {s[0], s[1], s[2], s[3]};
}

Dataset load_arrays(const std::string& origin, const std::vector<ArrayPart>& parts, const SourceContext& c) {
  std::vector<std::array<int64_t, 4>> sizes;
  int64_t count = 0;
  for (const ArrayPart& p : parts) {
    const auto& s = sizes.emplace_back(size_of(p));
    count += s[0];
    if (!std::equal(s.begin() + 1, s.end(), sizes[0].begin() + 1))
      throw DataError(p.images().header().where + ": holds images of " + size_text({s[1], s[2], s[3]}) + ", but " +
                      parts[0].images().header().where + " of " + size_text({sizes[0][1], sizes[0][2], sizes[0][3]}));
  }
  Dataset d = start_dataset(origin, count, sizes[0][1], sizes[0][2], sizes[0][3], c);
  int64_t first = 0;
  for (size_t i = 0; i < parts.size(); first += sizes[i++][0]) {
    std::iota(d.source.begin() + first, d.source.begin() + first + sizes[i][0], 0);
    if (parts.size() > 1) d.part.insert(d.part.end(), sizes[i][0], parts[i].part);
    read_part(parts[i], d, first, sizes[i][0], c);
  }
  return d;
}

}  // namespace

std::string place(int64_t pixel, int width) {
  return "row " + std::to_string(pixel / width) + ", column " + std::to_string(pixel % width);
}

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
    return [&npz, name] { return npz.open(name); };
  };
  const auto named = [](const std::string& name, const char* preset) { return name == kAutoName ? preset : name; };
  const NpzNames& names = c.arrays;
  const std::string training = named(names.training, "training_set"), images = named(names.images, "image");
  std::vector<ArrayPart> parts;
  if (!names.names_pair() && (names.training != kAutoName || npz.has(training))) {
    parts.push_back({Part::train, open(training), nullptr});
  } else if (names.names_pair() || npz.has(images)) {
    parts.push_back({Part::train, open(images), open(named(names.masks, "mask"))});
  } else {
    throw DataError(path + ": has neither '" + training + "' (the study's layout) nor '" + images + "'; found: " +
                    (npz.names().empty() ? "no arrays" : join(npz.names())) + "; name the arrays in the configuration");
  }
  for (const auto& [part, pair] : {std::pair{Part::validation, &names.validation}, {Part::test, &names.test}})
    if (*pair) parts.push_back({part, open((*pair)->images), open((*pair)->masks)});
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
  std::vector<ArrayPart> parts{{Part::train, open(files.images), open(files.masks)}};
  for (const auto& [part, pair] : {std::pair{Part::validation, &files.validation}, {Part::test, &files.test}})
    if (*pair) parts.push_back({part, open((*pair)->images), open((*pair)->masks)});
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
