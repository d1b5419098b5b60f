// A run's configuration and the parts that it describes, each made when it is first asked for.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/run_config.h"
#include "data/dataset.h"
#include "data/sampling.h"
#include "engine/train/trainer.h"

namespace regolith {

struct ExperimentData {
  Dataset images;
  std::vector<int64_t> train, validation, test;  // samples of it
  std::vector<int64_t> pseudo;                   // and those that networks labelled, which train too
  std::vector<SampleIndex> epoch;                // what an epoch is drawn from
  std::vector<double> repeats;                   // how often it has each of them on the mean; empty: each once
  int64_t draws = 0;                             // the length of an epoch
  kernels::Augment augment;                      // of those that are augmented
  std::vector<int32_t> paste_rows;               // training samples with the class of copy_paste
  std::vector<double> frequencies;               // share of each class in the training pixels
  std::string report;                            // what was read, dropped, split and repeated: a few lines

  // CSV of the samples that have a part: row, name, part, and how often an epoch holds the sample.
  std::string list() const;
};

// One for each class: made up where the configuration has none.
std::vector<std::string> class_names(const ClassOptions& options, int classes);
std::vector<Colour> class_colours(const ClassOptions& options, int classes);

class Experiment {
 public:
  // device: in place of the one that run.device names.
  // plan_only: the network's programs are planned, but have no memory to run in.
  explicit Experiment(RunConfig configuration, std::unique_ptr<Device> device = nullptr, bool plan_only = false)
      : config(std::move(configuration)), device_(std::move(device)), plan_only_(plan_only) {}
  const RunConfig config;

  // The ranks that share the run, and the number of this one on its machine. Before the device is made.
  void share_with(Communicator& ranks, int local_rank) { ranks_ = &ranks, local_rank_ = local_rank; }
  Communicator* ranks() const { return ranks_; }  // null: it is alone
  Device& device();
  Network& network();  // without weights; throws ConfigError where train.slices would change the training
  int classes() { return network().graph().classes(); }
  // Reads, cleans and splits the images. Throws DataError; ConfigError where they do not fit the model's input.
  const ExperimentData& data();
  DeviceData& device_data();  // the same on the device
  // Where the run that goes on keeps the labels of data.pseudo. Before data().
  void set_pseudo_labels(std::string file) { pseudo_labels_ = std::move(file); }
  // kernels::sample_index() of the samples of an epoch, from 0 on, as they are trained on. losses: with
  // data.hard_examples, by row of the data, NaN where none is known.
  std::vector<int32_t> order(int64_t epoch, const std::vector<float>& losses = {});
  // Those that train.init.from names. Throws ConfigError where there is no such file, CheckpointError where it does not
  // fit the network.
  std::optional<InitialWeights> initial_weights();
  // What its files are read by: the model's size, ids, ranges and names of arrays.
  SourceContext source_context();
  // Throws ConfigError, at the key, for one that does not fit the classes.
  Loss loss(const std::vector<double>& frequencies);
  TrainerOptions trainer_options();
  NetworkOptions network_options() const;  // of training

  std::vector<std::string> class_names();
  std::vector<Colour> class_colours();

 private:
  void check_image(const Dataset& images);
  void check_classes();
  void check_heads();  // those that the loss names
  std::string augment_key() const;
  void settle_augment(ExperimentData& data);
  void settle_paste(ExperimentData& data);

  std::unique_ptr<Device> device_;
  bool plan_only_;
  std::string pseudo_labels_;
  Communicator* ranks_ = nullptr;
  int local_rank_ = 0;
  std::unique_ptr<Network> network_;
  std::unique_ptr<ExperimentData> data_;
  std::unique_ptr<DeviceData> device_data_;
};

}  // namespace regolith
