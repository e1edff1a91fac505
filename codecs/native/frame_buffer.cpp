#include "frames.hpp"

#include "xxh3.hpp"

#include <algorithm>
#include <cstring>

namespace kvstore {

namespace {

constexpr std::size_t kBufferBytes = 16 * 1024;
constexpr std::size_t kSummedBytes = offsetof(FrameHead, head_sum);

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a head travels as little-endian words");

std::uint64_t sum_of(const FrameHead& head) {
    return xxh3_64(reinterpret_cast<const std::uint8_t*>(&head), kSummedBytes);
}

}  // namespace

FrameHead frame_head(std::uint16_t method, std::uint16_t flags, std::span<const std::uint8_t> message,
                     std::uint64_t payload) {
    FrameHead head{xxh3_64(message.data(), message.size()), static_cast<std::uint32_t>(message.size()), method, flags,
                   payload, 0};
    head.head_sum = sum_of(head);
    return head;
}

FrameBuffer::FrameBuffer()
    : memory_(std::make_unique_for_overwrite<std::uint8_t[]>(kBufferBytes)), capacity_(kBufferBytes) {}

FrameOutcome FrameBuffer::next(std::size_t longest) {
    message = {};
    if (held() < kHeadBytes) {
        reserve(kHeadBytes);
        return FrameOutcome::partial;
    }
    std::memcpy(&head, memory_.get() + start_, kHeadBytes);
    if (head.head_sum != sum_of(head)) return FrameOutcome::no_frame;
    if (head.length > longest || head.payload > kMaxPayload) return FrameOutcome::too_large;
    const std::size_t whole = kHeadBytes + head.length;
    if (held() < whole) {
        reserve(whole);
        return FrameOutcome::partial;
    }
    const std::uint8_t* const begin = memory_.get() + start_ + kHeadBytes;
    if (xxh3_64(begin, head.length) != head.message_sum) return FrameOutcome::damaged;
    message = {begin, head.length};
    start_ += whole;
    return FrameOutcome::done;
}

std::span<std::uint8_t> FrameBuffer::room() { return {memory_.get() + end_, capacity_ - end_}; }

std::size_t FrameBuffer::take(std::uint8_t* out, std::size_t bytes) {
    const std::size_t taken = std::min(bytes, held());
    if (taken > 0) std::memcpy(out, memory_.get() + start_, taken);
    start_ += taken;
    return taken;
}

// Room for `bytes` bytes from where the unread ones start. What a large message needed is not kept.
void FrameBuffer::reserve(std::size_t bytes) {
    const std::size_t wanted = std::max(bytes, kBufferBytes);
    const std::size_t kept = held();
    if (wanted != capacity_ && wanted >= kept) {
        auto memory = std::make_unique_for_overwrite<std::uint8_t[]>(wanted);
        if (kept > 0) std::memcpy(memory.get(), memory_.get() + start_, kept);
        memory_ = std::move(memory);
        capacity_ = wanted;
    } else if (kept > 0 && start_ > 0 && start_ + bytes > capacity_) {
        std::memmove(memory_.get(), memory_.get() + start_, kept);
    } else if (kept > 0) {
        return;
    }
    start_ = 0;
    end_ = kept;
}

}  // namespace kvstore
