// A value that must not be seen: it has no formatter, no stream operator, no conversion and no ordering, so that it cannot be
// printed or logged by accident. Reveal() is the one way out; grep for it.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

namespace millrace {

// Overwrites memory in a way that the compiler may not remove. Thread-safe.
void WipeMemory(void* bytes, std::size_t size) noexcept;

// Equal or not, in a time that depends on the lengths only. Thread-safe.
bool ConstantTimeEqual(std::string_view a, std::string_view b) noexcept;

// Owns secret bytes and overwrites them when it dies, is assigned to or is moved from. Not thread-safe for writers.
class Secret {
 public:
  Secret() = default;
  // Takes the value over; the caller's string is wiped and empty afterwards. (Copies that the caller made are the caller's.)
  explicit Secret(std::string&& value);
  static Secret CopyOf(std::string_view value);
  Secret(const Secret& other);
  Secret(Secret&& other) noexcept;
  Secret& operator=(const Secret& other);
  Secret& operator=(Secret&& other) noexcept;
  ~Secret();

  // The plain value, valid while this object is. Hand it to the library that needs it and to nothing else.
  const std::string& Reveal() const { return value_; }
  bool empty() const { return value_.empty(); }

  // Compares in constant time (for equal lengths).
  friend bool operator==(const Secret& a, const Secret& b) noexcept { return ConstantTimeEqual(a.value_, b.value_); }

 private:
  void Wipe() noexcept;
  std::string value_;
};

// Deleted with a name, so that the compiler's message says why.
std::ostream& operator<<(std::ostream&, const Secret&) = delete;

}  // namespace millrace

// No formatter: fmt refuses to compile `{}` of a Secret.
template <class Char>
struct fmt::formatter<millrace::Secret, Char> {
  formatter() = delete;
};
