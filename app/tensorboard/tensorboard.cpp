#include "app/tensorboard/tensorboard.h"

#include <events.pb.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "app/training.h"
#include "engine/base/text.h"
#include "engine/comm/socket.h"
#include "engine/io/atomic_file.h"
#include "engine/io/image.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

void append_little_endian(std::string& to, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to += static_cast<char>(value >> (8 * i));
}

// As TFRecord has it: a checksum of data that holds checksums would be a weak one.
uint32_t masked(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8; }

class TensorboardListener : public Listener {
 public:
  void begin(Training& t, bool) override {
    const std::string host = host_name();
    std::string name;
    for (int i = 0;; ++i) {  // TensorBoard reads them in the order of their names
      name = format("events.out.tfevents.%010lld.%s.%d.%d", static_cast<long long>(now()), host.c_str(), ::getpid(), i);
      if (!fs::exists(t.path(name))) break;
    }
    path_ = t.path(name);
    events::Event first = event(0);
    first.set_file_version("brain.Event:2");
    append(first);
  }

  void epoch(Training& t, EpochReport& report) override {
    const EpochRecord& r = report.record;
    events::Event e = event(r.epoch);
    add(e, "loss/train", r.loss);
    add(e, "learning_rate", r.lr);
    add(e, "images_per_second", r.images_per_second);
    if (report.validated) {
      const std::vector<std::string> names = t.experiment().class_names();
      const auto add_all = [&](const std::string& part, const std::vector<Metric>& metrics,
                               const std::vector<double>& iou) {
        for (const Metric& m : metrics) add(e, m.higher_is_better ? part + "/" + m.name : m.name + "/" + part, m.value);
        for (size_t k = 0; k < iou.size(); ++k) add(e, part + "_iou/" + names[k], iou[k]);
      };
      add_all("validation", r.validation, r.val_iou);
      add_all("validation_ema", r.ema_validation, r.val_ema_iou);
    }
    append(e);
  }

  void end(Training& t, FinalReport& report) override {
    events::Event e = event(t.epochs_done());
    for (const Metric& m : report.metrics) add(e, report.split + "_best/" + m.name, m.value);
    if (const std::string panels = t.path("panels.png"); fs::exists(panels)) {
      const ImageHeader size = read_image_header(panels);
      events::Summary::Value& value = *e.mutable_summary()->add_value();
      value.set_tag("panels");
      value.mutable_image()->set_height(size.height);
      value.mutable_image()->set_width(size.width);
      value.mutable_image()->set_colorspace(3);
      value.mutable_image()->set_encoded_image_string(read_text(panels));
    }
    append(e);
    report.written.push_back(fs::path(path_).filename().string());
  }

 private:
  static events::Event event(int64_t step) {
    events::Event e;
    e.set_wall_time(now());
    e.set_step(step);
    return e;
  }
  static void add(events::Event& e, const std::string& tag, double value) {
    if (std::isnan(value)) return;  // not measured
    events::Summary::Value& v = *e.mutable_summary()->add_value();
    v.set_tag(tag);
    v.set_simple_value(static_cast<float>(value));
  }
  void append(const events::Event& e) const { append_to_file(path_, tfrecord(e.SerializeAsString())); }

  std::string path_;
};

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int bit = 0; bit < 8; ++bit) t[i] = t[i] >> 1 ^ (t[i] & 1 ? 0x82f63b78 : 0);
    }
    return t;
  }();
  uint32_t crc = ~0U;
  for (const char c : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<uint8_t>(c)) & 0xff];
  return ~crc;
}

std::string tfrecord(std::string_view bytes) {
  std::string record;
  append_little_endian(record, bytes.size(), 8);
  append_little_endian(record, masked(crc32c(record)), 4);
  record += bytes;
  append_little_endian(record, masked(crc32c(bytes)), 4);
  return record;
}

std::unique_ptr<Listener> make_tensorboard_events() { return std::make_unique<TensorboardListener>(); }

}  // namespace regolith
