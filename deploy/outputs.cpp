#include "deploy/outputs.h"

#include <algorithm>
#include <filesystem>

#include "app/command_line.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/atomic_file.h"
#include "engine/io/image.h"
#include "engine/io/npy.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

std::vector<Rgb> palette_of(const Segmenter& segmenter) {
  std::vector<Rgb> palette;
  for (const auto& c : segmenter.class_colours()) palette.push_back({c[0], c[1], c[2]});
  return palette;
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw IoError(folder.string() + ": cannot be made: " + error.message());
}

// NAME.png of class ids; overlay/NAME.png; values/NAME.npz of probabilities and confidence.
class FolderOutputs : public Outputs {
 public:
  FolderOutputs(const std::string& path, const OutputOptions& options, const std::vector<std::string>& names,
                const Segmenter& segmenter)
      : folder_(path), options_(options), palette_(palette_of(segmenter)), class_names_(segmenter.class_names()) {
    make_folder(folder_);
    if (options.overlay) make_folder(folder_ / "overlay");
    if (has_values()) make_folder(folder_ / "values");
    if (options.force || options.go_on) return;
    std::vector<fs::path> there;
    for (const std::string& name : names)
      for (const fs::path& file : files(name))
        if (fs::exists(file)) there.push_back(file);
    if (!there.empty())
      throw IoError(there[0].string() + ": is there already, with " + std::to_string(there.size() - 1) +
                    " more; --continue leaves them and predicts the others, --force writes all anew");
  }

  bool has(const std::string& name) const override {
    const std::vector<fs::path> all = files(name);
    return std::none_of(all.begin(), all.end(), [&](const fs::path& file) { return wants(file); });
  }

  void write(const Item& item, const Segmentation& s) override {
    const std::string& name = item.name;
    if (options_.overlay && wants(overlay(name))) draw_over(overlay(name).string(), item.image, s);
    if (has_values() && wants(values(name))) {
      std::vector<NpzEntry> entries;
      if (options_.probabilities)
        entries.push_back(npz_entry("probabilities", {s.height, s.width, s.classes}, s.probabilities.data()));
      if (options_.confidence) entries.push_back(npz_entry("confidence", {s.height, s.width}, s.confidence.data()));
      write_npz(values(name).string(), entries);
    }
    if (wants(mask(name)))
      write_png(mask(name).string(),
                {.height = s.height, .width = s.width, .palette = palette_, .texts = {classes_text(class_names_)}},
                [&](int y) { return s.ids.data() + static_cast<size_t>(y) * s.width; });
    ++written_;
  }

  std::string note() const override {
    return std::to_string(written_) + (written_ == 1 ? " mask in " : " masks in ") + folder_.string();
  }

 private:
  bool has_values() const { return options_.probabilities || options_.confidence; }
  fs::path mask(const std::string& name) const { return folder_ / (name + ".png"); }
  fs::path overlay(const std::string& name) const { return folder_ / "overlay" / (name + ".png"); }
  fs::path values(const std::string& name) const { return folder_ / "values" / (name + ".npz"); }
  std::vector<fs::path> files(const std::string& name) const {
    std::vector<fs::path> all{mask(name)};
    if (options_.overlay) all.push_back(overlay(name));
    if (has_values()) all.push_back(values(name));
    return all;
  }
  // --continue leaves each file that is there: a mask may have been corrected by hand since.
  bool wants(const fs::path& file) const { return !options_.go_on || !fs::exists(file); }

  // Colours of the classes, half of them and half of the image.
  void draw_over(const std::string& path, const ImageView& image, const Segmentation& s) const {
    const int C = image.channels, G = C >= 3 ? 1 : 0, B = C >= 3 ? 2 : 0;
    const auto mix = [](int a, int b) { return static_cast<uint8_t>((a + b + 1) / 2); };
    std::vector<Rgb> row(static_cast<size_t>(s.width));
    write_png(path, {.height = s.height, .width = s.width}, [&](int y) {
      for (int x = 0; x < s.width; ++x) {
        const size_t at = static_cast<size_t>(y) * s.width + x;
        const uint8_t* const pixel = image.pixels + at * C;
        const Rgb& c = palette_[s.ids[at]];
        row[x] = {mix(pixel[0], c.r), mix(pixel[G], c.g), mix(pixel[B], c.b)};
      }
      return reinterpret_cast<const uint8_t*>(row.data());
    });
  }

  fs::path folder_;
  OutputOptions options_;
  std::vector<Rgb> palette_;
  std::vector<std::string> class_names_;
  int64_t written_ = 0;
};

