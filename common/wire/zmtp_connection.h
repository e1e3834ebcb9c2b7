// One connection of a ZMTP transport: a stream socket, its session, and what waits to be written.
#pragma once

#include <cstdint>
#include <string>

#include "common/wire/stream_socket.h"
#include "common/wire/transport.h"
#include "common/wire/zmtp_loop.h"
#include "common/wire/zmtp_outbox.h"
#include "common/wire/zmtp_session.h"

namespace millrace::wire::zmtp {

class Connection final : public Pollable {
 public:
  class Owner {
   public:
    virtual bool OnReady(Connection& connection) = 0;  // the handshake is done; false: close it
    virtual void OnMessage(Connection& connection, std::string frame) = 0;
    virtual void OnClosed(Connection& connection) = 0;  // the last call: bury it
    virtual bool WantsInput() const = 0;                // false: let it wait in the kernel
    virtual const std::string& endpoint() const = 0;    // for the log

   protected:
    ~Owner() = default;
  };
  enum class Put : std::uint8_t { kTaken, kFull, kBroken };

  // `loop` and `owner` outlive its use; `owner` may be gone when it is destroyed. `pending`: the kernel still connects.
  Connection(Loop& loop, Owner& owner, SocketType self, Fd fd, bool pending);
  ~Connection() override;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  bool Start();  // once; false: it cannot be watched, and is of no use
  // REQUIRES: ready. It leaves with the next Flush of the loop, or at once when much waits. kFull: the high-water mark.
  Put Send(std::string frame);
  void Flush();   // writes what the socket takes now
  void Resume();  // takes up what one turn was not enough for
  void Tick(MonoTime now);

  bool ready() const { return state_ == State::kReady; }
  bool unsent() const { return state_ == State::kReady && !outbox_.empty(); }
  int fd() const { return fd_.get(); }
  const std::string& identity() const { return session_.identity(); }

  PeerId peer;  // the owner's name for it

 private:
  enum class State : std::uint8_t { kConnecting, kHandshake, kReady, kClosed };

  void OnEvents(bool readable, bool writable) override;
  void FinishConnecting();
  void Read();
  int Take(std::string_view bytes);  // returns the number of messages
  void Answer(std::string control);
  void WatchWrites(bool writes);
  void Close(std::string_view problem);  // empty: nothing to complain about

  Loop& loop_;
  Owner& owner_;
  Fd fd_;
  State state_;
  bool corked_ = false, watches_writes_ = false;
  Session session_;
  Outbox outbox_;
  std::string carry_;  // what was read beyond one turn's messages
};

}  // namespace millrace::wire::zmtp
