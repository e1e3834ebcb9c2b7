// Words for people, on stderr, of programs whose data goes to stdout. Thread-safe.
#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace millrace {

// Never fails: words that cannot be written (a full disk, a reader that has gone) are lost, and the work goes on.
void TellText(std::string_view text);

template <class... Args>
void Tell(fmt::format_string<Args...> format, Args&&... args) {
  TellText(fmt::format(format, std::forward<Args>(args)...));
}

// Call first in main, before anything is opened: no file gets the number of a stdin, stdout or stderr that was closed, so
// nothing that is said there ends up in it. Reading from or writing to what was closed remains an error, on stderr it is none.
void HoldStandardFiles();

}  // namespace millrace
