// The fused loss in double, pixel by pixel, straight from its formulas.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/pixel_weights.h"
#include "kernels/softmax_loss.h"
#include "tests/support/fixture.h"

namespace regolith::testing {

struct LossOracle {
  double loss = 0;
  Values gradient;               // (N, H, W, K)
  Values confusion, prediction;  // (K, K), (N, H, W)
  Values images;                 // (N): their parts of the loss
};

// The weights of an image's pixels, by looking at every pair of them and by sorting. truth: the class of a pixel, -1
// for none; p: the probability of that class.
inline Values pixel_weights_oracle(const kernels::LossTerms::Pixel& term, const std::vector<int>& truth,
                                   const Values& p, int W) {
  const int pixels = static_cast<int>(truth.size());
  Values weights(truth.size(), 1);
  for (int i = 0; term.boundary() && i < pixels; ++i) {
    const int radius = kernels::boundary_radius(term.boundary_sigma);
    int nearest = radius * radius + 1;
    for (int j = 0; j < pixels; ++j) {
      const int dx = i % W - j % W, dy = i / W - j / W;
      if (truth[j] >= 0 && truth[j] != truth[i]) nearest = std::min(nearest, dx * dx + dy * dy);
    }
    const double sigma = term.boundary_sigma;
    if (truth[i] >= 0 && nearest <= radius * radius)
      weights[i] += term.boundary_weight * std::exp(-nearest / (2 * sigma * sigma));
  }
  if (!term.hard()) return weights;
  std::vector<float> counted;
  const auto counts = [&](int i) { return truth[i] >= 0 && term.class_weight[truth[i]] > 0; };
  for (int i = 0; i < pixels; ++i)
    if (counts(i)) counted.push_back(static_cast<float>(p[i]));
  std::sort(counted.begin(), counted.end());
  const auto least = static_cast<size_t>(std::ceil(term.hard_share * static_cast<float>(counted.size())));
  const float limit = least > 0 ? counted[least - 1] : -1;
  const auto keeps = [&](int i) {
    const auto v = static_cast<float>(p[i]);
    return counts(i) && (v < term.hard_threshold || v <= limit);
  };
  int kept = 0;
  for (int i = 0; i < pixels; ++i) kept += keeps(i);
  for (int i = 0; i < pixels; ++i)
    weights[i] *= keeps(i) ? (term.hard_mean ? static_cast<double>(pixels) / kept : 1) : 0;
  return weights;
}

// The Lovasz extension of the Jaccard loss, as its paper writes it: the growth of the loss as pixels join, from the
// largest error down. Adds the slopes by the errors, times w, to `slopes`.
inline double lovasz_oracle(const Values& errors, const std::vector<bool>& hits, double w, Values& slopes) {
  std::vector<size_t> order(errors.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return static_cast<float>(errors[a]) > static_cast<float>(errors[b]); });
  const auto truths = static_cast<double>(std::count(hits.begin(), hits.end(), true));
  double loss = 0, before = 0, both = truths, all = truths;
  for (const size_t i : order) {
    (hits[i] ? both : all) += hits[i] ? -1 : 1;
    const double jaccard = 1 - both / all;
    loss += w * errors[i] * (jaccard - before);
    slopes[i] += w * (jaccard - before);
    before = jaccard;
  }
  return loss;
}

