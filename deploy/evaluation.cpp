#include "deploy/evaluation.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <filesystem>
#include <iostream>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "app/command_line.h"
#include "app/experiment.h"
#include "deploy/evaluation_report.h"
#include "deploy/run_folder.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/report/progress.h"
#include "engine/report/table.h"
#include "engine/train/boundary.h"
#include "engine/train/metrics.h"
#include "kernels/sample.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

constexpr int kShownSide = 512;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct LabelledImage {
  NamedImage image;
  std::vector<uint8_t> truth;
  ImageView view() const { return {image.pixels.data(), image.height, image.width, image.channels}; }
};

// Every so many pixels of an image, so that it is small enough to be shown.
ShownImage shrink(const LabelledImage& from, const std::vector<uint8_t>& prediction, std::string caption) {
  const NamedImage& image = from.image;
  const int every = (std::max(image.height, image.width) + kShownSide - 1) / kShownSide;
  ShownImage to{std::move(caption),
                (image.height + every - 1) / every,
                (image.width + every - 1) / every,
                image.channels,
                {},
                {},
                {}};
  for (int y = 0; y < image.height; y += every) {
    for (int x = 0; x < image.width; x += every) {
      const size_t at = static_cast<size_t>(y) * image.width + x;
      const auto pixel = image.pixels.begin() + static_cast<ptrdiff_t>(at) * image.channels;
      to.pixels.insert(to.pixels.end(), pixel, pixel + image.channels);
      to.truth.push_back(from.truth[at]);
      to.prediction.push_back(prediction[at]);
    }
  }
  return to;
}

// Adds up the images, in the order in which they come.
class Scorer {
 public:
  Scorer(const Segmenter& segmenter, const std::string& title) : boundary_(std::ssize(segmenter.class_names())) {
    result_.title = title;
    result_.classes = segmenter.class_names();
    result_.never_predicted = segmenter.never_predicted();
    result_.confusion.resize(result_.classes.size() * result_.classes.size());
    metric_ = metric_of_images(result_.never_predicted);
  }

  void add(const LabelledImage& labelled, const Segmentation& s) {
    const size_t K = result_.classes.size();
    std::vector<int64_t> confusion(K * K);
    add_pixels(confusion, s.classes, labelled.truth, s.ids);
    int64_t pixels = 0, right = 0;
    for (size_t i = 0; i < confusion.size(); ++i) {
      result_.confusion[i] += confusion[i];
      pixels += confusion[i];
      if (i % (K + 1) == 0) right += confusion[i];
    }
    boundary_.add(learnt(labelled.truth), s.ids, s.height, s.width);
    const auto classes = static_cast<int>(K);
    const ImageScores& scores = result_.images.emplace_back(ImageScores{
        labelled.image.name, value_of(metrics(confusion, classes, kNaN), metric_),
        pixels > 0 ? static_cast<double>(right) / static_cast<double>(pixels) : kNaN, score(confusion, classes).iou});
    keep_if_bad(labelled, s, scores);
  }

  Evaluated result() {
    result_.boundary_f1 = boundary_.values();
    std::stable_sort(result_.images.begin(), result_.images.end(), [](const ImageScores& a, const ImageScores& b) {
      return a.miou < b.miou || (!std::isnan(a.miou) && std::isnan(b.miou));
    });
    for (auto& [miou, shown] : worst_) result_.worst.push_back(std::move(shown));
    return std::move(result_);
  }

 private:
  // The truth without classes that are never predicted: their boundaries cannot be found, and what is predicted in
  // their place has others.
  std::vector<uint8_t> learnt(std::vector<uint8_t> truth) const {
    for (const int c : result_.never_predicted)
      std::replace(truth.begin(), truth.end(), static_cast<uint8_t>(c), kernels::kAbsentClass);
    return truth;
  }

  void keep_if_bad(const LabelledImage& labelled, const Segmentation& s, const ImageScores& scores) {
    const bool full = std::ssize(worst_) == kWorstImages;
    if (std::isnan(scores.miou) || (full && scores.miou >= worst_.rbegin()->first)) return;
    if (full) worst_.erase(std::prev(worst_.end()));
    worst_.emplace(scores.miou, shrink(labelled, s.ids,
                                       scores.name + ": mIoU " + score_text(scores.miou) + ", right " +
                                           score_text(scores.accuracy)));
  }

  Evaluated result_;
  BoundaryF1 boundary_;
  std::string_view metric_;
  std::multimap<double, ShownImage> worst_;
};

