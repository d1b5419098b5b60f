// A network on a device: its weights, one arena, and a program for every batch size and mode that was asked for.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/ops/fuse.h"
#include "engine/run/program.h"

namespace regolith {

enum class Precision { automatic, fp32, tf32, fp16, bf16 };  // automatic: best_precision()
constexpr std::array<const char*, 5> names_of(Precision) { return {"auto", "fp32", "tf32", "fp16", "bf16"}; }
constexpr std::string_view name_of(Precision p) { return names_of(p)[static_cast<size_t>(p)]; }
DType storage_type(Precision p);
// Which of them is the fastest that the device computes in: bf16 with AVX512-BF16 or a GPU from Ampere on, else fp32.
Precision best_precision(const Device& device);

struct NetworkOptions : ComputeOptions {  // the precision says `type` and `tf32`
  Precision precision = Precision::fp32;
  uint64_t seed = 0;
  int micro_batches = 0;        // of a training batch; 0: the planner chooses
  bool couples_images = false;  // by the loss: micro-batches would change the training
  bool reserve = true;          // false: programs are planned, but have no memory to run in
  FuseOptions fuse;
  bool views = true, reuse = true;
};

// How a program runs: training, training as the verifier wants it (no dropout), its gradients with running statistics,
// and inference.
enum class Mode { train, train_without_dropout, gradients_of_eval, eval };

class Network {
 public:
  // The graph as read_model made it. Throws GraphError or DeviceError.
  Network(Graph graph, Device& device, const NetworkOptions& options);

  const Graph& graph() const { return graph_; }  // fused, inferred for one image
  const std::vector<std::string>& fusions() const { return fusions_; }
  const NetworkOptions& options() const { return options_; }
  Device& device() const { return device_; }
  Parameters& parameters() { return parameters_; }

  // The count of training steps in device memory, which random numbers are keyed by: dropout needs one.
  void step_counter(const int64_t* step);

  // A program for N images, compiled at the first call and kept: the reference stays valid. A call that has to enlarge
  // the arena moves the tensors of all programs; pointers that they gave out before are stale.
  Program& program(int N, Mode mode);

  ProgramOptions program_options(int N, Mode mode) const;

  // Whether the result of an image depends on the others of its batch, by the loss or by a node: then it is run whole.
  bool couples_images() const;
  bool has_batch_norm() const;  // that takes the statistics of its batch
  // Images of one micro-batch of a training batch of N.
  int micro_batch_size(int N) const;
  // Images of one slice of a batch of N in Mode::eval.
  int prediction_slice(int N) const;
  const void* arena() const { return arena_.as(); }
  size_t arena_bytes() const { return arena_bytes_; }
  // What is wrong where the device cannot give `arena` bytes for a program and `prepacked` for its weights; else "".
  std::string shortage(const Program& program, size_t arena, size_t prepacked) const;

 private:
  size_t widest_map() const;  // bytes of the largest of one image

  Device& device_;
  NetworkOptions options_;
  Graph graph_;
  std::vector<std::string> fusions_;
  Parameters parameters_;
  std::map<std::pair<int, Mode>, std::unique_ptr<Program>> programs_;
  DeviceBuffer arena_;
  size_t arena_bytes_ = 0;
  const int64_t* step_ = nullptr;
};

}  // namespace regolith
