// TensorBoard's event files, apart from the rest of app/: only programs that train need protobuf.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "app/listener.h"

namespace regolith {

// Scalars of every epoch (the step is the epoch) and, at the end, panels.png, to events.out.tfevents.* in the run's
// folder. A run that goes on begins a further file; TensorBoard reads all of them, the later one where steps meet.
std::unique_ptr<Listener> make_tensorboard_events();

// A record of a TFRecord file: its size and its bytes, each with its checksum.
std::string tfrecord(std::string_view bytes);
// CRC-32C (Castagnoli; RFC 3720, appendix B.4).
uint32_t crc32c(std::string_view bytes);

}  // namespace regolith
