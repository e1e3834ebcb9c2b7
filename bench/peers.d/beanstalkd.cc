// beanstalkd: plain sockets; 100 commands in one write (puts, reserves, deletes), one at a time when a gap is given.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cstring>

#include "common.hpp"

class Connection {
 public:
  explicit Connection(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    const int one = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<unsigned short>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) perror("connect"), exit(1);
  }
  void Send(const std::string& text) {
    for (std::size_t at = 0; at < text.size();) {
      const ssize_t n = write(fd_, text.data() + at, text.size() - at);
      if (n <= 0) perror("write"), exit(1);
      at += static_cast<std::size_t>(n);
    }
  }
  std::string Line() {
    while (true) {
      const auto end = in_.find("\r\n", at_);
      if (end == std::string::npos) {
        Fill();
        continue;
      }
      std::string line = in_.substr(at_, end - at_);
      at_ = end + 2;
      return line;
    }
  }
  std::string Body(std::size_t size) {
    while (in_.size() - at_ < size + 2) Fill();
    std::string body = in_.substr(at_, size);
    at_ += size + 2;
    return body;
  }
  bool Buffered() const { return at_ < in_.size(); }

 private:
  void Fill() {
    if (at_ > (1u << 20)) in_.erase(0, at_), at_ = 0;
    char buffer[65536];
    const ssize_t n = read(fd_, buffer, sizeof buffer);
    if (n <= 0) exit(1);
    in_.append(buffer, static_cast<std::size_t>(n));
  }
  int fd_;
  std::string in_;
  std::size_t at_ = 0;
};

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const long long jobs = atoll(argv[2]);
  const int gap = argc > 3 ? atoi(argv[3]) : 0;
  Connection server(atoi(getenv("BEANSTALK_PORT")));
  if (strcmp(argv[1], "produce") == 0) {
    Produce(jobs, gap, 100, [&](const std::vector<std::string>& list) {
      std::string text;
      for (const auto& p : list) text += "put 1024 0 600 " + std::to_string(p.size()) + "\r\n" + p + "\r\n";
      server.Send(text);
      for (std::size_t i = 0; i < list.size(); ++i)
        if (server.Line().rfind("INSERTED", 0) != 0) exit(1);
    });
    return 0;
  }
  // Reserves are kept outstanding: 100 when jobs flow, 1 when they come one at a time.
  const int window = gap > 0 ? 1 : 100;
  Handler handler(jobs);
  printf("READY\n");
  fflush(stdout);
  for (bool all = false; !all;) {
    std::string text, deletes;
    for (int i = 0; i < window; ++i) text += "reserve-with-timeout 1\r\n";
    server.Send(text);
    int count = 0;
    for (int i = 0; i < window; ++i) {
      const std::string line = server.Line();
      unsigned long long id = 0;
      std::size_t size = 0;
      if (sscanf(line.c_str(), "RESERVED %llu %zu", &id, &size) != 2) continue;  // TIMED_OUT
      all = handler.Handle(server.Body(size).c_str()) || all;
      deletes += "delete " + std::to_string(id) + "\r\n";
      ++count;
    }
    server.Send(deletes);
    for (int i = 0; i < count; ++i) server.Line();
  }
  usleep(500'000);  // repetitions that come late are still counted
  server.Send("reserve-with-timeout 0\r\n");
  unsigned long long id = 0;
  std::size_t size = 0;
  if (sscanf(server.Line().c_str(), "RESERVED %llu %zu", &id, &size) == 2) handler.Handle(server.Body(size).c_str());
  handler.Report();
}
