// A trained network as an ONNX file, that ONNX Runtime, OpenVINO, TensorRT and others run.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "engine/config/fields.h"
#include "engine/graph/graph.h"
#include "engine/io/safetensors.h"

namespace regolith {

// What one release of ONNX (1.8, of 2020) brought together. Opset 13: Softmax over one axis of a map, which opset 11,
// the first with half-pixel Resize, does not have; everything else that is written is as old. IR 7: the file format
// of that release, which every runtime reads that knows the opset.
inline constexpr int kOnnxOpset = 13, kOnnxIr = 7;

struct OnnxOptions {
  bool bytes = false;   // image: uint8 (N,H,W,C); else float32 (N,C,H,W) of the same numbers, 0 to 255
  bool argmax = false;  // output: classes, uint8 (N,H,W); else probabilities, float32 (N,K,H,W)
  bool logits = false;  // one more output, float32 (N,K,H,W): what the loss was taken of
  bool any_batch = false, any_size = false;  // else one image, of the size that was trained
};

// What is not in the graph.
struct OnnxCard {
  std::string name = "network", producer_version = {};
  std::vector<std::string> classes = {};
  std::vector<Colour> colours = {};
  std::vector<int> excluded = {};   // classes that are never predicted: their probability is 0
  float divisor = 255, offset = 0;  // the network reads (byte - offset) / divisor
};

// The bytes of the file; `summary` becomes a few lines on what is in it. graph: as freeze() left it, inferred for one
// image; weights: those of it. Throws GraphError, naming the node, for what ONNX has no form for and for a size that
// cannot be free; IoError for more than protobuf's 2 GiB.
std::string to_onnx(const Graph& graph, const Checkpoint& weights, const OnnxCard& card, const OnnxOptions& options,
                    std::string* summary = nullptr);

}  // namespace regolith
