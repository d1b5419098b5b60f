// Trained networks applied to images of any size.
//
//   regolith::Segmenter segmenter({"runs/unet"});
//   regolith::Segmentation s = segmenter.predict({pixels, height, width, channels});   // s.ids: (height, width)
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace regolith {

struct ImageView {
  const uint8_t* pixels = nullptr;  // (height, width, channels)
  int height = 0, width = 0, channels = 1;
};

// Probabilities are the mean over the picture as it is and turned: flips: left to right, upside down, both;
// flips_and_scales: each of these at 4/5, 1 and 5/4 of its size too.
enum class TestTimeAugmentation { none, flips, flips_and_scales };

struct SegmenterOptions {
  std::string weights = "best";         // best or last of the run's folder, or a .safetensors file
  std::string device = "auto";          // cpu or cuda
  std::string precision = "auto";       // fp32, tf32, bf16 or fp16
  int threads = 0;                      // of the CPU; 0: all
  int batch = 32;                       // tiles at a time
  int tile_height = 0, tile_width = 0;  // 0: the size the network was trained at
  double overlap = 0.5;                 // of neighbouring tiles, [0, 0.9]
  TestTimeAugmentation augmentation = TestTimeAugmentation::none;
  bool all_classes = false;  // also those that the run's loss excludes
};

// What predict() gives beside the class ids.
struct SegmentationOutputs {
  bool probabilities = false, confidence = false;
};

struct Segmentation {
  int height = 0, width = 0, classes = 0;
  std::vector<uint8_t> ids;          // (height, width)
  std::vector<float> probabilities;  // (height, width, classes): 0 for classes that are never predicted
  std::vector<float> confidence;     // (height, width): of the class, less that of the next: 0 to 1
};

// Several runs are an ensemble: the mean of their probabilities. Images larger than a tile go through in overlapping
// tiles (deploy/tiles.h), with memory for one row of them beside the image and its classes.
class Segmenter {
 public:
  // Run folders as engine_run writes them. Throws ConfigError, CheckpointError, IoError, GraphError or DeviceError with
  // the file, and what was expected.
  explicit Segmenter(const std::vector<std::string>& runs, const SegmenterOptions& options = {});
  ~Segmenter();
  Segmenter(Segmenter&&) noexcept;

  int channels() const;
  int tile_height() const;
  int tile_width() const;
  const std::vector<std::string>& class_names() const;  // made up where the run has none
  const std::vector<std::array<uint8_t, 3>>& class_colours() const;
  const std::vector<int>& never_predicted() const;  // by any of the runs
  std::string device() const;                       // "AMD EPYC, 2 threads, fp32"

  // Throws DataError for an image of other channels.
  Segmentation predict(const ImageView& image, const SegmentationOutputs& outputs = {});
  std::vector<Segmentation> predict(const std::vector<ImageView>& images, const SegmentationOutputs& outputs = {});

  // The same for a stream of images, of which as many are under way as a batch takes. `next` gives an image, whose
  // pixels must live until `done` is called with it; `done` hears of the images in their order.
  using Next = std::function<std::optional<ImageView>()>;
  using Done = std::function<void(const ImageView&, Segmentation)>;
  using Progress = std::function<void(double images)>;  // hears how many are done, with the part of those under way
  void predict(const Next& next, const Done& done, const SegmentationOutputs& outputs = {},
               const Progress& progress = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace regolith
