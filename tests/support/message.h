// What a call throws: the text of its Error, or "no error".
#pragma once

#include <functional>
#include <string>

#include "engine/base/error.h"

namespace regolith::testing {

inline std::string message(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace regolith::testing
