#include "kernels/add.h"

#include "kernels/core/elementwise.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

void add_forward(Stream& stream, const AddForward& k) {
  if (k.b)
    elementwise(stream, "add", Sum{}, k.y, k.accumulate, k.a, k.b);
  else
    elementwise(stream, "add", Identity{}, k.y, k.accumulate, k.a);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
