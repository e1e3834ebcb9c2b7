// What waits to be written to one connection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/wire/zmtp_codec.h"

namespace millrace::wire::zmtp {

class Outbox {
 public:
  enum class Written : std::uint8_t { kAll, kSome, kBroken };  // kSome: the socket takes no more now

  void AddMessage(std::string body);   // with its header; the body is not copied
  void AddControl(std::string bytes);  // whole frames
  Written WriteTo(int fd);             // without waiting, many messages in one system call

  bool empty() const { return head_ == items_.size(); }
  std::size_t messages() const { return messages_; }
  std::size_t bytes() const { return bytes_; }                  // of messages and control, with headers
  std::size_t control_bytes() const { return control_bytes_; }  // of them

 private:
  struct Item {
    std::string body;
    Header header;  // of no bytes: control
    std::size_t size() const { return header.size + body.size(); }
  };
  void Add(Item item);
  void Drop(std::size_t written);

  std::vector<Item> items_;
  std::size_t head_ = 0;    // the first that is not written whole
  std::size_t offset_ = 0;  // bytes of it that are
  std::size_t messages_ = 0, bytes_ = 0, control_bytes_ = 0;
};

}  // namespace millrace::wire::zmtp