// A part of a run's own data.
class SplitImages : public ImageSource {
 public:
  // part: test, validation, train, or empty.
  SplitImages(RunConfig config, const std::string& part) : experiment_(std::move(config), nullptr, true) {
    const ExperimentData& data = experiment_.data();
    const std::array<std::pair<const char*, const std::vector<int64_t>*>, 3> parts{
        {{"test", &data.test}, {"validation", &data.validation}, {"train", &data.train}}};
    const auto chosen = std::find_if(
        parts.begin(), parts.end(), [&](const auto& p) { return part.empty() ? !p.second->empty() : part == p.first; });
    part_ = chosen->first;
    samples_ = *chosen->second;
    if (samples_.empty()) throw DataError(data.images.origin + ": the run has no " + part_ + " images");
  }
  const std::string& part() const { return part_; }
  int64_t count() const override { return std::ssize(samples_); }
  std::string name(int64_t i) const override {
    const Dataset& d = images();
    return d.names.empty() ? std::to_string(d.source[samples_[i]]) : d.names[samples_[i]];
  }
  NamedImage read(int64_t i) override {
    const Dataset& d = images();
    const uint8_t* pixels = d.image(samples_[i]);
    return {name(i), d.height, d.width, d.channels, {pixels, pixels + d.image_bytes()}};
  }
  bool has_masks() const override { return true; }
  std::vector<uint8_t> read_mask(int64_t i) override {
    const uint8_t* mask = images().mask(samples_[i]);
    return {mask, mask + images().mask_bytes()};
  }
  std::string notes() const override { return notes_; }

 private:
  const Dataset& images() const { return data_->images; }

  Experiment experiment_;
  const ExperimentData* data_ = &experiment_.data();
  std::string part_, notes_ = data_->report;
  std::vector<int64_t> samples_;
};

std::string last_part(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  return (normal.has_filename() ? normal : normal.parent_path()).filename().string();
}

}  // namespace

Evaluated evaluate(Segmenter& segmenter, ImageSource& images, const std::string& title) {
  Scorer scorer(segmenter, title);
  std::deque<LabelledImage> under_way;
  Progress progress(std::cout, Progress::columns_of(1));
  int64_t next = 0;
  segmenter.predict(
      [&]() -> std::optional<ImageView> {
        if (next == images.count()) return std::nullopt;
        under_way.push_back({images.read(next), images.read_mask(next)});
        ++next;
        return under_way.back().view();
      },
      [&](const ImageView&, const Segmentation& s) {
        scorer.add(under_way.front(), s);
        under_way.pop_front();
      },
      {}, [&](double done) { progress.items(done, images.count(), "images"); });
  return scorer.result();
}

void evaluate(const EvaluationOptions& o) {
  if (!o.input.empty() && !o.split.empty())
    throw UsageError("--input, --split: score images of files, or a part of the run's own data");
  if (o.input.empty() && (!o.images.empty() || !o.masks.empty()))
    throw UsageError("--images, --masks: are of an --input");
  if (std::set<std::string> names; !o.output.empty() && o.runs.size() > 1)
    for (const std::string& run : o.runs)
      if (!names.insert(last_part(run)).second)
        throw UsageError("--output: has a folder for each run, but two are called " + last_part(run));
  const std::string input = fs::path(last_part(o.input)).stem().string(), known = input.empty() ? o.split : input;
  const auto output_of = [&](const std::string& folder, const std::string& title) {
    const fs::path output = o.output.empty()     ? fs::path(folder) / ("eval-" + title)
                            : o.runs.size() == 1 ? fs::path(o.output)
                                                 : fs::path(o.output) / last_part(folder);
    refuse_existing(output.string(), o.force);
    return output.string();
  };
  std::vector<TrainedRun> trained;
  for (const std::string& folder : o.runs) {  // before the first is scored
    trained.push_back(open_run(folder, o.segmenter.weights));
    if (!known.empty() || !o.output.empty()) output_of(folder, known);
  }
  std::vector<Evaluated> results;
  for (const TrainedRun& run : trained) {
    const std::string& folder = run.folder;
    Segmenter segmenter({folder}, o.segmenter);
    std::unique_ptr<ImageSource> images;
    std::string title = input;
    if (o.input.empty()) {
      auto part = std::make_unique<SplitImages>(training_config(folder), o.split);
      title = part->part();
      images = std::move(part);
    } else {
      images =
          open_labelled(o.input, o.images, o.masks,
                        run.source_context(segmenter.channels(), static_cast<int>(segmenter.class_names().size())));
    }
    const std::string output = output_of(folder, title);
    std::printf("%s%s: %s of %s; %s\n", images->notes().c_str(), folder.c_str(), title.c_str(),
                run.weights_file.c_str(), segmenter.device().c_str());
    results.push_back(evaluate(segmenter, *images, title));
    write_evaluation(output, results.back(), segmenter.class_colours());
    std::printf("\n%s\nwritten in %s\n\n", evaluation_text(results.back()).c_str(), output.c_str());
  }
  if (o.runs.size() > 1) std::fputs(comparison_text(o.runs, results).c_str(), stdout);
}

}  // namespace regolith
