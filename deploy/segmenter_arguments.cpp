#include "deploy/segmenter_arguments.h"

namespace regolith {

SegmenterArguments::SegmenterArguments(CommandLine& line) {
  SegmenterOptions& o = options_;
  line.option("--weights", o.weights, "best, last, or a .safetensors file");
  line.option("--tta", augmentation_, "test-time augmentation: the mean over turned and resized pictures",
              {.names = {"none", "flips", "flips+scales"}});
  line.option("--tile", tile_, "height and width of tiles; default: the size that the network was trained at");
  line.option("--overlap", o.overlap, "of neighbouring tiles", {.min = 0, .max = 0.9});
  line.option("--batch", o.batch, "tiles at a time", {.min = 1, .max = 4096});
  line.option("--device", o.device, "where it runs", {.names = {"auto", "cpu", "cuda"}});
  line.option("--precision", o.precision, "of the maps", {.names = {"auto", "fp32", "tf32", "fp16", "bf16"}});
  line.option("--threads", o.threads, "of the CPU; 0: all", {.min = 0, .max = 1024});
  line.flag("--all-classes", o.all_classes, "predict the classes too that the loss leaves out");
}

SegmenterOptions SegmenterArguments::options() const {
  SegmenterOptions o = options_;
  o.tile_height = tile_[0], o.tile_width = tile_[1];
  if (augmentation_ == "flips") o.augmentation = TestTimeAugmentation::flips;
  if (augmentation_ == "flips+scales") o.augmentation = TestTimeAugmentation::flips_and_scales;
  return o;
}

}  // namespace regolith