// An output that is one file, of images of one size.
class FileOutputs : public Outputs {
 protected:
  FileOutputs(const std::string& path, const OutputOptions& options) : path_(path) {
    const std::string kind = fs::path(path).extension().string();
    if (options.overlay) throw UsageError("--overlay: is for an output folder; " + path + " is one file");
    if (options.go_on)
      throw UsageError("--continue: is for an output folder; " + path + " is written whole, at the end");
    if (fs::exists(path) && !options.force)
      throw IoError(path + ": is there already; --force writes it anew, or choose another --output");
    if (const fs::path parent = fs::path(path).parent_path(); !parent.empty()) make_folder(parent);
  }
  void check_size(const std::string& name, const Segmentation& s) {
    if (count_++ == 0) height_ = s.height, width_ = s.width;
    if (s.height != height_ || s.width != width_)
      throw DataError(name + ": is " + size_text({s.width, s.height}) + " (width x height), the first image is " +
                      size_text({width_, height_}) + ": " + path_ + " takes images of one size; choose a folder");
  }

  std::string note_of(const char* what) const {
    return finished_ ? std::to_string(count_) + " " + what + " in " + path_
                     : path_ + " is not written: that is done at the end";
  }

  std::string path_;
  int height_ = 0, width_ = 0;
  int64_t count_ = 0;
  bool finished_ = false;
};

// masks (N, H, W) uint8, names (N) of text, probabilities (N, H, W, K) and confidence (N, H, W) fp32.
class NpzOutputs : public FileOutputs {
 public:
  NpzOutputs(const std::string& path, const OutputOptions& options) : FileOutputs(path, options), options_(options) {
    AtomicFile{path};  // that there is a place for it is known before the work
  }

  void write(const Item& item, const Segmentation& s) override {
    check_size(item.name, s);
    classes_ = s.classes;
    names_.push_back(item.name);
    masks_.insert(masks_.end(), s.ids.begin(), s.ids.end());
    probabilities_.insert(probabilities_.end(), s.probabilities.begin(), s.probabilities.end());
    confidence_.insert(confidence_.end(), s.confidence.begin(), s.confidence.end());
  }

  void finish() override {
    size_t longest = 1;
    for (const std::string& name : names_) longest = std::max(longest, name.size());
    std::string names(names_.size() * longest, '\0');
    for (size_t i = 0; i < names_.size(); ++i) names_[i].copy(&names[i * longest], names_[i].size());
    std::vector<NpzEntry> entries{npz_entry("masks", {count_, height_, width_}, masks_.data()),
                                  {"names", {count_}, names.data(), "|S" + std::to_string(longest)}};
    if (options_.probabilities)
      entries.push_back(npz_entry("probabilities", {count_, height_, width_, classes_}, probabilities_.data()));
    if (options_.confidence) entries.push_back(npz_entry("confidence", {count_, height_, width_}, confidence_.data()));
    write_npz(path_, entries);
    finished_ = true;
  }
  std::string note() const override { return note_of("masks"); }

 private:
  OutputOptions options_;
  int classes_ = 0;
  std::vector<std::string> names_;
  std::vector<uint8_t> masks_;
  std::vector<float> probabilities_, confidence_;
};

// A row an image: its number in the array, or the name of its file, then the class id of each pixel, row by row. The
// header: id,0,1,2,...
class CsvOutputs : public FileOutputs {
 public:
  CsvOutputs(const std::string& path, const OutputOptions& options)
      : FileOutputs(path, options), file_(path), numbered_(options.numbered) {
    if (options.probabilities || options.confidence)
      throw UsageError("--probabilities, --confidence: are for a folder or an .npz; " + path + " holds class ids");
  }

  void write(const Item& item, const Segmentation& s) override {
    check_size(item.name, s);
    std::string text;
    if (count_ == 1) {
      text = "id";
      for (size_t i = 0; i < s.ids.size(); ++i) text += "," + std::to_string(i);
      text += "\n";
    }
    text += numbered_ ? std::to_string(item.index) : csv_field(item.name);
    for (const uint8_t id : s.ids) text += "," + std::to_string(id);
    file_.write(text + "\n");
  }
  void finish() override {
    if (count_ == 0) file_.write("id\n");  // a part of the images that has none
    file_.commit();
    finished_ = true;
  }
  std::string note() const override { return note_of("rows"); }

 private:
  AtomicFile file_;
  bool numbered_;
};

}  // namespace

std::unique_ptr<Outputs> open_outputs(const std::string& path, const OutputOptions& options,
                                      const std::vector<std::string>& names, const Segmenter& segmenter) {
  const std::string kind = fs::path(path).extension().string();
  if (fs::is_directory(path) || (kind != ".npz" && kind != ".csv"))
    return std::make_unique<FolderOutputs>(path, options, names, segmenter);
  if (kind == ".npz") return std::make_unique<NpzOutputs>(path, options);
  return std::make_unique<CsvOutputs>(path, options);
}

}  // namespace regolith
