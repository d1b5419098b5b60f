// Ranks that exchange between GPUs, by NCCL, which is loaded where they do: a program starts without the library.
#pragma once

#include <memory>
#include <string>

#include "engine/comm/device_ranks.h"

namespace regolith {

// Why ranks on CUDA devices would go through the host's memory here: the build has no NCCL, or the machine. Empty: they
// would not.
std::string nccl_refusal();
std::string gpu_of(const Device& device);  // its address on the PCI bus
// Throws CommError where NCCL refuses. All ranks make the same call.
std::unique_ptr<DeviceRanks> make_nccl_ranks(Communicator& ranks, Device& device);

}  // namespace regolith
