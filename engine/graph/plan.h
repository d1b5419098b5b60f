// Where every tensor of a step lives: liveness over forward and backward, offsets into one arena, slices of concat
// buffers, gradients that share memory. Computed before anything runs; needs no device.
#pragma once

#include <string>
#include <vector>

#include "engine/graph/graph.h"

namespace regolith {

struct PlanOptions {
  bool training = true;    // false: forward only
  bool views = true;       // concat's inputs live inside its output
  bool reuse = true;       // false: no two tensors share memory, for tests that poison
  bool late_sums = false;  // workspaces are kept for LateSums::after_pass
};

// A piece of the arena, alive from step `first` to step `last`. Steps: forward of node i is i, the losses are n,
// backward of node i is 2n - i.
struct PlanBuffer {
  std::string name;  // "e1/1/conv", "d(e1/1/conv)", "e1/1/norm saved", "e1/1/conv workspace"
  size_t bytes = 0;
  int first = 0, last = 0;
  size_t offset = 0;
};

// A map inside a buffer: at a channel offset, with the pitch of the buffer.
struct Placement {
  int buffer = -1;  // -1: there is none
  int channel = 0, pitch = 0;
  explicit operator bool() const { return buffer >= 0; }
};

struct NodePlan {
  Placement value, grad;
  bool backward = false;         // runs in the backward pass
  std::vector<bool> wants_dx;    // per input
  std::vector<bool> accumulate;  // per input: dx has been written before
  std::vector<int> temp;         // per input: a buffer to write dx to, added to the gradient afterwards; -1: none
  int saved = -1, aux = -1, dx_aux = -1, forward_workspace = -1, backward_workspace = -1;  // buffers
};

struct Plan {
  std::vector<NodePlan> nodes;
  std::vector<PlanBuffer> buffers;
  size_t bytes = 0;       // of the arena
  size_t no_reuse = 0;    // what it would be if nothing shared memory
  int concat_copies = 0;  // parts of concats that are copied, forward and backward, for want of a view
  int extra_adds = 0;     // gradients added in a pass of their own
};

// The graph's ops have been inferred and, for their workspaces, compiled.
Plan make_plan(const Graph& graph, const PlanOptions& options, DType type);

// The three largest buffers with their sizes, for people: "e1/conv 12.0 MiB, ...".
std::string largest_buffers(const Plan& plan);

// Which nodes take part in backward, and of which inputs they give a gradient.
std::vector<std::vector<bool>> wanted_gradients(const Graph& graph);

// A node whose bias takes its gradient from the sums that `giver` has of the gradient of its input, or needs none.
struct BiasSums {
  int node = -1, giver = -1;
  size_t input = 0;  // of the giver
  bool zero = false;
};
// All of them, in a graph of compiled ops. Sums of maps lie between the two at most, and nobody else reads on the way.
std::vector<BiasSums> bias_sums(const Graph& graph);

// Offsets for buffers that overlap in time, largest first at the lowest place that is free. Returns the arena's size.
size_t assign_offsets(std::vector<PlanBuffer>& buffers, bool reuse);

}  // namespace regolith
