// Images without truth, trained on by the classes that trained networks are sure of: hard labels (Lee, "Pseudo-Label",
// 2013), pixels of less confidence left out (Sohn et al., "FixMatch", 2020).
#pragma once

#include <string>
#include <vector>

#include "data/images.h"

namespace regolith {

struct PseudoLabels {
  std::vector<FolderPath> run;
  FilePath from;  // empty: data.npz
  std::string images = kAutoName;
  double min_confidence = .9;

  std::string key() const { return images == kAutoName ? "" : images; }  // of open_images()
};
template <class V>
void fields(V& v, PseudoLabels& s) {
  v("run", s.run, {.doc = "trained networks; the mean of their probabilities says what a pixel is", .required = true});
  v("from", s.from, {.doc = "file or folder of the images; auto: data.npz", .word = kAutoName});
  v("images", s.images, {.doc = "which array of an .npz; auto: as engine_predict chooses, the study's test_set first"});
  v("min_confidence", s.min_confidence,
    {.doc = "probability of a pixel's class; pixels below it are not learnt", .min = 0, .max = 1});
}

// Appends the images to the data set; their masks have no truth. Throws DataError for one of another size.
void append_unlabelled(Dataset& data, ImageSource& images);

}  // namespace regolith
