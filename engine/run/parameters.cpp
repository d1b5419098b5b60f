#include "engine/run/parameters.h"

#include <cmath>
#include <numbers>

#include "engine/base/error.h"
#include "kernels/cast.h"
#include "kernels/core/random.h"

namespace regolith {
namespace {

constexpr int64_t kAlign = 64;  // floats: every parameter, in either type, starts on a cache line

int64_t round_up(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

std::vector<float> fresh(const Parameters::Entry& e, uint64_t seed) {
  std::vector<float> w(e.elements, e.init == Init::ones ? 1.0f : 0.0f);
  if (e.init == Init::zeros || e.init == Init::ones) return w;
  const uint64_t key = seed ^ name_hash(e.name);
  const double limit = std::sqrt(6.0 / static_cast<double>(e.fan_in + e.fan_out));
  // He et al. 2015 as Keras draws it: a normal cut at two sigma, widened so that the variance is still 2 / fan_in.
  const double sigma = std::sqrt(2.0 / static_cast<double>(e.fan_in)) / 0.87962566103423978;
  for (int64_t i = 0; i < e.elements; ++i) {
    for (uint32_t attempt = 0;; ++attempt) {
      const Philox r = philox(key, static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), attempt, 0);
      if (e.init == Init::glorot_uniform) {
        w[i] = static_cast<float>((2.0 * uniform(r.v[0]) - 1.0) * limit);
        break;
      }
      const double u = 1.0 - uniform(r.v[0]);  // in (0, 1]
      const double normal = std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * uniform(r.v[1]));
      if (std::abs(normal) > 2) continue;
      w[i] = static_cast<float>(normal * sigma);
      break;
    }
  }
  return w;
}

}  // namespace

uint64_t name_hash(const std::string& name) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325ull;
  for (unsigned char c : name) h = (h ^ c) * 0x100000001b3ull;
  return h;
}

Parameters::Parameters(const Graph& graph, Device& device, DType compute_type, bool training)
    : device_(device), training_(training), compute_type_(compute_type) {
  for (const Parameter& p : graph.params) {
    const ParamSpec& s = p.spec;
    const bool frozen = s.trainable && graph.frozen.contains(p.name);
    int64_t& end = frozen ? flat_size_ : s.trainable ? trained_size_ : state_size_;
    entries_.push_back({p.name, s.shape, s.init, s.fan_in, s.fan_out, s.trainable, frozen, end, s.elements()});
    end += round_up(s.elements());
  }
  for (Entry& e : entries_)
    if (e.frozen) e.offset += trained_size_;
  flat_size_ += trained_size_;
  if (!training) {
    inference_.resize(entries_.size());
    source_ = [this](int param) { return std::vector<float>(entries_[param].elements); };
    return;
  }
  const auto make = [&](int64_t elements, size_t size) { return DeviceBuffer(device, elements * size); };
  master_ = make(flat_size_, sizeof(float));
  state_ = make(state_size_, sizeof(float));
  if (compute_type != DType::f32) compute_ = make(flat_size_, size_of(compute_type));
  grad_ = make(flat_size_, sizeof(float));
  auto stream = device.make_stream();  // the padding between parameters stays zero for ever
  for (DeviceBuffer* b : {&master_, &state_, &compute_, &grad_})
    if (b->bytes() > 0) device.fill(b->as(), 0, b->bytes(), *stream);
  stream->synchronize();
}

void Parameters::initialise(uint64_t seed, DeviceStream& stream) {
  if (!training_) return read_from([this, seed](int param) { return fresh(entries_[param], seed); });
  for (size_t i = 0; i < entries_.size(); ++i)
    write(static_cast<int>(i), ParamField::weight, fresh(entries_[i], seed), stream);
  refresh_compute_copy(stream);
}

void Parameters::read_from(Source source) {
  source_ = std::move(source);
  for (OwnMemory& own : inference_) own.master = {}, own.compute = {};
  mark_dirty();
}

void Parameters::load(int param, bool keep, DeviceStream& stream) {
  if (training_) return;
  OwnMemory& own = inference_[param];
  own.kept = own.kept || keep;
  if (own.master.bytes() > 0) return;
  const Entry& e = entries_[param];
  const std::vector<float> values = source_(param);
  own.master = DeviceBuffer(device_, values.size() * sizeof(float));
  device_.upload(own.master.as(), values.data(), own.master.bytes(), stream);
  if (e.trainable && compute_type_ != DType::f32) {
    own.compute = DeviceBuffer(device_, values.size() * size_of(compute_type_));
    kernels::cast(stream, {own.master.as(), DType::f32, own.compute.as(), compute_type_, e.elements});
  }
  stream.synchronize();
}

void Parameters::unload(int param, DeviceStream& stream) {
  if (training_ || inference_[param].kept) return;
  stream.synchronize();
  inference_[param].master = {}, inference_[param].compute = {};
}

ParamView Parameters::view(int param) const {
  const Entry& e = entries_[param];
  ParamView v;
  v.elements = e.elements;
  if (!training_) {
    const OwnMemory& own = inference_[param];
    v.master = own.master.as<float>();
    v.compute = own.compute.bytes() > 0 ? own.compute.as() : v.master;
    return v;
  }
  v.master = location(param, ParamField::weight);
  v.compute = v.master;
  if (!e.trainable) return v;
  if (compute_type_ != DType::f32) v.compute = compute_.as<unsigned char>() + e.offset * size_of(compute_type_);
  if (grad_.bytes() > 0) v.grad = location(param, ParamField::gradient);
  return v;
}

float* Parameters::location(int param, ParamField field) const {
  const Entry& e = entries_[param];
  const DeviceBuffer& b = !e.trainable ? state_ : field == ParamField::weight ? master_ : grad_;
  return b.as<float>() + e.offset;
}

std::vector<float> Parameters::read(int param, ParamField field, DeviceStream& stream) const {
  if (!training_) return source_(param);
  std::vector<float> values(entries_[param].elements);
  device_.download(values.data(), location(param, field), values.size() * sizeof(float), stream);
  stream.synchronize();
  return values;
}

void Parameters::write(int param, ParamField field, const std::vector<float>& values, DeviceStream& stream) {
  if (!training_)
    return read_from([param, values, others = source_](int p) { return p == param ? values : others(p); });
  device_.upload(location(param, field), values.data(), values.size() * sizeof(float), stream);
  stream.synchronize();
  mark_dirty();
}

void Parameters::refresh_compute_copy(DeviceStream& stream) {
  if (training_ && compute_type_ != DType::f32)
    kernels::cast(
        stream,
        {.from = master(), .from_type = DType::f32, .to = compute_copy(), .to_type = compute_type_, .n = flat_size_});
  stream.synchronize();
  mark_dirty();
}

size_t Parameters::bytes() const {
  size_t n = 0;
  for (const DeviceBuffer* b : {&master_, &state_, &compute_, &grad_}) n += b->bytes();
  for (const OwnMemory& own : inference_) n += own.master.bytes() + own.compute.bytes();
  return n;
}

Parameters::PrepackedCopy& Parameters::prepacked(const std::string& node, const Prepacked& layout) {
  PrepackedCopy& copy = prepacked_[{node, layout.layout}];
  if (copy.memory.bytes() == 0) copy.memory = DeviceBuffer(device_, layout.bytes);
  return copy;
}

size_t Parameters::prepacked_bytes() const {
  size_t n = 0;
  for (const auto& [key, copy] : prepacked_) n += copy.memory.bytes();
  return n;
}

}  // namespace regolith
