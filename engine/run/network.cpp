#include "engine/run/network.h"

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/text.h"

namespace regolith {
namespace {

NetworkOptions resolved(NetworkOptions options, const Device& device) {
  if (options.precision == Precision::automatic) options.precision = best_precision(device);
  options.type = storage_type(options.precision);
  options.tf32 = options.precision == Precision::tf32;
  options.frozen = !options.training;
  return options;
}

// Limits of the largest tensor of a micro-batch on a CPU, measured with a cache of 32 MiB. Smaller micro-batches keep
// their tensors in it and take less memory. Larger ones start their kernels less often, until a forward pass has some
// multiply-adds to do, and read the weights less often, which pays where these are more than a share of its tensors.
constexpr size_t kMicroBatchBytes = 7 << 20, kLargeMicroBatchBytes = 13 << 20;
constexpr int64_t kMicroBatchMacs = 10'000'000'000;
constexpr double kWeightShare = .1;
// The same where nothing is kept for backward. More images than that only take memory: four are enough tiles for the
// convolutions of the smallest maps.
constexpr size_t kPredictionBytes = 14 << 20, kPredictionImages = 4;

// The size of the slices of N images, `most` at most, of one size where there is one that is not much smaller: they
// share a program.
int equal_slices(int N, int most) {
  for (int size = most; 2 * size > most; --size)
    if (N % size == 0) return size;
  const int slices = (N + most - 1) / most;
  return (N + slices - 1) / slices;
}

}  // namespace

DType storage_type(Precision p) {
  return p == Precision::bf16 ? DType::bf16 : p == Precision::fp16 ? DType::f16 : DType::f32;
}

Precision best_precision(const Device& device) {
  if (device.kind() == DeviceKind::cuda) return Precision::bf16;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bf16")) return Precision::bf16;
#endif
  return Precision::fp32;
}

Network::Network(Graph graph, Device& device, const NetworkOptions& options)
    : device_(device),
      options_(resolved(options, device)),
      graph_(std::move(graph)),
      fusions_(fuse(graph_, options.fuse, !options.training)),
      parameters_((graph_.infer(1), graph_), device, options_.type, options.training) {
  if (options.precision == Precision::fp16 && device.execution() == Execution::fast)
    throw DeviceError("run.precision fp16 needs CUDA; " + device.name() + " takes fp32 or bf16");
}

bool Network::couples_images() const { return options_.couples_images || has_batch_norm(); }

bool Network::has_batch_norm() const {
  bool any = false;
  for (size_t i = 0; i < graph_.nodes.size(); ++i)
    any |= graph_.nodes[i].op->couples_batch() && !graph_.is_frozen(static_cast<int>(i));
  return any;
}

int Network::micro_batch_size(int N) const {
  if (options_.micro_batches > 0) return (N + options_.micro_batches - 1) / options_.micro_batches;
  if (device_.kind() != DeviceKind::cpu || couples_images()) return N;
  double maps = 0;
  int64_t macs = 1;
  for (const Node& n : graph_.nodes) {
    maps += static_cast<double>(n.shape().elements());
    macs += n.inferred.macs;
  }
  const size_t wanted =
      std::max(static_cast<size_t>(kMicroBatchMacs / macs),
               static_cast<size_t>(static_cast<double>(graph_.parameter_count()) / (kWeightShare * maps))) +
      1;
  const size_t images = std::clamp(wanted, kMicroBatchBytes / widest_map(), kLargeMicroBatchBytes / widest_map());
  return equal_slices(N, static_cast<int>(std::clamp<size_t>(images, std::min(N, 2), N)));
}

size_t Network::widest_map() const {
  int64_t widest = 1;
  for (const Node& n : graph_.nodes) widest = std::max(widest, n.shape().elements());
  return widest * size_of(options_.type);
}

int Network::prediction_slice(int N) const {
  if (device_.kind() != DeviceKind::cpu) return N;
  return equal_slices(N, static_cast<int>(std::clamp<size_t>(kPredictionBytes / widest_map(), 1,
                                                             std::min<size_t>(N, kPredictionImages))));
}

void Network::step_counter(const int64_t* step) {
  step_ = step;
  for (auto& [key, p] : programs_) p->bind(arena_.as(), parameters_, step_);
}

ProgramOptions Network::program_options(int N, Mode mode) const {
  ProgramOptions o;
  static_cast<ComputeOptions&>(o) = options_;
  o.training = mode != Mode::eval;
  o.N = N;
  o.batch_statistics = mode == Mode::train || mode == Mode::train_without_dropout;
  o.dropout = mode == Mode::train;
  o.seed = options_.seed;
  o.bias_sums = options_.fuse.has("bias sums");
  o.norms_in_convolutions = options_.fuse.has("norms in convolutions");
  o.plan = {o.training, options_.views, options_.reuse};
  return o;
}

Program& Network::program(int N, Mode mode) {
  if (const auto it = programs_.find({N, mode}); it != programs_.end()) return *it->second;
  auto p = std::make_unique<Program>(graph_, device_, program_options(N, mode));
  const size_t bytes = p->plan().bytes;
  if (!options_.reserve) {
    arena_bytes_ = std::max(arena_bytes_, bytes);
    return *(programs_[{N, mode}] = std::move(p));
  }
  try {
    const bool grows = bytes > arena_bytes_;
    if (grows) arena_ = {}, arena_bytes_ = 0;
    const std::string problem = shortage(*p, grows ? bytes : 0, p->missing_prepacked(parameters_));
    if (!problem.empty()) throw DeviceError(problem);
    if (grows) {
      arena_ = DeviceBuffer(device_, bytes);
      arena_bytes_ = bytes;
      for (auto& [key, other] : programs_) other->bind(arena_.as(), parameters_, step_);
    }
    p->bind(arena_.as(), parameters_, step_);
  } catch (...) {
    programs_.clear();
    throw;
  }
  return *(programs_[{N, mode}] = std::move(p));
}

std::string Network::shortage(const Program& program, size_t arena, size_t prepacked) const {
  const Plan& plan = program.plan();
  const size_t free = device_.free_bytes();
  if (arena + prepacked <= free) return "";
  const int N = program.options().N;
  const size_t left = free - std::min(free, prepacked);
  return "the arena of a batch of " + std::to_string(N) + " takes " + mebibytes(plan.bytes) +
         (prepacked > 0 ? ", its prepacked weights " + mebibytes(prepacked) : "") + ", and " + device_.name() +
         " has " + mebibytes(free) + " free. Largest tensors: " + largest_buffers(plan) + ". A batch of " +
         std::to_string(std::max<size_t>(1, N * left / plan.bytes)) + " would fit" +
         (couples_images() ? "" : "; or set train.slices");
}

}  // namespace regolith
