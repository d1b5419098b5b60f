#include "kernels/batch_norm.h"

#include "kernels/norm.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

void batch_norm_forward(Stream& stream, const BatchNormForward& k) {
  norm_require("batch_norm_forward", k.x, k.x.C, {k.residual, k.y});
  norm_forward(stream,
               {k.x, k.residual, k.y, 1, k.x.C, k.gamma, k.beta, k.mean, k.rstd, k.epsilon, k.relu, nullptr,
                k.running_mean, k.running_variance, k.momentum, k.step, k.training, static_cast<float*>(k.workspace)});
}

void batch_norm_backward(Stream& stream, const BatchNormBackward& k) {
  norm_require("batch_norm_backward", k.x, k.x.C, {k.y, k.dy, k.dy2, k.dx, k.dresidual});
  norm_backward(stream, {k.x,
                         k.y,
                         k.dy,
                         k.dy2,
                         k.dx,
                         k.dresidual,
                         1,
                         k.x.C,
                         k.gamma,
                         k.beta,
                         k.mean,
                         k.rstd,
                         k.dgamma,
                         k.dbeta,
                         k.relu,
                         k.training,
                         k.accumulate_dx,
                         k.accumulate_dresidual,
                         k.accumulate_parameters,
                         static_cast<float*>(k.workspace)});
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
