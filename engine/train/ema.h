// The moving average of a network's weights beside the weights themselves, in device memory. Running statistics of
// norms are averaged too, as timm's ModelEma does it, so that they belong to the averaged weights.
#pragma once

#include "engine/config/fields.h"
#include "engine/run/network.h"
#include "kernels/step_state.h"

namespace regolith {

struct EmaSpec {
  enum class Watch { ema, raw };
  double decay = 0.999;
  bool warm_up = true;
  Watch watch = Watch::ema;
};
constexpr std::array<const char*, 2> names_of(EmaSpec::Watch) { return {"ema", "raw"}; }
template <class V>
void fields(V& v, EmaSpec& s) {
  v("decay", s.decay, {.doc = "share of the average that a step keeps", .min = 0, .max = 0.999999});
  v("warm_up", s.warm_up,
    {.doc = "of the decay, over t steps: min(decay, (1 + t) / (10 + t)), as TensorFlow's ExponentialMovingAverage"});
  v("watch", s.watch,
    {.doc = "whose validation schedule, early stopping and best.safetensors go by: those of the average or the raw "
            "weights. Both are in the history, as val_ema_miou and val_miou"});
}

class Ema {
 public:
  // Of the weights that are trained, and the running statistics. Network and stream must outlive this object.
  Ema(Network& network, DeviceStream& stream, const EmaSpec& spec);

  // After the optimizer's update; can be captured. `state`: the optimizer's, in device memory.
  void update(const StepState* state);
  // The average is what the network runs with, and the weights are kept here; the second call is the way back.
  void exchange();

  bool averages(int param) const { return !network_.parameters().entries()[param].frozen; }
  std::vector<float> read(int param) const;  // blocking copies, as Parameters has them
  void write(int param, const std::vector<float>& values);
  size_t bytes() const { return weights_.bytes() + statistics_.bytes(); }

 private:
  float* location(int param) const;

  Network& network_;
  DeviceStream& stream_;
  EmaSpec spec_;
  DeviceBuffer weights_, statistics_;  // as the flat buffers of Parameters
};

}  // namespace regolith
