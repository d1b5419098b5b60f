// A graph compiled for one batch size on one device: ops with their kernels chosen, every tensor at its place in an
// arena, ready to run forward and backward.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/graph/graph.h"
#include "engine/graph/plan.h"
#include "engine/run/parameters.h"

namespace regolith {

struct ProgramOptions : ComputeOptions {
  int N = 1;  // images of one pass: a micro-batch
  bool batch_statistics = true;
  bool dropout = true;
  uint64_t seed = 0;
  bool norms_in_convolutions = true;  // in training, where convolutions take norms
  bool bias_sums = true;              // gradients of biases by the op that has them, as bias_sums() finds them
  PlanOptions plan;
};

// Told when an op begins and ends: how the profiler and the tests look into a run.
class RunObserver {
 public:
  virtual ~RunObserver() = default;
  virtual void begin(const Node& node, bool backward) = 0;
  virtual void end(const Node& node, bool backward) = 0;
};

class Program {
 public:
  // Infers the graph for N images, lets every op choose its kernels, and plans. The graph has been fused.
  Program(Graph graph, Device& device, const ProgramOptions& options);

  const Graph& graph() const { return graph_; }
  const Plan& plan() const { return plan_; }
  const std::vector<BiasSums>& shared_sums() const { return shared_sums_; }
  const ProgramOptions& options() const { return options_; }
  // Bytes of the prepacked weights that bind() will add to `parameters`.
  size_t missing_prepacked(const Parameters& parameters) const;

  // Places the tensors in `arena` (plan().bytes or more) and the parameters; `step` counts steps in device memory.
  void bind(void* arena, Parameters& parameters, const int64_t* step);

  TensorView image() const { return value(graph_.input); }  // (N,H,W,C): write it before forward
  TensorView value(int node) const { return runs_[node].y; }
  TensorView gradient(int node) const { return runs_[node].dy; }

  // Rewrites the prepacked weights that are of an older generation, and loads those that are read beside them.
  void pack(DeviceStream& stream);
  // first_sample: of this micro-batch within the batch.
  void forward(DeviceStream& stream, int first_sample = 0);
  // After the gradients of the loss heads have been written. accumulate: add to the parameters' gradients. done: called
  // with each node, the last first, once what it has to do is enqueued.
  void backward(DeviceStream& stream, bool accumulate, const std::function<void(int node)>& done = {});

  void observe(RunObserver* observer) { observer_ = observer; }
  // With those that compute the rest of the batch, whose statistics batch norm then takes; null: there are none. They
  // must outlive the runs to come.
  void share_batch(kernels::BatchRanks* ranks) { ranks_ = ranks; }

 private:
  void leave_norms_to_readers();
  bool may_leave_to_readers(int node, const std::vector<int>& readers) const;
  void put_norms_into_convolutions();
  bool keeps_residual_gradient(int norm, int reader, const std::vector<std::vector<bool>>& gradients) const;
  void share_bias_sums();
  void leave_biases_to_sums();
  void view_parameters(size_t node);
  TensorView place(const Placement& placement, int node, void* arena) const;
  void* buffer(int index, void* arena) const;

  Graph graph_;
  Device& device_;
  ProgramOptions options_;
  Plan plan_;
  std::vector<BiasSums> shared_sums_;
  struct LeftBias {  // of `node`, which its reader adds
    int node = -1, reader = -1;
    size_t input = 0;
  };
  std::vector<LeftBias> left_biases_;
  std::vector<OpRun> runs_;
  // Per node and input: the input's gradient. Where the plan has a temporary, the op writes dx there, and an add to the
  // gradient follows.
  std::vector<std::vector<TensorView>> gradients_;
  std::vector<std::vector<Parameters::PrepackedCopy*>> prepacked_;  // per node
  void* arena_ = nullptr;
  Parameters* parameters_ = nullptr;
  int64_t packed_generation_ = 0;  // of the weights that forward would read
  RunObserver* observer_ = nullptr;
  kernels::BatchRanks* ranks_ = nullptr;
};

}  // namespace regolith
