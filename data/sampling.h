// How often the samples of the training set are seen in an epoch: not all alike, without copies. All of it depends on
// the data, the seed and, of hard examples, the losses so far.
#pragma once

#include <cstdint>
#include <vector>

#include "data/augment.h"
#include "data/dataset.h"

namespace regolith {

// Repeat factor sampling (Gupta, Dollar, Girshick, "LVIS: a dataset for large vocabulary instance segmentation", 2019).
struct Balance {
  double threshold = .5;
  kernels::Augment augment = {};
};
template <class V>
void fields(V& v, Balance& s) {
  v("threshold", s.threshold,
    {.doc = "an image is seen max(1, sqrt(threshold / share of the images that hold a class)) times an epoch, by the "
            "rarest of its classes; fractions are drawn anew each epoch, whose length is the sum",
     .min = 1e-6,
     .max = 1});
  v("augment", s.augment, {.doc = "of an image that is seen again in the same epoch"});
}
// Of each of the samples.
std::vector<double> repeat_factors(const Dataset& data, const std::vector<int64_t>& samples, double threshold);

// After the losses that samples had when they were last seen (Shrivastava, Gupta, Girshick 2016, of whole images).
struct HardExamples {
  double share = .3, at_most = 4;
};
template <class V>
void fields(V& v, HardExamples& s) {
  v("share", s.share,
    {.doc = "of an epoch that is drawn in proportion to the last loss of each image, in place of alike: a factor "
            "1 - share + share * loss / mean loss. The epoch keeps its length; the first one sees all alike",
     .min = 0,
     .max = 1});
  v("at_most", s.at_most, {.doc = "the factor of one image", .min = 1, .max = 1000});
}
// losses: of each sample, NaN where it is not known, which counts as the mean.
std::vector<double> hard_factors(const std::vector<float>& losses, const HardExamples& rule);

// `count` draws of entries 0.., in random order. Entry i comes floor(s) or ceil(s) times, s its part count * weight /
// sum of the weights, and s times on the mean (systematic sampling): Philox(seed, epoch).
std::vector<int64_t> weighted_order(uint64_t seed, int64_t epoch, const std::vector<double>& weights, int64_t count);

}  // namespace regolith
