#include "models/builder.h"

#include "engine/ops/basic.h"
#include "engine/ops/norm.h"
#include "engine/ops/pointwise.h"
#include "engine/ops/registry.h"

namespace regolith {

const std::vector<std::string> kConvKeys{"kernel", "stride", "dilation", "padding", "bias", "init"};
const std::vector<std::string> kNormKeys{"norm", "groups", "epsilon", "momentum"};

int Builder::add(const std::string& name, std::unique_ptr<Op> op, std::vector<int> inputs) const {
  const int id = graph_.add(name.empty() ? path_ : path_ + "/" + name, std::move(op), std::move(inputs), where_);
  graph_.infer_node(id, 1);
  return id;
}

int Builder::channels(int node) const { return graph_.nodes[node].shape().C; }

int Builder::conv(const std::string& name, int x, int filters, const Attributes& a) const {
  ConvAttributes conv = parse_conv(a);
  conv.filters = filters;
  return this->conv(name, x, conv);
}

int Builder::conv(const std::string& name, int x, const ConvAttributes& conv) const {
  return add(name, std::make_unique<ConvOp>(conv), {x});
}

int Builder::norm(const std::string& name, int x, const Attributes& a) const {
  const std::string kind = a.choice("norm", {"batch", "group", "none"}, "group");
  if (kind == "none") return x;
  return add(name, kind == "batch" ? parse_batch_norm(a) : parse_group_norm(a), {x});
}

int Builder::relu(const std::string& name, int x) const {
  return add(name, std::make_unique<ActivationOp>(kernels::Activation::relu), {x});
}

int Builder::dropout(const std::string& name, int x, const Attributes& a) const {
  if (a.number("rate", 0, 1, 0) == 0) return x;
  return add(name, find_op("dropout")->parse(a), {x});
}

int Builder::add_up(const std::string& name, std::vector<int> inputs) const {
  return add(name, std::make_unique<AddOp>(), std::move(inputs));
}

}  // namespace regolith
