#include "deploy/prediction.h"

#include <atomic>
#include <charconv>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <thread>

#include "data/images.h"
#include "deploy/channel.h"
#include "deploy/outputs.h"
#include "deploy/run_folder.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/report/progress.h"

namespace regolith {
namespace {

constexpr size_t kQueue = size_t{64} << 20;  // bytes that may wait for the network, and for the disk

struct Item {
  int64_t index = 0;
  NamedImage image;
  std::string error;  // in place of an image
  Segmentation result;

  ImageView view() const { return {image.pixels.data(), image.height, image.width, image.channels}; }
};
using ItemPtr = std::unique_ptr<Item>;

// Reader, network and writer, each on its own thread; the network's is the caller's.
class Pipeline {
 public:
  Pipeline(ImageSource& source, std::vector<int64_t> todo, Segmenter& segmenter, Outputs& outputs,
           Interrupts* interrupts)
      : source_(source), todo_(std::move(todo)), segmenter_(segmenter), outputs_(outputs), interrupts_(interrupts) {}

  // Returns how many images could not be read.
  int64_t run(const SegmentationOutputs& wanted) {
    std::thread reader([this] { read(); }), writer([this] { write(); });
    std::exception_ptr error;
    try {
      segmenter_.predict([this] { return next(); }, [this](const ImageView&, Segmentation s) { done(std::move(s)); },
                         wanted,
                         [this](double images) {
                           progress_.items(images + failed_, total(), "images");
                           if (interrupted() || stopped_) throw Stopped{};  // one image may take hours
                         });
      if (failed_ == total()) progress_.items(static_cast<double>(total()), total(), "images");
    } catch (const Stopped&) {
    } catch (...) {
      error = std::current_exception();
    }
    read_.close();
    written_.close();
    reader.join();
    writer.join();
    for (const std::exception_ptr& e : {write_error_, read_error_, error})
      if (e) std::rethrow_exception(e);
    return failed_;
  }
  bool interrupted() const { return interrupts_ != nullptr && interrupts_->signal != 0; }

 private:
  struct Stopped {};
  int64_t total() const { return std::ssize(todo_); }

  void read() {
    try {
      for (const int64_t i : todo_) {
        auto item = std::make_unique<Item>();
        item->index = i;
        try {
          item->image = source_.read(i);
        } catch (const DataError& e) {
          item->error = e.what();
        }
        const size_t bytes = item->image.pixels.size();
        if (!read_.push(std::move(item), bytes)) return;
      }
    } catch (...) {
      read_error_ = std::current_exception();
    }
    read_.close();
  }

  void write() {
    try {
      while (const std::optional<ItemPtr> item = written_.pop())
        outputs_.write({(*item)->index, (*item)->image.name, (*item)->view()}, (*item)->result);
    } catch (...) {
      write_error_ = std::current_exception();
      stopped_ = true;
      written_.close();
    }
  }

  std::optional<ImageView> next() {
    while (!interrupted() && !stopped_) {
      std::optional<ItemPtr> item = read_.pop();
      if (!item) return std::nullopt;
      if ((*item)->error.empty()) {
        under_way_.push_back(std::move(*item));
        return under_way_.back()->view();
      }
      progress_.message((*item)->error);
      ++failed_;
    }
    return std::nullopt;
  }

  void done(Segmentation result) {
    ItemPtr item = std::move(under_way_.front());
    under_way_.pop_front();
    item->result = std::move(result);
    const size_t bytes = item->image.pixels.size() + item->result.ids.size() +
                         (item->result.probabilities.size() + item->result.confidence.size()) * sizeof(float);
    written_.push(std::move(item), bytes);
  }

