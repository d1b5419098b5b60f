// A Segmenter's options on a command line, for the programs that apply networks.
#pragma once

#include <array>
#include <string>

#include "app/command_line.h"
#include "deploy/segmenter.h"

namespace regolith {

class SegmenterArguments {
 public:
  explicit SegmenterArguments(CommandLine& line);  // which then writes to this object
  SegmenterArguments(const SegmenterArguments&) = delete;
  SegmenterOptions options() const;  // once the line is parsed

 private:
  SegmenterOptions options_;
  std::string augmentation_ = "none";
  std::array<int, 2> tile_{};
};

}  // namespace regolith
