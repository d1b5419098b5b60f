// Group norm by blocks that make all passes over their part of a sample: of norm.h what it is, when and how.
//
// Occupancy: at least 25% (512 threads).
#pragma once

#include "kernels/core/execution.h"
#include "kernels/norm.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// Where such blocks keep the machine busy; else, and for batch norm, they do nothing and return false: the passes had
// better be launches of their own.
bool group_norm_forward(Stream& stream, const NormForward& k);
bool group_norm_backward(Stream& stream, const NormBackward& k);

}  // namespace regolith::kernels::REGOLITH_EXECUTION
