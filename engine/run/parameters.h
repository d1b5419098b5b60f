// The weights of a network in device memory: one flat fp32 master buffer, its gradient, a copy in the maps' type, and
// the copies in the layouts that kernels ask for. The optimizer sees flat buffers only. Without training there are
// none: a parameter is in memory while it is packed, and longer where kernels read it beside the copies.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/graph/graph.h"
#include "engine/tensor/device.h"

namespace regolith {

// What makes the random numbers of a parameter or a node its own, whatever else the graph holds.
uint64_t name_hash(const std::string& name);

enum class ParamField { weight, gradient };  // the master weights, or their gradient

class Parameters {
 public:
  // For the parameters of an inferred graph. training: with memory for them and their gradients.
  Parameters(const Graph& graph, Device& device, DType compute_type, bool training);
  Parameters(const Parameters&) = delete;

  // Fresh weights; the same seed and names give the same weights, whatever else the graph holds.
  void initialise(uint64_t seed, DeviceStream& stream);

  struct Entry {
    std::string name;
    std::vector<int64_t> shape;
    Init init;
    int64_t fan_in, fan_out;
    bool trainable, frozen;    // false: running statistics; true: trainable, but left as it is
    int64_t offset, elements;  // in floats, in the flat buffers or among the running statistics

    bool trained() const { return trainable && !frozen; }
  };
  const std::vector<Entry>& entries() const { return entries_; }
  ParamView view(int param) const;

  // Without training: where the values of a parameter come from, from now on. Marks the weights as changed.
  using Source = std::function<std::vector<float>(int param)>;
  void read_from(Source source);
  // Has a parameter in memory, and gives its memory back where no program has asked to keep it; view() changes with
  // both. In training they are always there.
  void load(int param, bool keep, DeviceStream& stream);
  void unload(int param, DeviceStream& stream);

  // Blocking copies to and from the host, in fp32.
  std::vector<float> read(int param, ParamField field, DeviceStream& stream) const;
  void write(int param, ParamField field, const std::vector<float>& values, DeviceStream& stream);
  // Rewrites the compute copy after master weights were written by hand. Marks the weights as changed.
  void refresh_compute_copy(DeviceStream& stream);

  // Flat buffers over the trainable parameters: first those that are trained, then the frozen ones.
  int64_t trained_size() const { return trained_size_; }
  float* master() const { return master_.as<float>(); }
  float* grad() const { return grad_.as<float>(); }
  // The running statistics, another flat buffer.
  int64_t statistics_size() const { return state_size_; }
  float* statistics() const { return state_.as<float>(); }
  void* compute_copy() const { return compute_.as(); }
  DType compute_type() const { return compute_type_; }
  size_t bytes() const;
  // With an optimizer that keeps `moments` numbers in fp32 for each trained weight.
  size_t bytes_with_moments(int moments) const { return bytes() + moments * trained_size_ * sizeof(float); }

  // A copy of a node's weights in a layout that its kernels read. All programs share it; the first that runs after a
  // change of the weights rewrites it.
  struct PrepackedCopy {
    DeviceBuffer memory;
    int64_t generation = 0;  // of the weights that it holds
  };
  PrepackedCopy& prepacked(const std::string& node, const Prepacked& layout);  // allocated at the first call
  bool has_prepacked(const std::string& node, const Prepacked& layout) const {
    return prepacked_.contains({node, layout.layout});
  }
  size_t prepacked_bytes() const;

  // Counts changes of the weights: prepacked copies of an older generation are stale.
  int64_t generation() const { return generation_; }
  void mark_dirty() { ++generation_; }

 private:
  struct OwnMemory {  // of a parameter without training
    DeviceBuffer master, compute;
    bool kept = false;
  };
  float* location(int param, ParamField field) const;

  Device& device_;
  bool training_;
  std::vector<OwnMemory> inference_;
  Source source_;
  DType compute_type_;
  std::vector<Entry> entries_;
  int64_t trained_size_ = 0, flat_size_ = 0, state_size_ = 0;
  DeviceBuffer master_, grad_, compute_, state_;
  std::map<std::pair<std::string, std::string>, PrepackedCopy> prepacked_;  // by node and layout
  int64_t generation_ = 1;
};

}  // namespace regolith
