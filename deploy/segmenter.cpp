#include "deploy/segmenter.h"

#include <cmath>
#include <deque>
#include <set>

#include "app/experiment.h"
#include "deploy/canvas.h"
#include "deploy/predictor.h"
#include "deploy/run_folder.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "models/reader.h"

namespace regolith {
namespace {

std::vector<std::string> overrides(const SegmenterOptions& o) {
  std::vector<std::string> list{"run.device=" + o.device, "run.precision=" + o.precision,
                                "run.threads=" + (o.threads == 0 ? "auto" : std::to_string(o.threads))};
  if (o.tile_height > 0) list.push_back("model.input.height=" + std::to_string(o.tile_height));
  if (o.tile_width > 0) list.push_back("model.input.width=" + std::to_string(o.tile_width));
  return list;
}

// The graph for tiles of the options' size. Throws ConfigError where the network belongs to one size.
Graph graph_for(const TrainedRun& run, const SegmenterOptions& o) {
  if (o.tile_height == 0 && o.tile_width == 0) return read_model(run.config.model);
  const std::string tile = run.folder + ": tiles of " + size_text({o.tile_height, o.tile_width});
  try {
    Graph graph = read_model(run.config.model);
    graph.infer(1);
    for (const Node& node : graph.nodes) {
      if (node.op->kind() != "position_embedding") continue;
      const Parameter& p = graph.params[node.params[0]];
      const auto trained = run.weights.tensors.find(p.name);
      if (trained != run.weights.tensors.end() && trained->second.shape != p.spec.shape)
        throw ConfigError(tile + " do not fit: its parameter '" + p.name + "' " + shape_text(trained->second.shape) +
                          " is a position embedding, of images of one size; leave out --tile, and name this run first");
    }
    return read_model(run.config.model);
  } catch (const GraphError& e) {
    throw ConfigError(tile + " do not fit: " + e.what());
  }
}

}  // namespace

struct Segmenter::State {
  // An image on its way.
  struct Job {
    ImageView image;
    Segmentation result;
    std::vector<Canvas> canvases;  // one for each scale
    int written = 0;               // rows of the result
  };

  struct Request {  // one tile of it
    Job* job;
    int canvas, row, column;
    Turn turn;
    bool ends_row;  // of the canvas' tiles
  };

  State(const std::vector<std::string>& runs, const SegmenterOptions& options);

  void add(const ImageView& image);
  void launch();
  void finish_batch();
  void finish_jobs();

  SegmenterOptions options;
  std::unique_ptr<Device> device;
  std::vector<std::unique_ptr<Predictor>> networks;
  std::vector<std::string> names;
  std::vector<Colour> colours;
  std::vector<int> never;
  TileSize tile{};
  int channels = 0, classes = 0;

