#include "app/experiment.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "app/pseudo.h"
#include "data/clean.h"
#include "data/overlap.h"
#include "data/sources.h"
#include "engine/base/text.h"
#include "engine/comm/launch.h"
#include "engine/report/panel.h"
#include "models/reader.h"

namespace regolith {
Device& Experiment::device() {
  if (!device_) {
    const bool cuda =
        config.run.device == DeviceChoice::cuda || (config.run.device == DeviceChoice::automatic && cuda_available());
    int threads = config.run.threads;
    if (ranks_ != nullptr && threads == 0) {
      const Binding own = binding(*ranks_);
      threads = std::max(1, static_cast<int>(std::ssize(own.processors)) / own.sharing);
    }
    device_ = cuda ? make_cuda_device(local_rank_) : make_cpu_device(threads);
  }
  return *device_;
}

NetworkOptions Experiment::network_options() const {
  NetworkOptions o;
  o.precision = config.run.precision;
  o.deterministic = config.run.deterministic;
  o.seed = config.run.seed;
  o.micro_batches = config.train.slices;
  o.couples_images = config.loss.couples_images();
  o.reserve = !plan_only_;
  if (!config.graph.fuse) o.fuse = FuseOptions::none();
  if (config.train.sync_batch_norm)  // which a convolution has of its own images alone
    o.fuse.without.insert("norms in convolutions");
  o.views = config.graph.views;
  o.reuse = config.graph.plan;
  o.conv = config.conv;
  return o;
}

Network& Experiment::network() {
  if (!network_) {
    const NetworkOptions o = network_options();
    Graph graph = read_model(config.model);
    try {
      graph.frozen = frozen_parameters(graph, config.train.init.freeze);
    } catch (const OptionError& e) {
      config.fail("train", e);
    }
    network_ = std::make_unique<Network>(std::move(graph), device(), o);
    check_classes();
    if ((ranks_ != nullptr ? ranks_->size() : config.run.devices) > 1 && config.loss.sorts_batch())
      config.yaml.find("loss").fail(
          "sorts the pixels of the batch, which several ranks divide; per_image: true does not");
    if (config.train.sync_batch_norm && !network_->has_batch_norm())
      config.yaml.find("train").fail_key("sync_batch_norm", "the network has no batch norm that is trained");
    if (config.train.slices > 1 && network_->couples_images())
      config.yaml.find("train").fail_key(
          "slices", std::string("would change the training: ") +
                        (o.couples_images ? "the loss sums over the batch (Dice and Tversky with sums: per_image, "
                                            "Lovasz with per_image: true do not)"
                                          : "batch norm takes its statistics over the batch (norm: group does not)") +
                        ", which must be seen whole; leave it out and take a smaller train.batch");
  }
  return *network_;
}

const ExperimentData& Experiment::data() {
  if (data_) return *data_;
  const DataOptions& d = config.data;
  auto p = std::make_unique<ExperimentData>();
  try {
    settle_augment(*p);
    p->images = load(d.source, source_context());
  } catch (const OptionError& e) {
    config.fail("data", e);
  }
  const Dataset& all = p->images;
  if (d.split.files) assign_parts(p->images, *d.split.files);
  p->report = all.origin + ": " + std::to_string(all.count) + " images of " +
              size_text({all.height, all.width, all.channels}) + "\n" + all.notes;
  std::vector<int64_t> samples = all.labelled_samples();
  if (d.clean.drop_shared_masks || d.clean.drop_duplicates) {
    CleanReport cleaned = clean(all, samples, d.clean);
    p->report += cleaned.summary();
    samples = std::move(cleaned.samples);
  }
  if (d.split.group == kOverlapGroup) {
    Overlaps overlaps = find_overlaps(all);
    p->report += overlaps.summary;
    p->images.group = std::move(overlaps.group);
  }
  const uint64_t seed = d.split.seed < 0 ? config.run.seed : static_cast<uint64_t>(d.split.seed);
  Split parts = all.part.empty() ? split(all, samples, d.split.train, d.split.validation, d.split.test, seed)
                                 : given_split(all, samples);
  p->report += parts.summary;
  p->train = std::move(parts.train);
  p->validation = std::move(parts.validation);
  p->test = std::move(parts.test);
  p->frequencies = class_frequencies(all, p->train, classes());
  const auto check_truth = [&](const std::vector<double>& shares, const std::string& part) {
    if (std::all_of(shares.begin(), shares.end(), [](double f) { return f == 0; }))
      throw DataError(all.origin + ": no pixel of the " + part + " set has a truth: all are ignored");
  };
  check_truth(p->frequencies, "training");
  if (!p->validation.empty()) check_truth(class_frequencies(all, p->validation, classes()), "validation");
  if (d.oversample) {
    p->epoch = oversample(all, p->train, *d.oversample, d.augment.has_value());
    p->report += "oversampling: images with at least " + std::to_string(d.oversample->min_pixels) +
                 " pixels of class " + std::to_string(d.oversample->class_id) + " are seen " +
                 std::to_string(d.oversample->factor) + " times, " + std::to_string(p->epoch.size()) +
                 " images an epoch\n";
  } else {
    for (int64_t i : p->train) p->epoch.push_back({i, d.augment.has_value()});
  }
  if (d.balance) p->repeats = repeat_factors(all, p->train, d.balance->threshold);
  if (d.pseudo) {
    p->report += append_pseudo_labelled(p->images, config, source_context(), class_names(), pseudo_labels_);
    for (int64_t i = all.count - all.unlabelled; i < all.count; ++i) {
      const uint8_t* const mask = all.mask(i);
      if (std::all_of(mask, mask + all.mask_bytes(), [](uint8_t c) { return c == kernels::kAbsentClass; })) continue;
      p->pseudo.push_back(i);
      p->epoch.push_back({i, d.augment.has_value()});
    }
    if (d.balance) p->repeats.resize(p->epoch.size(), 1);
  }
  p->draws = std::ssize(p->epoch);
  if (d.balance) {
    p->draws = std::llround(std::accumulate(p->repeats.begin(), p->repeats.end(), 0.0));
    p->report += "balance: images are seen 1 to " +
                 number(std::round(10 * *std::max_element(p->repeats.begin(), p->repeats.end())) / 10) + " times, " +
                 std::to_string(p->draws) + " images an epoch\n";
  }
  try {
    settle_paste(*p);
  } catch (const OptionError& e) {
    config.fail("data", e);
  }
  data_ = std::move(p);
  return *data_;
}

std::vector<int32_t> Experiment::order(int64_t epoch, const std::vector<float>& losses) {
  const ExperimentData& d = data();
  std::vector<int32_t> entries;
  if (d.repeats.empty() && losses.empty()) {
    for (const int64_t i : epoch_order(config.run.seed, epoch, d.draws))
      entries.push_back(kernels::sample_index(d.epoch[i].index, d.epoch[i].augment));
    return entries;
  }
  std::vector<double> weights = d.repeats;
  weights.resize(d.epoch.size(), 1);
  if (!losses.empty()) {
    std::vector<float> of_entries;
    for (const SampleIndex& entry : d.epoch) of_entries.push_back(losses[entry.index]);
    const std::vector<double> factors = hard_factors(of_entries, *config.data.hard_examples);
    for (size_t i = 0; i < weights.size(); ++i) weights[i] *= factors[i];
  }
  std::vector<bool> seen(d.epoch.size());
  for (const int64_t i : weighted_order(config.run.seed, epoch, weights, d.draws)) {
    entries.push_back(kernels::sample_index(d.epoch[i].index, d.epoch[i].augment || seen[i]));
    seen[i] = true;
  }
  return entries;
}

// Where data has the augmentation that is used.
std::string Experiment::augment_key() const {
  return config.data.augment ? "augment" : config.data.oversample ? "oversample.augment" : "balance.augment";
}

// Throws OptionError.
void Experiment::settle_augment(ExperimentData& data) {
  const DataOptions& d = config.data;
  if (!d.augment && !d.oversample && !d.balance) return;
  kernels::Augment& a = data.augment = d.augment      ? *d.augment
                                       : d.oversample ? d.oversample->augment
                                                      : d.balance->augment;
  const std::string section = augment_key() + ".";
  if (a.mask_fill == kernels::MaskFill::constant) {
    a.mask_fill_value = source_context().ids().find(a.mask_fill_value);
    if (a.mask_fill_value < 0)
      throw OptionError("data", section + "mask_fill_value",
                        "is no class, 0 to " + std::to_string(classes() - 1) +
                            ", and no id without truth, which loss.ignore or data.classes.map names");
  }
  const int pasted = a.copy_paste.on ? a.copy_paste.class_id : kernels::kAutoClass;
  if (pasted != kernels::kAutoClass && (pasted >= classes() || pasted == config.loss.ignore))
    throw OptionError("data", section + "copy_paste.class",
                      pasted >= classes()
                          ? "the model's last layer has only classes 0 to " + std::to_string(classes() - 1)
                          : "is loss.ignore, whose pixels are not learnt");
}

// What copy_paste takes regions of, and from which images. Throws OptionError.
void Experiment::settle_paste(ExperimentData& data) {
  kernels::CopyPaste& paste = data.augment.copy_paste;
  if (!paste.on) return;
  const bool chosen = paste.class_id == kernels::kAutoClass;
  if (chosen && config.data.oversample) {
    paste.class_id = config.data.oversample->class_id;
  } else if (chosen) {
    const std::vector<int> unlearnt = config.loss.unlearnt(classes());
    for (int c = 0; c < classes(); ++c)
      if (const double share = data.frequencies[c]; share > 0 &&
                                                    (paste.class_id < 0 || share < data.frequencies[paste.class_id]) &&
                                                    std::find(unlearnt.begin(), unlearnt.end(), c) == unlearnt.end())
        paste.class_id = c;
    if (paste.class_id == kernels::kAutoClass) return;  // no class is learnt: nothing is pasted
  }
  for (const int64_t i : samples_with(data.images, data.train, paste.class_id))
    data.paste_rows.push_back(static_cast<int32_t>(i));
  if (data.paste_rows.empty())
    throw OptionError("data", augment_key() + ".copy_paste.class",
                      "no training image holds class " + std::to_string(paste.class_id));
  data.report += "copy_paste: regions of class " + std::to_string(paste.class_id) + " of " +
                 std::to_string(data.paste_rows.size()) + " training images\n";
}

std::string ExperimentData::list() const {
  std::vector<int> times(static_cast<size_t>(images.count));
  for (const SampleIndex& s : epoch) ++times[s.index];
  std::string text = "row,name,part,times\n";
  for (const auto& [part, samples] :
       {std::pair{"train", &train}, {"validation", &validation}, {"test", &test}, {"pseudo", &pseudo}})
    for (const int64_t i : *samples) {
      const std::string name = images.names.empty() ? "" : images.names[i];
      text += std::to_string(images.source[i]) + "," + csv_quoted(name) + "," + part + "," + std::to_string(times[i]) +
              "\n";
    }
  return text;
}

SourceContext Experiment::source_context() {
  return {.classes = classes(),
          .channels = network().graph().nodes[network().graph().input].shape().C,
          .seed = config.run.seed,
          .arrays = config.data.arrays,
          .normalise = config.data.normalise,
          .coding = config.data.classes,
          .ignore = config.loss.ignore,
          .group = config.data.split.group_of_source(),
          .check = [this](const Dataset& images) { check_image(images); }};
}

void Experiment::check_heads() {
  const Graph& graph = network().graph();
  std::vector<std::string> names;
  for (const LossHead& head : graph.heads)
    if (head.node != graph.output) names.push_back(head.name);
  for (const auto& [node, loss] : config.loss.heads) {
    if (std::find(names.begin(), names.end(), node) != names.end()) continue;
    const bool output = std::any_of(graph.heads.begin(), graph.heads.end(), [&, &name = node](const LossHead& head) {
      return head.node == graph.output && head.name == name;
    });
    config.fail("loss", {"loss", "heads." + node,
                         (output ? "is the output, whose loss is `loss` itself" : "is no head of the model") +
                             std::string(names.empty() ? "; the model has none but its output (model.heads)"
                                                       : "; its other heads: " + join(names))});
  }
}

// What would do nothing, or stand beside the wrong class.
void Experiment::check_classes() {
  const int K = network_->graph().classes();
  const ClassOptions& c = config.data.classes;
  const Yaml yaml = config.yaml.find("data").find("classes");
  const auto fail = [&](const char* key, size_t n) {
    yaml.fail_key(
        key, "has " + std::to_string(n) + " entries; the model's last layer has " + std::to_string(K) + " classes");
  };
  if (!c.names.empty() && std::ssize(c.names) != K) fail("names", c.names.size());
  if (!c.colours.empty() && std::ssize(c.colours) != K) {
    bool others_named = c.from == MaskCoding::colours && std::ssize(c.colours) > K;
    for (int id = K; id < std::ssize(c.colours); ++id)
      others_named &= c.map.ids.contains(id) || id == config.loss.ignore;
    if (!others_named) fail("colours", c.colours.size());
  }
  if (config.data.oversample) {
    const int cls = config.data.oversample->class_id;
    if (cls >= K || cls == config.loss.ignore)
      config.yaml.find("data")
          .find("oversample")
          .fail_key("class", cls >= K ? "the model's last layer has only classes 0 to " + std::to_string(K - 1)
                                      : "is loss.ignore, whose pixels are not counted");
  }
}

void Experiment::check_image(const Dataset& images) {
  const Shape& in = network().graph().nodes[network().graph().input].shape();
  if (in.H != images.height || in.W != images.width || in.C != images.channels)
    config.model.find("input").fail("the model takes images of " + size_text({in.H, in.W, in.C}) + "; " +
                                    images.origin + " has " +
                                    size_text({images.height, images.width, images.channels}));
}

DeviceData& Experiment::device_data() {
  if (!device_data_)
    device_data_ =
        std::make_unique<DeviceData>(device(), data().images.view(), config.train.batch * config.train.accumulate,
                                     config.data.streaming, partners_of(data().augment));
  return *device_data_;
}

std::optional<InitialWeights> Experiment::initial_weights() {
  const InitSpec& init = config.train.init;
  if (init.from.path.empty()) return {};
  std::filesystem::path file = init.from.path;
  const auto fail = [&](const std::string& text) { config.fail("train", {"train", "init.from", text}); };
  if (std::filesystem::is_directory(file)) {
    file /= "best.safetensors";
    if (!std::filesystem::exists(file))
      fail(init.from.path + " is a folder without best.safetensors; name one of a run that has it, or a .safetensors");
  } else if (!std::filesystem::exists(file)) {
    fail("no such file or folder: " + file.string());
  }
  return InitialWeights(network(), load_checkpoint(file.string(), Loading::when_used), init.match);
}

Loss Experiment::loss(const std::vector<double>& frequencies) {
  check_heads();
  try {
    return {config.loss, classes(), frequencies};
  } catch (const OptionError& e) {
    config.fail("loss", e);
  }
}

TrainerOptions Experiment::trainer_options() {
  TrainerOptions o;
  o.batch = config.train.batch;
  o.accumulate = config.train.accumulate;
  o.drop_last = config.train.drop_last;
  o.steps_per_epoch = config.train.steps_per_epoch;
  o.seed = config.run.seed;
  o.optimizer = config.optimizer;
  o.ema = config.train.ema;
  o.ranks = ranks_;
  o.reduce = config.run.reduce;
  o.sync_batch_norm = config.train.sync_batch_norm;
  if (data_) o.augment = data_->augment, o.paste_rows = data_->paste_rows;
  o.divisor = static_cast<float>(1 / config.data.normalise.scale);
  o.offset = static_cast<float>(-config.data.normalise.shift / config.data.normalise.scale);
  o.capture = config.run.cuda_graph;
  o.image_losses = config.data.hard_examples.has_value();
  if (config.profile) o.profile_start = config.profile->start, o.profile_steps = config.profile->steps;
  return o;
}

std::vector<std::string> class_names(const ClassOptions& options, int classes) {
  std::vector<std::string> names = options.names;
  for (int i = static_cast<int>(names.size()); i < classes; ++i) names.push_back("class " + std::to_string(i));
  names.resize(classes);
  return names;
}

std::vector<Colour> class_colours(const ClassOptions& options, int classes) {
  std::vector<Colour> colours;
  for (const Rgb& c : default_colours(classes)) colours.push_back({c.r, c.g, c.b});
  std::copy_n(options.colours.begin(), std::min(options.colours.size(), colours.size()), colours.begin());
  return colours;
}

std::vector<std::string> Experiment::class_names() { return regolith::class_names(config.data.classes, classes()); }
std::vector<Colour> Experiment::class_colours() { return regolith::class_colours(config.data.classes, classes()); }

}  // namespace regolith
