// engine_predict's work: images from files, through a Segmenter, to files.
#pragma once

#include <string>
#include <vector>

#include "app/command_line.h"
#include "deploy/segmenter.h"

namespace regolith {

struct PredictionOptions {
  std::vector<std::string> runs;
  std::string input, images;  // a file or a folder; the array of an .npz, empty: the study's test_set, or what there is
  std::string output;         // a folder, an .npz or a .csv
  SegmenterOptions segmenter;
  bool overlay = false, probabilities = false, confidence = false;
  bool force = false, go_on = false;  // what is there already: written anew, or left and not predicted again
  int part = 1, parts = 1;            // of the images: every parts-th, from the part-th on
};

// "2/8". Throws UsageError.
void set_part(PredictionOptions& options, const std::string& text);

// A line that names them, or "".
std::string note_of_never_predicted(const std::vector<std::string>& names, const std::vector<int>& classes);

// Prints what it does. Images are read by one thread and written by another while the network computes. One that cannot
// be read is named, and the rest go on: false then, and where it was interrupted. Throws UsageError for options that
// do not go together, and what the parts throw.
bool predict(const PredictionOptions& options, Interrupts* interrupts = nullptr);

}  // namespace regolith
