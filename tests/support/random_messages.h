// Messages of every kind with random, valid contents: for codec tests and the fuzz corpus. A function of `random` alone.
#pragma once

#include <string>
#include <vector>

#include "common/base/random.h"
#include "common/wire/messages.h"

namespace millrace::testing {

class RandomMessages {
 public:
  explicit RandomMessages(Random& random) : random_(random) {}
  // One of each kind, in the order of wire::Message.
  std::vector<wire::Message> All();
  JobOptions MakeOptions();
  JobSpec MakeJobSpec();
  RunSpec MakeRunSpec();
  QueueSettings MakeSettings();
  AttemptReport MakeReport();

 private:
  std::uint64_t Number();  // of any magnitude
  std::int64_t Signed();
  std::string Text(std::size_t bytes_max = 24);
  std::string Bytes(std::size_t bytes_max);
  Uuid MakeUuid();
  WallTime Time();
  bool Flip() { return random_.Below(2) == 1; }
  template <class T, class MakeFn>
  std::vector<T> List(MakeFn make) {
    std::vector<T> items(random_.Below(5));
    for (T& item : items) item = make();
    return items;
  }
  Random& random_;
};

}  // namespace millrace::testing
