// The native gets of a session as Python holds them.
#pragma once

#include "bind.hpp"
#include "frames.hpp"
#include "plain_gets.hpp"

#include <memory>

namespace kvstore {

class PlainGetsObject {
public:
    // `freed` is called where somebody waits for readers to go.
    PlainGetsObject(std::uint16_t method, nanobind::object freed);

    // What a frame asks for, if it is such a get; see PlainGets::find.
    std::unique_ptr<HeldPart> find(const FrameHead& head, std::span<const std::uint8_t> message) {
        if (head.method != method_ || head.flags != 0 || head.payload != 0) return {};
        return gets_.find(message);
    }

    std::uint16_t method() const { return method_; }
    PlainGets& gets() { return gets_; }

private:
    nanobind::object freed_;
    PlainGets gets_;
    std::uint16_t method_;
};

}  // namespace kvstore
