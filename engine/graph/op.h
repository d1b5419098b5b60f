// An operation of the graph: what it makes of its inputs, what it needs kept for backward, and how it runs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config/compute_options.h"
#include "engine/tensor/device.h"
#include "engine/tensor/shape.h"
#include "kernels/core/batch_ranks.h"
#include "kernels/core/tensor_view.h"

namespace regolith {

enum class Init { zeros, ones, glorot_uniform, he_normal };

// A tensor of weights that an op owns. Its full name is the node's path, a slash, and `name`.
struct ParamSpec {
  std::string name;
  std::vector<int64_t> shape;  // convolutions (K,R,S,C), dense layers (out, in), vectors (C)
  Init init = Init::zeros;
  int64_t fan_in = 0, fan_out = 0;  // for the initialisers
  bool trainable = true;            // false: running statistics, fp32, untouched by the optimizer

  int64_t elements() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
};

// What an op says of itself once it knows the shapes of its inputs.
struct Inference {
  Shape shape;
  std::vector<ParamSpec> params;
  // What backward reads of forward, per input and of the output.
  std::vector<bool> saves_input;
  bool saves_output = false;
  size_t saved_bytes = 0;  // of the op's own, from forward to backward
  int64_t macs = 0;        // of the forward pass
  std::string note;        // for --explain: "rates 12, 18: centre tap only"
};

struct CompileContext : ComputeOptions {
  Device& device;
  bool batch_statistics = true;  // norms over the batch use its own statistics; false: the running ones
  std::vector<bool> needs_dx;    // per input: backward computes its gradient
};

struct ParamView {
  float* master = nullptr;  // fp32
  void* compute = nullptr;  // in the maps' type; the master itself where that is fp32
  float* grad = nullptr;    // fp32; null where the parameter is not trained
  int64_t elements = 0;
};

// What one run of an op reads and writes.
struct OpRun {
  DeviceStream* stream = nullptr;
  std::vector<TensorView> x;         // inputs (N,H,W,C)
  TensorView y;                      // output
  TensorView dy;                     // gradient of the output
  std::vector<TensorView> dx;        // gradients of the inputs; null where nobody wants it
  std::vector<const float*> x_bias;  // per input: a bias that its producer left to be added to it; else null
  std::vector<bool> accumulate;      // per input: add to dx instead of writing it
  std::vector<float*> dx_sums;       // per input: where the sums of dx go, as give_gradient_sums() asked; else null
  float* aux = nullptr;              // aux_bytes(), written by forward; null where no op reads them
  std::vector<const float*> x_aux;   // per input: the auxiliary output of its producer, where reads_aux() asks for it
  float* dx_aux = nullptr;           // dx_aux_bytes(), written by backward
  // The runs of the op that wrote input 0, and of the only one that reads y; null: there is none.
  const OpRun *before = nullptr, *behind = nullptr;
  void* saved = nullptr;
  void* workspace = nullptr;
  std::vector<void*> packed;  // the copies that prepacked() lists; null where one has no bytes
  std::vector<ParamView> params;
  bool trains = true;                    // false: the parameters' gradients are not wanted, and may be left out
  bool accumulate_grads = false;         // the slices of a batch after its first add to the parameters' gradients
  bool dropout = true;                   // off: dropout is the identity
  uint64_t seed = 0;                     // of the run and the node that random_name() names
  const int64_t* step = nullptr;         // in device memory
  int first_sample = 0;                  // of the slice, within the batch: random numbers are keyed by sample
  kernels::BatchRanks* ranks = nullptr;  // that have the rest of the batch, for statistics over all of it; or null
};

// What a direction of an op costs a GPU, for report/traffic.h: the kernels that it launches, and how often these read
// or write its maps whole. Backward reads of the inputs and the output what the op saves, and writes each dx once more.
struct Passes {
  int launches = 1;
  int sums = 0;           // that may wait, as late_sums() says; not among the launches
  int x = 1, others = 1;  // input 0; each further one
  int y = 1, dy = 1;
  double bytes = 0;  // of workspaces
};

// How a norm is to be read by the ops around it: what it does beside scale and shift.
struct NormReading {
  bool per_image = false;  // its statistics are those of each image
  bool relu = false, residual = false;
  bool masked = false;  // its dresidual is the masked dy, as long as it is read
  float rate = 0;       // of dropout
  bool spatial = false;
  bool squeezed = false;  // the dropout is that of a squeeze behind it, which left its gradient too
};

// Whether an op has the sums over the pixels of the dx that it writes, without a pass for them.
enum class GradientSums { none, zero, known };  // zero: by definition

// When the sums must be made that end an op's backward, of partial results in its workspace (Stream::pending): at once;
// after the op, with what waits there already; or at the end of the pass, for which a GPU's plan keeps the workspace.
enum class LateSums { none, after_op, after_pass };

// When an op reads the auxiliary output of an input's producer.
enum class AuxUse { none, forward, forward_and_backward };

class Op {
 public:
  virtual ~Op() = default;
  virtual std::string_view kind() const = 0;
  virtual std::unique_ptr<Op> clone() const = 0;
  // Throws GraphError with what is wrong about the inputs; the caller adds the node's name and position.
  virtual Inference infer(const std::vector<Shape>& inputs) = 0;
  // Attributes in short, for --explain: "3x3, 64 filters".
  virtual std::string describe() const { return ""; }

  // What the plan and the fusion rules ask of an op instead of its name.
  virtual bool joins_channels() const { return false; }  // y holds its inputs side by side: they may be views of it
  virtual bool is_sum() const { return false; }          // y = x1 + x2 + ...
  virtual bool is_relu() const { return false; }