  // Of a call of predict().
  SegmentationOutputs outputs;
  const Done* done = nullptr;
  const Progress* progress = nullptr;
  int64_t finished = 0;  // images
  std::deque<std::unique_ptr<Job>> jobs;
  std::vector<uint8_t> pixels;  // (batch, tile height, tile width, channels): the batch being filled
  std::vector<Request> batch;   // what it holds
  std::deque<std::vector<Request>> under_way;
};

Segmenter::State::State(const std::vector<std::string>& runs, const SegmenterOptions& o) : options(o) {
  if (runs.empty()) throw ConfigError("expected the folder of a run");
  if (o.tile_height < 0 || o.tile_width < 0 || (o.tile_height > 0) != (o.tile_width > 0))
    throw ConfigError("tiles of " + size_text({o.tile_height, o.tile_width}) + ": expected a height and a width");
  if (o.batch < 1) throw ConfigError("a batch of " + std::to_string(o.batch) + " tiles: expected 1 or more");
  if (!(o.overlap >= 0 && o.overlap <= 0.9)) throw ConfigError("overlap " + number(o.overlap) + ": expected 0 to 0.9");
  std::string first;
  Normalise numbers;  // in the files of the first
  std::set<int> excluded_by_all;
  for (const std::string& folder : runs) {
    TrainedRun run = open_run(folder, o.weights, overrides(options));
    if (device == nullptr) {
      const bool cuda = run.config.run.device == DeviceChoice::cuda ||
                        (run.config.run.device == DeviceChoice::automatic && cuda_available());
      device = cuda ? make_cuda_device() : make_cpu_device(run.config.run.threads);
    }
    PredictorOptions p;
    p.network.precision = run.config.run.precision;
    p.network.conv.workspace_mib = run.config.conv.workspace_mib;  // the provider was that of another machine, perhaps
    p.network.deterministic = run.config.run.deterministic;
    p.divisor = static_cast<float>(1 / run.config.data.normalise.scale);
    p.offset = static_cast<float>(-run.config.data.normalise.shift / run.config.data.normalise.scale);
    Graph graph = graph_for(run, options);
    graph.infer(1);
    const int K = graph.classes();
    const Shape in = graph.nodes[graph.input].shape();
    if (!o.all_classes) p.excluded = run.config.loss.unlearnt(K);
    if (std::ssize(p.excluded) == K) p.excluded.clear();
    const std::vector<std::string> its_names = regolith::class_names(run.config.data.classes, K);
    if (networks.empty()) {
      first = folder;
      tile = {in.H, in.W};
      channels = in.C;
      classes = K;
      names = its_names;
      colours = regolith::class_colours(run.config.data.classes, K);
      excluded_by_all = {p.excluded.begin(), p.excluded.end()};
      // The others take tiles of the same size, whatever theirs was.
      options.tile_height = in.H;
      options.tile_width = in.W;
    } else if (in.C != channels || its_names != names) {
      throw ConfigError(folder + ": has " + std::to_string(in.C) + " channels and the classes " + join(its_names) +
                        "; " + first + " has " + std::to_string(channels) + " and " + join(names) +
                        ": only runs of one kind of image and the same classes can be put together");
    }
    const Normalise& range = run.config.data.normalise;
    if (networks.empty()) numbers = range;
    if (range.bits != numbers.bits || range.low != numbers.low || range.high != numbers.high)
      throw ConfigError(folder + "/config.yaml: data.normalise.bits, low or high are others than those of " + first +
                        ": the same numbers would be other images to them; give them one range, or predict apart");
    std::erase_if(excluded_by_all,
                  [&](int c) { return std::find(p.excluded.begin(), p.excluded.end(), c) == p.excluded.end(); });
    try {
      networks.push_back(std::make_unique<Predictor>(graph_for(run, options), std::move(run.weights), *device, p));
    } catch (const CheckpointError& e) {
      throw CheckpointError(std::string(e.what()) + "; " + folder + "/config.yaml says which");
    }
  }
  never = {excluded_by_all.begin(), excluded_by_all.end()};
}

void Segmenter::State::add(const ImageView& image) {
  if (image.channels != channels)
    throw DataError("an image of " + std::to_string(image.channels) + " channels: the network takes " +
                    std::to_string(channels));
  auto owned = std::make_unique<Job>();
  Job& job = *owned;
  job.image = image;
  job.result.height = image.height;
  job.result.width = image.width;
  job.result.classes = classes;
  const size_t area = static_cast<size_t>(image.height) * image.width;
  job.result.ids.resize(area);
  if (outputs.confidence) job.result.confidence.assign(area, 1.f);
  if (outputs.probabilities) job.result.probabilities.resize(area * classes);
  std::vector<double> scales{1};
  if (options.augmentation == TestTimeAugmentation::flips_and_scales) scales = {1, 0.8, 1.25};
  for (const double s : scales) {
    const auto region = [&](int side) { return std::max(1, static_cast<int>(std::lround(side / s))); };
    job.canvases.emplace_back(image, TileSize{region(tile.height), region(tile.width)}, tile, classes, options.overlap);
  }
  std::vector<Turn> turns{{}};
  if (options.augmentation != TestTimeAugmentation::none) turns = {{}, {false, true}, {true, false}, {true, true}};
  jobs.push_back(std::move(owned));

  // Rows of tiles of all scales from top to bottom, so that no canvas runs far ahead of the others.
  std::vector<int> next(job.canvases.size(), 0);
  const auto top = [&](size_t i) {
    const TileAxis& rows = job.canvases[i].rows();
    return next[i] < rows.tiles() ? rows.begin(next[i]) : image.height;
  };
  while (true) {
    size_t at = 0;
    for (size_t i = 1; i < next.size(); ++i)
      if (top(i) < top(at)) at = i;
    const Canvas& canvas = job.canvases[at];
    if (next[at] == canvas.rows().tiles()) return;
    const int row = next[at]++, columns = canvas.columns().tiles();
    for (int column = 0; column < columns; ++column) {
      for (size_t i = 0; i < turns.size(); ++i) {
        const size_t bytes = static_cast<size_t>(tile.height) * tile.width * channels;
        pixels.resize(bytes * options.batch);
        canvas.read(row, column, turns[i], pixels.data() + bytes * batch.size());
        batch.push_back(
            {&job, static_cast<int>(at), row, column, turns[i], column + 1 == columns && i + 1 == turns.size()});
        if (std::ssize(batch) == options.batch) launch();
      }
    }
  }
}

void Segmenter::State::launch() {
  if (std::ssize(under_way) == Predictor::kAhead) finish_batch();
  for (auto& network : networks) network->submit(pixels.data(), static_cast<int>(batch.size()));
  under_way.push_back(std::move(batch));
  batch.clear();
}

void Segmenter::State::finish_batch() {
  const std::vector<Request> requests = std::move(under_way.front());
  under_way.pop_front();
  const size_t area = static_cast<size_t>(tile.height) * tile.width;
  std::vector<const float*> results;  // per network (batch, tile height, tile width, K)
  for (auto& network : networks) results.push_back(network->collect());
  const int turns = options.augmentation == TestTimeAugmentation::none ? 1 : 4;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& r = requests[i];
    Job& job = *r.job;
    Canvas& canvas = job.canvases[r.canvas];
    for (const float* probabilities : results) canvas.add(r.row, r.column, r.turn, probabilities + i * area * classes);
    if (!r.ends_row) continue;
    canvas.set_complete(r.row);
    int complete = job.image.height;
    for (const Canvas& c : job.canvases) complete = std::min(complete, c.complete());
    write_rows(job.canvases, job.written, complete, turns * static_cast<int>(networks.size()), job.result);
    job.written = complete;
    for (Canvas& c : job.canvases) c.take(complete);
  }
  finish_jobs();
}