// logits: (N, H, W, K); mask: (N, H, W), of one row where W is not said
inline LossOracle loss_oracle(const Values& logits, const Values& mask, int N, int pixels, int K,
                              const kernels::LossTerms& terms, int W = 0) {
  using Kind = kernels::LossTerms::Kind;
  const double low = 1e-7f, high = 1 - 1e-7f;  // as the floats that they are
  const auto at = [&](int n, int p, int k) { return (static_cast<size_t>(n) * pixels + p) * K + k; };
  const auto truth = [&](int n, int p) {
    const int t = static_cast<int>(mask[static_cast<size_t>(n) * pixels + p]);
    return t == terms.ignore || t >= K ? -1 : t;
  };
  LossOracle o;
  o.images.assign(static_cast<size_t>(N), 0);
  o.gradient.assign(logits.size(), 0);
  o.confusion.assign(static_cast<size_t>(K) * K, 0);
  Values p(logits.size()), by_p(logits.size(), 0);  // probabilities, and the derivative by them (Dice)
  for (int n = 0; n < N; ++n) {
    for (int i = 0; i < pixels; ++i) {
      const double* x = &logits[at(n, i, 0)];
      double* q = &p[at(n, i, 0)];
      const int best = static_cast<int>(std::max_element(x, x + K) - x);
      o.prediction.push_back(best);
      double sum = 0;
      for (int k = 0; k < K; ++k) sum += std::exp(x[k] - x[best]);
      for (int k = 0; k < K; ++k) q[k] = std::exp(x[k] - x[best]) / sum;
    }
    std::vector<Values> weights;  // of the pixels, by term
    std::vector<int> truths;
    Values p_true;
    for (int i = 0; i < pixels; ++i) {
      truths.push_back(truth(n, i));
      p_true.push_back(truths.back() < 0 ? 1 : p[at(n, i, truths.back())]);
    }
    for (int j = 0; j < terms.pixel_terms; ++j)
      weights.push_back(pixel_weights_oracle(terms.pixel[j], truths, p_true, W > 0 ? W : pixels));
    const double before = o.loss;
    for (int i = 0; i < pixels; ++i) {
      const double* x = &logits[at(n, i, 0)];
      const double* q = &p[at(n, i, 0)];
      double* g = &o.gradient[at(n, i, 0)];
      const int best = static_cast<int>(std::max_element(x, x + K) - x), t = truth(n, i);
      double sum = 0;
      for (int k = 0; k < K; ++k) sum += std::exp(x[k] - x[best]);
      if (t < 0) continue;
      ++o.confusion[static_cast<size_t>(t) * K + best];
      for (int j = 0; j < terms.pixel_terms; ++j) {
        const auto& term = terms.pixel[j];
        const double w = term.class_weight[t] * weights[j][i];
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
    o.images[n] = o.loss - before;
  }
  // What a term of a group of images, one or all, gives.
  const auto add = [&](bool per_image, int group, double loss) {
    o.loss += loss;
    for (int n = 0; n < N; ++n)
      if (!per_image || n == group) o.images[n] += per_image ? loss : loss / N;
  };
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
        if (term.tversky) {
          const double a = term.alpha, b = term.beta, over = I + term.smooth;
          const double under = I + a * (P - I) + b * (T - I) + term.smooth, miss = 1 - over / under;
          const double outer = w * term.power * std::pow(std::max(miss, 1e-7), term.power - 1.);
          add(term.per_image, group, w * std::pow(miss, static_cast<double>(term.power)));
          for_pixels([&](size_t e, bool is) {  // I, P - I and T - I all change with p in the pixels of the class
            by_p[e] -= outer * (is ? (under - over * (1 - b)) : -over * a) / (under * under);
          });
          continue;
        }
        add(term.per_image, group, w * (1 - top / bottom));
        for_pixels([&](size_t e, bool is) { by_p[e] += w * (top / (bottom * bottom) - (is ? 2 / bottom : 0)); });
      }
    }
  }
  const auto& lovasz = terms.lovasz;
  for (int group = 0; terms.has_lovasz && group < (lovasz.per_image ? N : 1); ++group) {
    struct Class {
      Values errors;
      std::vector<bool> hits;
      std::vector<size_t> places;
    };
    std::vector<Class> classes;
    int divisor = 0;
    double w = 0;
    for (int c = 0; c < K; ++c) {
      if (lovasz.class_weight[c] == 0) continue;
      w = lovasz.class_weight[c];
      Class one;
      for (int n = lovasz.per_image ? group : 0; n < (lovasz.per_image ? group + 1 : N); ++n) {
        for (int i = 0; i < pixels; ++i) {
          if (truth(n, i) < 0) continue;
          one.places.push_back(at(n, i, c));
          one.hits.push_back(truth(n, i) == c);
          one.errors.push_back(std::abs(one.hits.back() - p[at(n, i, c)]));
        }
      }
      const bool there = std::find(one.hits.begin(), one.hits.end(), true) != one.hits.end();
      divisor += there || !lovasz.present;
      if (there || !lovasz.present) classes.push_back(one);
    }
    for (const Class& one : classes) {
      Values slopes(one.errors.size(), 0);
      add(lovasz.per_image, group, lovasz_oracle(one.errors, one.hits, w / divisor, slopes));
      for (size_t i = 0; i < slopes.size(); ++i) by_p[one.places[i]] += one.hits[i] ? -slopes[i] : slopes[i];
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
