#include "engine/ops/resample.h"

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/ops/registry.h"
#include "kernels/channel_sum.h"
#include "kernels/max_pool.h"
#include "kernels/resize.h"

namespace regolith {

std::string MaxPoolOp::describe() const {
  return size_text({kernel_, kernel_}) + ", stride " + std::to_string(stride_);
}

Inference MaxPoolOp::infer(const std::vector<Shape>& inputs) {
  const Shape& x = inputs[0];
  if (x.H < kernel_ || x.W < kernel_ || (x.H - kernel_) % stride_ != 0 || (x.W - kernel_) % stride_ != 0)
    throw GraphError("a map of " + size_text({x.H, x.W}) + " is not covered by windows of " + describe());
  Inference r;
  r.shape = {x.N, (x.H - kernel_) / stride_ + 1, (x.W - kernel_) / stride_ + 1, x.C};
  r.saves_input = {true};
  return r;
}

void MaxPoolOp::forward(const OpRun& run) {
  kernels::max_pool_forward(*run.stream, {.x = run.x[0], .y = run.y, .kernel = kernel_, .stride = stride_});
}

void MaxPoolOp::backward(const OpRun& run) {
  kernels::max_pool_backward(*run.stream, {.x = run.x[0],
                                           .dy = run.dy,
                                           .dx = run.dx[0],
                                           .kernel = kernel_,
                                           .stride = stride_,
                                           .accumulate = run.accumulate[0]});
}

std::string ResizeOp::describe() const {
  return std::string(bilinear_ ? "bilinear" : "nearest") +
         (factor_ > 0 ? " x" + std::to_string(factor_) : " to " + size_text({height_, width_}));
}

Inference ResizeOp::infer(const std::vector<Shape>& inputs) {
  const Shape& x = inputs[0];
  Inference r;
  r.shape = {x.N, factor_ > 0 ? factor_ * x.H : height_, factor_ > 0 ? factor_ * x.W : width_, x.C};
  for (const Shape& s : {x, r.shape}) {
    if (factor_ != 2 && (s.H > kernels::kResizeSize || s.W > kernels::kResizeSize))
      throw GraphError("resize takes heights and widths up to " + std::to_string(kernels::kResizeSize) + ", not " +
                       size_text({s.H, s.W}));
  }
  return r;
}

void ResizeOp::forward(const OpRun& run) {
  kernels::resize_forward(*run.stream, {.x = run.x[0], .y = run.y, .bilinear = bilinear_});
}

void ResizeOp::backward(const OpRun& run) {
  kernels::resize_backward(*run.stream,
                           {.dy = run.dy, .dx = run.dx[0], .bilinear = bilinear_, .accumulate = run.accumulate[0]});
}

Inference GlobalAvgPoolOp::infer(const std::vector<Shape>& inputs) {
  shape_ = inputs[0];
  Inference r;
  r.shape = {shape_.N, 1, 1, shape_.C};
  return r;
}

size_t GlobalAvgPoolOp::forward_workspace() const {
  return kernels::image_sum_workspace({nullptr, shape_.N, shape_.H, shape_.W, shape_.C, shape_.C, DType::f32});
}

void GlobalAvgPoolOp::forward(const OpRun& run) {
  kernels::image_sum(*run.stream, {.x = run.x[0], .sum = run.y, .scale = scale(), .workspace = run.workspace});
}

void GlobalAvgPoolOp::backward(const OpRun& run) {
  kernels::AddImages spread;
  spread.image = run.dy;
  spread.scale = scale();
  spread.y = run.dx[0];
  spread.accumulate = run.accumulate[0];
  kernels::add_images(*run.stream, spread);
}

namespace {

std::unique_ptr<Op> parse_max_pool(const Attributes& a) {
  const int pool = a.integer("pool", "height and width of the window", 1, 64, 2);
  return std::make_unique<MaxPoolOp>(pool,
                                     a.integer("stride", "distance of the windows; `pool` unless said", 1, 64, pool));
}

bool parse_bilinear(const Attributes& a) { return a.choice("mode", "interpolation", {"nearest", "bilinear"}) == 1; }

std::unique_ptr<Op> parse_resize(const Attributes& a) {
  const int height = a.integer("height", "rows of the output", 1, kernels::kResizeSize);
  const int width = a.integer("width", "columns of the output", 1, kernels::kResizeSize);
  return std::make_unique<ResizeOp>(height, width, parse_bilinear(a));
}

std::unique_ptr<Op> parse_upsample(const Attributes& a) {
  const int factor = a.integer("factor", "by which height and width grow", 2, 64, 2);
  return std::make_unique<ResizeOp>(factor, parse_bilinear(a));
}

const RegisterOp pooling{"max_pool", "max pooling without padding", 1, 1, parse_max_pool};
const RegisterOp resize{"resize", "to a height and width, nearest or bilinear", 1, 1, parse_resize};
const RegisterOp upsample{"upsample", "by a whole factor, nearest or bilinear", 1, 1, parse_upsample};
const RegisterOp average{"global_avg_pool", "the mean over the pixels of each image", 1, 1, plain<GlobalAvgPoolOp>};

}  // namespace

}  // namespace regolith
