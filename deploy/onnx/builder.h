// The nodes and constants of an ONNX graph, one after the other.
#pragma once

#include <onnx.pb.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <variant>
#include <vector>

namespace regolith {

struct OnnxAttribute {
  const char* name;
  std::variant<int64_t, float, const char*, std::vector<int64_t>> value;
};

class OnnxBuilder {
 public:
  explicit OnnxBuilder(onnx::GraphProto& graph) : graph_(graph) {}

  // What is added from here on is named under `path`: of one path no role twice.
  void enter(const std::string& path) { path_ = path; }
  // Returns the name of its output, which is `output` where that is given.
  std::string add(const char* type, const std::string& role, std::vector<std::string> inputs,
                  const std::vector<OnnxAttribute>& attributes = {}, const std::string& output = "");
  // Returns its name.
  std::string constant(const std::string& role, const std::vector<float>& values, const std::vector<int64_t>& shape);
  std::string constant(const std::string& role, const std::vector<int64_t>& values);  // a vector
  std::string constant(const std::string& role, int64_t value);                       // a scalar

 private:
  std::string store(const std::string& role, int type, const std::vector<int64_t>& shape, const void* data,
                    size_t bytes);

  onnx::GraphProto& graph_;
  std::string path_;
};

}  // namespace regolith
