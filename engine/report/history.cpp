#include "engine/report/history.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/base/error.h"
#include "engine/io/atomic_file.h"

namespace regolith {
namespace {
using Json = nlohmann::ordered_json;

std::string line_of(const EpochRecord& r) {
  Json json = {{"epoch", r.epoch},     {"step", r.step},
               {"lr", r.lr},  // NaN becomes null
               {"loss", r.loss},       {"images_per_second", r.images_per_second},
               {"seconds", r.seconds}, {"skipped_steps", r.skipped_steps}};
  for (const Metric& metric : r.validation) json["val_" + metric.name] = metric.value;
  json["val_iou"] = r.val_iou;
  for (const Metric& metric : r.ema_validation) json["val_ema_" + metric.name] = metric.value;
  if (!r.ema_validation.empty()) json["val_ema_iou"] = r.val_ema_iou;
  return json.dump() + "\n";
}

double number_of(const Json& json) { return json.is_null() ? EpochRecord::kNone : json.get<double>(); }

EpochRecord record_of(const Json& json) {
  EpochRecord r{.epoch = json.at("epoch"),
                .step = json.at("step"),
                .lr = number_of(json.at("lr")),
                .loss = number_of(json.at("loss")),
                .images_per_second = number_of(json.at("images_per_second")),
                .seconds = number_of(json.at("seconds")),
                .skipped_steps = json.at("skipped_steps"),
                .validation = {},
                .ema_validation = {},
                .val_iou = {},
                .val_ema_iou = {}};
  for (const auto& [key, value] : json.items()) {
    if (!key.starts_with("val_")) continue;
    const bool ema = key.starts_with("val_ema_");
    const std::string name = key.substr(ema ? 8 : 4);
    if (name == "iou")
      for (const Json& iou : value) (ema ? r.val_ema_iou : r.val_iou).push_back(number_of(iou));
    else
      (ema ? r.ema_validation : r.validation).push_back({name, number_of(value), name != "loss"});
  }
  return r;
}

}  // namespace

std::vector<EpochRecord> History::read(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw IoError(path + ": cannot read the history of the run");
  std::vector<EpochRecord> records;
  for (std::string line; std::getline(file, line) && !file.eof();) {
    try {
      records.push_back(record_of(Json::parse(line)));
    } catch (const Json::exception& error) {
      throw IoError(path + ":" + std::to_string(records.size() + 1) + ": not a line of a history: " + error.what());
    }
  }
  return records;
}

History::History(std::string path, int64_t resumed_epoch) : path_(std::move(path)) {
  if (resumed_epoch > 0 && std::filesystem::exists(path_)) records_ = read(path_);
  std::erase_if(records_, [&](const EpochRecord& record) { return record.epoch > resumed_epoch; });
  std::string text;
  for (const EpochRecord& record : records_) text += line_of(record);
  write_file_atomically(path_, text);
}

void History::append(const EpochRecord& record) {
  append_to_file(path_, line_of(record));
  records_.push_back(record);
}

}  // namespace regolith
