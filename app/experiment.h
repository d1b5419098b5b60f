// A run's configuration and the parts that it describes, each made when it is first asked for.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "app/run_config.h"
#include "data/dataset.h"
#include "engine/train/trainer.h"

namespace regolith {

struct ExperimentData {
  Dataset train, validation, test;
  std::vector<SampleIndex> epoch;   // an epoch's worth of the training set
  kernels::Augment augment;         // of those that are augmented
  std::vector<double> frequencies;  // share of each class in the training pixels
  std::string report;               // what was read, dropped, split and repeated: a few lines
};

class Experiment {
 public:
  explicit Experiment(RunConfig configuration) : config(std::move(configuration)) {}
  const RunConfig config;

  Device& device();
  Network& network();  // without weights
  int classes() { return network().graph().classes(); }
  // Reads, cleans and splits the images. Throws DataError; ConfigError where they do not fit the model's input.
  const ExperimentData& data();
  // A loss per head of the graph, weighted. Throws ConfigError, at the key, for one that does not fit the classes.
  LossFunction loss(const std::vector<double>& frequencies);
  TrainerOptions trainer_options();

  std::vector<std::string> class_names();  // made up where the configuration has none
  std::vector<Colour> class_colours();

 private:
  void check_image(const Dataset& images);

  std::unique_ptr<Device> device_;
  std::unique_ptr<Network> network_;
  std::unique_ptr<ExperimentData> data_;
};

}  // namespace regolith
