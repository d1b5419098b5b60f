// From a run's configuration to the parts that do the work: device, data, network, loss, optimizer, schedule.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/clean.h"
#include "data/dataset.h"
#include "data/split.h"
#include "engine/config/run_config.h"
#include "engine/run/network.h"
#include "engine/train/schedule.h"
#include "engine/train/trainer.h"
#include "losses/loss.h"

namespace regolith {

std::unique_ptr<Device> open_device(const config::RunSection& run);
Precision choose_precision(config::PrecisionChoice choice, const Device& device);
NetworkOptions network_options(const config::RunConfig& config, const Device& device);

LossSpec loss_spec(const config::LossSection& loss);
OptimizerSpec optimizer_spec(const config::OptimizerSection& optimizer);
ScheduleSpec schedule_spec(const config::ScheduleSection& schedule, double base_rate);
std::string monitor_name(config::Monitor monitor);

// A loss per head of the graph, weighted; `frequencies` as Loss wants them. Throws ConfigError, at the loss, for one
// that does not fit the classes.
LossFunction loss_function(const config::RunConfig& config, const Graph& graph, const std::vector<double>& frequencies);

struct PreparedData {
  Dataset train, validation, test;
  std::vector<SampleIndex> occurrences;  // of the training set, an epoch's worth
  kernels::Augment augment;
  std::vector<double> frequencies;  // share of each class in the training pixels
  std::string report;               // what was read, dropped, split and repeated: a few lines
};
// Reads, cleans, splits. Throws DataError.
PreparedData prepare_data(const config::RunConfig& config, int classes);

// Names and colours of the classes, made up where the configuration has none.
std::vector<std::string> class_names(const config::Classes& classes, int count);

TrainerOptions trainer_options(const config::RunConfig& config, const kernels::Augment& augment);
SplitView view(const Dataset& data);

}  // namespace regolith
