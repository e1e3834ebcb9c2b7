// A type per identity. Ids of things that are made often are UUIDv7 (RFC 9562): sortable by the time they were made.
#pragma once

#include <array>
#include <bit>
#include <compare>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/base/result.h"

namespace millrace {

// An integer identity that does not convert back by accident.
template <class Tag, class Rep>
class Id {
 public:
  constexpr Id() = default;
  constexpr explicit Id(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  friend constexpr auto operator<=>(Id, Id) = default;

 private:
  Rep value_{};
};

using OrgId = Id<struct OrgIdTag, std::int64_t>;       // a tenant; 1 is the default org
using ShardId = Id<struct ShardIdTag, std::uint16_t>;  // 0 .. shard count - 1
using Epoch = Id<struct EpochTag, std::uint32_t>;      // how often a shard changed owner; 0 = never owned
inline constexpr OrgId kDefaultOrg{1};

// The fence of an attempt: strictly increasing per job, across owners and an emptied queue. 0 = none.
class Token {
 public:
  constexpr Token() = default;
  constexpr explicit Token(std::uint64_t value) : value_(value) {}
  static constexpr Token Make(Epoch epoch, std::uint32_t counter) {
    return Token{(std::uint64_t{epoch.value()} << 32) | counter};
  }
  constexpr std::uint64_t value() const { return value_; }
  constexpr Epoch epoch() const { return Epoch{static_cast<std::uint32_t>(value_ >> 32)}; }
  friend constexpr auto operator<=>(Token, Token) = default;

 private:
  std::uint64_t value_ = 0;
};

// 128 bits, big-endian, ordered as bytes.
struct Uuid {
  std::array<std::uint8_t, 16> bytes{};
  std::string ToString() const;                         // 8-4-4-4-12, lower case
  static Result<Uuid> Parse(std::string_view text);     // exactly that form, any case; kInvalidArgument otherwise
  static Result<Uuid> FromBytes(std::string_view raw);  // exactly 16 bytes
  std::string_view AsBytes() const { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
  bool IsNil() const { return *this == Uuid{}; }
  // The two halves, in the machine's byte order: for equality and hashing only.
  std::array<std::uint64_t, 2> Halves() const { return std::bit_cast<std::array<std::uint64_t, 2>>(bytes); }
  friend auto operator<=>(const Uuid&, const Uuid&) = default;
  friend bool operator==(const Uuid& a, const Uuid& b) { return a.Halves() == b.Halves(); }
};

template <class Tag>
struct UuidId {
  Uuid uuid;
  std::string ToString() const { return uuid.ToString(); }
  std::string_view AsBytes() const { return uuid.AsBytes(); }
  bool IsNil() const { return uuid.IsNil(); }
  static Result<UuidId> Parse(std::string_view text) {
    auto u = Uuid::Parse(text);
    if (!u) return std::unexpected(std::move(u.error()));
    return UuidId{*u};
  }
  friend auto operator<=>(const UuidId&, const UuidId&) = default;
};
using JobId = UuidId<struct JobIdTag>;
using RunId = UuidId<struct RunIdTag>;
using WorkerId = UuidId<struct WorkerIdTag>;  // one per worker process start
using OwnerId = UuidId<struct OwnerIdTag>;    // one per broker process start

// UUIDv7, strictly increasing within one generator even inside a millisecond. Thread-safe.
class IdGenerator {
 public:
  IdGenerator(const Clock& clock, Random& random) : clock_(clock), random_(random) {}
  Uuid Next();
  template <class T>
  T Next() {
    return T{Next()};
  }

 private:
  const Clock& clock_;
  Random& random_;
  std::mutex mutex_;
  std::int64_t last_ms_ = 0;
  std::uint32_t sequence_ = 0;  // 26 bits used: rand_a and the top of rand_b
};

WallTime TimeOf(const Uuid& v7);  // the millisecond inside a UUIDv7

// Which shard an org's jobs live in. Stable for ever: it is stored.
ShardId ShardOf(OrgId org, std::uint16_t shard_count);

}  // namespace millrace

template <class Tag, class Rep>
struct std::hash<millrace::Id<Tag, Rep>> {
  std::size_t operator()(millrace::Id<Tag, Rep> id) const noexcept { return std::hash<Rep>{}(id.value()); }
};
template <>
struct std::hash<millrace::Uuid> {
  std::size_t operator()(const millrace::Uuid& u) const noexcept {
    const auto [high, low] = u.Halves();
    const std::uint64_t mixed = (high ^ (low * 0x9e3779b97f4a7c15ULL)) * 0xbf58476d1ce4e5b9ULL;
    return static_cast<std::size_t>(mixed ^ (mixed >> 32));
  }
};
template <class Tag>
struct std::hash<millrace::UuidId<Tag>> {
  std::size_t operator()(const millrace::UuidId<Tag>& id) const noexcept { return std::hash<millrace::Uuid>{}(id.uuid); }
};
