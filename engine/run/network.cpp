#include "engine/run/network.h"

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/text.h"

namespace regolith {
namespace {

Graph prepare(Graph graph, const FuseOptions& options, std::vector<std::string>& fusions) {
  fusions = fuse(graph, options);
  graph.infer(1);
  return graph;
}

NetworkOptions resolved(NetworkOptions options, const Device& device) {
  if (options.precision == Precision::automatic) options.precision = best_precision(device);
  return options;
}

// What the largest map of a slice of a batch on a CPU may take. In larger slices the packed weights are read less
// often, in smaller ones the maps stay in the cache; as measured with 32 MiB of that.
constexpr size_t kMicroBatchBytes = 13 << 20;

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
      graph_(prepare(std::move(graph), options.fuse, fusions_)),
      parameters_(graph_, device, storage_type(options_.precision), options.training) {
  if (options.precision == Precision::fp16 && device.make_stream()->execution() == Execution::fast)
    throw DeviceError("run.precision fp16 needs CUDA; " + device.name() + " takes fp32 or bf16");
}

int Network::micro_batch_size(int N) const {
  if (options_.micro_batches > 0) return (N + options_.micro_batches - 1) / options_.micro_batches;
  const auto couples = [](const Node& n) { return n.op->couples_batch(); };
  if (device_.kind() != DeviceKind::cpu || std::any_of(graph_.nodes.begin(), graph_.nodes.end(), couples)) return N;
  size_t widest = 1;
  for (const Node& n : graph_.nodes)
    widest = std::max(widest, n.shape().elements() * size_of(storage_type(options_.precision)));
  // Two at least: the weights are read for each slice.
  const int most = static_cast<int>(std::clamp<size_t>(kMicroBatchBytes / widest, std::min(N, 2), N));
  for (int size = most; 2 * size > most; --size)  // slices of one size share a program
    if (N % size == 0) return size;
  const int slices = (N + most - 1) / most;
  return (N + slices - 1) / slices;
}

Program& Network::program(int N, Mode mode, const int64_t* step) {
  std::unique_ptr<Program>& p = programs_[{N, mode}];
  if (p == nullptr) {
    ProgramOptions o;
    o.N = N;
    o.type = storage_type(options_.precision);
    o.tf32 = options_.precision == Precision::tf32;
    o.batch_statistics = mode == Mode::train || mode == Mode::train_without_dropout;
    o.dropout = mode == Mode::train;
    o.deterministic = options_.deterministic;
    o.seed = options_.seed;
    o.plan = {mode != Mode::eval, options_.views, options_.reuse};
    o.conv = options_.conv;
    p = std::make_unique<Program>(graph_, device_, o);
    if (p->plan().bytes > arena_.bytes()) {
      arena_ = {};
      try {
        check_memory(*p);
        arena_ = DeviceBuffer(device_, p->plan().bytes);
      } catch (...) {
        programs_.clear();
        throw;
      }
      for (auto& [key, other] : programs_) other->bind(arena_.as(), parameters_, step);
    }
    p->bind(arena_.as(), parameters_, step);
  }
  return *p;
}

void Network::check_memory(const Program& program) const {
  const Plan& plan = program.plan();
  const size_t free = device_.free_bytes();
  if (plan.bytes <= free) return;
  std::vector<const PlanBuffer*> largest;
  for (const PlanBuffer& b : plan.buffers) largest.push_back(&b);
  std::sort(largest.begin(), largest.end(), [](auto* a, auto* b) { return a->bytes > b->bytes; });
  std::vector<std::string> names;
  for (size_t i = 0; i < std::min<size_t>(3, largest.size()); ++i)
    names.push_back(largest[i]->name + " (" + mebibytes(largest[i]->bytes) + ")");
  const int N = program.options().N;
  throw DeviceError("the arena of a batch of " + std::to_string(N) + " takes " + mebibytes(plan.bytes) + ", and " +
                    device_.name() + " has " + mebibytes(free) + " free. Largest tensors: " + join(names) +
                    ". A batch of " + std::to_string(std::max<size_t>(1, N * free / plan.bytes)) +
                    " would fit; or set train.slices");
}

size_t Network::packed_bytes() const {
  size_t n = 0;
  for (const auto& [key, p] : programs_) n += p->packed_bytes();
  return n;
}

}  // namespace regolith
