#include "app/run_config.h"

#include <algorithm>
#include <cmath>

#include "engine/base/error.h"
#include "engine/config/table.h"

namespace regolith {

constexpr std::array<const char*, 3> names_of(DeviceChoice) { return {"auto", "cpu", "cuda"}; }

template <class V>
void fields(V& v, RunOptions& s) {
  v("name", s.name, {.doc = "name of the run, and of its folder in run.output"});
  v("seed", s.seed, {.doc = "everything random follows from it", .min = 0});
  v("device", s.device, {.doc = "where to run; auto: cuda if this build and machine have it, else cpu"});
  v("precision", s.precision,
    {.doc = "of convolutions and stored activations; auto: bf16 where the device computes in it, else fp32"});
  v("output", s.output, {.doc = "folder in which the folder of the run is made", .path = true});
  v("threads", s.threads, {.doc = "threads on the CPU; auto: one per core", .min = 1, .max = 1024, .word = "auto"});
  v("deterministic", s.deterministic,
    {.doc = "same seed, same bytes on the same number of threads; false may be faster on CUDA"});
  v("cuda_graph", s.cuda_graph, {.doc = "replay a training step as one CUDA graph"});
  v("devices", s.devices,
    {.doc = "so many ranks train together on this machine, a process and a device each; a launcher (mpirun, torchrun, "
            "srun) says their number itself",
     .min = 1,
     .max = 1024});
  v("reduce", s.reduce,
    {.doc = "how ranks add their gradients. exact: by micro-batch, in one order: the same bits on any number of ranks "
            "for the same micro-batches (train.slices). "
            "ring: as the library does it. bf16: rounded to bf16 on the way. auto: exact up to 32 MiB, else ring"});
  v("tensorboard", s.tensorboard,
    {.doc = "events for TensorBoard in the run's folder: scalars by epoch, and pictures"});
}
template <class V>
void fields(V& v, DataOptions& s) {
  v.one_of(s.source, source_names(), {.doc = "where images and masks come from; needed to train"});
  v("arrays", s.arrays, {.doc = "names of the arrays in data.npz"});
  v("classes", s.classes, {});
  v("clean", s.clean, {});
  v("split", s.split, {.doc = "seeded, stratified by the classes in the images"});
  v("oversample", s.oversample, {.doc = "repeat images of a rare class in the training set"});
  v("balance", s.balance, {.doc = "images of rare classes are drawn more often, without copies; excludes oversample"});
  v("hard_examples", s.hard_examples, {.doc = "images of a large loss are drawn more often in the next epoch"});
  v("pseudo", s.pseudo,
    {.doc = "images without truth are trained on too, once an epoch, by what trained networks say"});
  v("augment", s.augment, {.doc = "augmentation of every image of the training set"});
  v("normalise", s.normalise, {});
  v("streaming", s.streaming,
    {.doc =
         "keep the images on the host, and send them batch by batch; auto: where half of the GPU's free memory would "
         "not hold them"});
}
template <class V>
void fields(V& v, TrainOptions& s) {
  v("batch", s.batch, {.doc = "images per step, of all ranks together", .min = 1, .max = 65536});
  v("per_device_batch", s.per_device_batch,
    {.doc = "images per step of each rank: train.batch is then that times the ranks, whatever it says",
     .min = 1,
     .max = 65536,
     .word = "none"});
  v("accumulate", s.accumulate,
    {.doc =
         "batches per step, one after the other in the memory of one; its gradient is the mean over all their images. "
         "Norms and losses over the batch see train.batch images",
     .min = 1,
     .max = 65536});
  v("epochs", s.epochs, {.doc = "at most", .min = 1, .max = 1'000'000});
  v("steps_per_epoch", s.steps_per_epoch, {.doc = "auto: the training set once", .min = 1, .max = 1e9, .word = "auto"});
  v("slices", s.slices,
    {.doc = "parts in which a step computes its batch, to save memory; not with batch norm or Dice over the batch",
     .min = 1,
     .max = 65536,
     .word = "auto"});
  v("sync_batch_norm", s.sync_batch_norm,
    {.doc = "batch norm takes its statistics over the images of all ranks; off: over those of its own"});
  v("ema", s.ema, {.doc = "keep a moving average of the weights, and validate it beside them"});
  v("early_stopping", s.early_stopping, {.doc = "stop when nothing improves, and go back to the best weights"});
  v("validate_every", s.validate_every, {.doc = "epochs", .min = 1, .max = 100000});
  v("drop_last", s.drop_last, {.doc = "leave out a last batch that is not full"});
  v("checkpoint_minutes", s.checkpoint_minutes,
    {.doc = "within an epoch, last.safetensors is written anew when it is this old",
     .min = 1e-3,
     .max = 1e6,
     .word = "off"});
  v("init", s.init, {});
  v("panels", s.panels, {.doc = "pictures of image, truth and prediction at the end", .min = 0, .max = 1000});
}
template <class V>
void fields(V& v, GraphOptions& s) {
  v("fuse", s.fuse, {.doc = "fuse operations; off to compare"});
  v("plan", s.plan, {.doc = "let tensors share memory; off to compare"});
  v("views", s.views, {.doc = "concatenate without copies; off to compare"});
}
template <class V>
void fields(V& v, ProfileOptions& s) {
  v("start", s.start, {.doc = "first step that is recorded", .min = 0, .max = 1e12});
  v("steps", s.steps, {.doc = "steps that are recorded", .min = 1, .max = 1e6});
}
template <class V>
void fields(V& v, Reference& s) {
  const FieldInfo percent{.doc = "mIoU in percent", .min = 0, .max = 100, .word = "none", .word_value = s.kNone};
  v("name", s.name, {.doc = "of its row"});
  v("validation", s.validation, percent);
  v("test", s.test, percent);
  v("hidden", s.hidden, percent);
  v("parameters", s.parameters, {.doc = "of the network", .min = 1, .word = "none"});
  v("epoch_seconds", s.epoch_seconds, {.doc = "of training", .min = 0, .word = "none", .word_value = s.kNone});
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
  v("reference", s.reference, {.doc = "what others published for this network; a row of engine_table"});
}

namespace {

// A path that is given must exist once it is to be read.
void check_path(const Yaml& yaml, const std::string& path, bool folder) {
  std::error_code error;
  const bool is_folder = std::filesystem::is_directory(path, error);
  if (folder ? is_folder : std::filesystem::is_regular_file(path, error)) return;
  if (is_folder) yaml.fail(path + " is a folder, expected a file; folders of pictures go to data.folder");
  const std::string kind = folder ? "folder" : "file";
  if (std::filesystem::exists(path, error)) yaml.fail(path + " is not a " + kind);
  yaml.fail(
      "no such " + kind + ": " + path +
      (yaml.position().line ? " (looked for beside " + yaml.position().file + " and in the working folder)" : ""));
}

template <class Source>
void check_paths(const Source& source, const Yaml& yaml, bool folder) {
  const auto check = [&](const auto& pair, const Yaml& at) {
    check_path(at.at("images"), pair.images.path, folder);
    check_path(at.at("masks"), pair.masks.path, folder);
  };
  check(source, yaml);
  if (source.validation) check(*source.validation, yaml.at("validation"));
  if (source.test) check(*source.test, yaml.at("test"));
}

// The given parts of the chosen source, or of none.
template <class F>
bool given(const DataOptions& data, F&& asks) {
  if (std::holds_alternative<FilePath>(data.source)) return asks(data.arrays);
  if (const auto* npy = std::get_if<NpyFiles>(&data.source)) return asks(*npy);
  if (const auto* pictures = std::get_if<ImageFolders>(&data.source)) return asks(*pictures);
  return false;
}

inline const std::string& name_of(const std::string& array) { return array; }
inline const std::string& name_of(const FilePath& file) { return file.path; }
inline const std::string& name_of(const FolderPath& folder) { return folder.path; }

void check_source(const DataOptions& data, const Yaml& yaml) {
  if (std::holds_alternative<std::monostate>(data.source))
    yaml.fail("no data; expected one of npz, npy, folder, synthetic (on the command line: data.npz=FILE)");
  if (const auto* npz = std::get_if<FilePath>(&data.source)) check_path(yaml.at("npz"), npz->path, false);
  if (const auto* npy = std::get_if<NpyFiles>(&data.source)) check_paths(*npy, yaml.at("npy"), false);
  if (const auto* pictures = std::get_if<ImageFolders>(&data.source)) check_paths(*pictures, yaml.at("folder"), true);
  if (data.split.files) {
    const Yaml files = yaml.at("split").at("files");
    for (const auto& [key, file] : {std::pair{"train", &data.split.files->train},
                                    {"validation", &data.split.files->validation},
                                    {"test", &data.split.files->test}})
      if (!file->path.empty()) check_path(files.at(key), file->path, false);
  }
}

// Keys of data that contradict each other, or that would do nothing.
void check_data(const DataOptions& data, const Yaml& yaml) {
  const Normalise& n = data.normalise;
  if ((n.low < Normalise::kAuto) != (n.high < Normalise::kAuto))
    yaml.find("normalise").fail("low and high go together; one is missing");
  if (n.low < Normalise::kAuto && n.low >= n.high) yaml.find("normalise").fail_key("low", "expected less than high");
  if (n.bits != 0 && n.low < Normalise::kAuto) yaml.find("normalise").fail_key("bits", "excludes low and high");
  const bool folder = std::holds_alternative<ImageFolders>(data.source),
             npz = std::holds_alternative<FilePath>(data.source);
  const NpzNames& arrays = data.arrays;
  if (!npz && !std::holds_alternative<std::monostate>(data.source) &&
      (arrays.any() || arrays.names_pair() || arrays.training != kAutoName))
    yaml.find("arrays").fail("names arrays of data.npz, but the data is another source; leave it out");
  if (arrays.training != kAutoName && arrays.names_pair())
    yaml.find("arrays").fail_key("training", "excludes images and masks: the array holds both");
  if (data.classes.from == MaskCoding::colours && !folder)
    yaml.find("classes").fail_key("from", "colours are of mask files; masks of arrays hold ids");
  if (data.classes.from == MaskCoding::colours && data.classes.colours.empty())
    yaml.find("classes").fail_key("from", "needs classes.colours, the colour of each id");
  const bool by_source = given(data, [](const auto& parts) { return parts.any(); });
  if (given(data, [](const auto& parts) {
        const auto same = [](const auto& a, const auto& b) { return name_of(a.images) == name_of(b.images); };
        return (parts.validation && same(parts, *parts.validation)) || (parts.test && same(parts, *parts.test)) ||
               (parts.validation && parts.test && same(*parts.validation, *parts.test));
      }))
    yaml.fail("training, validation and test must be of different images; two are given the same");
  if (given(data, [](const auto& pair) {
        return name_of(pair.images) == name_of(pair.masks) && name_of(pair.images) != kAutoName;
      }))
    yaml.fail("images and masks are the same: " +
              std::string(folder ? "a folder"
                          : npz  ? "an array"
                                 : "a file") +
              " of each is needed");
  if (data.balance && data.oversample)
    yaml.at("balance").fail("excludes oversample: both repeat the images of rare classes; switch one off");
  if (data.pseudo && data.pseudo->run.empty()) yaml.at("pseudo").fail_key("run", "names no run");
  if (data.pseudo && data.pseudo->from.path.empty() && !npz && !std::holds_alternative<std::monostate>(data.source))
    yaml.at("pseudo").fail_key("from", "is needed: auto is data.npz, but the data is another source");
  const SplitShares& split = data.split;
  const std::string effect = by_source ? "has no effect: the source gives validation or test as such"
                                       : "has no effect beside data.split.files";
  if (by_source && split.files) yaml.find("split").fail_key("files", effect);
  if ((by_source || split.files) && !split.are_default())
    yaml.find("split").fail(effect + "; leave the shares out (on the command line: data.split={})");
  if (split.files && split.files->train.path.empty() && split.files->validation.path.empty() &&
      split.files->test.path.empty())
    yaml.find("split").fail_key("files", "names no list");
  if (split.group == kNoGroup) return;
  if (by_source || split.files) yaml.find("split").fail_key("group", effect);
  if (!split.group_of_source().empty() && !folder && !npz && !std::holds_alternative<std::monostate>(data.source))
    yaml.find("split").fail_key("group",
                                "is overlap, or needs data.folder (an expression for names) or data.npz (an array)");
}

void check_step(const RunConfig& c) {
  const Yaml train = c.yaml.find("train");
  const int64_t step = int64_t{c.train.batch} * c.train.accumulate;
  if (step > std::numeric_limits<int>::max())
    train.fail_key("accumulate", "times train.batch is more than 2147483647 images");
  if (c.train.steps_per_epoch > std::numeric_limits<int>::max() / step)
    train.fail_key("steps_per_epoch", std::string("times train.batch ") +
                                          (c.train.accumulate > 1 ? "and train.accumulate " : "") +
                                          "is more than 2147483647 images");
}

// What no single key can tell.
void check(const RunConfig& c, ConfigUse use) {
  const Yaml data = c.yaml.find("data");
  if (use == ConfigUse::training) check_source(c.data, data);
  if (c.run.name.find('/') != std::string::npos || c.run.name == "." || c.run.name == "..")
    c.yaml.at("run").at("name").fail("expected a name that can be a folder's, without '/'");
  if (c.run.name.size() > 240) c.yaml.at("run").at("name").fail("expected at most 240 bytes");  // and "-2"
  const SplitShares& split = c.data.split;
  if (std::abs(split.train + split.validation + split.test - 1) > 1e-6)
    data.find("split").fail("train + validation + test is " + number(split.train + split.validation + split.test) +
                            "; expected 1");
  if (split.train == 0) data.find("split").fail_key("train", "no images are left to train on");
  check_data(c.data, data);
  check_step(c);
  if (!c.may_validate())
    c.refuse_without_validation(c.has_given_parts() ? "none are given" : "data.split.validation is 0");
  const size_t classes = c.data.classes.names.size();
  if (classes && !c.data.classes.colours.empty() && c.data.classes.colours.size() != classes &&
      c.data.classes.from == MaskCoding::ids)
    data.at("classes").at("colours").fail("expected " + std::to_string(classes) + " colours, as many as classes.names");
  if (classes && c.data.oversample && c.data.oversample->class_id >= static_cast<int>(classes))
    data.at("oversample").at("class").fail("data.classes.names has only classes 0 to " + std::to_string(classes - 1));
}

}  // namespace

RunConfig read_run_config(const Yaml& yaml, ConfigUse use) {
  RunConfig config;
  config::Names names{{"model", "sweep"}};
  fields(names, config);
  yaml.expect_keys(names.names);
  config.yaml = yaml;
  config.model = yaml.at("model");
  config::Reader reader{yaml};
  fields(reader, config);
  config.sweep = read_sweep(yaml.find("sweep"));
  if (use == ConfigUse::training && config.sweep)
    yaml.fail_key("sweep", "is for engine_table, which makes a run of each of its rows; sweep=off leaves it out");
  check(config, use);
  return config;
}

void RunConfig::settle_batch(int ranks) {
  if (train.per_device_batch == 0) return;
  const int64_t batch = int64_t{train.per_device_batch} * ranks;
  if (batch > 65536)
    yaml.find("train").fail_key("per_device_batch", "times " + std::to_string(ranks) + " ranks is more than 65536");
  train.batch = static_cast<int>(batch);
  check_step(*this);
}

std::optional<SweepSpec> read_sweep(const Yaml& yaml) {
  if (yaml.is_off()) return {};
  SweepSpec sweep;
  config::Names names;
  fields(names, static_cast<SweepOptions&>(sweep));
  config::Reader reader{yaml};
  fields(reader, static_cast<SweepOptions&>(sweep));
  sweep.read_axes(yaml, names.names);
  return sweep;
}

RunConfig load_run_config(const std::filesystem::path& file, const std::vector<std::string>& overrides, ConfigUse use) {
  RunConfig config = read_run_config(Yaml::load(file).with_overrides(overrides), use);
  config.settle_batch(config.run.devices);
  return config;
}

bool RunConfig::has_given_parts() const {
  return data.split.files || given(data, [](const auto& parts) { return parts.any(); });
}

bool RunConfig::may_validate() const {
  if (data.split.files) return !data.split.files->validation.path.empty();
  if (has_given_parts()) return given(data, [](const auto& parts) { return parts.validation.has_value(); });
  return data.split.validation > 0;
}

void RunConfig::refuse_without_validation(const std::string& why) const {
  const std::string text = "needs validation images, but " + why;
  if (train.early_stopping) yaml.find("train").fail_key("early_stopping", text);
  if (std::holds_alternative<ReduceOnPlateau>(schedule.kind)) yaml.find("schedule").fail_key("reduce_on_plateau", text);
}

void RunConfig::fail(const std::string& section, const OptionError& error) const {
  Yaml at = yaml.find(section);
  std::string rest = error.path;
  while (at.exists() && !rest.empty()) {
    const size_t dot = std::min(rest.find('.'), rest.size());
    const std::string key = rest.substr(0, dot);
    rest.erase(0, dot + 1);
    Yaml inner;
    if (at.is_map()) inner = at.find(key);
    if (at.is_list()) inner = at.elements()[std::stoul(key)];
    if (!inner.exists()) {
      if (at.is_map()) at.fail_key(key, error.text);
      break;
    }
    at = inner;
  }
  if (!at.exists()) throw error;
  at.fail(error.text);
}

std::string RunConfig::to_yaml(bool whole_paths) const {
  YAML::Emitter out;
  config::Writer writer{out, whole_paths};
  RunConfig copy = *this;  // the visitors of a table take their structs writable
  out << YAML::BeginMap;
  fields(writer, copy);
  out << YAML::Key << "model" << YAML::Value;
  model.emit(out);
  out << YAML::EndMap;
  return std::string(out.c_str()) + "\n";
}

std::string help_config() {
  std::ostringstream out;
  out << "extends: file or list of files\n    read first; this file then adds to them and replaces (at the top only)\n"
         "model: map (required)\n    input and nodes of the network; see configs/models\n"
         "KEY: off\n    switches off what says `map or off`; null does the same. {} switches it on with its defaults\n";
  RunConfig config;
  config::Help help{out, ""};
  fields(help, config);
  std::optional<SweepOptions> sweep;
  help(
      "sweep", sweep,
      {.doc = "for engine_table, a row for each combination: {KEY.PATH: [value, ...]}. With samples a row for each of "
              "them,\n    drawn from such lists, {KEY.PATH: {uniform: [low, high]}} and {KEY.PATH: {log_uniform: [low, "
              "high]}}"});
  return out.str();
}

}  // namespace regolith
