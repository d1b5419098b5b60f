#include "study/hidden.h"

#include <array>
#include <filesystem>
#include <fstream>
#include <optional>
#include <utility>

#include "data/arrays.h"
#include "deploy/evaluation.h"
#include "deploy/evaluation_report.h"
#include "deploy/run_folder.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/atomic_file.h"
#include "engine/io/npy.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

constexpr const char *kImages = "test_set", *kMasks = "mask";

class HiddenImages : public ImageSource {
 public:
  HiddenImages(std::unique_ptr<ImageSource> images, const std::string& labels, const SourceContext& context)
      : images_(std::move(images)), npz_(labels), ids_(context.ids()) {
    const std::vector<std::string>& names = npz_.names();
    if (names.size() != 1 && !npz_.has(kMasks))
      throw DataError(labels + ": holds the arrays " + join(names) + "; expected one, or one called " + kMasks);
    array_ = names.size() == 1 ? names[0] : kMasks;
    const NpyHeader header = npz_.open(array_).header();
    const NamedImage first = images_->read(0);
    const std::array<int64_t, 4> size{images_->count(), first.height, first.width, first.channels};
    check_masks(header, size);
    size_ = {first.height, first.width};
    masks_.emplace(npz_.open(array_));
  }
  int64_t count() const override { return images_->count(); }
  std::string name(int64_t i) const override { return images_->name(i); }
  NamedImage read(int64_t i) override { return images_->read(i); }
  bool has_masks() const override { return true; }
  std::vector<uint8_t> read_mask(int64_t i) override {
    if (i < next_) masks_.emplace(npz_.open(array_)), next_ = 0;
    std::vector<uint8_t> mask(static_cast<size_t>(size_[0]) * size_[1]);
    for (; next_ <= i; ++next_) next_mask(*masks_, size_, next_, ids_, mask.data());
    return mask;
  }
  std::string notes() const override { return images_->notes(); }

 private:
  std::unique_ptr<ImageSource> images_;
  NpzReader npz_;
  MaskIds ids_;
  std::string array_;
  std::array<int, 2> size_{};  // (H, W)
  std::optional<NpyStream> masks_;
  int64_t next_ = 0;  // the mask that the stream is at
};

}  // namespace

std::unique_ptr<ImageSource> hidden_images(const RunConfig& config, const std::string& labels,
                                           const SourceContext& context) {
  const auto* npz = std::get_if<FilePath>(&config.data.source);
  if (npz == nullptr)
    throw ConfigError("--hidden: is of the " + std::string(kImages) + " of data.npz, but the data is another source");
  return std::make_unique<HiddenImages>(open_images(npz->path, kImages, context), labels, context);
}

void score_hidden(const std::string& folder, const RunConfig& config, const std::string& labels) {
  const fs::path output = fs::path(folder) / "eval-hidden", scores = output / "scores.json",
                 note = output / "labels.txt";
  const bool has_best = fs::exists(fs::path(folder) / "best.safetensors");
  const fs::path weights = fs::path(folder) / (has_best ? "best.safetensors" : "last.safetensors");
  const std::string origin = fs::absolute(labels).lexically_normal().string();
  if (!fs::exists(labels)) throw DataError(labels + ": there is no such file");
  if (fs::exists(scores) && fs::last_write_time(scores) > fs::last_write_time(labels) &&
      fs::last_write_time(scores) > fs::last_write_time(weights)) {
    std::string from;
    std::getline(std::ifstream(note), from);
    if (from == origin) return;
  }
  SegmenterOptions options;
  options.weights = weights.stem().string();
  options.all_classes = true;  // as in the scores of the run
  options.threads = config.run.threads;
  options.precision = name_of(config.run.precision);
  Segmenter segmenter({folder}, options);
  const TrainedRun run = open_run(folder, options.weights);
  const auto classes = static_cast<int>(segmenter.class_names().size());
  const auto images = hidden_images(run.config, labels, run.source_context(segmenter.channels(), classes));
  const Evaluated result = evaluate(segmenter, *images, "hidden");
  fs::remove(note);
  write_evaluation(output.string(), result, segmenter.class_colours());
  write_file_atomically(note.string(), origin + "\n");
}

}  // namespace regolith
