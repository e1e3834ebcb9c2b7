#include "common/wire/zmtp_outbox.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <utility>

namespace millrace::wire::zmtp {
namespace {

constexpr int kPiecesMax = 128;         // of one write
constexpr std::size_t kItemsKept = 64;  // of memory for items, while there are none

// One write's list of pieces, without the bytes that are written already.
class Pieces {
 public:
  explicit Pieces(std::size_t skip) : skip_(skip) {}
  bool Full() const { return count_ + 2 > kPiecesMax; }
  void Add(const char* data, std::size_t size) {
    const std::size_t cut = std::min(skip_, size);
    skip_ -= cut;
    if (cut == size) return;
    pieces_[count_++] = {.iov_base = const_cast<char*>(data) + cut, .iov_len = size - cut};
    bytes_ += size - cut;
  }
  std::size_t bytes() const { return bytes_; }
  ssize_t WriteTo(int fd) {
    msghdr message{};
    message.msg_iov = pieces_;
    message.msg_iovlen = static_cast<std::size_t>(count_);
    return ::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  }

 private:
  iovec pieces_[kPiecesMax];
  int count_ = 0;
  std::size_t skip_, bytes_ = 0;
};

}  // namespace

void Outbox::Add(Item item) {
  bytes_ += item.size();
  items_.push_back(std::move(item));
}

void Outbox::AddMessage(std::string body) {
  const Header header = MessageHeader(body.size());
  ++messages_;
  Add({.body = std::move(body), .header = header});
}

void Outbox::AddControl(std::string bytes) {
  control_bytes_ += bytes.size();
  Add({.body = std::move(bytes), .header = {.bytes = {}, .size = 0}});
}

Outbox::Written Outbox::WriteTo(int fd) {
  while (!empty()) {
    Pieces pieces(offset_);
    for (std::size_t i = head_; i < items_.size() && !pieces.Full(); ++i) {
      pieces.Add(items_[i].header.bytes.data(), items_[i].header.size);
      pieces.Add(items_[i].body.data(), items_[i].body.size());
    }
    const ssize_t written = pieces.WriteTo(fd);
    if (written < 0) {
      if (errno == EINTR) continue;
      return errno == EAGAIN || errno == EWOULDBLOCK ? Written::kSome : Written::kBroken;
    }
    Drop(static_cast<std::size_t>(written));
    if (static_cast<std::size_t>(written) < pieces.bytes()) return Written::kSome;
  }
  return Written::kAll;
}

void Outbox::Drop(std::size_t written) {
  bytes_ -= written;
  written += offset_;
  while (head_ < items_.size() && written >= items_[head_].size()) {
    Item& item = items_[head_++];
    written -= item.size();
    if (item.header.size > 0) {
      --messages_;
    } else {
      control_bytes_ -= item.body.size();
    }
    item.body = {};
  }
  offset_ = written;
  if (empty()) {
    items_.clear();
    if (items_.capacity() > kItemsKept) items_.shrink_to_fit();
    head_ = 0;
  } else if (head_ > items_.size() / 2) {
    items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(head_));
    head_ = 0;
  }
}

}  // namespace millrace::wire::zmtp
