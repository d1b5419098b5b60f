#include "engine/report/history.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/base/error.h"
#include "engine/io/atomic_file.h"

namespace regolith {
namespace {
using Json = nlohmann::ordered_json;

// The one list of fields: `field(name, value)` for each, of a record to write or to fill.
template <class Record, class Field>
void fields(Record& r, Field field) {
  field("epoch", r.epoch);
  field("step", r.step);
  field("lr", r.lr);
  field("loss", r.loss);
  field("images_per_second", r.images_per_second);
  field("seconds", r.seconds);
  field("skipped_steps", r.skipped_steps);
  field("val_loss", r.val_loss);
  field("val_miou", r.val_miou);
  field("val_miou_foreground", r.val_miou_foreground);
  field("val_miou_keras_ignore0", r.val_miou_keras_ignore0);
  field("val_iou", r.val_iou);
}

std::string line_of(const EpochRecord& record) {
  Json json;
  fields(record, [&](const char* name, const auto& value) { json[name] = value; });  // NaN becomes null
  return json.dump() + "\n";
}

double number(const Json& json) { return json.is_null() ? EpochRecord::kNone : json.get<double>(); }
void get(const Json& json, int64_t& value) { value = json.get<int64_t>(); }
void get(const Json& json, double& value) { value = number(json); }
void get(const Json& json, std::vector<double>& value) {
  for (const Json& element : json) value.push_back(number(element));
}

}  // namespace

std::vector<EpochRecord> History::read(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw IoError(path + ": cannot read the history of the run");
  std::vector<EpochRecord> records;
  for (std::string line; std::getline(file, line);) {
    if (file.eof()) break;
    try {
      const Json json = Json::parse(line);
      EpochRecord& record = records.emplace_back();
      fields(record, [&](const char* name, auto& value) { get(json.at(name), value); });
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
  const std::string line = line_of(record);
  const int file = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  size_t done = 0;
  ssize_t written = 0;
  while (file >= 0 && done < line.size() &&
         ((written = ::write(file, line.data() + done, line.size() - done)) >= 0 || errno == EINTR))
    done += static_cast<size_t>(std::max<ssize_t>(written, 0));  // a disk that fills up takes a part first
  const bool whole = done == line.size() && (::fsync(file) == 0 || errno == EINVAL);
  const int error = errno;
  if (file >= 0) ::close(file);
  if (!whole) throw IoError(path_ + ": cannot append to the history: " + std::strerror(error));
  records_.push_back(record);
}

}  // namespace regolith
