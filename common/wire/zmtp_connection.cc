#include "common/wire/zmtp_connection.h"

#include <sys/socket.h>

#include <cerrno>
#include <utility>

namespace millrace::wire::zmtp {
namespace {

constexpr std::size_t kHighWaterMessages = 1000;
constexpr std::size_t kHighWaterBytes = 32u << 20;
constexpr std::size_t kCorkBytes = 256u << 10;      // more than that is not held until the end of a turn
constexpr std::size_t kControlBytesMax = 4u << 10;  // a peer that asks and does not read gets no further answers
constexpr int kReadsPerTurn = 8;                    // of one peer, so that the others have their turn ...
constexpr int kMessagesPerTurn = 256;               // ... also when its messages are small
constexpr int kDrainReadsMax = 64;

}  // namespace

Connection::Connection(Loop& loop, Owner& owner, SocketType self, Fd fd, bool pending)
    : loop_(loop),
      owner_(owner),
      fd_(std::move(fd)),
      state_(pending ? State::kConnecting : State::kHandshake),
      session_(self, loop.times(), loop.Now()) {}

Connection::~Connection() {
  if (state_ == State::kClosed) return;
  loop_.Unwatch(fd_.get(), this);
  loop_.Forget(this);
  // Unread bytes would make the kernel answer with a reset, which may overtake what was written.
  if (state_ != State::kReady || ::shutdown(fd_.get(), SHUT_WR) != 0) return;
  for (int i = 0; i < kDrainReadsMax && ::recv(fd_.get(), loop_.chunk().data(), loop_.chunk().size(), MSG_DONTWAIT) > 0; ++i) {
  }
}

bool Connection::Start() {
  if (!loop_.Watch(fd_.get(), this)) return false;
  if (state_ == State::kConnecting) {
    WatchWrites(true);
  } else {
    Answer(Session::Greeting());
  }
  return true;
}

void Connection::OnEvents(bool readable, bool writable) {
  if (state_ == State::kConnecting) {
    if (writable) FinishConnecting();
    return;
  }
  if (writable) Flush();
  if (readable && state_ != State::kClosed) Read();
}

void Connection::FinishConnecting() {
  if (DialError(fd_.get()) != 0) {
    Close({});
    return;
  }
  state_ = State::kHandshake;
  WatchWrites(false);
  Answer(Session::Greeting());
}

// One turn's share: at most kReadsPerTurn reads, fewer when they contain kMessagesPerTurn.
void Connection::Read() {
  const std::span<char> chunk = loop_.chunk();
  int messages = 0;
  for (int reads = 0; reads < kReadsPerTurn && messages < kMessagesPerTurn && carry_.empty() && owner_.WantsInput(); ++reads) {
    const ssize_t n = ::recv(fd_.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (n > 0) {
      messages += Take({chunk.data(), static_cast<std::size_t>(n)});
      if (state_ == State::kClosed || static_cast<std::size_t>(n) < chunk.size()) return;
    } else {
      if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) Close({});
      return;
    }
  }
}

void Connection::Resume() {
  if (state_ == State::kClosed) return;
  if (!owner_.WantsInput()) {
    loop_.ResumeLater(this);
    return;
  }
  const std::string bytes = std::exchange(carry_, {});
  Take(bytes);
}

int Connection::Take(std::string_view bytes) {
  std::string control;
  int messages = 0;
  while (true) {
    switch (session_.Next(bytes, loop_.now(), control)) {
      case Session::Event::kNone:
        if (!control.empty()) Answer(std::move(control));
        return messages;
      case Session::Event::kMessage:
        owner_.OnMessage(*this, session_.TakeMessage());
        if (++messages < kMessagesPerTurn || bytes.empty()) break;
        carry_.assign(bytes);
        loop_.ResumeLater(this);
        if (!control.empty()) Answer(std::move(control));
        return messages;
      case Session::Event::kReady:
        state_ = State::kReady;
        if (owner_.OnReady(*this)) break;
        Close("its identity is in use");
        return messages;
      case Session::Event::kEnded:
        if (!control.empty()) Answer(std::move(control));
        if (state_ != State::kClosed) Close(session_.problem());
        return messages;
    }
  }
}

void Connection::Answer(std::string control) {
  if (outbox_.control_bytes() > 0 && outbox_.control_bytes() + control.size() > kControlBytesMax) return;
  outbox_.AddControl(std::move(control));
  Flush();
}

Connection::Put Connection::Send(std::string frame) {
  if (outbox_.messages() >= kHighWaterMessages || outbox_.bytes() >= kHighWaterBytes) {
    if (!watches_writes_) Flush();
    if (state_ == State::kClosed) return Put::kBroken;
    if (outbox_.messages() >= kHighWaterMessages || outbox_.bytes() >= kHighWaterBytes) return Put::kFull;
  }
  outbox_.AddMessage(std::move(frame));
  if (!corked_ && !watches_writes_) {
    corked_ = true;
    loop_.FlushLater(this);
  }
  if (outbox_.bytes() >= kCorkBytes && !watches_writes_) Flush();
  return state_ == State::kClosed ? Put::kBroken : Put::kTaken;
}

void Connection::Flush() {
  corked_ = false;
  if (state_ == State::kClosed || outbox_.empty()) return;
  const Outbox::Written written = outbox_.WriteTo(fd_.get());
  if (written == Outbox::Written::kBroken) {
    Close({});
    return;
  }
  session_.Sent(loop_.now());
  WatchWrites(written == Outbox::Written::kSome);
}

void Connection::Tick(MonoTime now) {
  if (!owner_.WantsInput()) return;  // the peer may have spoken: nobody listened
  std::string control;
  if (!session_.Tick(now, control)) {
    Close(session_.problem());
  } else if (!control.empty()) {
    Answer(std::move(control));
  }
}

void Connection::WatchWrites(bool writes) {
  if (writes == watches_writes_) return;
  watches_writes_ = writes;
  loop_.WatchWrites(fd_.get(), writes, this);
}

void Connection::Close(std::string_view problem) {
  if (!problem.empty()) loop_.Complain(owner_.endpoint(), fd_.get(), problem);
  state_ = State::kClosed;
  loop_.Unwatch(fd_.get(), this);
  loop_.Forget(this);
  fd_.Close();
  owner_.OnClosed(*this);
}

}  // namespace millrace::wire::zmtp
