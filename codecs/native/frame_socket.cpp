#include "frames.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <ctime>

namespace kvstore {

namespace {

constexpr double kShortestWait = 0.001;
constexpr std::size_t kMostPieces = 1024;  // of one sendmsg
// Of one read of payload. Measured over loopback: a reader that asks for megabytes at once, or waits for all of them
// (MSG_WAITALL), is a quarter to a third slower. It holds the socket for so long that what comes meanwhile is put
// aside and gone through afterwards.
constexpr std::size_t kReadBytes = 128 * 1024;

double now() {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

using DescriptorSpace = std::array<std::uint8_t, CMSG_SPACE(kMaxDescriptors * sizeof(int))>;

void attach(msghdr& message, DescriptorSpace& space, std::span<const int> descriptors) {
    if (descriptors.empty()) return;
    message.msg_control = space.data();
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
}

void collect(msghdr& message, std::vector<int>& descriptors) {
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t i = 0; i < count; ++i) {
            int descriptor;
            std::memcpy(&descriptor, CMSG_DATA(header) + i * sizeof descriptor, sizeof descriptor);
            descriptors.push_back(descriptor);
        }
    }
}

// Drops what was sent from the front of the pieces.
std::span<iovec> after(std::span<iovec> pieces, std::size_t sent) {
    while (!pieces.empty() && sent >= pieces.front().iov_len) {
        sent -= pieces.front().iov_len;
        pieces = pieces.subspan(1);
    }
    if (sent > 0) {
        pieces.front().iov_base = static_cast<std::uint8_t*>(pieces.front().iov_base) + sent;
        pieces.front().iov_len -= sent;
    }
    return pieces;
}

}  // namespace

FrameSocket::FrameSocket(int fd, bool takes_descriptors, std::function<bool()> interrupted)
    : fd_(fd), takes_descriptors_(takes_descriptors), interrupted_(std::move(interrupted)) {}

FrameSocket::~FrameSocket() {
    for (const int each : descriptors_) close(each);
}

FrameOutcome FrameSocket::send(std::span<iovec> pieces, std::span<const int> descriptors, FrameLimit limit) {
    pieces = after(pieces, 0);
    while (!pieces.empty()) {
        DescriptorSpace space{};
        msghdr message{};
        message.msg_iov = pieces.data();
        message.msg_iovlen = std::min(pieces.size(), kMostPieces);
        attach(message, space, descriptors);
        std::size_t sent = 0;
        const FrameOutcome outcome =
            within(limit, false, sent, [&] { return sendmsg(fd_, &message, MSG_NOSIGNAL); });
        if (outcome != FrameOutcome::done) return outcome;
        descriptors = {};
        pieces = after(pieces, sent);
    }
    return FrameOutcome::done;
}

FrameOutcome FrameSocket::receive(FrameLimit limit, bool idle, std::size_t longest) {
    for (;;) {
        const FrameOutcome found = buffer_.next(longest);
        if (found != FrameOutcome::partial) return found;
        const bool between = buffer_.held() == 0;
        std::size_t read = 0;
        const FrameOutcome outcome = receive_some(buffer_.room(), limit, idle && between, read);
        if (outcome != FrameOutcome::done) return outcome;
        if (read == 0) return between ? FrameOutcome::ended : FrameOutcome::cut_off;
        buffer_.filled(read);
    }
}

FrameOutcome FrameSocket::read(std::span<std::uint8_t> out, FrameLimit limit) {
    while (!out.empty()) {
        std::size_t read = 0;
        const FrameOutcome outcome = read_some(out, limit, read);
        if (outcome != FrameOutcome::done) return outcome;
        out = out.subspan(read);
    }
    return FrameOutcome::done;
}

FrameOutcome FrameSocket::read_some(std::span<std::uint8_t> out, FrameLimit limit, std::size_t& read) {
    read = buffer_.take(out.data(), out.size());
    if (read > 0 || out.empty()) return FrameOutcome::done;
    const FrameOutcome outcome = receive_some(out.first(std::min(out.size(), kReadBytes)), limit, false, read);
    if (outcome != FrameOutcome::done) return outcome;
    return read == 0 ? FrameOutcome::cut_off : FrameOutcome::done;
}

FrameOutcome FrameSocket::receive_some(std::span<std::uint8_t> out, FrameLimit limit, bool idle, std::size_t& read) {
    const FrameOutcome outcome = within(limit, idle, read, [&] { return receive_once(out); });
    if (descriptors_.size() > kMaxDescriptors) return FrameOutcome::too_many_descriptors;
    return outcome;
}

std::ptrdiff_t FrameSocket::receive_once(std::span<std::uint8_t> out) {
    if (!takes_descriptors_) return recv(fd_, out.data(), out.size(), 0);
    alignas(cmsghdr) DescriptorSpace space;
    iovec piece{out.data(), out.size()};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = space.data();
    message.msg_controllen = space.size();
    const std::ptrdiff_t read = recvmsg(fd_, &message, MSG_CMSG_CLOEXEC);
    if (read >= 0 && message.msg_controllen > 0) collect(message, descriptors_);
    return read;
}

// One call of the socket that may wait, again where it was cut short before the time was over.
template <typename Act>
FrameOutcome FrameSocket::within(FrameLimit limit, bool idle, std::size_t& moved, Act act) {
    const bool bounded = std::isfinite(limit.deadline);
    for (;;) {
        const FrameOutcome ready = set_limit(limit);
        if (ready != FrameOutcome::done) return ready;
        const std::ptrdiff_t result = act();
        if (result >= 0) {
            moved = static_cast<std::size_t>(result);
            return FrameOutcome::done;
        }
        if (errno == EINTR) {
            if (!interrupted_()) return FrameOutcome::raised;
        } else if (errno != EAGAIN && errno != EWOULDBLOCK) {
            return FrameOutcome::failed;
        } else if (bounded) {  // the limit of one wait, which may be less than what is left
            if (now() >= limit.deadline) return FrameOutcome::late;
            armed_ = 0.0;
        } else if (!idle) {
            return FrameOutcome::late;
        }
    }
}

// Has the kernel end the next wait when the time is over: cheaper than a poll before each call.
FrameOutcome FrameSocket::set_limit(FrameLimit limit) {
    double seconds = limit.patience;
    if (std::isfinite(limit.deadline)) {
        seconds = limit.deadline - now();
        if (seconds <= 0) return FrameOutcome::late;
        if (armed_ > 0 && armed_ < seconds + kFrameOvershoot) return FrameOutcome::done;
    } else if (armed_ == seconds) {
        return FrameOutcome::done;
    }
    return arm(seconds) ? FrameOutcome::done : FrameOutcome::failed;
}

bool FrameSocket::arm(double seconds) {
    const double wait = std::max(seconds, kShortestWait);
    const double whole = std::floor(wait);
    timeval value{};
    value.tv_sec = static_cast<time_t>(whole);
    value.tv_usec = static_cast<suseconds_t>((wait - whole) * 1e6);
    if (setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value) != 0) return false;
    if (setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof value) != 0) return false;
    armed_ = seconds;
    return true;
}

bool peer_has_ended(int fd) {
    pollfd asked{fd, POLLRDHUP, 0};
    return poll(&asked, 1, 0) > 0;
}

}  // namespace kvstore
