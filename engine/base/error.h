// The errors of the project: one type per kind, all derived from Error. A message names the file, key, tensor or node,
// says what was expected, and what to do.
#pragma once

#include "kernels/core/error.h"

namespace regolith {

struct ConfigError : Error {  // YAML or command line: the message starts with file:line:column
  using Error::Error;
};
struct DataError : Error {  // images, masks, arrays: the message names the file and the array
  using Error::Error;
};
struct GraphError : Error {  // a network that cannot be built: the message names the node
  using Error::Error;
};
struct CheckpointError : Error {  // weights and training state on disk
  using Error::Error;
};
struct IoError : Error {  // reading or writing any other file
  using Error::Error;
};
struct CommError : Error {  // another rank, whose name the message starts with
  using Error::Error;
};
struct TrainError : Error {  // training that cannot go on: non-finite gradients, a loss that excludes every class
  using Error::Error;
};

}  // namespace regolith
