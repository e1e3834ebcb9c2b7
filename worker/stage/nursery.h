// The nursery: a process that is warm and makes children of its parent, each of which starts where the nursery stands. They
// share its pages until they write to them, so a child costs a fork and not a start. Not thread-safe: the main thread's.
#pragma once

#include <sys/types.h>

#include <functional>

#include "common/base/result.h"

namespace millrace {

class Nursery {
 public:
  // The socket is stdin (common/model/nursery_wire.h); it is moved away from there. kUnsupported: stdin is no such socket, or
  // the kernel does not say where the C library keeps the thread id (a child's would be wrong).
  static Result<Nursery> Open();
  Nursery(Nursery&& other) noexcept;
  Nursery& operator=(Nursery&&) = delete;
  ~Nursery();

  // Answers every ask that waits; never waits itself. `child` runs in each child, with the descriptors of the ask as 0, 1, 2
  // and 3, no others, and no copy of the nursery's socket; it must not return. A child dies with the worker's thread that
  // started the nursery. kUnsupported: this process has more than one thread, of which a child would get only this one.
  // kUnavailable: the worker has closed the socket. kCorrupt: an ask that is none.
  Result<void> AnswerWaiting(const std::function<void()>& child);
  // Tells the worker that the nursery is warm.
  Result<void> SayWarm();
  // AnswerWaiting for ever: until an error.
  Result<void> AnswerAll(const std::function<void()>& child);

 private:
  explicit Nursery(int socket, pid_t* tid_address, pid_t worker)
      : socket_(socket), tid_address_(tid_address), worker_(worker) {}
  int socket_;
  pid_t* tid_address_;  // where the C library keeps this thread's id
  pid_t worker_;
};

}  // namespace millrace
