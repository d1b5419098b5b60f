// The weights of a network in device memory: one flat fp32 master buffer, its gradient, and a copy in the maps' type.
// The optimizer sees flat buffers only.
#pragma once

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
  // Memory for the parameters of an inferred graph. training: with gradients.
  Parameters(const Graph& graph, Device& device, DType compute_type, bool training);

  // Fresh weights; the same seed and names give the same weights, whatever else the graph holds.
  void initialise(uint64_t seed, DeviceStream& stream);

  struct Entry {
    std::string name;
    std::vector<int64_t> shape;
    Init init;
    int64_t fan_in, fan_out;
    bool trainable;
    int64_t offset, elements;  // in floats, in the trained or the untrained part
  };
  const std::vector<Entry>& entries() const { return entries_; }
  ParamView view(int param) const;

  // Blocking copies to and from the host, in fp32.
  std::vector<float> read(int param, ParamField field, DeviceStream& stream) const;
  void write(int param, ParamField field, const std::vector<float>& values, DeviceStream& stream);
  // Rewrites the compute copy after master weights were written by hand. Marks the weights as changed.
  void refresh_compute_copy(DeviceStream& stream);

  // Flat buffers over the trained parameters.
  int64_t flat_size() const { return flat_size_; }
  float* master() const { return master_.as<float>(); }
  float* grad() const { return grad_.as<float>(); }
  void* compute_copy() const { return compute_.as(); }
  DType compute_type() const { return compute_type_; }
  size_t bytes() const;

  // Counts changes of the weights: packed copies of an older version are stale.
  int64_t generation() const { return generation_; }
  void mark_dirty() { ++generation_; }

  // A copy of master weights and running statistics, to restore later.
  struct Snapshot {
    std::vector<float> master, state;
  };
  Snapshot snapshot(DeviceStream& stream) const;
  void restore(const Snapshot& snapshot, DeviceStream& stream);

 private:
  float* location(int param, ParamField field) const;

  Device& device_;
  DType compute_type_;
  std::vector<Entry> entries_;
  int64_t flat_size_ = 0, state_size_ = 0;
  DeviceBuffer master_, grad_, compute_, state_;
  int64_t generation_ = 1;
};

}  // namespace regolith
