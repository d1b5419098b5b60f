#include "deploy/pseudo.h"

#include <iostream>
#include <optional>

#include "deploy/segmenter.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/report/progress.h"
#include "kernels/augment_options.h"

namespace regolith {

std::vector<uint8_t> label_by_runs(const RunConfig& config, const DataView& images,
                                   const std::vector<std::string>& class_names) {
  const PseudoLabels& rule = *config.data.pseudo;
  std::vector<std::string> runs;
  for (const FolderPath& run : rule.run) runs.push_back(run.path);
  SegmenterOptions options;
  options.threads = config.run.threads;
  if (config.run.device != DeviceChoice::automatic)
    options.device = config.run.device == DeviceChoice::cuda ? "cuda" : "cpu";
  Segmenter segmenter(runs, options);
  if (segmenter.class_names() != class_names || segmenter.channels() != images.C)
    config.fail("data", {"data", "pseudo.run",
                         runs[0] + " has " + std::to_string(segmenter.channels()) + " channels and the classes " +
                             join(segmenter.class_names()) + "; this run has " + std::to_string(images.C) + " and " +
                             join(class_names)});
  std::vector<uint8_t> masks;
  masks.reserve(images.count * images.H * images.W);
  Progress progress(std::cout, Progress::columns_of(1));
  int64_t given = 0;
  segmenter.predict(
      [&]() -> std::optional<ImageView> {
        if (given == images.count) return std::nullopt;
        const int64_t bytes = int64_t{images.H} * images.W * images.C;
        return ImageView{images.images + given++ * bytes, images.H, images.W, images.C};
      },
      [&](const ImageView&, const Segmentation& s) {
        for (size_t i = 0; i < s.ids.size(); ++i) {
          const float probability = s.probabilities[i * s.classes + s.ids[i]];
          masks.push_back(probability >= rule.min_confidence ? s.ids[i] : kernels::kAbsentClass);
        }
      },
      {.probabilities = true}, [&](double done) { progress.items(done, images.count, "images labelled"); });
  return masks;
}

}  // namespace regolith
