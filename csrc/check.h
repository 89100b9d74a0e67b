// Errors that a caller can trigger: one line that says what, got, wanted, what to do.
//
// torch turns any C++ exception into a RuntimeError; model/ops/extension.py knows ours by the prefix and raises the
// ValueError that it is.
#pragma once

#include <sstream>
#include <stdexcept>

namespace maskray {

/// Throw std::invalid_argument with the prefix and the parts joined, unless ok.
template <typename... Parts>
inline void check(bool ok, const Parts&... parts) {
  if (!ok) {
    std::ostringstream message;
    message << "maskray: ";
    (message << ... << parts);
    throw std::invalid_argument(message.str());
  }
}

}  // namespace maskray
