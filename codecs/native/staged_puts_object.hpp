// The native puts of a session as Python holds them: with the memory that they read, and the answer to one that is done.
#pragma once

#include "buffer.hpp"
#include "frames.hpp"
#include "staged_puts.hpp"

#include <list>
#include <vector>

namespace kvstore {

inline std::span<const std::uint8_t> span_of(const nb::bytes& bytes) {
    return {static_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
}

class StagedPutsObject {
public:
    StagedPutsObject(std::uint16_t method, std::span<const std::uint8_t> prefix, std::span<const std::uint8_t> answer)
        : puts_(prefix), method_(method), answer_(answer.begin(), answer.end()) {}

    bool add_memory(std::uint32_t number, nb::handle object) {
        memory_.emplace_back(object, "memory");
        if (puts_.add_memory(number, {memory_.back().data(), memory_.back().bytes()})) return true;
        memory_.pop_back();
        return false;
    }

    // Whether a frame was such a put, and has been taken; see StagedPuts::take.
    bool take(const FrameHead& head, std::span<const std::uint8_t> message, int fd) {
        return head.method == method_ && head.flags == 0 && head.payload == 0 && puts_.take(message, fd);
    }

    StagedPuts& puts() { return puts_; }
    // An encoded frame.
    std::span<const std::uint8_t> answer() const { return answer_; }

private:
    std::list<BufferView> memory_;  // under the interpreter's lock
    StagedPuts puts_;
    std::uint16_t method_;
    std::vector<std::uint8_t> answer_;
};

}  // namespace kvstore
