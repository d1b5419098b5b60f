// A CUDA device that need not be there: networks are compiled and planned for it, and nothing runs.
#pragma once

#include <string>

#include "engine/tensor/device.h"

namespace regolith {

// `json`: what cuDNN wants to know of it, as in tests/data/devices.
std::unique_ptr<Device> make_described_device(const std::string& name, const std::string& json);

}  // namespace regolith
