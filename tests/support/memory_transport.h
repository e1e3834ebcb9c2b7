// Transport in memory, for tests and simulation: endpoints are names, delivery is a function of a Clock and a seed. Frames of
// one direction of one connection arrive in order unless a fault says otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/wire/transport.h"

namespace millrace::testing {

// What happens to each frame that is sent from now on. Probabilities are per million.
struct Faults {
  std::uint32_t drop_ppm = 0;
  std::uint32_t duplicate_ppm = 0;
  Micros delay_min{0}, delay_max{0};  // uniform; frames with different delays may overtake each other
};

// Thread-safe. Transports and sockets may outlive it only unused.
class MemoryNetwork {
 public:
  MemoryNetwork(const Clock& clock, Random& random);
  ~MemoryNetwork();

  // `host` names the side for Partition. Transport::Wait wakes up for frames, Wake and extra_fd; with `blocking` false it
  // returns at once (a simulation moves its own clock).
  std::unique_ptr<wire::Transport> MakeTransport(const std::string& host, bool blocking = true);

  void SetFaults(const Faults& faults);
  // Between hosts a and b nothing arrives any more, in both directions, until Heal. What was under way is lost.
  void Partition(const std::string& a, const std::string& b);
  void Heal();
  // Ends every connection to `endpoint`, as a restart of its server would: peers get new ids with their next frame.
  void Disconnect(const std::string& endpoint);

  struct Counts {
    std::uint64_t sent = 0, delivered = 0, dropped = 0, duplicated = 0;
  };
  Counts counts() const;

  class State;  // of the implementation

 private:
  std::shared_ptr<State> state_;
};

}  // namespace millrace::testing
