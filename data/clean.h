// Finds samples that should not be trained on.
#pragma once

#include <string>
#include <vector>

#include "data/dataset.h"
#include "engine/config/fields.h"

namespace regolith {

// The rule: a mask that at least `min_shared` different images share is odd, unless it is plain. It is plain where its
// labelled pixels (class above 0) are none, or all of one class and fill at least `plain_fill` of their bounding box.
// Two crops of wide plains may well both be sand to their edges, whatever frame of unlabelled pixels the crop left; an
// outline drawn by hand never falls on the same pixels twice, so one that repeats was stamped, not drawn.
struct CleanRule {
  int min_shared = 3;
  double plain_fill = 0.9;
  bool drop_shared_masks = false;  // odd ones
  bool drop_duplicates = false;    // of equal images that have equal masks, all but the first
};
template <class V>
void fields(V& v, CleanRule& s) {
  v("drop_shared_masks", s.drop_shared_masks,
    {.doc = "drop images that share one mask of several classes; the report says which and why"});
  v("drop_duplicates", s.drop_duplicates, {.doc = "of images that are equal, mask and all, keep the first"});
}

struct SharedMask {
  std::vector<int64_t> rows;    // where the samples stand in their file (Dataset::source), ascending
  std::vector<int64_t> pixels;  // of each class in the mask
  double fill = 0;              // labelled pixels / pixels of their bounding box; 1 where there are none
  bool plain = false;
};

struct CleanReport {
  int64_t before = 0;
  std::vector<int64_t> samples;                        // what is left: indices into the data set, ascending
  std::vector<int64_t> dropped;                        // rows of the file, ascending
  std::vector<SharedMask> odd, kept;                   // groups of at least min_shared images, largest first
  std::vector<std::vector<int64_t>> duplicate_images;  // groups of rows whose images are equal byte for byte
  std::vector<int64_t> labelled_anew;                  // of these, copies whose mask no earlier one has, ascending
  CleanRule rule;

  std::string summary() const;  // a few lines: what was dropped, by which rule, what was kept in spite of it
};

// Looks at the given samples of the data. Throws DataError if nothing would be left.
CleanReport clean(const Dataset& data, const std::vector<int64_t>& samples,
                  const CleanRule& rule = {.drop_shared_masks = true});

}  // namespace regolith
