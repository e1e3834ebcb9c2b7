#include "common/wire/local_names.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <utility>

namespace millrace::wire {

void Mailbox::Put(Fd connection) {
  const std::scoped_lock lock(mutex_);
  waiting_.push_back(std::move(connection));
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto ignored = ::write(bell_.get(), &one, sizeof one);
}

std::optional<Fd> Mailbox::Take() {
  const std::scoped_lock lock(mutex_);
  if (waiting_.empty()) {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto ignored = ::read(bell_.get(), &count, sizeof count);
    return std::nullopt;
  }
  Fd first = std::move(waiting_.front());
  waiting_.erase(waiting_.begin());
  return first;
}

Result<std::shared_ptr<Mailbox>> LocalNames::Claim(const std::string& name) {
  const std::scoped_lock lock(mutex_);
  if (!names_[name].expired()) return Fail(ErrorCode::kConflict, "bind 'inproc://{}': the name is taken", name);
  Fd bell(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!bell) return Fail(ErrorCode::kUnavailable, "bind 'inproc://{}': out of descriptors", name);
  auto mailbox = std::make_shared<Mailbox>(std::move(bell));
  names_[name] = mailbox;
  return mailbox;
}

Fd LocalNames::Dial(const std::string& name) {
  std::shared_ptr<Mailbox> mailbox;
  {
    const std::scoped_lock lock(mutex_);
    if (const auto it = names_.find(name); it != names_.end()) mailbox = it->second.lock();
  }
  if (!mailbox) return Fd();
  auto pair = SocketPair();
  if (!pair) return Fd();
  mailbox->Put(std::move(pair->first));
  return std::move(pair->second);
}

}  // namespace millrace::wire
