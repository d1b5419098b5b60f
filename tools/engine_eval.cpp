#include "app/command_line.h"
#include "deploy/evaluation.h"
#include "deploy/segmenter_arguments.h"

using namespace regolith;

int main(int argc, char** argv) {
  CommandLine p(argc, argv, "engine_eval", "Scores trained networks on images with masks.",
                "engine_eval runs/unet                                      # its test set\n"
                "engine_eval runs/unet runs/se_unet --split validation      # side by side\n"
                "engine_eval runs/unet --input images --masks masks --output scores\n\n"
                "Prints IoU, precision, recall and boundary F1 by class, the three mIoUs, and who is taken for whom;\n"
                "writes scores.json, confusion.png, per_image.csv (the worst first) and worst.png.");
  EvaluationOptions o;
  p.option("runs", o.runs, "run folders; each is scored by itself", {.required = true});
  p.option("--split", o.split, "a part of the run's own data; default: test, else validation, else train",
           {.names = {"test", "validation", "train"}});
  p.option("--input", o.input, "in place of it: a PNG or JPEG, a folder of them, an .npy, or an .npz");
  p.option("--images", o.images, "the array of images of an .npz; default: as training reads it");
  p.option("--masks", o.masks, "of the input: a PNG, a folder, an .npy, the array of an .npz");
  p.option("--output", o.output, "a folder; default: eval-SPLIT in that of the run; for several runs one each in it");
  p.flag("--force", o.force, "write over what is there");
  const SegmenterArguments segmenter(p);
  return p.run([&] {
    o.segmenter = segmenter.options();
    evaluate(o);
    return 0;
  });
}
