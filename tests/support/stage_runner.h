// Runs the real millrace-stage over pipes as a worker does.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::stagetest {

struct StageRun {
  std::vector<std::string> frames;  // everything the child wrote on fd 3
  int exit_code = -1;
  int signal = 0;
};

// A child that has been started. The destructor kills and reaps it.
class StageProcess {
 public:
  StageProcess(const std::string& binary, const std::vector<std::string>& arguments,
               const std::vector<std::string>& environment = {}) {
    int in[2], out[2];
    if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      // The targets may be the very numbers of the other pipe: move them out of the way first.
      const int from = ::fcntl(in[0], F_DUPFD_CLOEXEC, 20);
      const int to = ::fcntl(out[1], F_DUPFD_CLOEXEC, 20);
      ::dup2(from, 0);
      ::dup2(to, 3);
      std::vector<char*> argv{const_cast<char*>(binary.c_str())};
      for (const auto& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
      argv.push_back(nullptr);
      for (const auto& e : environment) ::putenv(const_cast<char*>(e.c_str()));
      ::execv(binary.c_str(), argv.data());
      ::_exit(127);
    }
    ::close(in[0]);
    ::close(out[1]);
    in_ = in[1];
    out_ = out[0];
  }
  StageProcess(const StageProcess&) = delete;
  StageProcess& operator=(const StageProcess&) = delete;
  ~StageProcess() {
    if (in_ >= 0) ::close(in_);
    if (out_ >= 0) ::close(out_);
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }

  void Send(std::string_view json) {
    const auto size = static_cast<std::uint32_t>(json.size());
    std::string frame(4, '\0');
    std::memcpy(frame.data(), &size, 4);
    frame += json;
    if (::write(in_, frame.data(), frame.size()) != static_cast<ssize_t>(frame.size())) std::abort();
  }
  // The next frame; nullopt at the end of the stream.
  std::optional<std::string> Receive() {
    std::uint32_t size = 0;
    if (!ReadAll(reinterpret_cast<char*>(&size), 4)) return std::nullopt;
    std::string json(size, '\0');
    if (!ReadAll(json.data(), size)) return std::nullopt;
    return json;
  }
  void Kill() { ::kill(pid_, SIGKILL); }
  pid_t pid() const { return pid_; }
  StageRun Finish() {
    StageRun run;
    while (auto frame = Receive()) run.frames.push_back(std::move(*frame));
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    if (WIFEXITED(status)) run.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) run.signal = WTERMSIG(status);
    return run;
  }

 private:
  bool ReadAll(char* out, std::size_t size) {
    while (size > 0) {
      const ssize_t got = ::read(out_, out, size);
      if (got <= 0) return false;
      out += got;
      size -= static_cast<std::size_t>(got);
    }
    return true;
  }

  pid_t pid_ = -1;
  int in_ = -1, out_ = -1;
};

}  // namespace millrace::stagetest
