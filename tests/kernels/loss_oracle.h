// The fused loss in double, pixel by pixel, straight from its formulas.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/softmax_loss.h"
#include "tests/support/fixture.h"

namespace regolith::testing {

struct LossOracle {
  double loss = 0;
  Values gradient;               // (N, H, W, K)
  Values confusion, prediction;  // (K, K), (N, H, W)
};

// logits: (N, H, W, K); mask: (N, H, W)
inline LossOracle loss_oracle(const Values& logits, const Values& mask, int N, int pixels, int K,
                              const kernels::LossTerms& terms) {
  using Kind = kernels::LossTerms::Kind;
  const double low = 1e-7f, high = 1 - 1e-7f;  // as the floats that they are
  const auto at = [&](int n, int p, int k) { return (static_cast<size_t>(n) * pixels + p) * K + k; };
  const auto truth = [&](int n, int p) {
    const int t = static_cast<int>(mask[static_cast<size_t>(n) * pixels + p]);
    return t == terms.ignore || t >= K ? -1 : t;
  };
  LossOracle o;
  o.gradient.assign(logits.size(), 0);
  o.confusion.assign(static_cast<size_t>(K) * K, 0);
  Values p(logits.size()), by_p(logits.size(), 0);  // probabilities, and the derivative by them (Dice)
  for (int n = 0; n < N; ++n) {
    for (int i = 0; i < pixels; ++i) {
      const double* x = &logits[at(n, i, 0)];
      double* q = &p[at(n, i, 0)];
      double* g = &o.gradient[at(n, i, 0)];
      const int best = static_cast<int>(std::max_element(x, x + K) - x), t = truth(n, i);
      o.prediction.push_back(best);
      double sum = 0;
      for (int k = 0; k < K; ++k) sum += std::exp(x[k] - x[best]);
      for (int k = 0; k < K; ++k) q[k] = std::exp(x[k] - x[best]) / sum;
      if (t < 0) continue;
      ++o.confusion[static_cast<size_t>(t) * K + best];
      for (int j = 0; j < terms.pixel_terms; ++j) {
        const auto& term = terms.pixel[j];
        const double w = term.class_weight[t];
        if (term.kind == Kind::cross_entropy) {
          for (int k = 0; k < K; ++k) {
            const double target = (k == t ? 1 - term.smoothing : 0) + static_cast<double>(term.smoothing) / K;
            o.loss -= w * target * (x[k] - x[best] - std::log(sum));
            g[k] += w * (q[k] - target);
          }
        } else {
          const double c = std::clamp(q[t], low, high), gamma = term.gamma;
          o.loss -= w * std::pow(1 - c, gamma) * std::log(c);
          const double log_p = x[t] - x[best] - std::log(sum);  // the gradient knows no clip but that of 1 - p
          const double slope = w * std::pow(1 - c, gamma - 1) * (gamma * q[t] * log_p - (1 - c));
          for (int k = 0; k < K; ++k) g[k] += slope * ((k == t) - q[k]);
        }
      }
    }
  }
  for (int j = 0; j < terms.dice_terms; ++j) {
    const auto& term = terms.dice[j];
    const int groups = term.per_image ? N : 1, images = term.per_image ? 1 : N;
    for (int group = 0; group < groups; ++group) {
      for (int c = 0; c < K; ++c) {
        double I = 0, P = 0, T = 0;
        const auto for_pixels = [&](auto&& f) {
          for (int n = group * images; n < (group + 1) * images; ++n) {
            for (int i = 0; i < pixels; ++i) {
              if (truth(n, i) >= 0) f(at(n, i, c), truth(n, i) == c);
            }
          }
        };
        for_pixels([&](size_t e, bool is) { I += is ? p[e] : 0, P += p[e], T += is; });
        const double top = 2 * I + term.smooth, bottom = P + T + term.smooth, w = term.class_weight[c];
        o.loss += w * (1 - top / bottom);
        for_pixels([&](size_t e, bool is) { by_p[e] += w * (top / (bottom * bottom) - (is ? 2 / bottom : 0)); });
      }
    }
  }
  for (size_t e = 0; e < p.size(); e += static_cast<size_t>(K)) {
    double mean = 0;
    for (int k = 0; k < K; ++k) mean += p[e + k] * by_p[e + k];
    for (int k = 0; k < K; ++k) o.gradient[e + k] += p[e + k] * (by_p[e + k] - mean);
  }
  return o;
}

}  // namespace regolith::testing
