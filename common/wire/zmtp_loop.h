// Where the thread of a ZMTP transport waits: epoll, timers, and what is to be written before it sleeps. One thread owns it;
// Wake is the exception.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/base/result.h"
#include "common/wire/stream_socket.h"
#include "common/wire/zmtp_session.h"

namespace millrace::wire::zmtp {

class Connection;

// Something with a descriptor that epoll watches.
class Pollable {
 public:
  virtual ~Pollable() = default;
  virtual void OnEvents(bool readable, bool writable) = 0;
};

// One socket of the transport.
class Member {
 public:
  virtual ~Member() = default;
  virtual bool HasInput() const = 0;                          // a message can be received
  virtual void Sweep(MonoTime now) = 0;                       // every now and then: heartbeats, timeouts
  virtual std::optional<MonoTime> Due() const { return {}; }  // when OnDue wants to be called
  virtual void OnDue(MonoTime /*now*/) {}
};

class Loop {
 public:
  static Result<std::shared_ptr<Loop>> Make(const Times& times);
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // As Transport::Wait, Wake and Flush.
  void Wait(Micros timeout, int extra_fd);
  void Wake();
  void Flush();
  // Takes up what is there, without waiting.
  void Poll();

  // False: the kernel refuses to watch one more.
  bool Watch(int fd, Pollable* who);
  void WatchWrites(int fd, bool writes, Pollable* who);
  void WatchReads(int fd, bool reads, Pollable* who);
  void Unwatch(int fd, const Pollable* who);  // no event of it is delivered any more
  void Join(Member* member) { members_.push_back(member); }
  void Leave(Member* member) { std::erase(members_, member); }

  void FlushLater(Connection* connection) { corked_.push_back(connection); }
  void ResumeLater(Connection* connection) { resume_.push_back(connection); }  // in the next turn, which does not wait
  void Forget(const Connection* connection);                                   // for both
  void Bury(std::unique_ptr<Connection> closed);                               // destroys it when nobody is inside of it
  void Stir() { stirred_ = true; }                                             // the wait at hand ends
  void Complain(std::string_view endpoint, int fd, std::string_view problem);  // logs it, at most once a second

  std::span<char> chunk() { return {chunk_.get(), kChunkBytes}; }  // to read into; the next reader overwrites it
  MonoTime now() const { return now_; }                            // of this turn
  MonoTime Now() { return now_ = clock_.Now(); }
  MonoTime looked() const { return looked_; }   // when the descriptors were looked at last
  std::uint64_t turn() const { return turn_; }  // counts looks at the descriptors
  const Times& times() const { return times_; }
  Random& random() { return random_; }

 private:
  static constexpr std::size_t kChunkBytes = 64u << 10;

  explicit Loop(const Times& times);
  bool HasInput() const;
  MonoTime NextTimer() const;
  void Turn(MonoTime until);
  int WaitForEvents(MonoTime until);
  void HandleEvents();
  void Resume();
  void RunTimers();
  void Change(int operation, int fd, std::uint32_t events, void* who);

  const SystemClock clock_;
  SystemRandom random_;
  const Times times_;
  Fd epoll_, wake_;
  int extra_fd_ = -1;
  struct Events;
  std::unique_ptr<Events> events_;
  std::unique_ptr<char[]> chunk_;
  std::vector<Member*> members_;
  std::vector<Connection*> corked_, flushing_, resume_, resuming_;
  std::vector<std::unique_ptr<Connection>> buried_;
  bool stirred_ = false;
  int crowded_ = 0;  // turns in a row that had as many events as they take
  std::uint64_t turn_ = 1;
  MonoTime now_{}, looked_{}, next_sweep_{}, next_complaint_{};
  std::uint64_t complaints_held_ = 0;
};

}  // namespace millrace::wire::zmtp
