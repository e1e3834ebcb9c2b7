// A doubly linked list through its elements: nothing is allocated, and an element leaves it without being looked for. The
// elements are somebody else's, and stay where they are while they are in it. Not thread-safe.
#pragma once

#include <utility>

namespace millrace {

template <class T>
struct ListLinks {
  T* before = nullptr;
  T* after = nullptr;
};

template <class T, ListLinks<T> T::* links>
class LinkedList {
 public:
  bool empty() const { return front_ == nullptr; }  // NOLINT(readability-identifier-naming): as a container's
  T& Front() const { return *front_; }              // REQUIRES: not empty
  // REQUIRES: `item` is in no list of these links.
  void PushBack(T& item) {
    (item.*links) = {.before = back_, .after = nullptr};
    (back_ == nullptr ? front_ : (back_->*links).after) = &item;
    back_ = &item;
  }
  // REQUIRES: `item` is in this list.
  void Erase(T& item) {
    const ListLinks<T> its = std::exchange(item.*links, {});
    (its.before == nullptr ? front_ : (its.before->*links).after) = its.after;
    (its.after == nullptr ? back_ : (its.after->*links).before) = its.before;
  }

 private:
  T* front_ = nullptr;
  T* back_ = nullptr;
};

}  // namespace millrace
