#include "common/wire/zmtp_codec.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace millrace::wire::zmtp {
namespace {

constexpr std::uint8_t kMore = 0x01, kLong = 0x02, kCommand = 0x04;
constexpr std::size_t kSignatureBytes = 10, kMechanismAt = 12, kMechanismBytes = 20;
constexpr std::size_t kShortBodyMax = 255;

void AppendBigEndian(std::string& out, std::uint64_t value, int bytes) {
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) out.push_back(static_cast<char>(value >> shift));
}

std::uint64_t BigEndian(std::string_view bytes) {
  std::uint64_t value = 0;
  for (const char c : bytes) value = value << 8 | static_cast<unsigned char>(c);
  return value;
}

std::string EncodeCommand(std::string_view name, std::string_view data) {
  const std::size_t size = 1 + name.size() + data.size();
  std::string out;
  out.reserve(kHeaderBytesMax + size);
  if (size <= kShortBodyMax) {
    out.push_back(static_cast<char>(kCommand));
    out.push_back(static_cast<char>(size));
  } else {
    out.push_back(static_cast<char>(kCommand | kLong));
    AppendBigEndian(out, size, 8);
  }
  out.push_back(static_cast<char>(name.size()));
  out += name;
  out += data;
  return out;
}

void AppendProperty(std::string& out, std::string_view name, std::string_view value) {
  out.push_back(static_cast<char>(name.size()));
  out += name;
  AppendBigEndian(out, value.size(), 4);
  out += value;
}

bool SameName(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  return std::ranges::equal(a, b, {}, lower, lower);
}

// The front of `from`, or nothing if it is shorter.
bool Cut(std::string_view& from, std::size_t bytes, std::string_view& out) {
  if (from.size() < bytes) return false;
  out = from.substr(0, bytes);
  from.remove_prefix(bytes);
  return true;
}

std::string Printable(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c < ' ' || c > '~') c = '?';
  return out;
}

}  // namespace

std::string EncodeGreeting(std::string_view mechanism) {
  std::string out(kGreetingBytes, '\0');
  out[0] = '\xff';
  out[8] = '\x01';  // older peers read eight bytes of length here
  out[9] = '\x7f';
  out[10] = 3;
  out[11] = 1;
  out.replace(kMechanismAt, std::min(mechanism.size(), kMechanismBytes), mechanism.substr(0, kMechanismBytes));
  return out;
}

Header MessageHeader(std::size_t body_bytes) {
  if (body_bytes <= kShortBodyMax) return {.bytes = {0, static_cast<char>(body_bytes)}, .size = 2};
  Header header{.bytes = {static_cast<char>(kLong)}, .size = kHeaderBytesMax};
  for (std::size_t i = 0; i < 8; ++i) header.bytes[1 + i] = static_cast<char>(std::uint64_t{body_bytes} >> (8 * (7 - i)));
  return header;
}

std::string EncodeReady(std::string_view socket_type) {
  std::string data;
  AppendProperty(data, "Socket-Type", socket_type);
  AppendProperty(data, "Identity", "");
  return EncodeCommand("READY", data);
}

std::string EncodeError(std::string_view reason) {
  reason = reason.substr(0, kErrorReasonBytesMax);
  return EncodeCommand("ERROR", std::string(1, static_cast<char>(reason.size())).append(reason));
}

