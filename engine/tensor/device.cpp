// What a build without CUDA says of CUDA.
#include "engine/tensor/device.h"

#include "engine/base/error.h"

namespace regolith {

#if !defined(REGOLITH_CUDA)
std::unique_ptr<Device> make_cuda_device(int) {
  throw DeviceError("this program was built without CUDA: run with run.device=cpu, or build with cmake --preset cuda");
}

bool cuda_available() { return false; }
#endif

}  // namespace regolith
