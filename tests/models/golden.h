// A network beside what PyTorch in float64 made of it (tests/golden/make_golden.py): logits, loss, gradients, and the
// losses of some steps.
#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "app/experiment.h"
#include "engine/io/npy.h"

namespace regolith::golden {

using Values = std::vector<double>;

// What is compared: a network and the file of its numbers, a loss, and how the engine runs it.
struct Setting {
  std::string file;   // tests/models/golden/FILE.npz
  std::string model;  // YAML of a model; empty: configs/models/FILE.yaml
  std::string loss;   // "focal" or "cross_entropy"
  std::string way;    // for the test's name
  std::vector<std::string> overrides;
};

// Bounds relative to the length of what is compared; `largest_logit` relative to the largest.
struct Bounds {
  double logits, largest_logit, loss;
  std::function<double(const std::string& parameter)> gradient;
  // Of the length of all gradients together: no parameter's gradient is taken to be shorter.
  double shortest_gradient;
};

// fp32: what PyTorch's own float32 keeps, with a margin of three and more.
Bounds fp32_bounds();
// bf16: what its rounding makes of this network, by rounding.h, with a margin.
Bounds bf16_bounds(const Graph& graph);

inline void PrintTo(const Setting& s, std::ostream* out) { *out << s.file << " " << s.loss << " " << s.way; }

// A network with the golden weights.
class Fixture {
 public:
  explicit Fixture(const Setting& setting);
  Graph graph() const;  // before fusion

  // One batch, in evaluation and in training. Failures are added to the running test.
  void expect_batch(const Bounds& bounds);
  // The steps of the file, in the order given, through the training loop itself.
  void expect_steps(double bound, double bound_of_statistics);

 private:
  Evaluator::BatchResult gradients(Mode mode);
  NpyArray read(const std::string& name) const { return npz_.read(name); }
  NpyArray read_of_loss(const std::string& name) const { return npz_.read(setting_.loss + "/" + name); }
  RunConfig configuration() const;

  Setting setting_;
  NpzReader npz_;
  int batch_, height_, width_;
  Experiment experiment_;
  Network& network_;
  Loss loss_;
  std::unique_ptr<DeviceStream> stream_;
  Evaluator evaluator_;
};

}  // namespace regolith::golden
