#include "deploy/onnx/export.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "deploy/onnx/lower.h"
#include "engine/base/error.h"

namespace regolith {
namespace {

// In place of minus infinity, which a quantiser or half precision makes NaN of: e^-1e9 is 0 too.
constexpr float kNever = -1e9F;

struct Axis {
  int64_t size;
  std::string name;  // of a free axis; empty: `size`
};

class Exporter {
 public:
  Exporter(const Graph& graph, const Checkpoint& weights, const OnnxCard& card, const OnnxOptions& options)
      : graph_(graph),
        weights_(weights),
        card_(card),
        options_(options),
        image_(graph.nodes[graph.input].shape()),
        logits_(graph.nodes[graph.output].shape()),
        onnx_(*model_.mutable_graph()) {
    if (options.any_size) steps_ = onnx_size_steps(graph);
  }

  std::string bytes() {
    model_.set_ir_version(kOnnxIr);
    model_.set_producer_name("regolith");
    model_.set_producer_version(card_.producer_version);
    model_.add_opset_import()->set_version(kOnnxOpset);
    model_.mutable_graph()->set_name(card_.name);
    postprocess(network(preprocess()));
    metadata();
    if (model_.ByteSizeLong() > std::numeric_limits<int32_t>::max())
      throw IoError("the network takes more than the 2 GiB that an ONNX file may have");
    return model_.SerializeAsString();
  }

  std::string summary() const {
    std::string text;
    for (const auto* list : {&model_.graph().input(), &model_.graph().output()}) {
      for (const onnx::ValueInfoProto& v : *list) {
        const onnx::TypeProto::Tensor& t = v.type().tensor_type();
        std::vector<std::string> dims;
        for (const auto& d : t.shape().dim())
          dims.push_back(d.has_dim_param() ? d.dim_param() : std::to_string(d.dim_value()));
        text += std::string(list == &model_.graph().input() ? "input  " : "output ") + v.name() + ": " +
                (t.elem_type() == onnx::TensorProto::UINT8 ? "uint8" : "float32") + " (" + join(dims) + ")\n";
      }
    }
    if (options_.any_size) text += "height and width: " + size_rule() + "\n";
    return text;
  }

 private:
  // The names of the axes of a map of the image's size, or of another.
  Axis batch() const { return {1, options_.any_batch ? "batch" : ""}; }
  Axis axis(int64_t size, int64_t of_image, const std::string& name) const {
    return {size, !options_.any_size ? "" : size == of_image ? name : "output_" + name};
  }
  Axis rows(const Shape& s) const { return axis(s.H, image_.H, "height"); }
  Axis columns(const Shape& s) const { return axis(s.W, image_.W, "width"); }

  static void declare(onnx::ValueInfoProto& value, const std::string& name, int type, const std::vector<Axis>& axes) {
    value.set_name(name);
    onnx::TypeProto::Tensor& tensor = *value.mutable_type()->mutable_tensor_type();
    tensor.set_elem_type(type);
    tensor.mutable_shape();
    for (const Axis& a : axes) {
      auto& dim = *tensor.mutable_shape()->add_dim();
      a.name.empty() ? dim.set_dim_value(a.size) : dim.set_dim_param(a.name);
    }
  }

  // From the bytes to what the network was trained on, by the same two operations.
  std::string preprocess() {
    onnx::ValueInfoProto& input = *model_.mutable_graph()->add_input();
    const Axis N = batch(), H = rows(image_), W = columns(image_), C{image_.C, ""};
    std::string x = "image";
    onnx_.enter("preprocess");
    if (options_.bytes) {
      declare(input, x, onnx::TensorProto::UINT8, {N, H, W, C});
      x = onnx_.add("Transpose", "channels_first", {x}, {{"perm", std::vector<int64_t>{0, 3, 1, 2}}});
      x = onnx_.add("Cast", "float", {x}, {{"to", int64_t{onnx::TensorProto::FLOAT}}});
    } else {
      declare(input, x, onnx::TensorProto::FLOAT, {N, C, H, W});
    }
    if (card_.offset != 0) x = onnx_.add("Sub", "from_offset", {x, onnx_.constant("offset", {card_.offset}, {})});
    return onnx_.add("Div", "normalised", {x, onnx_.constant("divisor", {card_.divisor}, {})});
  }

