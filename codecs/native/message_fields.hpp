// The fields of a protobuf message, for the few that native code understands.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace kvstore {

// Tags of protobuf: number of the field and kind of its value.
constexpr std::uint64_t number_tag(unsigned field) { return field << 3; }
constexpr std::uint64_t bytes_tag(unsigned field) { return field << 3 | 2; }

// The fields of an encoded message, in order. `bad` once something is no field of a number or of bytes.
class Fields {
public:
    explicit Fields(std::span<const std::uint8_t> message) : left_(message) {}

    bool next() {
        if (left_.empty() || bad) return false;
        if (!take_number(tag)) return fail();
        if ((tag & 7) == 0) return take_number(number) || fail();
        std::uint64_t length = 0;
        if ((tag & 7) != 2 || !take_number(length) || length > left_.size()) return fail();
        bytes = left_.first(length);
        left_ = left_.subspan(length);
        return true;
    }

    // The bytes of this field as something of a fixed size.
    template <typename Value>
    bool copy_to(Value& value) {
        if (bytes.size() != sizeof value) return fail();
        std::memcpy(&value, bytes.data(), sizeof value);
        return true;
    }

    std::uint64_t tag = 0;
    std::uint64_t number = 0;
    std::span<const std::uint8_t> bytes;
    bool bad = false;

private:
    bool fail() {
        bad = true;
        return false;
    }

    bool take_number(std::uint64_t& value) {
        value = 0;
        for (unsigned shift = 0; shift < 63 && !left_.empty(); shift += 7) {
            const std::uint8_t byte = left_.front();
            left_ = left_.subspan(1);
            value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
            if (byte < 0x80) return true;
        }
        return false;
    }

    std::span<const std::uint8_t> left_;
};

}  // namespace kvstore
