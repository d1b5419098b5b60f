// One run as plain structs, read from YAML. Names, ranges, defaults and meanings of all keys stand in the table of
// run_config.cpp; `engine_run --help-config` prints it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/config/yaml.h"

namespace regolith::config {

enum class DeviceChoice { automatic, cpu, cuda };
enum class PrecisionChoice { automatic, fp32, tf32, fp16, bf16 };  // automatic: bf16 where the device computes in it
enum class Flip { none, horizontal, vertical, both };
enum class Fill { reflect, nearest, constant, wrap };
enum class LossReduction { sum_per_image, mean_pixels, mean_elements };
enum class DiceSums { per_image, batch };
enum class StreamingChoice { automatic, on, off };
enum class AdamPreset { keras, torch };
enum class Monitor { val_loss, val_miou, val_miou_foreground, val_miou_keras_ignore0 };

struct FilePath {
  std::string path;  // as it can be opened from the working folder
};
struct FolderPath {
  std::string path;
};
struct Interval {
  double low = 0, high = 0;
};
struct Extent {
  double height = 0, width = 0;
};
using Colour = std::array<uint8_t, 3>;  // red, green, blue

struct RunSection {
  std::string name = "run", output = "runs";
  uint64_t seed = 42;
  DeviceChoice device = DeviceChoice::automatic;
  PrecisionChoice precision = PrecisionChoice::automatic;
  int threads = 0;  // 0: auto
  bool deterministic = true, cuda_graph = true;
};

struct NpyData {
  FilePath images, masks;
};
struct FolderData {
  FolderPath images, masks;
};
struct SyntheticData {
  int count = 600, height = 64, width = 128;
  int64_t seed = -1;  // -1: auto, run.seed
  double outliers = 0.04;
};
struct Augment {
  Flip flip = Flip::none;
  Interval zoom;       // relative; a positive one zooms out
  Extent translation;  // up to this fraction of the size, either way
  Interval rotation;   // fractions of a turn, positive counter-clockwise
  Fill fill = Fill::reflect, mask_fill = Fill::reflect;
  double fill_value = 0;
};
struct Oversample {
  int class_id = 0, min_pixels = 1, factor = 20;
  Augment augment;
};
struct ArrayNames {
  std::string training = "training_set", test = "test_set", images = "image", masks = "mask";
};
struct Classes {
  std::vector<std::string> names;
  std::vector<Colour> colours;
};
struct Clean {
  bool drop_shared_masks = false, drop_duplicates = false;
};
struct Split {
  double train = 0.8, validation = 0.1, test = 0.1;
  int64_t seed = -1;  // -1: auto, run.seed
};
struct Normalise {
  double scale = 1.0 / 255, shift = 0;  // bytes of the image * scale + shift
};
struct DataSection {
  std::variant<std::monostate, FilePath, NpyData, FolderData, SyntheticData> source;  // FilePath: an .npz
  ArrayNames arrays;
  Classes classes;
  Clean clean;
  Split split;
  std::optional<Oversample> oversample;
  std::optional<Augment> augment;
  Normalise normalise;
  StreamingChoice streaming = StreamingChoice::automatic;
};

// Weights of the classes in a loss.
struct ClassWeights {
  bool inverse_frequency = false;  // from the pixels of the training set; Dice alone
  std::vector<double> values;      // else one per class; empty: 1 each
};
struct CrossEntropyLoss {
  double label_smoothing = 0;
  ClassWeights weights;
  std::vector<int> exclude;
  LossReduction reduction = LossReduction::mean_pixels;
};
struct FocalLoss {
  double gamma = 2;
  std::vector<double> alpha{0.25};  // one, or one per class
  std::vector<int> exclude;
  LossReduction reduction = LossReduction::mean_elements;
};
struct DiceLoss {
  double smooth = 1;
  DiceSums sums = DiceSums::per_image;
  ClassWeights weights;
  std::vector<int> exclude;
};
struct LossTerm {
  double weight = 1;
  std::variant<CrossEntropyLoss, FocalLoss, DiceLoss> kind;
};
struct LossSection {
  std::variant<CrossEntropyLoss, FocalLoss, DiceLoss, std::vector<LossTerm>> kind;  // the last: combined
  int ignore = -1;                                                                  // a mask value; -1: none
  std::vector<LossTerm> terms() const;                                              // of any kind, as a weighted sum
};

struct AdamW {
  AdamPreset preset = AdamPreset::keras;
  double lr = 1e-3;
  std::array<double, 2> betas{0.9, 0.999};
  double eps = 1e-7, weight_decay = 0.004;
};
struct Sgd {
  double lr = 1e-2, momentum = 0;
};
struct OptimizerSection {
  std::variant<AdamW, Sgd> kind;
  double clip_norm = 0;  // 0: none
  double lr() const;
};

struct ConstantSchedule {};
struct ReduceOnPlateau {
  double factor = 0.5;
  int patience = 6;
  double min_lr = 0, min_delta = 1e-4;  // of Keras
  int cooldown = 0;
};
struct CosineSchedule {
  double min_lr = 0;
};
struct PolynomialSchedule {
  double power = 1, end_lr = 0;
};
struct ScheduleSection {
  std::variant<ConstantSchedule, ReduceOnPlateau, CosineSchedule, PolynomialSchedule> kind;
  int64_t warmup_steps = 0;
};

struct EarlyStopping {
  Monitor monitor = Monitor::val_loss;
  int patience = 30;
  double min_delta = 0;
};
struct TrainSection {
  int batch = 32, epochs = 100;
  int64_t steps_per_epoch = 0;  // 0: auto, the training set once
  int slices = 0;               // 0: auto
  std::optional<EarlyStopping> early_stopping;
  int validate_every = 1, panels = 8;
  bool drop_last = false;
};

struct ConvSection {
  std::string provider = "auto";
  int workspace_mib = 256;
};
struct GraphSection {
  bool fuse = true, plan = true, views = true;
};
struct ProfileSection {
  int64_t start = 10, steps = 5;
};

struct RunConfig {
  RunSection run;
  DataSection data;
  LossSection loss;
  OptimizerSection optimizer;
  ScheduleSection schedule;
  TrainSection train;
  ConvSection conv;
  GraphSection graph;
  std::optional<ProfileSection> profile;
  Yaml model;  // read by models/
  Yaml yaml;   // the whole, for errors that are found later: config.yaml.at("loss").fail(...)

  Monitor best_monitor() const { return train.early_stopping ? train.early_stopping->monitor : Monitor::val_loss; }
  std::string to_yaml() const;  // every key with its value; reads back as the same run
};

// What the caller is going to do: with `network` alone there need not be any data (--explain, engine_verify).
enum class ConfigUse { network, training };

// Throws ConfigError: "file:line:column: key.path: what was expected". Relative paths of a file are looked for beside
// that file, then in the working folder; those of the command line in the working folder.
RunConfig load_run_config(const std::filesystem::path& file, const std::vector<std::string>& overrides, ConfigUse use);
RunConfig read_run_config(const Yaml& yaml, ConfigUse use);

std::string help_config();  // every key with type, range, default and meaning

}  // namespace regolith::config
