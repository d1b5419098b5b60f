#include "models/builder.h"

#include "engine/ops/basic.h"
#include "engine/ops/dropout.h"
#include "engine/ops/norm.h"
#include "engine/ops/pointwise.h"

namespace regolith {

int Builder::add(const std::string& name, std::unique_ptr<Op> op, std::vector<int> inputs) const {
  const int id = graph_.add(name.empty() ? path_ : path_ + "/" + name, std::move(op), std::move(inputs), where_);
  graph_.infer_node(id, 1);
  return id;
}

int Builder::channels(int node) const { return graph_.nodes[node].shape().C; }

int Builder::conv(const std::string& name, int x, const ConvAttributes& conv) const {
  return add(name, std::make_unique<ConvOp>(conv), {x});
}

int Builder::norm(const std::string& name, int x, const Attributes& a) const {
  std::unique_ptr<Op> norms[] = {parse_group_norm(a), parse_batch_norm(a)};
  const int kind = a.choice("norm", "the norm after a convolution", {"group", "batch", "none"});
  return kind == 2 ? x : add(name, std::move(norms[kind]), {x});
}

int Builder::relu(const std::string& name, int x) const {
  return add(name, std::make_unique<ActivationOp>(kernels::Activation::relu), {x});
}

int Builder::dropout(const std::string& name, int x, const Attributes& a) const {
  if (a.number("rate", "fraction that dropout drops", 0, 1, 0) == 0) return x;
  return add(name, parse_dropout(a, false), {x});
}

int Builder::add_up(const std::string& name, std::vector<int> inputs) const {
  return add(name, std::make_unique<AddOp>(), std::move(inputs));
}

}  // namespace regolith
