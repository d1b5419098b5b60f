// Which samples train, validate and test; in which order and how often they are seen. All of it depends on the data and
// the seed alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace regolith {

struct Split {
  std::vector<int64_t> train, validation, test;  // indices into the data set, ascending
  std::string summary;                           // sizes, and how many samples of each part hold each class
};

// Validation and test get round(count * fraction) samples, training the rest if the fractions sum to 1, else its own
// round(count * fraction). Stratified: samples are sorted by the set of classes in their mask, rare classes weighing
// most, shuffled within a set, and dealt at even distances, so that each part gets its share of every set to within one
// sample. Throws DataError for fractions that are negative or sum to more than 1, or leave nothing to train on.
Split split(const Dataset& data, double train, double validation, double test, uint64_t seed);

// The parts as given. Throws DataError for an index out of range, one that is in two parts or twice in one, or an empty
// training part.
Split split_by_index(const Dataset& data, std::vector<int64_t> train, std::vector<int64_t> validation,
                     std::vector<int64_t> test);

struct SampleIndex {  // of a sample in an epoch
  int64_t index;
  bool augment;
};

struct Oversample {
  int cls = 4;  // samples with at least `min_pixels` of this class are seen `factor` times an epoch,
  int64_t min_pixels = 8;
  int factor = 1;  // the first time as they are, then augmented if `augment_repeats` says so
  bool augment_repeats = true;
  bool augment_all = false;  // every occurrence is augmented
};
std::vector<SampleIndex> oversample(const Dataset& data, const std::vector<int64_t>& indices, const Oversample& rule);
// Each index once.
std::vector<SampleIndex> once(const std::vector<int64_t>& indices);

// A permutation of 0..count-1: Fisher-Yates with Philox(seed, epoch).
std::vector<int64_t> epoch_order(uint64_t seed, int64_t epoch, int64_t count);

}  // namespace regolith