void Segmenter::State::finish_jobs() {
  while (!jobs.empty() && jobs.front()->written == jobs.front()->image.height) {
    const std::unique_ptr<Job> job = std::move(jobs.front());
    jobs.pop_front();
    ++finished;
    (*done)(job->image, std::move(job->result));
  }
  if (!*progress) return;
  double images = static_cast<double>(finished);
  for (const auto& job : jobs) images += static_cast<double>(job->written) / job->image.height;
  (*progress)(images);
}

Segmenter::Segmenter(const std::vector<std::string>& runs, const SegmenterOptions& options)
    : state_(std::make_unique<State>(runs, options)) {}
Segmenter::~Segmenter() = default;
Segmenter::Segmenter(Segmenter&&) noexcept = default;

int Segmenter::channels() const { return state_->channels; }
int Segmenter::tile_height() const { return state_->tile.height; }
int Segmenter::tile_width() const { return state_->tile.width; }
const std::vector<std::string>& Segmenter::class_names() const { return state_->names; }
const std::vector<std::array<uint8_t, 3>>& Segmenter::class_colours() const { return state_->colours; }
const std::vector<int>& Segmenter::never_predicted() const { return state_->never; }
std::string Segmenter::device() const {
  const Precision precision = state_->networks[0]->network().options().precision;
  return state_->device->name() + ", " + std::string(name_of(precision));
}

void Segmenter::predict(const Next& next, const Done& done, const SegmentationOutputs& outputs,
                        const Progress& progress) {
  State& s = *state_;
  s.outputs = outputs;
  s.done = &done;
  s.progress = &progress;
  s.finished = 0;
  try {
    while (const std::optional<ImageView> image = next()) s.add(*image);
    if (!s.batch.empty()) s.launch();
    while (!s.under_way.empty()) s.finish_batch();
  } catch (...) {  // the next call begins anew
    for (auto& network : s.networks) network->drop();
    s.under_way.clear();
    s.batch.clear();
    s.jobs.clear();
    throw;
  }
}

std::vector<Segmentation> Segmenter::predict(const std::vector<ImageView>& images, const SegmentationOutputs& outputs) {
  std::vector<Segmentation> results;
  size_t given = 0;
  predict(
      [&]() -> std::optional<ImageView> {
        return given < images.size() ? std::optional(images[given++]) : std::nullopt;
      },
      [&](const ImageView&, Segmentation s) { results.push_back(std::move(s)); }, outputs);
  return results;
}

Segmentation Segmenter::predict(const ImageView& image, const SegmentationOutputs& outputs) {
  return std::move(predict(std::vector{image}, outputs)[0]);
}

}  // namespace regolith
