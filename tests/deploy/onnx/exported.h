// A network with weights of its own, and its ONNX file, to compare.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "deploy/onnx/export.h"
#include "engine/config/yaml.h"
#include "engine/io/npy.h"

namespace regolith::testing {

struct OnnxImages {
  int N, H, W, C;
  std::vector<uint8_t> bytes;  // (N,H,W,C)
  OnnxImages(int N, int H, int W, int C);
  std::vector<float> planes() const;  // (N,C,H,W)
  NpzEntry entry(const std::vector<float>& planes) const { return npz_entry("", {N, C, H, W}, planes.data()); }
  NpzEntry entry() const { return npz_entry("", {N, H, W, C}, bytes.data()); }
};

// Random weights, every kind of them away from what it starts as, statistics of batch norms too.
Checkpoint random_weights(const Yaml& model);
// (N,H,W,K), by the engine in fp32.
std::vector<float> engine_logits(const Yaml& model, const Checkpoint& weights, const OnnxImages& images,
                                 const OnnxCard& card = {});

class OnnxExport : public ::testing::Test {
 protected:
  OnnxExport();
  ~OnnxExport() override;
  // Skips the test where there is no ONNX Runtime.
  void SetUp() override;

  // Writes NAME.onnx, of the network without its dropout and with its batch norms folded.
  std::string write(const std::string& name, const Yaml& model, const Checkpoint& weights,
                    const OnnxOptions& options = {}, const OnnxCard& card = {}) const;
  // That logits in ONNX Runtime are those of the engine, for images of the model's size.
  void expect_same_logits(const std::string& file, const Yaml& model, const Checkpoint& weights, int N) const;
  // That ONNX's checker, with its inference of shapes, takes all that was written.
  void expect_valid_files() const;

  std::string folder_;
};

// "nodes" of a model on images of H x W x C.
Yaml small_model(const std::string& nodes, int H, int W, int C = 1);
Yaml with_size(const Yaml& model, int H, int W);  // of small_model() or of a file of configs/models
Yaml network_file(const std::string& name);       // configs/models/NAME.yaml, the whole of it

}  // namespace regolith::testing
