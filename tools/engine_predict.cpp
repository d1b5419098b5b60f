// engine_predict RUN [RUN ...] --input FILE|DIR --output DIR|F.npz|F.csv
#include "app/command_line.h"
#include "deploy/prediction.h"

int main(int argc, char** argv) {
  using namespace regolith;
  CommandLine p(argc, argv, "engine_predict", "Class ids of images, by a trained network or by several.",
                "engine_predict runs/unet --input photos --output masks --overlay\n"
                "engine_predict runs/a runs/b --input mars.npz --output submission.csv --tta flips\n\n"
                "A .csv has the header id,0,1,2,... and a row for each image: its number in the array, or the name of\n"
                "its file, then the class id of each pixel, row by row from the top left.");
  PredictionOptions o;
  std::string tta = "none", part;
  std::array<int, 2> tile{};
  p.option("runs", o.runs, "run folders; of several the mean of their probabilities", {.required = true});
  p.option("--input", o.input, "a PNG or JPEG, a folder of them, an .npy, or an .npz", {.required = true});
  p.option("--output", o.output, "a folder for PNGs of class ids, an .npz, or a .csv", {.required = true});
  p.option("--images", o.images, "the array of an .npz; else test_set, image, or its only array");
  p.option("--weights", o.segmenter.weights, "best, last, or a .safetensors file");
  p.flag("--overlay", o.overlay, "also pictures with the classes drawn over the image, in OUTPUT/overlay");
  p.flag("--probabilities", o.probabilities, "also the probability of each class (in OUTPUT/values, or in the .npz)");
  p.flag("--confidence", o.confidence, "also the margin between the class and the next, 0 to 1");
  p.option("--tta", tta, "test-time augmentation: the mean over turned and resized pictures",
           {.names = {"none", "flips", "flips+scales"}});
  p.option("--tile", tile, "height and width of tiles; default: the size that the network was trained at");
  p.option("--overlap", o.segmenter.overlap, "of neighbouring tiles", {.min = 0, .max = 0.9});
  p.option("--batch", o.segmenter.batch, "tiles at a time", {.min = 1, .max = 4096});
  p.option("--part", part, "2/8: the second of eight parts of the images, for several machines");
  p.option("--device", o.segmenter.device, "where it runs", {.names = {"auto", "cpu", "cuda"}});
  p.option("--precision", o.segmenter.precision, "of the maps", {.names = {"auto", "fp32", "tf32", "fp16", "bf16"}});
  p.option("--threads", o.segmenter.threads, "of the CPU; 0: all", {.min = 0, .max = 4096});
  p.flag("--all-classes", o.segmenter.all_classes, "predict the classes too that the loss leaves out");
  p.flag("--force", o.force, "write over what is there");
  p.flag("--continue", o.go_on, "leave the masks that are there, predict the others");
  return p.run([&] {
    if (!part.empty()) set_part(o, part);
    o.segmenter.tile_height = tile[0], o.segmenter.tile_width = tile[1];
    if (tta != "none")
      o.segmenter.augmentation = tta == "flips" ? TestTimeAugmentation::flips : TestTimeAugmentation::flips_and_scales;
    Interrupts& interrupts = catch_interrupts();
    return predict(o, &interrupts) ? 0 : 128 + interrupts.signal;
  });
}
