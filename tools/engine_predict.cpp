// engine_predict RUN [RUN ...] --input FILE|DIR --output DIR|F.npz|F.csv
#include "app/command_line.h"
#include "deploy/prediction.h"
#include "deploy/segmenter_arguments.h"

int main(int argc, char** argv) {
  using namespace regolith;
  CommandLine p(argc, argv, "engine_predict", "Class ids of images, by a trained network or by several.",
                "engine_predict runs/unet --input photos --output masks --overlay\n"
                "engine_predict runs/a runs/b --input mars.npz --output submission.csv --tta flips\n\n"
                "A .csv has the header id,0,1,2,... and a row for each image: its number in the array, or the name of\n"
                "its file, then the class id of each pixel, row by row from the top left.");
  PredictionOptions o;
  std::string part;
  p.option("runs", o.runs, "run folders; of several the mean of their probabilities", {.required = true});
  p.option("--input", o.input, "a PNG or JPEG, a folder of them, an .npy, or an .npz", {.required = true});
  p.option("--output", o.output, "a folder for PNGs of class ids, an .npz, or a .csv", {.required = true});
  p.option("--images", o.images, "the array of an .npz; else test_set, image, or its only array");
  p.flag("--overlay", o.overlay, "also pictures with the classes drawn over the image, in OUTPUT/overlay");
  p.flag("--probabilities", o.probabilities, "also the probability of each class (in OUTPUT/values, or in the .npz)");
  p.flag("--confidence", o.confidence, "also the margin between the class and the next, 0 to 1");
  p.option("--part", part, "2/8: the second of eight parts of the images, for several machines");
  p.flag("--force", o.force, "write over what is there");
  p.flag("--continue", o.go_on, "leave the masks that are there, predict the others");
  const SegmenterArguments segmenter(p);
  return p.run([&] {
    if (!part.empty()) set_part(o, part);
    o.segmenter = segmenter.options();
    Interrupts& interrupts = catch_interrupts();
    return predict(o, &interrupts) ? 0 : 128 + interrupts.signal;
  });
}
