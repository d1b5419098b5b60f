// history.jsonl: one JSON object per epoch, appended as the run goes; and its curves as a picture, history.svg.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/train/metrics.h"

namespace regolith {

// A value that was not measured is NaN here and null in the file.
struct EpochRecord {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  int64_t epoch = 0, step = 0;  // step: of the whole run, at the end of the epoch
  double lr = kNone, loss = kNone, images_per_second = kNone, seconds = kNone;
  int64_t skipped_steps = 0;  // so far, for gradients that were not finite
  // Of the weights, and of their moving average where there is one: "miou" is "val_miou" and "val_ema_miou" in the
  // file.
  std::vector<Metric> validation, ema_validation;
  std::vector<double> val_iou, val_ema_iou;  // by class
  // Those that schedule, best weights and comparisons go by: of the average where the run watches it.
  const std::vector<Metric>& watched(bool ema) const { return ema ? ema_validation : validation; }
  const std::vector<double>& watched_iou(bool ema) const { return ema ? val_ema_iou : val_iou; }
};

class History {
 public:
  // A new run (0) starts an empty file; one that goes on after epoch N keeps the lines up to N and drops later ones.
  // Throws IoError where the file cannot be written, or a line of it cannot be read.
  explicit History(std::string path, int64_t resumed_epoch = 0);
  void append(const EpochRecord& record);  // on the disk when it returns; throws IoError
  const std::vector<EpochRecord>& records() const { return records_; }
  // Drops a last line without its end, left by a run that was killed.
  static std::vector<EpochRecord> read(const std::string& path);

 private:
  std::string path_;
  std::vector<EpochRecord> records_;
};

// Losses on the left, the validation's scores (higher is better) on the right, over epochs.
std::string history_svg(const std::string& title, const std::vector<EpochRecord>& records);

}  // namespace regolith
