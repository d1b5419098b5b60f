#include "deploy/suspects.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>
#include <numeric>

#include "app/command_line.h"
#include "app/experiment.h"
#include "deploy/run_folder.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/atomic_file.h"
#include "engine/report/panel.h"
#include "engine/report/progress.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

constexpr double kLeastProbability = 1e-6;  // the most that one pixel counts is 13.8
constexpr double kWhite = 5;                // the loss of a pixel that is drawn in white

// What the runs that held an image out make of it.
struct Judgement {
  int judges = 0;
  int64_t pixels = 0, contradicted = 0;
  std::vector<double> loss;         // by class, the sum over pixels and judges
  std::vector<int64_t> counts;      // by class
  std::vector<uint8_t> ids, doubt;  // of the last judge; doubt: its loss as grey
};

void judge(Judgement& j, const Segmentation& s, const uint8_t* truth, const std::vector<int>& never_predicted) {
  const size_t K = s.classes;
  j.loss.resize(K);
  j.counts.resize(K);
  j.doubt.assign(s.ids.size(), 0);
  for (size_t i = 0; i < s.ids.size(); ++i) {
    const uint8_t t = truth[i];
    if (t >= K || std::find(never_predicted.begin(), never_predicted.end(), t) != never_predicted.end()) continue;
    const float* p = s.probabilities.data() + i * K;
    const double loss = -std::log(std::max<double>(p[t], kLeastProbability));
    j.loss[t] += loss;
    ++j.counts[t];
    ++j.pixels;
    j.contradicted += s.ids[i] != t && p[s.ids[i]] >= kConfident;
    j.doubt[i] = static_cast<uint8_t>(std::lround(255 * std::min(1., loss / kWhite)));
  }
  j.ids = s.ids;
  ++j.judges;
}

std::string csv_text(const std::vector<Suspect>& suspects, const Dataset& data, const std::vector<std::string>& names) {
  std::string text = "row,name,runs,loss,contradicted";
  for (const std::string& name : names) text += "," + csv_field("loss " + name);
  for (const Suspect& s : suspects) {
    text += "\n" + std::to_string(data.source[s.sample]) + "," + csv_field(data.name(s.sample)) +
            format(",%d,%.6f,%.6f", s.judges, s.loss, s.contradicted);
    for (const double loss : s.class_loss) text += std::isnan(loss) ? "," : format(",%.6f", loss);
  }
  return text + "\n";
}

Picture draw(const std::vector<Suspect>& suspects, int count, const Dataset& data,
             const std::vector<Judgement>& judgements, const Segmenter& segmenter) {
  std::vector<std::vector<uint8_t>> doubts;  // (H, W, C)
  std::vector<SheetRow> rows;
  for (int i = 0; i < count; ++i) {
    const Suspect& s = suspects[i];
    const Judgement& j = judgements[s.sample];
    std::vector<uint8_t>& doubt = doubts.emplace_back();
    for (const uint8_t d : j.doubt) doubt.insert(doubt.end(), data.channels, d);
    rows.push_back({{{data.image(s.sample)}, {data.mask(s.sample), true}, {j.ids.data(), true}, {doubt.data()}},
                    data.name(s.sample) + format(": loss %.2f, contradicted %.0f%%", s.loss, 100 * s.contradicted)});
  }
  return draw_sheet(std::vector<std::string>{"image", "mask", "predicted", "doubt"}, rows, data.height, data.width,
                    data.channels, legend_of(segmenter.class_names(), segmenter.class_colours()));
}

}  // namespace

std::vector<Suspect> find_suspects(const SuspectsOptions& o) {
  refuse_existing(o.output, o.force);
  std::unique_ptr<Experiment> first;
  std::unique_ptr<Segmenter> segmenter;
  std::vector<Judgement> judgements;
  Progress progress(std::cout, Progress::columns_of(1));
  for (const std::string& run : o.runs) {
    segmenter = std::make_unique<Segmenter>(std::vector<std::string>{run}, o.segmenter);
    auto experiment = std::make_unique<Experiment>(training_config(run), nullptr, true);
    const ExperimentData& data = experiment->data();
    const Dataset& images = data.images;
    if (first != nullptr &&
        (images.images != first->data().images.images || images.masks != first->data().images.masks))
      throw DataError(run + ": was trained on other images or masks than " + o.runs[0] +
                      "; runs that judge together are of the same data");
    judgements.resize(images.count);
    std::vector<int64_t> held_out = data.validation;
    held_out.insert(held_out.end(), data.test.begin(), data.test.end());
    size_t begun = 0, judged = 0;
    segmenter->predict(
        [&]() -> std::optional<ImageView> {
          if (begun == held_out.size()) return std::nullopt;
          return ImageView{images.image(held_out[begun++]), images.height, images.width, images.channels};
        },
        [&](const ImageView&, const Segmentation& s) {
          const int64_t sample = held_out[judged++];
          judge(judgements[sample], s, images.mask(sample), segmenter->never_predicted());
        },
        {.probabilities = true},
        [&](double done) { progress.items(done, static_cast<int64_t>(held_out.size()), "images"); });
    if (first == nullptr) first = std::move(experiment);
  }

  const Dataset& data = first->data().images;
  std::vector<Suspect> suspects;
  for (int64_t i = 0; i < data.count; ++i) {
    const Judgement& j = judgements[i];
    if (j.pixels == 0) continue;
    const auto pixels = static_cast<double>(j.pixels);
    Suspect& s = suspects.emplace_back(Suspect{i,
                                               j.judges,
                                               std::accumulate(j.loss.begin(), j.loss.end(), 0.) / pixels,
                                               static_cast<double>(j.contradicted) / pixels,
                                               {}});
    for (size_t k = 0; k < j.loss.size(); ++k)
      s.class_loss.push_back(j.counts[k] > 0 ? j.loss[k] / static_cast<double>(j.counts[k])
                                             : std::numeric_limits<double>::quiet_NaN());
  }
  if (suspects.empty())
    throw DataError(o.runs[0] + ": no image was held out with a truth that the runs may predict: none can be judged");
  std::stable_sort(suspects.begin(), suspects.end(),
                   [](const Suspect& a, const Suspect& b) { return a.loss > b.loss; });

  std::error_code error;
  fs::create_directories(o.output, error);
  if (error) throw IoError(o.output + ": cannot be made: " + error.message());
  const auto path = [&](const char* name) { return (fs::path(o.output) / name).string(); };
  write_file_atomically(path("suspects.csv"), csv_text(suspects, data, segmenter->class_names()));
  const int shown = static_cast<int>(std::min<int64_t>(o.count, std::ssize(suspects)));
  write_png(path("suspects.png"), draw(suspects, shown, data, judgements, *segmenter));
  std::printf("%zu of %lld images judged, by runs that did not train on them", suspects.size(),
              static_cast<long long>(data.count));
  if (std::ssize(suspects) < data.count)
    std::printf(
        "; the rest trained every run, was dropped, or has no truth: runs with other data.split.seed reach more");
  std::printf("\nwritten\n  %s\n  %s\n", path("suspects.csv").c_str(), path("suspects.png").c_str());
  return suspects;
}

}  // namespace regolith
