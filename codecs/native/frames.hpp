// Frames on a socket; kvstore/channels/stream.py describes the format. Nothing here needs Python or its lock.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

struct iovec;

namespace kvstore {

struct FrameHead {
    std::uint64_t message_sum;
    std::uint32_t length;
    std::uint16_t method;
    std::uint16_t flags;
    std::uint64_t payload;
    std::uint64_t head_sum;
};
static_assert(sizeof(FrameHead) == 32, "a head travels as it lies in memory");

inline constexpr std::size_t kHeadBytes = sizeof(FrameHead);
inline constexpr std::uint64_t kMaxPayload = std::uint64_t{1} << 40;
inline constexpr std::size_t kMaxDescriptors = 16;
// By how many seconds a wait may end late: less would cost two system calls before most waits.
inline constexpr double kFrameOvershoot = 0.05;

// The head of a frame with this message, checksums included.
FrameHead frame_head(std::uint16_t method, std::uint16_t flags, std::span<const std::uint8_t> message,
                     std::uint64_t payload);

// How a step ended. `partial` never leaves a FrameSocket; `failed` comes with errno.
enum class FrameOutcome : int {
    done = 0, partial, ended, late, cut_off, no_frame, damaged, too_large, too_many_descriptors, raised, failed,
};

// Bytes that have come, and the frames in them.
class FrameBuffer {
public:
    FrameBuffer();

    // The next frame: done with `head` and `message` filled in (the message until the next call), partial where
    // more bytes are needed, no_frame, damaged, or too_large for a message of more than `longest` bytes.
    FrameOutcome next(std::size_t longest);
    FrameHead head{};
    std::span<const std::uint8_t> message;

    // Where more bytes go, at least one after partial; `filled` says how many came.
    std::span<std::uint8_t> room();
    void filled(std::size_t bytes) { end_ += bytes; }

    std::size_t held() const { return end_ - start_; }
    // Hands over up to `bytes` of what was held: payload.
    std::size_t take(std::uint8_t* out, std::size_t bytes);

private:
    void reserve(std::size_t bytes);

    std::unique_ptr<std::uint8_t[]> memory_;
    std::size_t capacity_;
    std::size_t start_ = 0;
    std::size_t end_ = 0;
};

// How long a call may wait: until `deadline` on the steady clock, or, where that is not finite, `patience` seconds
// for each single wait.
struct FrameLimit {
    double deadline;
    double patience;
};

// Frames over a connected stream socket, which stays its owner's.
class FrameSocket {
public:
    // `interrupted` is called when a signal has come; false ends the call as `raised`.
    FrameSocket(int fd, bool takes_descriptors, std::function<bool()> interrupted);
    ~FrameSocket();
    FrameSocket(const FrameSocket&) = delete;
    FrameSocket& operator=(const FrameSocket&) = delete;

    // Sends all of the pieces, changing them, and descriptors along with the first byte.
    FrameOutcome send(std::span<iovec> pieces, std::span<const int> descriptors, FrameLimit limit);
    // Receives the next frame into buffer(); with `idle` its first byte may take as long as it likes, unless there is
    // a deadline.
    FrameOutcome receive(FrameLimit limit, bool idle, std::size_t longest);
    // Reads payload.
    FrameOutcome read(std::span<std::uint8_t> out, FrameLimit limit);
    // Reads some of it, at least a byte, to the front of `out`: what there is, and not so much that it is not still in
    // the cache. `read` says how much.
    FrameOutcome read_some(std::span<std::uint8_t> out, FrameLimit limit, std::size_t& read);

    FrameBuffer& buffer() { return buffer_; }
    std::vector<int>& descriptors() { return descriptors_; }
    int fd() const { return fd_; }
    // The socket's owner has closed it: every call fails from now on.
    void forget() { fd_ = -1; }

private:
    template <typename Act>
    FrameOutcome within(FrameLimit limit, bool idle, std::size_t& moved, Act act);
    FrameOutcome receive_some(std::span<std::uint8_t> out, FrameLimit limit, bool idle, std::size_t& read);
    std::ptrdiff_t receive_once(std::span<std::uint8_t> out);
    FrameOutcome set_limit(FrameLimit limit);
    bool arm(double seconds);

    int fd_;
    bool takes_descriptors_;
    std::function<bool()> interrupted_;
    FrameBuffer buffer_;
    std::vector<int> descriptors_;
    double armed_ = 0.0;
};

// Whether the other side of a socket has ended the connection by now.
bool peer_has_ended(int fd);

}  // namespace kvstore
