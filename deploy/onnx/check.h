// Whether an ONNX file computes what the engine does: both on the same random images, the file in ONNX Runtime, which
// python3 brings.
#pragma once

#include <string>

#include "engine/io/npy.h"
#include "engine/run/network.h"

namespace regolith {

// The outputs of the file by name, for one array as its input `image`. Throws IoError where python3 cannot import
// onnxruntime and numpy (PYTHONPATH is heeded), or ONNX Runtime refuses file or array, with what it says.
NpzReader run_onnx(const std::string& file, NpzEntry image);

struct OnnxCheck {
  std::string output;     // that was compared: logits, else probabilities, else classes
  double difference = 0;  // the largest, of logits by the largest of them where that exceeds 1
  double agreeing = 1;    // share of the pixels of one class

  bool good() const { return difference <= 1e-4 && agreeing >= 0.9999; }  // NaN is not
};
// network: with the weights that were exported, in fp32 on the CPU. Throws IoError where the file is of another one, or
// not written here.
OnnxCheck check_onnx(const std::string& file, Network& network, float divisor, float offset);

}  // namespace regolith
