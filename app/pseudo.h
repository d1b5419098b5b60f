// data.pseudo: images that trained networks have labelled.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/run_config.h"
#include "data/dataset.h"

namespace regolith {

// Set by a program that links deploy/, which applies trained networks; null: there is none, and the key is refused.
// (count, H, W) of images (count, H, W, C): the class of each pixel, kernels::kAbsentClass where its probability is
// below data.pseudo.min_confidence. Throws ConfigError for runs of other classes, and as Segmenter does.
extern std::vector<uint8_t> (*pseudo_labeller)(const RunConfig& config, const DataView& images,
                                               const std::vector<std::string>& class_names);

// Appends the images to the data set, with their labels: those in `kept`, where there is such a file, else new ones.
// Returns a line on them for the run's report. Throws DataError where no pixel has a label, or `kept` is of others.
std::string append_pseudo_labelled(Dataset& data, const RunConfig& config, const SourceContext& context,
                                   const std::vector<std::string>& class_names, const std::string& kept);
void write_pseudo_labels(const std::string& path, const Dataset& data);  // an .npz of their masks

}  // namespace regolith
