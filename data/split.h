// Which samples train, validate and test; in which order and how often they are seen. All of it depends on the data and
// the seed alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/augment.h"
#include "data/dataset.h"

namespace regolith {

// Text files, a line per image: its name, or its row where images are arrays.
struct SplitFiles {
  FilePath train, validation, test;
};
template <class V>
void fields(V& v, SplitFiles& s) {
  v("train", s.train,
    {.doc = "text file with a line per image, its name or (of arrays) its row; rest: what no list names",
     .word = "rest"});
  v("validation", s.validation, {.doc = "the same", .word = "none"});
  v("test", s.test, {.doc = "the same", .word = "none"});
}

inline constexpr const char *kNoGroup = "none", *kOverlapGroup = "overlap";
struct SplitShares {
  double train = 0.8, validation = 0.1, test = 0.1;
  int64_t seed = -1;  // -1: auto, the run's
  std::string group = kNoGroup;
  std::optional<SplitFiles> files;

  // Of the source: an expression or an array; empty: none.
  std::string group_of_source() const { return group == kNoGroup || group == kOverlapGroup ? "" : group; }
  bool are_default() const { return train == 0.8 && validation == 0.1 && test == 0.1; }
};
template <class V>
void fields(V& v, SplitShares& s) {
  v("train", s.train, {.doc = "share of the images; the three shares add up to 1", .min = 0, .max = 1});
  v("validation", s.validation, {.doc = "share of the images", .min = 0, .max = 1});
  v("test", s.test, {.doc = "share of the images", .min = 0, .max = 1});
  v("seed", s.seed, {.doc = "of the split; auto: run.seed", .min = 0, .word = "auto", .word_value = -1});
  v("group", s.group,
    {.doc =
         "keeps images of one group, such as the frames of a scene, in one part. overlap: images that share pixels or "
         "lie edge to edge, tiles of one picture. Of a folder: a regular expression for file names, whose first "
         "parentheses (or whole match) are the group. Of data.npz: an array of N numbers"});
  v("files", s.files, {.doc = "the parts by name, in place of shares"});
}

struct Split {
  std::vector<int64_t> train, validation, test;  // indices into the data set, ascending
  std::string summary;                           // sizes, and how many samples of each part hold each class
};

// Of the given samples, validation and test get round(count * fraction), training the rest if the fractions sum to 1,
// else its own round(count * fraction). Stratified: samples are sorted by the set of classes in their mask, rare
// classes weighing most, shuffled within a set, and dealt at even distances, so that each part gets its share of every
// set to within one sample. Where samples have groups, whole groups are dealt, the largest first, each to the part
// whose samples and classes are then nearest to its share. Throws DataError for fractions that are negative or sum to
// more than 1, or leave nothing to train on, and for fewer groups than parts.
Split split(const Dataset& data, const std::vector<int64_t>& samples, double train, double validation, double test,
            uint64_t seed);

// The parts that the data came with (Dataset::part).
Split given_split(const Dataset& data, const std::vector<int64_t>& samples);
// Sets Dataset::part from lists. Throws DataError for a name that is unknown or in two places, and for an empty list.
void assign_parts(Dataset& data, const SplitFiles& files);

// The share of each class in the pixels of the given samples that have a truth.
std::vector<double> class_frequencies(const Dataset& data, const std::vector<int64_t>& samples, int classes);

struct SampleIndex {  // of a sample in an epoch
  int64_t index;
  bool augment;
};

// Samples with at least `min_pixels` of a class are seen `factor` times an epoch: the first time as they are, then
// augmented.
struct Oversample {
  int class_id = 0;
  int64_t min_pixels = 1;
  int factor = 20;
  kernels::Augment augment = {};
};
template <class V>
void fields(V& v, Oversample& s) {
  v("class", s.class_id, {.doc = "class id whose images are repeated", .min = 0, .max = 255, .required = true});
  v("min_pixels", s.min_pixels, {.doc = "an image counts from this many pixels of the class", .min = 1});
  v("factor", s.factor, {.doc = "how often such an image is in the training set", .min = 1, .max = 10000});
  v("augment", s.augment, {.doc = "of the repeated images"});
}
// augment_all: every occurrence is augmented.
std::vector<SampleIndex> oversample(const Dataset& data, const std::vector<int64_t>& indices, const Oversample& rule,
                                    bool augment_all = false);

// Those of the given samples that hold a pixel of the class.
std::vector<int64_t> samples_with(const Dataset& data, const std::vector<int64_t>& indices, int class_id);

// A permutation of 0..count-1: Fisher-Yates with Philox(seed, epoch).
std::vector<int64_t> epoch_order(uint64_t seed, int64_t epoch, int64_t count);

}  // namespace regolith
