#include "deploy/onnx/builder.h"

#include <bit>

namespace regolith {

static_assert(std::endian::native == std::endian::little, "raw_data is little-endian");

std::string OnnxBuilder::add(const char* type, const std::string& role, std::vector<std::string> inputs,
                             const std::vector<OnnxAttribute>& attributes, const std::string& output) {
  const std::string name = path_ + "/" + role;
  onnx::NodeProto& node = *graph_.add_node();
  node.set_op_type(type);
  node.set_name(name);
  for (std::string& input : inputs) node.add_input(std::move(input));
  node.add_output(output.empty() ? name : output);
  for (const OnnxAttribute& a : attributes) {
    onnx::AttributeProto& to = *node.add_attribute();
    to.set_name(a.name);
    if (const auto* i = std::get_if<int64_t>(&a.value)) {
      to.set_type(onnx::AttributeProto::INT);
      to.set_i(*i);
    } else if (const auto* f = std::get_if<float>(&a.value)) {
      to.set_type(onnx::AttributeProto::FLOAT);
      to.set_f(*f);
    } else if (const auto* text = std::get_if<const char*>(&a.value)) {
      to.set_type(onnx::AttributeProto::STRING);
      to.set_s(*text);
    } else {
      to.set_type(onnx::AttributeProto::INTS);
      for (const int64_t i : std::get<std::vector<int64_t>>(a.value)) to.add_ints(i);
    }
  }
  return node.output(0);
}

std::string OnnxBuilder::store(const std::string& role, int type, const std::vector<int64_t>& shape, const void* data,
                               size_t bytes) {
  onnx::TensorProto& tensor = *graph_.add_initializer();
  tensor.set_name(path_ + "/" + role);
  tensor.set_data_type(type);
  for (const int64_t d : shape) tensor.add_dims(d);
  tensor.set_raw_data(data, bytes);
  return tensor.name();
}

std::string OnnxBuilder::constant(const std::string& role, const std::vector<float>& values,
                                  const std::vector<int64_t>& shape) {
  return store(role, onnx::TensorProto::FLOAT, shape, values.data(), values.size() * sizeof(float));
}
std::string OnnxBuilder::constant(const std::string& role, const std::vector<int64_t>& values) {
  return store(role, onnx::TensorProto::INT64, {static_cast<int64_t>(values.size())}, values.data(),
               values.size() * sizeof(int64_t));
}
std::string OnnxBuilder::constant(const std::string& role, int64_t value) {
  return store(role, onnx::TensorProto::INT64, {}, &value, sizeof value);
}

}  // namespace regolith