  ImageSource& source_;
  const std::vector<int64_t> todo_;
  Segmenter& segmenter_;
  Outputs& outputs_;
  Interrupts* interrupts_;
  Progress progress_{std::cout, Progress::columns_of(1)};
  Channel<ItemPtr> read_{kQueue}, written_{kQueue};
  std::deque<ItemPtr> under_way_;
  std::exception_ptr read_error_, write_error_;
  std::atomic<bool> stopped_{false};
  int64_t failed_ = 0;
};

// Throws UsageError where masks or overlays would lie among the images that are read, or in the place of one, which a
// folder may name by a link.
void keep_input(const PredictionOptions& o) {
  namespace fs = std::filesystem;
  std::error_code none;  // of a path that is not there
  std::vector<fs::path> read{o.input};
  for (const auto& entry : fs::directory_iterator(o.input, none))
    if (entry.is_regular_file(none)) read.push_back(entry.path());  // a folder in it may well be the output
  const fs::path output = o.output;
  for (const fs::path& file : read) {
    const std::string name = file.stem().string() + ".png";
    for (const fs::path& place : {output, output / name, output / "overlay", output / "overlay" / name})
      if (fs::equivalent(file, place, none))
        throw UsageError("--output " + o.output + ": would be written over " + file.string() +
                         ", which is read; name another");
  }
}

}  // namespace

void set_part(PredictionOptions& options, const std::string& text) {
  const char* const end = text.data() + text.size();
  const auto part = std::from_chars(text.data(), end, options.part);
  const bool divided = part.ec == std::errc{} && part.ptr != end && *part.ptr == '/';
  const auto parts = divided ? std::from_chars(part.ptr + 1, end, options.parts) : part;
  if (!divided || parts.ec != std::errc{} || parts.ptr != end || options.part < 1 || options.part > options.parts)
    throw UsageError("--part " + text + ": expected a part of the images, as 2/8 is the second of eight");
}

std::string note_of_never_predicted(const std::vector<std::string>& names, const std::vector<int>& classes) {
  if (classes.empty()) return "";
  std::vector<std::string> never;
  for (const int c : classes) never.push_back(names[c]);
  return "never predicted, for the loss leaves them out: " + join(never) + "; --all-classes predicts them too\n";
}

bool predict(const PredictionOptions& o, Interrupts* interrupts) {
  if (o.force && o.go_on) throw UsageError("--force, --continue: write all anew, or leave what is there");
  keep_input(o);
  Segmenter segmenter(o.runs, o.segmenter);
  const std::vector<std::string> names = segmenter.class_names();
  const TrainedRun run = open_run(o.runs[0], o.segmenter.weights);
  const auto source =
      open_images(o.input, o.images, run.source_context(segmenter.channels(), static_cast<int>(names.size())));
  std::vector<int64_t> part;
  std::vector<std::string> part_names;
  for (int64_t i = o.part - 1; i < source->count(); i += o.parts) {
    part.push_back(i);
    part_names.push_back(source->name(i));
  }
  const std::string kind = std::filesystem::path(o.input).extension().string();
  const auto outputs = open_outputs(o.output,
                                    {.overlay = o.overlay,
                                     .probabilities = o.probabilities,
                                     .confidence = o.confidence,
                                     .force = o.force,
                                     .go_on = o.go_on,
                                     .numbered = kind == ".npz" || kind == ".npy"},
                                    part_names, segmenter);
  std::vector<int64_t> todo;
  for (size_t i = 0; i < part.size(); ++i)
    if (!outputs->has(part_names[i])) todo.push_back(part[i]);

  if (interrupts != nullptr) interrupts->begun = true;  // before the line that says so
  std::printf("%s%zu images of %s%s; %s, tiles of %s\n", source->notes().c_str(), todo.size(), o.input.c_str(),
              todo.size() < part.size()
                  ? (", " + std::to_string(part.size() - todo.size()) + " are there already").c_str()
                  : "",
              segmenter.device().c_str(), size_text({segmenter.tile_height(), segmenter.tile_width()}).c_str());
  std::fputs(note_of_never_predicted(names, segmenter.never_predicted()).c_str(), stdout);

  Pipeline pipeline(*source, todo, segmenter, *outputs, interrupts);
  const int64_t failed = pipeline.run({o.probabilities, o.confidence});
  if (pipeline.interrupted()) {
    std::printf("interrupted: %s\n", outputs->note().c_str());
    return false;
  }
  outputs->finish();
  std::printf("%s\n", outputs->note().c_str());
  if (failed > 0)
    throw DataError(std::to_string(failed) + " of " + std::to_string(todo.size()) +
                    " images could not be read; they are named above, the others are written");
  return true;
}

}  // namespace regolith
