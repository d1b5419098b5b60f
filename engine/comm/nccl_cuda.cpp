#include <cuda_runtime.h>
#include <dlfcn.h>

#include <atomic>
#include <utility>

#include "engine/base/error.h"
#include "engine/comm/nccl.h"

#ifdef REGOLITH_NCCL
#include <nccl.h>
#endif

namespace regolith {

#ifdef REGOLITH_NCCL
namespace {

// What is used of the library.
struct Nccl {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRank) init_rank = nullptr;
  decltype(&ncclCommDestroy) destroy = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
  decltype(&ncclGetErrorString) error_string = nullptr;
  std::string refusal, version;

  Nccl() {
    void* const library = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      refusal = std::string("NCCL is not there: ") + ::dlerror();
      return;
    }
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(::dlsym(library, name));
      if (function == nullptr) refusal = std::string("libnccl.so.2 has no ") + name;
    };
    find(get_version, "ncclGetVersion");
    find(get_unique_id, "ncclGetUniqueId");
    find(init_rank, "ncclCommInitRank");
    find(destroy, "ncclCommDestroy");
    find(abort, "ncclCommAbort");
    find(all_gather, "ncclAllGather");
    find(all_reduce, "ncclAllReduce");
    find(broadcast, "ncclBroadcast");
    find(error_string, "ncclGetErrorString");
    int number = 0;  // 21903: 2.19.3
    if (refusal.empty() && get_version(&number) == ncclSuccess)
      version = std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
                std::to_string(number % 100);
  }
};

const Nccl& nccl() {
  static const Nccl library;
  return library;
}

class NcclRanks : public DeviceRanks {
 public:
  NcclRanks(Communicator& ranks, Device& device) : ranks_(ranks) {
    if (cudaSetDevice(device.index()) != cudaSuccess) throw CommError(ranks.name() + ": cannot select its device");
    ncclUniqueId id{};
    if (ranks.is_root()) check(nccl().get_unique_id(&id), "making an id");
    ranks.broadcast(&id, sizeof id, 0);
    check(nccl().init_rank(&comm_, ranks.size(), id, ranks.rank()), "meeting the other ranks");
    // Kernels that wait for a rank which is gone would wait for ever, and the host for them.
    ranks.on_failure([this] { abort(); });
  }
  ~NcclRanks() override {
    ranks_.on_failure({});
    if (!stopped_) nccl().destroy(comm_);
  }

  int size() const override { return ranks_.size(); }
  bool asynchronous() const override { return true; }
  std::string name() const override { return "NCCL " + nccl().version; }

  void gather(Stream& stream, const void* mine, size_t bytes, void* all) override {
    run("a gather", [&](ncclComm_t comm) {
      return nccl().all_gather(mine, all, bytes, ncclUint8, comm, static_cast<cudaStream_t>(stream.native()));
    });
  }
  void sum(DeviceStream& stream, float* values, int64_t count) override {
    run("a sum", [&](ncclComm_t comm) {
      return nccl().all_reduce(values, values, static_cast<size_t>(count), ncclFloat, ncclSum, comm,
                               static_cast<cudaStream_t>(stream.native()));
    });
  }
  void broadcast(DeviceStream& stream, void* data, size_t bytes, int from) override {
    run("a broadcast", [&](ncclComm_t comm) {
      return nccl().broadcast(data, data, bytes, ncclUint8, from, comm, static_cast<cudaStream_t>(stream.native()));
    });
  }

 private:
  template <class F>
  void run(const char* what, F&& f) {
    ranks_.check();
    check(f(comm_), what);
  }
  // By the thread that hears of a failure, while this one may be inside a call, which it ends.
  void abort() {
    if (!stopped_.exchange(true)) nccl().abort(comm_);
  }
  void check(ncclResult_t result, const char* what) const {
    if (result != ncclSuccess) throw CommError(ranks_.name() + ": NCCL, " + what + ": " + nccl().error_string(result));
  }

  Communicator& ranks_;
  ncclComm_t comm_ = nullptr;
  std::atomic<bool> stopped_ = false;
};

}  // namespace

std::string nccl_refusal() { return nccl().refusal; }
std::unique_ptr<DeviceRanks> make_nccl_ranks(Communicator& ranks, Device& device) {
  return std::make_unique<NcclRanks>(ranks, device);
}

#else

std::string nccl_refusal() { return "this build has no NCCL: nccl.h was not found"; }
std::unique_ptr<DeviceRanks> make_nccl_ranks(Communicator&, Device&) { throw CommError(nccl_refusal()); }

#endif

std::string gpu_of(const Device& device) {
  char address[32] = {};
  if (cudaDeviceGetPCIBusId(address, sizeof address, device.index()) != cudaSuccess)
    throw CommError("cannot ask for the PCI address of GPU " + std::to_string(device.index()));
  return address;
}

}  // namespace regolith
