#include "common/base/tell.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace millrace {

void TellText(std::string_view text) {  // fmt::print throws where this only returns less
  (void)std::fwrite(text.data(), 1, text.size(), stderr);
  (void)std::fflush(stderr);
}

void HoldStandardFiles() {
  constexpr int kModes[] = {O_WRONLY, O_RDONLY, O_RDWR};  // the wrong ones: data that nobody takes is no success
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd)
    if (::fcntl(fd, F_GETFD) < 0 && errno == EBADF) (void)::open("/dev/null", kModes[fd]);  // gets the lowest free number
}

}  // namespace millrace
