#include "worker/stage/extract/packed.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

namespace millrace {
namespace {

constexpr std::size_t kOutBytes = 256u << 10;

class LineLengths : public SourceBytes {
 public:
  explicit LineLengths(std::string name) : name_(std::move(name)) {}

  Result<void> Feed(std::string_view bytes) override {
    while (!bytes.empty()) {
      const std::size_t end = std::min(bytes.find('\n'), bytes.size());
      length_ += end;
      if (length_ > kRecordBytesMax)
        return Fail(ErrorCode::kCorrupt, "{}:{}: the record is longer than {} bytes", name_, line_, kRecordBytesMax);
      if (end == bytes.size()) return {};
      length_ = 0;
      ++line_;
      bytes.remove_prefix(end + 1);
    }
    return {};
  }
  Result<void> Finish() override { return {}; }

 private:
  std::string name_;
  std::size_t length_ = 0, line_ = 1;
};

class Packed : public SourceBytes {
 public:
  Packed(std::string name, std::unique_ptr<SourceBytes> inner) : name_(std::move(name)), inner_(std::move(inner)) {}

 protected:
  Result<void> Unpacked(std::size_t bytes) { return inner_ && bytes > 0 ? inner_->Feed({out_.data(), bytes}) : Result<void>(); }
  std::unexpected<Error> CutOff() const { return Fail(ErrorCode::kCorrupt, "{} is cut off at byte {}", name_, read_); }
  std::unexpected<Error> Broken(std::uint64_t at, std::string_view reason) const {
    const bool checksum = reason.find("check") != std::string_view::npos;
    return Fail(ErrorCode::kCorrupt, "{} {} at byte {}: {}", name_, checksum ? "fails its checksum" : "is broken", at, reason);
  }

  std::string name_;
  std::unique_ptr<SourceBytes> inner_;
  std::vector<char> out_ = std::vector<char>(kOutBytes);
  std::uint64_t read_ = 0;  // bytes of the file
};

class Gzip : public Packed {
 public:
  using Packed::Packed;
  Gzip(const Gzip&) = delete;
  Gzip& operator=(const Gzip&) = delete;
  ~Gzip() override {
    if (open_) ::inflateEnd(&stream_);
  }

  Result<void> Feed(std::string_view bytes) override {
    constexpr int kGzipOnly = 15 + 16;
    if (!open_ && ::inflateInit2(&stream_, kGzipOnly) != Z_OK) return Fail(ErrorCode::kLimit, "{}: no memory", name_);
    open_ = true;
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));  // zlib only reads it
    stream_.avail_in = static_cast<uInt>(bytes.size());
    while (stream_.avail_in > 0 || full_) {
      const std::uint64_t at = read_ + bytes.size() - stream_.avail_in;
      if (whole_) {  // and more follows: another member
        if (*stream_.next_in != 0x1F)
          return Fail(ErrorCode::kCorrupt, "{} has bytes at byte {} that are no gzip data; unpack it and pack it again", name_,
                      at);
        ::inflateReset(&stream_);
        whole_ = false;
      }
      stream_.next_out = reinterpret_cast<Bytef*>(out_.data());
      stream_.avail_out = static_cast<uInt>(out_.size());
      const int code = ::inflate(&stream_, Z_NO_FLUSH);
      if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR)
        return Broken(read_ + bytes.size() - stream_.avail_in, stream_.msg == nullptr ? "no gzip data" : stream_.msg);
      MILLRACE_TRY(Unpacked(out_.size() - stream_.avail_out));
      whole_ = code == Z_STREAM_END;
      full_ = !whole_ && stream_.avail_out == 0;  // there may be more to come out without further input
      if (code == Z_BUF_ERROR) break;
    }
    read_ += bytes.size();
    return {};
  }
  Result<void> Finish() override {
    if (!whole_) return CutOff();
    return inner_ ? inner_->Finish() : Result<void>();
  }

 private:
  z_stream stream_{};
  bool open_ = false;
  bool whole_ = false;  // at the end of a member
  bool full_ = false;
};

class Zstd : public Packed {
 public:
  using Packed::Packed;

  Result<void> Feed(std::string_view bytes) override {
    if (!stream_) return Fail(ErrorCode::kLimit, "{}: no memory", name_);
    ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
    bool full = false;
    while (in.pos < in.size || full) {
      ZSTD_outBuffer out{out_.data(), out_.size(), 0};
      const std::size_t code = ::ZSTD_decompressStream(stream_.get(), &out, &in);
      if (::ZSTD_isError(code) != 0) return Broken(read_ + in.pos, ::ZSTD_getErrorName(code));
      MILLRACE_TRY(Unpacked(out.pos));
      whole_ = code == 0;
      full = !whole_ && out.pos == out.size;
    }
    read_ += bytes.size();
    return {};
  }
  Result<void> Finish() override {
    if (!whole_) return CutOff();
    return inner_ ? inner_->Finish() : Result<void>();
  }

 private:
  struct FreeStream {
    void operator()(ZSTD_DStream* stream) const noexcept { ::ZSTD_freeDStream(stream); }
  };
  std::unique_ptr<ZSTD_DStream, FreeStream> stream_{::ZSTD_createDStream()};
  bool whole_ = false;  // at the end of a frame
};

}  // namespace

std::unique_ptr<SourceBytes> WatchBytes(const std::string& path, FileFormat format) {
  const std::string name = std::filesystem::path(path).filename().string();
  std::unique_ptr<SourceBytes> inner;
  if (format == FileFormat::kNdjson) inner = std::make_unique<LineLengths>(name);
  if (format == FileFormat::kParquet) return inner;
  if (path.ends_with(".gz")) return std::make_unique<Gzip>(name, std::move(inner));
  if (path.ends_with(".zst")) return std::make_unique<Zstd>(name, std::move(inner));
  return inner;
}

}  // namespace millrace
