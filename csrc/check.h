// Errors that a caller can trigger: one line that says what, got, wanted, what to do. Python sees a ValueError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace maskray {

/// Raise std::invalid_argument (ValueError in Python) with the parts joined, unless ok.
template <typename... Parts>
inline void check(bool ok, const Parts&... parts) {
  if (!ok) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::invalid_argument(message.str());
  }
}

}  // namespace maskray
