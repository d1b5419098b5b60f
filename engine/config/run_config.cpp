#include "engine/config/run_config.h"

#include <algorithm>
#include <cmath>

#include "engine/base/error.h"
#include "engine/config/table.h"

namespace regolith::config {
namespace table {

#define REGOLITH_ENUM_NAMES(E, ...)                                     \
  template <>                                                           \
  struct EnumNames<E> {                                                 \
    static inline const std::vector<std::string> names = {__VA_ARGS__}; \
  }
REGOLITH_ENUM_NAMES(DeviceChoice, "auto", "cpu", "cuda");
REGOLITH_ENUM_NAMES(PrecisionChoice, "auto", "fp32", "tf32", "fp16", "bf16");
REGOLITH_ENUM_NAMES(StreamingChoice, "auto", "on", "off");
REGOLITH_ENUM_NAMES(Flip, "none", "horizontal", "vertical", "both");
REGOLITH_ENUM_NAMES(Fill, "reflect", "nearest", "constant", "wrap");
REGOLITH_ENUM_NAMES(LossReduction, "sum_per_image", "mean_pixels", "mean_elements");
REGOLITH_ENUM_NAMES(DiceSums, "per_image", "batch");
REGOLITH_ENUM_NAMES(AdamPreset, "keras", "torch");
REGOLITH_ENUM_NAMES(Monitor, "val_loss", "val_miou", "val_miou_foreground", "val_miou_keras_ignore0");
#undef REGOLITH_ENUM_NAMES

// The table of keys. Ranges and meanings stand here, defaults in the structs.
template <class V>
void fields(V& v, RunSection& s) {
  v("name", s.name, {.doc = "name of the run, and of its folder in run.output"});
  v("seed", s.seed, {.doc = "everything random follows from it", .min = 0});
  v("device", s.device, {.doc = "where to run; auto: cuda if this build and machine have it, else cpu"});
  v("precision", s.precision,
    {.doc = "of convolutions and stored activations; auto: bf16 where the device computes in it, else fp32"});
  v("output", s.output, {.doc = "folder in which the folder of the run is made"});
  v("threads", s.threads, {.doc = "threads on the CPU; auto: one per core", .min = 1, .max = 1024, .word = "auto"});
  v("deterministic", s.deterministic, {.doc = "same seed, same bytes; false may be faster on CUDA"});
  v("cuda_graph", s.cuda_graph, {.doc = "replay a training step as one CUDA graph"});
}
template <class V>
void fields(V& v, NpyData& s) {
  v("images", s.images, {.doc = "array (N, H, W) or (N, H, W, C)", .required = true});
  v("masks", s.masks, {.doc = "array (N, H, W) of class ids", .required = true});
}
template <class V>
void fields(V& v, FolderData& s) {
  v("images", s.images, {.doc = "folder of PNG or JPEG images of one size", .required = true});
  v("masks", s.masks,
    {.doc = "folder of PNG masks of the same names; the grey value is the class id", .required = true});
}
template <class V>
void fields(V& v, SyntheticData& s) {
  v("count", s.count, {.doc = "images", .min = 1, .max = 1'000'000});
  v("height", s.height, {.doc = "pixels", .min = 16, .max = 8192});
  v("width", s.width, {.doc = "pixels", .min = 16, .max = 8192});
  v("seed", s.seed, {.doc = "of the terrain; auto: run.seed", .min = 0, .word = "auto", .word_value = -1});
  v("outliers", s.outliers, {.doc = "share of images that carry one and the same wrong mask", .min = 0, .max = 0.5});
}
template <class V>
void fields(V& v, Augment& s) {
  v("flip", s.flip, {.doc = "mirror at random"});
  v("zoom", s.zoom,
    {.doc = "relative, drawn from this range; a positive zoom shows more of the scene", .min = -0.99, .max = 10});
  v("translation", s.translation, {.doc = "up to this fraction of the size, either way", .min = 0, .max = 1});
  v("rotation", s.rotation,
    {.doc = "in turns, drawn from this range; positive is counter-clockwise", .min = -1, .max = 1});
  v("fill", s.fill, {.doc = "what lies outside of an image"});
  v("mask_fill", s.mask_fill, {.doc = "what lies outside of a mask; constant: class 0"});
  v("fill_value", s.fill_value, {.doc = "grey value outside of an image with fill: constant", .min = 0, .max = 255});
}
template <class V>
void fields(V& v, Oversample& s) {
  v("class", s.class_id, {.doc = "class id whose images are repeated", .min = 0, .max = 255, .required = true});
  v("min_pixels", s.min_pixels, {.doc = "an image counts from this many pixels of the class", .min = 1});
  v("factor", s.factor, {.doc = "how often such an image is in the training set", .min = 1, .max = 10000});
  v("augment", s.augment, {.doc = "of the repeated images"});
}
template <class V>
void fields(V& v, ArrayNames& s) {
  v("training", s.training,
    {.doc = "array (N, 2, H, W) of image and mask; where it is missing, the pair below is read"});
  v("test", s.test, {.doc = "array (M, H, W) of images without masks; may be missing"});
  v("images", s.images, {.doc = "array (N, H, W) or (N, H, W, C)"});
  v("masks", s.masks, {.doc = "array (N, H, W)"});
}
template <class V>
void fields(V& v, Classes& s) {
  v("names", s.names, {.doc = "one name per class, for tables and legends; []: class 0, class 1, ..."});
  v("colours", s.colours, {.doc = "one colour per class, for pictures; []: a built-in palette"});
}
template <class V>
void fields(V& v, Clean& s) {
  v("drop_shared_masks", s.drop_shared_masks,
    {.doc = "drop images that share one mask of several classes; the report says which and why"});
  v("drop_duplicates", s.drop_duplicates, {.doc = "of images that are equal, mask and all, keep the first"});
}
template <class V>
void fields(V& v, Split& s) {
  v("train", s.train, {.doc = "share of the images; the three shares add up to 1", .min = 0, .max = 1});
  v("validation", s.validation, {.doc = "share of the images", .min = 0, .max = 1});
  v("test", s.test, {.doc = "share of the images", .min = 0, .max = 1});
  v("seed", s.seed, {.doc = "of the split; auto: run.seed", .min = 0, .word = "auto", .word_value = -1});
}
template <class V>
void fields(V& v, Normalise& s) {
  v("scale", s.scale, {.doc = "the network reads byte * scale + shift", .min = 1e-9, .max = 1e9});
  v("shift", s.shift, {.doc = "see scale"});
}
template <class V>
void fields(V& v, DataSection& s) {
  v.one_of(s.source,
           {{"npz", {.doc = "NumPy archive: the study's layout, or an array of images and one of masks"}},
            {"npy", {.doc = "two NumPy files"}},
            {"folder", {.doc = "folders of pictures"}},
            {"synthetic", {.doc = "terrain made from a seed"}}},
           {.doc = "where images and masks come from; needed to train"});
  v("arrays", s.arrays, {.doc = "names of the arrays in data.npz"});
  v("classes", s.classes, {});
  v("clean", s.clean, {});
  v("split", s.split, {.doc = "seeded, stratified by the classes in the images"});
  v("oversample", s.oversample, {.doc = "repeat images of a rare class in the training set"});
  v("augment", s.augment, {.doc = "augmentation of every image of the training set"});
  v("normalise", s.normalise, {});
  v("streaming", s.streaming,
    {.doc =
         "keep the images on the host, and send them batch by batch; auto: where half of the GPU's free memory would "
         "not hold them"});
}
constexpr const char* kExcludeDoc = "class ids whose pixels contribute nothing";
constexpr const char* kReductionDoc = "divisor: images; pixels; or pixels x classes that are not excluded";
template <class V>
void fields(V& v, CrossEntropyLoss& s) {
  v("label_smoothing", s.label_smoothing, {.doc = "share of the truth spread over all classes", .min = 0, .max = 0.99});
  v("weights", s.weights, {.doc = "factor of each class; []: 1 each", .min = 0});
  v("exclude", s.exclude, {.doc = kExcludeDoc, .min = 0, .max = 255});
  v("reduction", s.reduction, {.doc = kReductionDoc});
}
template <class V>
void fields(V& v, FocalLoss& s) {
  v("gamma", s.gamma, {.doc = "exponent of (1 - p)", .min = 0, .max = 20});
  v("alpha", s.alpha, {.doc = "factor: one, or one per class", .min = 0});
  v("exclude", s.exclude, {.doc = kExcludeDoc, .min = 0, .max = 255});
  v("reduction", s.reduction, {.doc = kReductionDoc});
}
template <class V>
void fields(V& v, DiceLoss& s) {
  v("smooth", s.smooth, {.doc = "added above and below the fraction line", .min = 0});
  v("sums", s.sums, {.doc = "over each image, or over the batch"});
  v("weights", s.weights,
    {.doc = "of the classes; inverse_frequency: from the pixels of the training set; []: equal",
     .min = 0,
     .word = "inverse_frequency"});
  v("exclude", s.exclude, {.doc = "class ids that are left out", .min = 0, .max = 255});
}
#define REGOLITH_LOSSES                                                                            \
  {"cross_entropy", {.doc = "softmax cross-entropy"}}, {"focal", {.doc = "softmax focal loss"}}, { \
    "dice", { .doc = "soft Dice loss" }                                                            \
  }
template <class V>
void fields(V& v, LossTerm& s) {
  v("weight", s.weight, {.doc = "factor of this term", .min = 0});
  v.one_of(s.kind, {REGOLITH_LOSSES}, {.doc = "the loss of this term, with the keys above", .names = {"loss"}});
}
template <class V>
void fields(V& v, LossSection& s) {
  v.one_of(s.kind, {REGOLITH_LOSSES, {"combined", {.doc = "weighted sum"}}}, {.doc = "default: cross_entropy"});
  v("ignore", s.ignore,
    {.doc = "value of mask pixels that have no truth", .min = 0, .max = 255, .word = "none", .word_value = -1});
}
#undef REGOLITH_LOSSES
template <class V>
void fields(V& v, AdamW& s) {
  v("preset", s.preset, {.doc = "defaults of eps and weight_decay; torch: 1e-8 and 0.01"});
  v.after_reading([&] {
    if (s.preset == AdamPreset::torch) s.eps = 1e-8, s.weight_decay = 0.01;
  });
  v("lr", s.lr, {.doc = "learning rate", .min = 1e-12, .max = 10});
  v("betas", s.betas, {.doc = "decay of the two moments", .min = 0, .max = 0.999999});
  v("eps", s.eps, {.doc = "added outside of the root", .min = 1e-12, .max = 1});
  v("weight_decay", s.weight_decay, {.doc = "decoupled: w -= lr * weight_decay * w", .min = 0, .max = 1});
}
template <class V>
void fields(V& v, Sgd& s) {
  v("lr", s.lr, {.doc = "learning rate", .min = 1e-12, .max = 100});
  v("momentum", s.momentum, {.doc = "share of the last update that is kept", .min = 0, .max = 0.9999});
}
template <class V>
void fields(V& v, OptimizerSection& s) {
  v.one_of(s.kind, {{"adamw", {.doc = "Adam with decoupled weight decay"}}, {"sgd", {.doc = "gradient descent"}}},
           {.doc = "default: adamw"});
  v("clip_norm", s.clip_norm, {.doc = "limit of the norm of the whole gradient", .min = 1e-6, .word = "none"});
}
template <class V>
void fields(V&, ConstantSchedule&) {}
template <class V>
void fields(V& v, ReduceOnPlateau& s) {
  v("factor", s.factor, {.doc = "lr *= factor when the validation loss has not improved", .min = 0.001, .max = 0.999});
  v("patience", s.patience, {.doc = "epochs without improvement before that", .min = 1, .max = 100000});
  v("min_lr", s.min_lr, {.doc = "never below", .min = 0, .max = 10});
  v("min_delta", s.min_delta, {.doc = "an improvement is more than this", .min = 0});
  v("cooldown", s.cooldown, {.doc = "epochs after a reduction that do not count", .min = 0, .max = 100000});
}
template <class V>
void fields(V& v, CosineSchedule& s) {
  v("min_lr", s.min_lr, {.doc = "at the last step", .min = 0, .max = 10});
}
template <class V>
void fields(V& v, PolynomialSchedule& s) {
  v("power", s.power, {.doc = "of the share of the run that is left", .min = 0, .max = 20});
  v("end_lr", s.end_lr, {.doc = "at the last step", .min = 0, .max = 10});
}
template <class V>
void fields(V& v, ScheduleSection& s) {
  v.one_of(s.kind,
           {{"constant", {.doc = "write constant: {}"}},
            {"reduce_on_plateau", {.doc = "lower the rate when the validation loss stays"}},
            {"cosine", {.doc = "half a cosine from lr to min_lr"}},
            {"polynomial", {.doc = "from lr to end_lr"}}},
           {.doc = "default: constant"});
  v("warmup_steps", s.warmup_steps, {.doc = "steps in which the rate rises from 0 to lr", .min = 0, .max = 1e9});
}
template <class V>
void fields(V& v, EarlyStopping& s) {
  v("monitor", s.monitor, {.doc = "what must improve; it also says which weights are the best"});
  v("patience", s.patience, {.doc = "epochs without improvement before the run stops", .min = 1, .max = 100000});
  v("min_delta", s.min_delta, {.doc = "an improvement is more than this", .min = 0});
}
template <class V>
void fields(V& v, TrainSection& s) {
  v("batch", s.batch, {.doc = "images per step", .min = 1, .max = 65536});
  v("epochs", s.epochs, {.doc = "at most", .min = 1, .max = 1'000'000});
  v("steps_per_epoch", s.steps_per_epoch, {.doc = "auto: the training set once", .min = 1, .max = 1e9, .word = "auto"});
  v("slices", s.slices,
    {.doc = "parts in which a step computes its batch, to save memory", .min = 1, .max = 65536, .word = "auto"});
  v("early_stopping", s.early_stopping, {.doc = "stop when nothing improves, and go back to the best weights"});
  v("validate_every", s.validate_every, {.doc = "epochs", .min = 1, .max = 100000});
  v("drop_last", s.drop_last, {.doc = "leave out a last batch that is not full"});
  v("panels", s.panels, {.doc = "pictures of image, truth and prediction at the end", .min = 0, .max = 1000});
}
template <class V>
void fields(V& v, ConvSection& s) {
  v("provider", s.provider,
    {.doc = "who computes convolutions; auto: the best that takes each",
     .names = {"auto", "cudnn", "onednn", "winograd", "thin", "reference"}});
  v("workspace_mib", s.workspace_mib, {.doc = "most that an engine of cuDNN may ask for", .min = 0, .max = 1 << 20});
}
template <class V>
void fields(V& v, GraphSection& s) {
  v("fuse", s.fuse, {.doc = "fuse operations; off to compare"});
  v("plan", s.plan, {.doc = "let tensors share memory; off to compare"});
  v("views", s.views, {.doc = "concatenate without copies; off to compare"});
}
template <class V>
void fields(V& v, ProfileSection& s) {
  v("start", s.start, {.doc = "first step that is recorded", .min = 0, .max = 1e12});
  v("steps", s.steps, {.doc = "steps that are recorded", .min = 1, .max = 1e6});
}
template <class V>
void fields(V& v, RunConfig& s) {
  v("run", s.run, {});
  v("data", s.data, {});
  v("loss", s.loss, {});
  v("optimizer", s.optimizer, {});
  v("schedule", s.schedule, {});
  v("train", s.train, {});
  v("conv", s.conv, {});
  v("graph", s.graph, {});
  v("profile", s.profile,
    {.doc = "steps that Nsight records (--capture-range=cudaProfilerApi, --profile-from-start off)"});
}

}  // namespace table

namespace {

// A path that is given must exist once it is to be read.
void check_path(const Yaml& yaml, const std::string& path, bool folder) {
  std::error_code error;
  if (folder ? std::filesystem::is_directory(path, error) : std::filesystem::is_regular_file(path, error)) return;
  const std::string kind = folder ? "folder" : "file";
  yaml.fail(
      "no such " + kind + ": " + path +
      (yaml.position().line ? " (looked for beside " + yaml.position().file + " and in the working folder)" : ""));
}

void check_source(const DataSection& data, const Yaml& yaml) {
  if (std::holds_alternative<std::monostate>(data.source))
    yaml.fail("no data; expected one of npz, npy, folder, synthetic (on the command line: data.npz=FILE)");
  if (const auto* npz = std::get_if<FilePath>(&data.source)) check_path(yaml.at("npz"), npz->path, false);
  if (const auto* npy = std::get_if<NpyData>(&data.source)) {
    check_path(yaml.at("npy").at("images"), npy->images.path, false);
    check_path(yaml.at("npy").at("masks"), npy->masks.path, false);
  }
  if (const auto* pictures = std::get_if<FolderData>(&data.source)) {
    check_path(yaml.at("folder").at("images"), pictures->images.path, true);
    check_path(yaml.at("folder").at("masks"), pictures->masks.path, true);
  }
}

// What no single key can tell.
void check(const RunConfig& c, ConfigUse use) {
  const Yaml data = c.yaml.find("data"), train = c.yaml.find("train");
  if (use == ConfigUse::training) check_source(c.data, data);
  if (c.run.name.find('/') != std::string::npos || c.run.name == "." || c.run.name == "..")
    c.yaml.at("run").at("name").fail("expected a name that can be a folder's, without '/'");
  const Split& split = c.data.split;
  if (std::abs(split.train + split.validation + split.test - 1) > 1e-6)
    data.find("split").fail("train + validation + test is " +
                            table::number_text(split.train + split.validation + split.test) + "; expected 1");
  if (split.train == 0) data.find("split").fail_key("train", "no images are left to train on");
  if (split.validation == 0 && c.train.early_stopping)
    train.fail_key("early_stopping", "needs validation images, but data.split.validation is 0");
  if (split.validation == 0 && std::holds_alternative<ReduceOnPlateau>(c.schedule.kind))
    c.yaml.find("schedule").fail_key("reduce_on_plateau", "needs validation images, but data.split.validation is 0");
  const size_t classes = c.data.classes.names.size();
  if (classes && !c.data.classes.colours.empty() && c.data.classes.colours.size() != classes)
    data.at("classes").at("colours").fail("expected " + std::to_string(classes) + " colours, as many as classes.names");
  if (classes && c.data.oversample && c.data.oversample->class_id >= static_cast<int>(classes))
    data.at("oversample").at("class").fail("data.classes.names has only classes 0 to " + std::to_string(classes - 1));
}

}  // namespace

std::vector<LossTerm> LossSection::terms() const {
  if (const auto* combined = std::get_if<std::vector<LossTerm>>(&kind)) return *combined;
  LossTerm term;
  if (const auto* loss = std::get_if<CrossEntropyLoss>(&kind)) term.kind = *loss;
  if (const auto* loss = std::get_if<FocalLoss>(&kind)) term.kind = *loss;
  if (const auto* loss = std::get_if<DiceLoss>(&kind)) term.kind = *loss;
  return {term};
}

double OptimizerSection::lr() const {
  return std::visit([](const auto& optimizer) { return optimizer.lr; }, kind);
}

RunConfig read_run_config(const Yaml& yaml, ConfigUse use) {
  RunConfig config;
  table::Names names{{"model"}};
  table::fields(names, config);
  yaml.expect_keys(names.names);
  config.yaml = yaml;
  config.model = yaml.at("model");
  table::Reader reader{yaml};
  table::fields(reader, config);
  check(config, use);
  return config;
}

RunConfig load_run_config(const std::filesystem::path& file, const std::vector<std::string>& overrides, ConfigUse use) {
  return read_run_config(Yaml::load(file).with_overrides(overrides), use);
}

std::string RunConfig::to_yaml() const {
  YAML::Emitter out;
  table::Writer writer{out};
  RunConfig copy = *this;  // the visitors of a table take their structs writable
  out << YAML::BeginMap;
  table::fields(writer, copy);
  out << YAML::Key << "model" << YAML::Value;
  model.emit(out);
  out << YAML::EndMap;
  return std::string(out.c_str()) + "\n";
}

std::string help_config() {
  std::ostringstream out;
  out << "extends: file or list of files\n    read first; this file then adds to them and replaces (at the top only)\n"
         "model: map (required)\n    input and nodes of the network; see configs/models\n";
  RunConfig config;
  table::Help help{out, ""};
  table::fields(help, config);
  return out.str();
}

}  // namespace regolith::config
