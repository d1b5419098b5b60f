// Ranks under MPI. What calls the library stands in a module of its own, which is loaded where MPI has started this
// process, so that nobody else waits for it or needs it.
#pragma once

#include <memory>

#include "engine/comm/launch.h"

namespace regolith {

// Throws CommError where this build has no such module.
std::unique_ptr<Communicator> connect_mpi(const Launch& launch);

}  // namespace regolith