std::string EncodePing(Millis ttl) {
  std::string data;
  AppendBigEndian(data, static_cast<std::uint64_t>(std::clamp<Millis::rep>(ttl.count() / 100, 0, 65'535)), 2);
  return EncodeCommand("PING", data);
}

std::string EncodePong(std::string_view context) { return EncodeCommand("PONG", context); }

Result<Command> ParseCommand(std::string_view body) {
  std::string_view size, name;
  if (!Cut(body, 1, size) || !Cut(body, BigEndian(size), name) || name.empty())
    return Fail(ErrorCode::kCorrupt, "a command without a name");
  return Command{.name = name, .data = body};
}

Result<Ready> ParseReady(std::string_view data) {
  Ready ready;
  while (!data.empty()) {
    std::string_view size, name, value;
    if (!Cut(data, 1, size) || !Cut(data, BigEndian(size), name) || name.empty() || !Cut(data, 4, size) ||
        !Cut(data, BigEndian(size), value))
      return Fail(ErrorCode::kCorrupt, "malformed properties");
    if (SameName(name, "Socket-Type")) ready.socket_type = value;
    if (SameName(name, "Identity")) ready.identity = value;
  }
  if (ready.identity.size() > kIdentityBytesMax)
    return Fail(ErrorCode::kCorrupt, "an identity of {} bytes, limit {}", ready.identity.size(), kIdentityBytesMax);
  return ready;
}

Result<Ping> ParsePing(std::string_view data) {
  std::string_view ttl;
  if (!Cut(data, 2, ttl) || data.size() > kPingContextBytesMax) return Fail(ErrorCode::kCorrupt, "malformed PING");
  return Ping{.ttl = Millis{static_cast<Millis::rep>(BigEndian(ttl)) * 100}, .context = data};
}

std::string ParseErrorReason(std::string_view data) {
  std::string_view size, reason;
  if (!Cut(data, 1, size) || !Cut(data, BigEndian(size), reason)) return {};
  return Printable(reason);
}

Decoder::Item Decoder::Break(std::string problem) {
  state_ = State::kBroken;
  problem_ = std::move(problem);
  body_ = {};
  return Item::kBroken;
}

Decoder::Item Decoder::Next(std::string_view& in) {
  if (state_ == State::kGreeting) return TakeGreeting(in);
  while (state_ != State::kBroken) {
    if (state_ == State::kHeader && !TakeHeader(in)) break;
    if (const Item item = TakeBytes(in); item != Item::kNone || state_ == State::kBody) return item;
  }
  return state_ == State::kBroken ? Item::kBroken : Item::kNone;
}

// An older peer sends less than 64 bytes and waits: what it is shows in the first eleven.
Decoder::Item Decoder::TakeGreeting(std::string_view& in) {
  const std::size_t n = std::min(in.size(), kGreetingBytes - head_bytes_);
  std::memcpy(head_.data() + head_bytes_, in.data(), n);
  head_bytes_ += n;
  in.remove_prefix(n);
  if (head_bytes_ == 0) return Item::kNone;
  if (head_[0] != '\xff') return Break("it speaks no ZMTP, or ZMTP 1.0; 3.0 or newer is needed (ZeroMQ 4)");
  if (head_bytes_ < kSignatureBytes) return Item::kNone;
  if ((head_[kSignatureBytes - 1] & 1) == 0) return Break("it speaks ZMTP 1.0; 3.0 or newer is needed (ZeroMQ 4)");
  if (head_bytes_ == kSignatureBytes) return Item::kNone;
  const int major = static_cast<unsigned char>(head_[kSignatureBytes]);
  if (major < 3) return Break("it speaks ZMTP 2.0; 3.0 or newer is needed (ZeroMQ 4)");
  if (head_bytes_ < kGreetingBytes) return Item::kNone;
  greeting_.minor = major > 3 ? 1 : static_cast<unsigned char>(head_[kSignatureBytes + 1]);
  const std::string_view mechanism(head_.data() + kMechanismAt, kMechanismBytes);
  greeting_.mechanism = Printable(mechanism.substr(0, std::min(mechanism.find('\0'), kMechanismBytes)));
  state_ = State::kHeader;
  head_bytes_ = 0;
  return Item::kGreeting;
}

bool Decoder::TakeHeader(std::string_view& in) {
  while (!in.empty()) {
    head_[head_bytes_++] = in.front();
    in.remove_prefix(1);
    const auto flags = static_cast<std::uint8_t>(head_[0]);
    const std::size_t size = (flags & kLong) != 0 ? kHeaderBytesMax : 2;
    if (head_bytes_ < size) continue;
    head_bytes_ = 0;
    flags_ = flags;
    return CheckHeader(BigEndian({head_.data() + 1, size - 1}));
  }
  return false;
}

// Before a byte of the body is kept.
bool Decoder::CheckHeader(std::uint64_t size) {
  const auto fail = [this](std::string problem) {
    Break(std::move(problem));
    return false;
  };
  if (flags_ > (kMore | kLong | kCommand)) return fail(fmt::format("a frame with flags {:#04x}", flags_));
  const bool command = (flags_ & kCommand) != 0, more = (flags_ & kMore) != 0;
  if (command && (more || more_)) return fail("a command in the middle of a message");
  if (!command && !messages_allowed_) return fail("a message before the handshake");
  const std::size_t limit = command ? kCommandBytesMax : message_bytes_max_;
  if (size > limit) return fail(fmt::format("a {} of {} bytes, limit {}", command ? "command" : "frame", size, limit));
  skip_ = !command && (more || more_);
  if (!command) more_ = more;
  left_ = static_cast<std::size_t>(size);
  body_.clear();
  state_ = State::kBody;
  return true;
}

Decoder::Item Decoder::TakeBytes(std::string_view& in) {
  const std::size_t n = std::min(in.size(), left_);
  if (!skip_) body_.append(in.substr(0, n));
  in.remove_prefix(n);
  left_ -= n;
  if (left_ > 0) return Item::kNone;
  state_ = State::kHeader;
  if (skip_) return Item::kNone;
  return (flags_ & kCommand) != 0 ? Item::kCommand : Item::kMessage;
}

}  // namespace millrace::wire::zmtp
