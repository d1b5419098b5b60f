#include "app/pseudo.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "data/split.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/npy.h"
#include "kernels/augment_options.h"

namespace regolith {
namespace {

constexpr const char* kMasks = "mask";

std::vector<uint8_t> read_kept(const std::string& path, const DataView& images, size_t classes) {
  NpyArray kept = NpzReader(path).read(kMasks);
  if (kept.kind != 'u' || kept.item != 1 || kept.shape != std::vector<int64_t>{images.count, images.H, images.W} ||
      std::ranges::any_of(kept.bytes, [&](uint8_t c) { return c >= classes && c != kernels::kAbsentClass; }))
    throw DataError(kept.where + ": are not the labels of the " + std::to_string(images.count) +
                    " images that data.pseudo names; resume with the images of that run, or start anew");
  return std::move(kept.bytes);
}

}  // namespace

std::vector<uint8_t> (*pseudo_labeller)(const RunConfig&, const DataView&, const std::vector<std::string>&) = nullptr;

std::string append_pseudo_labelled(Dataset& data, const RunConfig& config, const SourceContext& context,
                                   const std::vector<std::string>& class_names, const std::string& kept) {
  const PseudoLabels& rule = *config.data.pseudo;
  const auto* npz = std::get_if<FilePath>(&config.data.source);
  const std::string& path = rule.from.path.empty() ? npz->path : rule.from.path;
  const std::unique_ptr<ImageSource> source = open_images(path, rule.key(), context);
  const int64_t first = data.count;
  append_unlabelled(data, *source);
  const DataView images{data.image(first), nullptr, data.unlabelled, data.height, data.width, data.channels};
  std::error_code error;
  std::string origin = "the run's own labels";
  std::vector<uint8_t> masks;
  if (std::filesystem::exists(kept, error)) {
    masks = read_kept(kept, images, class_names.size());
  } else {
    if (pseudo_labeller == nullptr)
      config.fail("data", {"data", "pseudo", "this program applies no trained networks; leave it out"});
    std::vector<std::string> runs;
    for (const FolderPath& run : rule.run) {
      if (!std::filesystem::is_directory(run.path, error))
        config.fail("data", {"data", "pseudo.run", "there is no such run folder: " + run.path});
      runs.push_back(run.path);
    }
    masks = pseudo_labeller(config, images, class_names);
    origin = join(runs);
  }
  std::copy(masks.begin(), masks.end(), data.masks.begin() + first * data.mask_bytes());

  std::vector<int64_t> samples(data.unlabelled);
  std::iota(samples.begin(), samples.end(), first);
  const auto sure = std::ranges::count_if(masks, [](uint8_t c) { return c != kernels::kAbsentClass; });
  if (sure == 0)
    throw DataError(path + ": no pixel's class has a probability of data.pseudo.min_confidence = " +
                    number(rule.min_confidence) + " or more");
  const std::vector<double> shares = class_frequencies(data, samples, static_cast<int>(class_names.size()));
  std::vector<std::string> of_classes;
  for (size_t c = 0; c < shares.size(); ++c)
    if (shares[c] > 0) of_classes.push_back(class_names[c] + format(" %.2f%%", 100 * shares[c]));
  return source->notes() + "pseudo-labels: " + std::to_string(data.unlabelled) + " images of " + path + " by " +
         origin + ": " +
         format("%.1f%% of the pixels have one: ",
                100. * static_cast<double>(sure) / static_cast<double>(masks.size())) +
         join(of_classes) + "\n";
}

void write_pseudo_labels(const std::string& path, const Dataset& data) {
  write_npz(path, std::vector{npz_entry(kMasks, {data.unlabelled, data.height, data.width},
                                        data.mask(data.count - data.unlabelled))});
}

}  // namespace regolith
