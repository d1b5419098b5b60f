// A GPU that need not be there: programs are compiled and planned for it, and nothing runs.
#pragma once

#include "engine/tensor/device.h"

namespace regolith {

std::unique_ptr<Device> make_planned_device();

}  // namespace regolith
