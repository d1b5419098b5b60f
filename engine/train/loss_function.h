// What the engine asks of a loss; losses/ has the one that is trained with.
#pragma once

#include <string>

#include "kernels/softmax_loss.h"

namespace regolith {

class LossFunction {
 public:
  virtual ~LossFunction() = default;
  // Runs the kernel, with the terms of `call` filled in. Value and gradient are multiplied by `weight` (of the head)
  // and are means over `images`: the number in the whole batch or split, of which the call may see a part.
  virtual void forward_backward(Stream& stream, kernels::SoftmaxLoss call, int64_t images, double weight) const = 0;
  virtual size_t workspace_bytes(int N, int H, int W) const = 0;  // of any head
  // What a head of that node is trained on.
  virtual const LossFunction& of_head(const std::string& /*node*/) const { return *this; }
  // A term sums over the batch, which must then be seen at once: it cannot be run in micro-batches.
  virtual bool couples_images() const = 0;
};

}  // namespace regolith
