#include "common/base/secret.h"

#include <string.h>  // explicit_bzero is not in <cstring>

namespace millrace {

void WipeMemory(void* bytes, std::size_t size) noexcept {
  if (size != 0) explicit_bzero(bytes, size);
}

bool ConstantTimeEqual(std::string_view a, std::string_view b) noexcept {
  if (a.size() != b.size()) return false;
  volatile unsigned char difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    difference = static_cast<unsigned char>(difference | (static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i])));
  return difference == 0;
}

Secret::Secret(std::string&& value) : value_(value) {  // a copy: a short string's move would leave bytes behind anyway
  WipeMemory(value.data(), value.size());
  value.clear();
}

Secret Secret::CopyOf(std::string_view value) { return Secret(std::string(value)); }

Secret::Secret(const Secret& other) = default;

Secret::Secret(Secret&& other) noexcept : value_(std::move(other.value_)) { other.Wipe(); }

Secret& Secret::operator=(const Secret& other) {
  if (this != &other) {
    Wipe();
    value_ = other.value_;
  }
  return *this;
}

Secret& Secret::operator=(Secret&& other) noexcept {
  if (this != &other) {
    Wipe();
    value_.swap(other.value_);
  }
  return *this;
}

Secret::~Secret() { Wipe(); }

void Secret::Wipe() noexcept {
  // Up to the capacity: a moved-from short string keeps its bytes inside the object, beyond its size of 0.
  value_.resize(value_.capacity());
  WipeMemory(value_.data(), value_.size());
  value_.clear();
}

}  // namespace millrace
