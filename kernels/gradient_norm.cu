#include "kernels/gradient_norm.h"

#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr int kThreads = 256;
constexpr int L = kLanes<float>;
using V = Vec<L>;

__global__ void __launch_bounds__(kThreads)
    sum_of_squares(const float* g, int64_t count, const StepState* state, double* partial) {
  Shared shared;
  double* scratch = shared.take<double>(kReduceScratch);
  const float unscale = 1 / state->loss_scale;
  const int64_t begin = blockIdx.x * kNormBlockValues, most = begin + kNormBlockValues;
  const int64_t end = most < count ? most : count, whole = begin + (end - begin) / L * L;
  V a(0), b(0);  // of every other vector: two sums hide the latency of the additions
  const int64_t stride = static_cast<int64_t>(blockDim.x) * L;
  int64_t i = begin + threadIdx.x * L;
  for (; i + stride < whole; i += 2 * stride) {
    const V x = load<V>(g + i) * V(unscale), y = load<V>(g + i + stride) * V(unscale);
    a = fma(x, x, a);
    b = fma(y, y, b);
  }
  if (i < whole) {
    const V x = load<V>(g + i) * V(unscale);
    a = fma(x, x, a);
  }
  double sum = sum_lanes(a + b);
  for (int64_t j = whole + threadIdx.x; j < end; j += blockDim.x) {
    const float x = g[j] * unscale;
    sum += x * x;
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block.
__global__ void __launch_bounds__(kThreads)
    prepare(StepState* state, const double* partial, int64_t partials, float clip_norm, double beta1, double beta2) {
  Shared shared;
  double* scratch = shared.take<double>(kReduceScratch);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < partials; i += blockDim.x) sum += partial[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x != 0) return;
  const double norm = ::sqrt(sum), t = static_cast<double>(state->updates + 1);
  state->gradient_norm = norm;
  state->finite = norm - norm == 0;
  const double clip = clip_norm > 0 && norm > clip_norm ? clip_norm / norm : 1;
  state->gradient_scale = static_cast<float>(clip / state->loss_scale);
  state->bias_correction[0] = 1 - ::pow(beta1, t);
  state->bias_correction[1] = 1 - ::pow(beta2, t);
}

__global__ void __launch_bounds__(32) finish(StepState* state, bool dynamic_scale, int64_t growth_interval) {
  if (threadIdx.x != 0) return;
  StepState& s = *state;
  ++s.step;
  if (s.finite) {
    ++s.updates;
    s.skipped_in_a_row = 0;
    if (++s.clean_steps < growth_interval || !dynamic_scale) return;
    s.clean_steps = 0;
    s.loss_scale = s.loss_scale < 0x1p23f ? s.loss_scale * 2 : 0x1p24f;
  } else {
    ++s.skipped;
    ++s.skipped_in_a_row;
    s.clean_steps = 0;
    if (dynamic_scale) s.loss_scale *= .5f;
  }
}

__global__ void __launch_bounds__(32) set_rate(StepState* state, float value) {
  if (threadIdx.x == 0) state->learning_rate = value;
}

}  // namespace

void begin_update(Stream& stream, const BeginUpdate& a) {
  const int64_t partials = gradient_norm_partials(a.count);
  const size_t reduce = shared_bytes<double>(kReduceScratch);
  launch(stream, "gradient_norm", {static_cast<unsigned>(partials)}, {kThreads}, reduce, sum_of_squares, a.gradient,
         a.count, a.state, a.workspace);
  launch(stream, "prepare_update", {1}, {kThreads}, reduce, prepare, a.state, a.workspace, partials, a.clip_norm,
         a.beta1, a.beta2);
}

void end_update(Stream& stream, const EndUpdate& a) {
  launch(stream, "end_update", {1}, {32}, 0, finish, a.state, a.dynamic_scale, a.growth_interval);
}

void set_learning_rate(Stream& stream, const SetLearningRate& a) {
  launch(stream, "set_learning_rate", {1}, {32}, 0, set_rate, a.state, a.value);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
