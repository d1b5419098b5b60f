// What a call throws: the text of its Error, or "no error". An error of another kind than the one named passes through.
#pragma once

#include <functional>
#include <string>

#include "engine/base/error.h"

namespace regolith::testing {

template <class E = Error>
std::string message(const std::function<void()>& f) {
  try {
    f();
  } catch (const E& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace regolith::testing
