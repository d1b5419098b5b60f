#include "engine/comm/mpi.h"

#include <dlfcn.h>

#include <filesystem>

#include "engine/base/error.h"

namespace regolith {

std::unique_ptr<Communicator> connect_mpi(const Launch& launch) {
  const auto file = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "libregolith_mpi.so";
  const std::string rank = "rank " + std::to_string(launch.rank) + " of " + std::to_string(launch.size);
  if (!std::filesystem::exists(file))
    throw CommError(rank + " was started by mpirun, but this build has no MPI (" + file.string() +
                    "): install libopenmpi-dev and build anew, or start the ranks by torchrun or run.devices");
  void* const module = ::dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (module == nullptr) throw CommError(rank + ": cannot load MPI: " + ::dlerror());
  const auto make = reinterpret_cast<Communicator* (*)(const Launch&)>(::dlsym(module, "regolith_make_mpi"));
  if (make == nullptr) throw CommError(rank + ": " + file.string() + " is no module of Regolith");
  return std::unique_ptr<Communicator>(make(launch));
}

}  // namespace regolith
