// Scores on images whose masks are in another file: a competition's test set, once its labels are known.
#pragma once

#include <memory>
#include <string>

#include "app/run_config.h"
#include "data/images.h"

namespace regolith {

// The images of `test_set` in the configuration's data.npz with the masks of `labels`, an .npz whose only array, or the
// one called `mask`, is (N, H, W) class ids. Throws DataError for another shape, ConfigError where the data is no .npz.
std::unique_ptr<ImageSource> hidden_images(const RunConfig& config, const std::string& labels,
                                           const SourceContext& context);

// Scores the best weights of a run folder on them, and writes what engine_eval does to eval-hidden in it. Where that
// stands there, younger than the same labels and the weights, nothing is done.
void score_hidden(const std::string& folder, const RunConfig& config, const std::string& labels);

}  // namespace regolith
