// The inproc:// endpoints of a process: the name of one thread's socket, found by the sockets of others.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/wire/stream_socket.h"

namespace millrace::wire {

// Where connections for one name arrive. Thread-safe.
class Mailbox {
 public:
  explicit Mailbox(Fd bell) : bell_(std::move(bell)) {}
  void Put(Fd connection);
  std::optional<Fd> Take();                 // without waiting
  int bell() const { return bell_.get(); }  // readable while something may wait

 private:
  Fd bell_;
  std::mutex mutex_;
  std::vector<Fd> waiting_;
};

// Thread-safe.
class LocalNames {
 public:
  // The name is taken for as long as the mailbox lives. kConflict: it is.
  Result<std::shared_ptr<Mailbox>> Claim(const std::string& name);
  // A connection to the owner of the name. Empty: nobody has it, or the process is out of descriptors.
  Fd Dial(const std::string& name);

 private:
  std::mutex mutex_;
  std::map<std::string, std::weak_ptr<Mailbox>> names_;
};

}  // namespace millrace::wire
