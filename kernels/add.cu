#include "kernels/add.h"

#include "kernels/core/elementwise.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

namespace {

struct SumRelu {
  template <class V>
  __device__ __forceinline__ V operator()(const V& a, const V& b) const {
    return max(V(0), a + b);
  }
};

}  // namespace

void add_forward(Stream& stream, const AddForward& k) {
  if (k.relu)
    elementwise(stream, "add_relu", SumRelu{}, k.y, false, k.a, k.b);
  else if (k.b)
    elementwise(stream, "add", Sum{}, k.y, k.accumulate, k.a, k.b);
  else
    elementwise(stream, "add", Identity{}, k.y, k.accumulate, k.a);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