  // Whether the op's kernels take a slice of the channels of a wider buffer, as input (and dx), as output (and dy).
  virtual bool reads_strided() const { return false; }
  virtual bool writes_strided() const { return false; }
  // Whether an image's result depends on the other images of the batch: then the batch is not run in slices.
  virtual bool couples_batch() const { return false; }
  // Whether backward can add to dx; where not, the executor adds in a pass of its own.
  virtual bool accumulates() const { return false; }
  // Whether y may be the memory of input 0, where nobody reads that input later.
  virtual bool forward_in_place() const { return false; }
  // Whether dx of input 0 may be the memory of dy; of a sum, whose backward leaves dy as it is, dx of each input.
  virtual bool backward_in_place() const { return false; }
  virtual bool overwrites_dy() const { return false; }  // backward does, beside that
  // Bytes of an auxiliary output: fp32 sums of y that a norm writes in its own pass, for the op that would otherwise
  // read y once more to get them.
  virtual size_t aux_bytes() const { return 0; }
  virtual AuxUse reads_aux(size_t /*input*/) const { return AuxUse::none; }
  // The parameter, a bias, that y lacks, and that the one op that reads y gets as OpRun::x_bias; -1: none. A batch norm
  // would take it out again, and adds it to its running mean; a sum adds it. Known after compile().
  virtual int left_out_bias() const { return -1; }
  // A norm before a convolution need not write y: it leaves its input where it is, and coefficients for each channel as
  // its auxiliary output, which all its readers apply. In inference, where readers have an epilogue; in training, where
  // they are kernels that take norms. Known after compile(), as the rest.
  virtual bool may_leave_to_readers() const { return false; }
  virtual bool applies_norm() const { return false; }  // of input 0, as a reader
  virtual void leave_to_readers() {}
  virtual void apply_norm(const NormReading&) {}  // tells the reader that it is to
  virtual NormReading reading() const { return {}; }
  // In training a convolution takes over more of the norms around it (Program::put_norms_into_convolutions()). It gives
  // the norm that reads y the moments of y, as its auxiliary output:
  virtual bool takes_norms() const { return false; }  // such a convolution
  virtual bool is_norm() const { return false; }
  virtual bool takes_moments() const { return false; }  // a norm that had to sum x
  virtual void give_moments() {}
  virtual void take_moments() {}
  // It gives the norm that left its value to it alone the sums that the norm's backward wants, beside dx;
  virtual void give_sums() {}
  virtual void take_sums(bool /*of_images*/) {}  // not of strips
  // A squeeze that alone reads a norm of each image does both, for such a norm: it reads through it, gives it the sums,
  // and leaves its gradient to the convolution before the norm.
  virtual bool may_squeeze_norm() const { return false; }
  virtual bool takes_squeezed_gradient() const { return false; }  // such a convolution
  // One that reads a norm with a residual, whose masked gradient a norm writes: the norm makes it of the squeeze's dy.
  virtual bool may_leave_gradient() const { return false; }
  virtual void take_squeeze() {}
  // and it takes its dy from that of the norm behind, with coefficients that the norm leaves beside dx.
  virtual bool takes_gradient() const { return false; }
  virtual void leave_gradient() {}
  virtual void take_gradient(const NormReading&) {}
  // Of what was settled so: y is the memory of input 0, and dx of input 0 that of dy, and neither is written.
  virtual bool leaves_value() const { return false; }
  virtual bool leaves_gradient() const { return false; }
  // What backward writes beside dx of input 0, for the op that wrote the input.
  virtual size_t dx_aux_bytes() const { return 0; }
  // The parameter whose gradient is the sums of dy over the pixels, a bias; -1: there is none. It need not be computed
  // where the op that wrote dy gives it instead (graph/plan.h). Known after compile(), as what follows.
  virtual int bias_parameter() const { return -1; }
  virtual void leave_bias_gradient() {}
  // Whether forward adds its bias in a pass of its own, which a sum that reads y alone can spare it.
  virtual bool may_leave_bias() const { return false; }
  virtual void leave_bias() {}
  virtual GradientSums gradient_sums(size_t /*input*/) const { return GradientSums::none; }
  virtual void give_gradient_sums(size_t /*input*/) {}
  // The node whose random numbers the op draws, where fusion merged that node into it; empty: its own.
  virtual std::string random_name() const { return ""; }

  virtual void compile(const CompileContext&) {}
  // From forward to backward, beside Inference::saved_bytes: what depends on the maps' type. Known after compile().
  virtual size_t saved_memory() const { return 0; }
  virtual std::string provider() const { return "kernel"; }
  virtual size_t forward_workspace() const { return 0; }
  virtual size_t backward_workspace() const { return 0; }
  virtual LateSums late_sums() const { return LateSums::none; }
  virtual std::vector<Prepacked> prepacked() const { return {}; }
  // Whether forward reads parameter k beside those copies.
  virtual bool forward_reads(size_t /*k*/) const { return true; }
  virtual void prepack_weights(const OpRun&) {}  // rewrites all of them, after the weights have changed
  virtual void forward(const OpRun& run) = 0;
  virtual void backward(const OpRun&) {}
  virtual Passes forward_passes() const { return {}; }
  virtual Passes backward_passes(const std::vector<bool>& /*wants_dx*/) const { return {}; }
};

// Gives an op its clone() from its copy constructor. What compile() made is shared by copies until they are compiled.
template <class Self>
class OpBase : public Op {
 public:
  std::unique_ptr<Op> clone() const override { return std::make_unique<Self>(static_cast<const Self&>(*this)); }
};

// An op whose kernels take slices of channels everywhere, and add to dx: what most of ours do.
template <class Self>
class StridedOp : public OpBase<Self> {
 public:
  bool reads_strided() const override { return true; }
  bool writes_strided() const override { return true; }
  bool accumulates() const override { return true; }
};

inline size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace regolith
