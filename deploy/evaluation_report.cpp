#include "deploy/evaluation_report.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "deploy/prediction.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/atomic_file.h"
#include "engine/report/confusion.h"
#include "engine/report/panel.h"
#include "engine/report/table.h"
#include "engine/train/metrics.h"
#include "kernels/sample.h"

namespace regolith {
namespace {

using nlohmann::json;

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

int64_t pixels_of(const Evaluated& r, size_t cls) {
  const size_t K = r.classes.size();
  return std::accumulate(r.confusion.begin() + cls * K, r.confusion.begin() + (cls + 1) * K, int64_t{0});
}

int64_t all_pixels(const Evaluated& r) { return std::accumulate(r.confusion.begin(), r.confusion.end(), int64_t{0}); }

// The metrics of a run's table (engine/train/metrics.h), and those that only this one has.
std::vector<Metric> all_metrics(const Evaluated& r) {
  const size_t K = r.classes.size();
  std::vector<Metric> list = metrics(r.confusion, static_cast<int>(K), kNone);
  std::erase_if(list, [](const Metric& m) { return !m.higher_is_better; });
  int64_t right = 0;
  for (size_t k = 0; k < K; ++k) right += r.confusion[k * K + k];
  const int64_t all = all_pixels(r);
  list.push_back({"pixel_accuracy", all > 0 ? static_cast<double>(right) / static_cast<double>(all) : kNone});
  double sum = 0, count = 0;
  for (const double f1 : r.boundary_f1)
    if (!std::isnan(f1)) sum += f1, ++count;
  list.push_back({"boundary_f1", count > 0 ? sum / count : kNone});
  return list;
}

json number_or_null(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }

std::string csv_text(const Evaluated& r) {
  std::string text = "name,miou,accuracy";
  for (const std::string& name : r.classes) text += "," + csv_field("iou " + name);
  const auto add = [&](double x) { text += std::isnan(x) ? "," : format(",%.6f", x); };
  for (const ImageScores& image : r.images) {
    text += "\n" + csv_field(image.name);
    add(image.miou);
    add(image.accuracy);
    for (const double iou : image.iou) add(iou);
  }
  return text + "\n";
}

json json_of(const Evaluated& r) {
  json j{{"split", r.title},
         {"images", r.images.size()},
         {"pixels", all_pixels(r)},
         {"confusion", r.confusion},
         {"never_predicted", r.never_predicted}};
  for (const Metric& m : all_metrics(r)) j[m.name] = number_or_null(m.value);
  const Scores s = score(r.confusion, static_cast<int>(r.classes.size()));
  for (size_t k = 0; k < r.classes.size(); ++k)
    j["classes"].push_back({{"name", r.classes[k]},
                            {"iou", number_or_null(s.iou[k])},
                            {"precision", number_or_null(s.precision[k])},
                            {"recall", number_or_null(s.recall[k])},
                            {"boundary_f1", number_or_null(r.boundary_f1[k])},
                            {"pixels", pixels_of(r, k)}});
  return j;
}

// Images of all sizes in tiles of the largest.
Picture draw_worst(const Evaluated& r, const std::vector<std::array<uint8_t, 3>>& colours) {
  int H = 0, W = 0;
  for (const ShownImage& image : r.worst) H = std::max(H, image.height), W = std::max(W, image.width);
  std::vector<std::array<std::vector<uint8_t>, 3>> tiles;
  std::vector<PanelRow> rows;
  for (const ShownImage& image : r.worst) {
    const auto fitted = [&](const std::vector<uint8_t>& from, int channels, uint8_t fill) {
      std::vector<uint8_t> to(static_cast<size_t>(H) * W * channels, fill);
      for (int y = 0; y < image.height; ++y)
        std::copy_n(from.begin() + static_cast<ptrdiff_t>(y) * image.width * channels, image.width * channels,
                    to.begin() + static_cast<ptrdiff_t>(y) * W * channels);
      return to;
    };
    tiles.push_back({fitted(image.pixels, image.channels, 255), fitted(image.truth, 1, kernels::kAbsentClass),
                     fitted(image.prediction, 1, kernels::kAbsentClass)});
    rows.push_back({tiles.back()[0].data(), tiles.back()[1].data(), tiles.back()[2].data(), image.caption});
  }
  return draw_panel(rows, H, W, r.worst[0].channels, legend_of(r.classes, colours));
}

}  // namespace

std::string evaluation_text(const Evaluated& r) {
  const Scores s = score(r.confusion, static_cast<int>(r.classes.size()));
  Table table({r.title + " (" + std::to_string(r.images.size()) + (r.images.size() == 1 ? " image)" : " images)"),
               "IoU", "precision", "recall", "boundary F1", "pixels"});
  for (size_t k = 0; k < r.classes.size(); ++k)
    table.add({r.classes[k], score_text(s.iou[k]), score_text(s.precision[k]), score_text(s.recall[k]),
               score_text(r.boundary_f1[k]), thousands(pixels_of(r, k))});
  table.add_rule();
  for (const Metric& m : all_metrics(r)) {
    if (m.name == "boundary_f1")
      table.add({m.name, "", "", "", score_text(m.value)});
    else
      table.add({m.name, score_text(m.value), "", "", "", m.name == "pixel_accuracy" ? thousands(all_pixels(r)) : ""});
  }
  return table.text() + note_of_never_predicted(r.classes, r.never_predicted) + "\n" +
         confusion_text(r.classes, r.confusion);
}

std::string comparison_text(std::span<const std::string> runs, std::span<const Evaluated> results) {
  std::vector<std::string> header{""};
  bool same_truth = true;
  for (size_t i = 0; i < runs.size(); ++i) {
    header.push_back(runs[i]);
    if (results[i].classes != results[0].classes)
      throw ConfigError(runs[i] + ": has the classes " + join(results[i].classes) + "; " + runs[0] + " has " +
                        join(results[0].classes) + ": their scores cannot stand beside each other");
    for (size_t k = 0; k < results[0].classes.size(); ++k)
      same_truth = same_truth && pixels_of(results[i], k) == pixels_of(results[0], k);
  }
  Table table(header, "l" + std::string(runs.size(), 'r'));
  const auto add = [&](const std::string& name, const auto& value_of_run) {
    std::vector<std::string> row{name};
    for (const Evaluated& r : results) row.push_back(score_text(value_of_run(r)));
    table.add(row);
  };
  for (const Metric& m : all_metrics(results[0]))
    add(m.name, [&](const Evaluated& r) { return value_of(all_metrics(r), m.name); });
  table.add_rule();
  for (size_t k = 0; k < results[0].classes.size(); ++k)
    add("IoU " + results[0].classes[k],
        [&](const Evaluated& r) { return score(r.confusion, static_cast<int>(r.classes.size())).iou[k]; });
  return table.text() +
         (same_truth ? ""
                     : "the runs were not scored on the same images: their classes have other numbers of pixels\n");
}

void write_evaluation(const std::string& folder, const Evaluated& r,
                      const std::vector<std::array<uint8_t, 3>>& colours) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw IoError(folder + ": cannot be made: " + error.message());
  const auto path = [&](const char* name) { return (std::filesystem::path(folder) / name).string(); };
  write_file_atomically(path("scores.json"), json_of(r).dump(2) + "\n");
  write_file_atomically(path("per_image.csv"), csv_text(r));
  write_png(path("confusion.png"), draw_confusion(r.classes, r.confusion));
  if (!r.worst.empty()) write_png(path("worst.png"), draw_worst(r, colours));
}

}  // namespace regolith