  std::string network(const std::string& image) {
    std::vector<std::string> names;
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      OnnxLowering l{onnx_, graph_, weights_, options_.any_batch, options_.any_size, &graph_.nodes[i], {}};
      for (const int in : l.node->inputs) l.x.push_back(names[in]);
      names.push_back(static_cast<int>(i) == graph_.input ? image : lower_to_onnx(l));
    }
    return names[graph_.output];
  }

  void postprocess(std::string x) {
    onnx::GraphProto& graph = *model_.mutable_graph();
    const Axis N = batch(), H = rows(logits_), W = columns(logits_), K{logits_.C, ""};
    onnx_.enter("postprocess");
    onnx::ValueInfoProto& main = *graph.add_output();
    if (options_.logits) {
      onnx_.add("Identity", "logits", {x}, {}, "logits");
      declare(*graph.add_output(), "logits", onnx::TensorProto::FLOAT, {N, K, H, W});
    }
    if (!card_.excluded.empty()) {
      std::vector<float> never(logits_.C, 0);
      for (const int c : card_.excluded) never[c] = kNever;
      x = onnx_.add("Add", "kept", {x, onnx_.constant("excluded", never, {1, logits_.C, 1, 1})});
    }
    if (options_.argmax) {
      x = onnx_.add("ArgMax", "largest", {x}, {{"axis", int64_t{1}}, {"keepdims", int64_t{0}}});
      onnx_.add("Cast", "classes", {x}, {{"to", int64_t{onnx::TensorProto::UINT8}}}, "classes");
      declare(main, "classes", onnx::TensorProto::UINT8, {N, H, W});
    } else {
      onnx_.add("Softmax", "probabilities", {x}, {{"axis", int64_t{1}}}, "probabilities");
      declare(main, "probabilities", onnx::TensorProto::FLOAT, {N, K, H, W});
    }
  }

  // "64 + any multiple of 4 x 128 + ..." where the trained size is no multiple itself.
  std::string size_rule() const {
    const auto rule = [](int size, int step) {
      const int rest = size % step;
      return step == 1   ? std::string("any")
             : rest == 0 ? "multiples of " + std::to_string(step)
                         : std::to_string(rest) + " more than multiples of " + std::to_string(step);
    };
    const std::string height = rule(image_.H, steps_[0]), width = rule(image_.W, steps_[1]);
    return height == width ? height : height + "; " + width;
  }

  void set(const std::string& key, const std::string& value) {
    auto& entry = *model_.add_metadata_props();
    entry.set_key(key);
    entry.set_value(value);
  }
  void metadata() {
    const auto text = [](const nlohmann::json& value) {
      return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    };
    set("regolith.classes", text(card_.classes));
    set("regolith.colours", text(card_.colours));
    set("regolith.excluded_classes", text(card_.excluded));
    set("regolith.input", options_.bytes ? "image: bytes, uint8 (N,H,W,C)" : "image: 0 to 255, float32 (N,C,H,W)");
    set("regolith.output", options_.argmax ? "classes: uint8 (N,H,W)" : "probabilities: float32 (N,K,H,W)");
    set("regolith.normalisation", text({{"divisor", card_.divisor}, {"offset", card_.offset}}));
    set("regolith.image", text({image_.H, image_.W, image_.C}));
    set("regolith.size", options_.any_size ? size_rule() : "fixed");
    set("regolith.opset", std::to_string(kOnnxOpset));
  }

  const Graph& graph_;
  const Checkpoint& weights_;
  const OnnxCard& card_;
  const OnnxOptions& options_;
  const Shape image_, logits_;
  std::array<int, 2> steps_{1, 1};
  onnx::ModelProto model_;
  OnnxBuilder onnx_;
};

}  // namespace

std::string to_onnx(const Graph& graph, const Checkpoint& weights, const OnnxCard& card, const OnnxOptions& options,
                    std::string* summary) {
  Exporter exporter(graph, weights, card, options);
  std::string bytes = exporter.bytes();
  if (summary != nullptr) *summary = exporter.summary();
  return bytes;
}

}  // namespace regolith
