#include "tools/session.h"

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "data/sources.h"
#include "data/synthetic.h"
#include "engine/base/error.h"

namespace regolith {
namespace {

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

Reduction reduction(config::LossReduction r) {
  switch (r) {
    case config::LossReduction::sum_per_image:
      return Reduction::sum_per_image;
    case config::LossReduction::mean_pixels:
      return Reduction::mean_pixels;
    case config::LossReduction::mean_elements:
      break;
  }
  return Reduction::mean_elements;
}

kernels::Fill fill(config::Fill f) {
  switch (f) {
    case config::Fill::nearest:
      return kernels::Fill::nearest;
    case config::Fill::constant:
      return kernels::Fill::constant;
    case config::Fill::wrap:
      return kernels::Fill::wrap;
    case config::Fill::reflect:
      break;
  }
  return kernels::Fill::reflect;
}

kernels::Augment augment(const config::Augment& a) {
  kernels::Augment k;
  k.flip_x = a.flip == config::Flip::horizontal || a.flip == config::Flip::both;
  k.flip_y = a.flip == config::Flip::vertical || a.flip == config::Flip::both;
  k.zoom_low = static_cast<float>(a.zoom.low);
  k.zoom_high = static_cast<float>(a.zoom.high);
  k.shift_y = static_cast<float>(a.translation.height);
  k.shift_x = static_cast<float>(a.translation.width);
  k.rotation_low = static_cast<float>(a.rotation.low);
  k.rotation_high = static_cast<float>(a.rotation.high);
  k.fill = fill(a.fill);
  k.fill_value = static_cast<float>(a.fill_value);
  k.mask_fill = fill(a.mask_fill);
  return k;
}

LossTerm term(const config::LossTerm& t) {
  const auto convert = Overloaded{
      [](const config::CrossEntropyLoss& l) -> decltype(LossTerm::term) {
        return CrossEntropySpec{l.label_smoothing, l.weights.values, l.exclude, reduction(l.reduction)};
      },
      [](const config::FocalLoss& l) -> decltype(LossTerm::term) {
        return FocalSpec{l.gamma, l.alpha, l.exclude, reduction(l.reduction)};
      },
      [](const config::DiceLoss& l) -> decltype(LossTerm::term) {
        return DiceSpec{l.sums == config::DiceSums::batch ? DiceSpec::Sums::batch : DiceSpec::Sums::per_image, l.smooth,
                        l.weights.values, l.weights.inverse_frequency, l.exclude};
      }};
  return {t.weight, std::visit(convert, t.kind)};
}

std::vector<double> class_frequencies(const Dataset& data, int classes) {
  std::vector<double> share(classes, 0.0);
  for (uint8_t m : data.masks)
    if (m < classes) share[m] += 1;
  for (double& s : share) s /= std::max<double>(1, static_cast<double>(data.masks.size()));
  return share;
}

}  // namespace

std::unique_ptr<Device> open_device(const config::RunSection& run) {
  switch (run.device) {
    case config::DeviceChoice::cuda:
      return make_cuda_device();
    case config::DeviceChoice::cpu:
      return make_cpu_device(run.threads);
    case config::DeviceChoice::automatic:
      break;
  }
  return cuda_available() ? make_cuda_device() : make_cpu_device(run.threads);
}

Precision choose_precision(config::PrecisionChoice choice, const Device& device) {
  switch (choice) {
    case config::PrecisionChoice::fp32:
      return Precision::fp32;
    case config::PrecisionChoice::tf32:
      return Precision::tf32;
    case config::PrecisionChoice::fp16:
      return Precision::fp16;
    case config::PrecisionChoice::bf16:
      return Precision::bf16;
    case config::PrecisionChoice::automatic:
      break;
  }
  return best_precision(device);
}

NetworkOptions network_options(const config::RunConfig& c, const Device& device) {
  NetworkOptions o;
  o.precision = choose_precision(c.run.precision, device);
  o.deterministic = c.run.deterministic;
  o.seed = c.run.seed;
  o.slices = c.train.slices;
  if (!c.graph.fuse) o.fuse = FuseOptions::none();
  o.views = c.graph.views;
  o.reuse = c.graph.plan;
  o.conv.provider = c.conv.provider;
  o.conv.workspace_limit = static_cast<size_t>(c.conv.workspace_mib) << 20;
  return o;
}

LossSpec loss_spec(const config::LossSection& loss) {
  LossSpec spec;
  for (const config::LossTerm& t : loss.terms()) spec.terms.push_back(term(t));
  spec.ignore_index = loss.ignore;
  return spec;
}

OptimizerSpec optimizer_spec(const config::OptimizerSection& o) {
  OptimizerSpec spec;
  spec.clip_norm = o.clip_norm;
  std::visit(Overloaded{[&](const config::AdamW& a) {
                          spec.algorithm = AdamWSpec{a.lr, a.betas[0], a.betas[1], a.eps, a.weight_decay};
                        },
                        [&](const config::Sgd& s) {
                          spec.algorithm = SgdSpec{s.lr, s.momentum, 0, false};
                        }},
             o.kind);
  return spec;
}

ScheduleSpec schedule_spec(const config::ScheduleSection& s, double base) {
  ScheduleSpec spec;
  spec.warmup_steps = s.warmup_steps;
  std::visit(Overloaded{[&](const config::ConstantSchedule&) { spec.curve = ConstantSpec{}; },
                        [&](const config::ReduceOnPlateau& p) {
                          spec.curve = PlateauSpec{p.factor, p.min_lr, p.min_delta, p.patience, p.cooldown};
                        },
                        [&](const config::CosineSchedule& k) { spec.curve = CosineSpec{k.min_lr / base}; },
                        [&](const config::PolynomialSchedule& p) {
                          spec.curve = PolynomialSpec{p.power, p.end_lr / base};
                        }},
             s.kind);
  return spec;
}

std::string monitor_name(config::Monitor m) {
  constexpr const char* names[] = {"val_loss", "val_miou", "val_miou_foreground", "val_miou_keras_ignore0"};
  return names[static_cast<int>(m)];
}

LossFunction loss_function(const config::RunConfig& config, const Graph& graph,
                           const std::vector<double>& frequencies) {
  auto losses = std::make_shared<std::vector<Loss>>();
  for (const LossHead& head : graph.heads) {
    LossSpec spec = loss_spec(config.loss);
    for (LossTerm& t : spec.terms) t.weight *= head.weight;
    try {
      losses->emplace_back(spec, graph.classes(), frequencies);
    } catch (const TrainError& e) {
      const Yaml section = config.yaml.find("loss");
      if (!section) throw;
      section.fail(std::string(e.what()).substr(std::string("loss: ").size()));
    }
  }
  LossFunction f;
  f.run = [losses](Stream& stream, int head, kernels::SoftmaxLoss call, int64_t images) {
    (*losses)[head].forward_backward(stream, std::move(call), images);
  };
  f.workspace_bytes = [losses](int N, int H, int W) { return losses->front().workspace_bytes(N, H, W); };
  f.couples_images = losses->front().couples_images();
  return f;
}

PreparedData prepare_data(const config::RunConfig& c, int classes) {
  const config::DataSection& d = c.data;
  Dataset all =
      std::visit(Overloaded{[&](const config::FilePath& npz) {
                              return load_npz(npz.path, classes,
                                              {d.arrays.training, d.arrays.test, d.arrays.images, d.arrays.masks})
                                  .labelled;
                            },
                            [&](const config::NpyData& npy) -> Dataset {
                              return load_npy(npy.images.path, npy.masks.path, classes).labelled;
                            },
                            [&](const config::FolderData& f) -> Dataset {
                              return load_folder(f.images.path, f.masks.path, classes).labelled;
                            },
                            [&](const config::SyntheticData& s) -> Dataset {
                              if (classes < kTerrainClasses)
                                throw DataError("data.synthetic: has " + std::to_string(kTerrainClasses) +
                                                " classes; the model's last layer has " + std::to_string(classes));
                              const uint64_t seed = s.seed < 0 ? c.run.seed : static_cast<uint64_t>(s.seed);
                              Terrain t;
                              t.count = s.count;
                              t.height = s.height;
                              t.width = s.width;
                              t.seed = seed;
                              t.outliers = s.outliers;
                              return make_synthetic(t).labelled;
                            },
                            [](std::monostate) -> Dataset { throw DataError("the configuration names no data"); }},
                 d.source);
  PreparedData p;
  p.report = all.origin + ": " + std::to_string(all.count) + " images of " + std::to_string(all.height) + "x" +
             std::to_string(all.width) + "x" + std::to_string(all.channels) + "\n";
  if (all.masks.empty()) throw DataError(all.origin + ": has no masks to train on");
  if (d.clean.drop_shared_masks || d.clean.drop_duplicates) {
    CleanRule rule;
    rule.drop_shared_masks = d.clean.drop_shared_masks;
    rule.drop_duplicate_images = d.clean.drop_duplicates;
    Cleaned cleaned = clean(all, rule);
    p.report += cleaned.report.summary();
    all = std::move(cleaned.data);
  }
  const uint64_t seed = d.split.seed < 0 ? c.run.seed : static_cast<uint64_t>(d.split.seed);
  const Split parts = split(all, d.split.train, d.split.validation, d.split.test, seed);
  p.report += parts.summary;
  p.train = select_samples(all, parts.train);
  p.validation = select_samples(all, parts.validation);
  p.test = select_samples(all, parts.test);
  p.frequencies = class_frequencies(p.train, classes);

  std::vector<int64_t> rows(p.train.count);
  std::iota(rows.begin(), rows.end(), 0);
  if (d.augment) p.augment = augment(*d.augment);
  if (d.oversample) {
    Oversample rule;
    rule.cls = d.oversample->class_id;
    rule.min_pixels = d.oversample->min_pixels;
    rule.factor = d.oversample->factor;
    rule.augment_all = d.augment.has_value();
    if (!d.augment) p.augment = augment(d.oversample->augment);
    p.occurrences = oversample(p.train, rows, rule);
    p.report += "oversampling: images with at least " + std::to_string(rule.min_pixels) + " pixels of class " +
                std::to_string(rule.cls) + " are seen " + std::to_string(rule.factor) + " times, " +
                std::to_string(p.occurrences.size()) + " images an epoch\n";
  } else {
    for (int64_t i : rows) p.occurrences.push_back({i, d.augment.has_value()});
  }
  return p;
}

std::vector<std::string> class_names(const config::Classes& classes, int count) {
  std::vector<std::string> names = classes.names;
  for (int i = static_cast<int>(names.size()); i < count; ++i) names.push_back("class " + std::to_string(i));
  names.resize(count);
  return names;
}

TrainerOptions trainer_options(const config::RunConfig& c, const kernels::Augment& augment) {
  TrainerOptions o;
  o.batch = c.train.batch;
  o.drop_last = c.train.drop_last;
  o.steps_per_epoch = c.train.steps_per_epoch;
  o.seed = c.run.seed;
  o.optimizer = optimizer_spec(c.optimizer);
  o.augment = augment;
  o.divisor = static_cast<float>(1 / c.data.normalise.scale);
  o.offset = static_cast<float>(-c.data.normalise.shift / c.data.normalise.scale);
  o.capture = c.run.cuda_graph;
  if (c.profile) o.profile_start = c.profile->start, o.profile_steps = c.profile->steps;
  constexpr Streaming streaming[] = {Streaming::automatic, Streaming::on, Streaming::off};
  o.streaming = streaming[static_cast<int>(c.data.streaming)];
  return o;
}

SplitView view(const Dataset& d) {
  return {d.images.data(), d.masks.empty() ? nullptr : d.masks.data(), d.count, d.height, d.width, d.channels};
}

}  // namespace regolith
