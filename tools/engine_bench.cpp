// engine_bench [--filter REGEX] [--dtype T ...] [--device cpu|cuda] [--json FILE] [--list]: every kernel's time beside
// the floor that its bytes and operations set on this machine. The cases are those of the tests, whose results are
// checked first.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <regex>

#include "app/command_line.h"
#include "engine/base/error.h"
#include "engine/io/atomic_file.h"
#include "tests/support/cases.h"
#include "tools/timing.h"

namespace {

using namespace regolith;
using testing::TestCase, testing::CaseRun, testing::Fixture;

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

struct Options {
  std::string filter, device = "auto", json;
  std::vector<std::string> types;
  int threads = 0;
  double seconds = 0.2;
  bool all = false, list = false;
};

// Printed as they come: all of them take minutes.
constexpr const char* kHeader = "%-42s %-5s %8s %8s %9s %8s %8s %9s %8s\n";
constexpr const char* kRow = "%-42s %-5s %8.2f %8.1f %9.3f %8.1f %8.1f %9.3f %7.0f%%\n";

// What buffers must exceed so that a launch finds none of its own.
double cache_bytes(const Device& device) {
  if (device.kind() == DeviceKind::cuda) return 64 << 20;  // the L2 of an H100 has 50 MB, that of an A100 40
  const long found = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return found > 0 ? static_cast<double>(found) : 32 << 20;
}

struct Timing {
  double seconds;
  int64_t bytes, flops;
  int copies;  // of the case's buffers, taken in turn
};

// Checks one run of the case, then times it. Throws testing::Mismatch.
Timing time_case(const TestCase& c, Device& device, DType type, double seconds) {
  const auto stream = device.make_stream();
  std::vector<std::unique_ptr<Fixture>> labs;
  std::vector<CaseRun> instances;
  const auto make = [&] {
    labs.push_back(std::make_unique<Fixture>(device, type, testing::seed_of(c) + labs.size(), stream.get()));
    instances.push_back(c.make(*labs.back()));
  };
  make();
  instances[0].run();
  stream->synchronize();
  instances[0].check();
  labs[0]->expect_untouched();
  const int64_t bytes = instances[0].bytes, flops = instances[0].flops;
  const double wanted = cache_bytes(device) / std::max<double>(static_cast<double>(bytes), 1);
  const int copies = static_cast<int>(std::clamp(wanted + 1, 2.0, 8.0));
  while (static_cast<int>(labs.size()) < copies) make();
  size_t next = 0;
  const double median = median_seconds(
      *stream, [&] { instances[next++ % instances.size()].run(); }, seconds, copies);
  return {median, bytes, flops, copies};
}

int bench(const Options& options) {
  const std::regex filter(options.filter);
  std::vector<const TestCase*> chosen;
  for (const TestCase& c : testing::cases()) {
    if (c.make != nullptr && (c.large || options.all) && std::regex_search(c.name, filter)) chosen.push_back(&c);
  }
  std::sort(chosen.begin(), chosen.end(), [](const TestCase* a, const TestCase* b) { return a->name < b->name; });
  if (chosen.empty()) throw Error("no case matches '" + options.filter + "'; see --list, and --all for the small ones");
  if (options.list) {
    for (const TestCase* c : chosen) std::printf("%s\n", c->name.c_str());
    return 0;
  }
  const bool cuda = options.device == "cuda" || (options.device == "auto" && cuda_available());
  const auto device = cuda ? make_cuda_device() : make_cpu_device(options.threads);
  std::printf("%s\n", device->name().c_str());
  nlohmann::json machine = nlohmann::json::object(), rows = nlohmann::json::array();
  int faults = 0;
  for (const DType type : kTypes) {
    const std::string name(name_of(type));
    if (std::find(options.types.begin(), options.types.end(), name) == options.types.end()) continue;
    if (type == DType::f16 && !cuda) throw Error("fp16 is for GPUs; choose --dtype fp32 or bf16");
    const MachineRates rates = measure_rates(*device, type);
    std::printf("%s: %s\n", name.c_str(), to_string(rates).c_str());
    std::printf(kHeader, "case", "type", "MB", "MFLOP", "ms", "GB/s", "GFLOP/s", "floor ms", "of floor");
    std::fflush(stdout);
    machine[name] = {{"copy_bytes_per_second", rates.copy},
                     {"matrix_flops_per_second", rates.matrix},
                     {"matrix_by", rates.matrix_by}};
    for (const TestCase* c : chosen) {
      if (std::find(c->dtypes.begin(), c->dtypes.end(), type) == c->dtypes.end()) continue;
      try {
        const Timing t = time_case(*c, *device, type, options.seconds);
        const double bytes = static_cast<double>(t.bytes), flops = static_cast<double>(t.flops);
        const double floor = rates.floor_seconds(bytes, flops);
        std::printf(kRow, c->name.c_str(), name.c_str(), 1e-6 * bytes, 1e-6 * flops, 1e3 * t.seconds,
                    1e-9 * bytes / t.seconds, 1e-9 * flops / t.seconds, 1e3 * floor, 100 * floor / t.seconds);
        std::fflush(stdout);
        rows.push_back({{"case", c->name},
                        {"dtype", name},
                        {"bytes", t.bytes},
                        {"flops", t.flops},
                        {"buffers", t.copies},
                        {"median_ms", 1e3 * t.seconds},
                        {"gb_per_second", 1e-9 * bytes / t.seconds},
                        {"gflop_per_second", 1e-9 * flops / t.seconds},
                        {"floor_ms", 1e3 * floor},
                        {"of_floor", floor / t.seconds}});
      } catch (const std::exception& e) {  // the others are timed all the same
        std::fprintf(stderr, "engine_bench: %s, %s: %s\n", c->name.c_str(), name.c_str(), e.what());
        ++faults;
      }
    }
  }
  if (!options.json.empty()) {
    const nlohmann::json json{{"device", device->name()}, {"rates", machine}, {"cases", rows}};
    write_file_atomically(options.json, json.dump(1) + "\n");
  }
  return faults == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine p(argc, argv, "engine_bench", "Times every kernel of the engine beside its roofline bound.",
                "engine_bench --filter 'norm|pool' --dtype bf16");
  Options o;
  p.option("--filter", o.filter, "only cases whose name matches this regular expression");
  p.option("--dtype", o.types, "fp32, bf16, fp16; default: fp32 and bf16", {.names = {"fp32", "bf16", "fp16"}});
  p.option("--device", o.device, "default: a GPU where there is one", {.names = {"auto", "cpu", "cuda"}});
  p.option("--threads", o.threads, "of the CPU; 0: all", {.min = 0, .max = 1024});
  p.option("--seconds", o.seconds, "to time each case for", {.min = 0, .max = 60});
  p.option("--json", o.json, "write the numbers there too");
  p.flag("--all", o.all, "also the small cases, which are for tests");
  p.flag("--list", o.list, "print the cases' names, and time nothing");
  return p.run([&] {
    check_json_output(o.json);
    if (o.types.empty()) o.types = {"fp32", "bf16"};
    try {
      return bench(o);
    } catch (const std::regex_error&) {
      throw Error("--filter '" + o.filter + "' is not a regular expression");
    }
  });
}
