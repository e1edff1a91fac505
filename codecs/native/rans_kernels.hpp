// What the rANS loops for each SIMD level share.
#pragma once

#include "rans.hpp"

#include <array>
#include <bit>
#include <cstring>

namespace kvstore::rans {

static_assert(std::endian::native == std::endian::little, "streams are read in place");

using States = std::array<std::uint32_t, kLanes>;

// The most that one token of a block takes: a word a lane.
inline constexpr std::size_t kStepBytes = 2 * kLanes;

// The words of a stream for loops that load kStepBytes ahead of what they use. Before each token they ask refill()
// when `at` is past `limit`. Near the end the rest moves to where zeros follow it, so that nothing outside the stream
// is read, and a stream that is too short shows one token later.
class Words {
public:
    explicit Words(std::span<const std::uint8_t> words) : at(words.data()), end_(words.data() + words.size()) {
        if (words.size() >= kStepBytes) {
            limit = end_ - kStepBytes;
        } else {
            move_tail();
        }
    }
    Words(const Words&) = delete;
    Words& operator=(const Words&) = delete;

    // False: the words have run out.
    bool refill() {
        if (in_tail_) return false;
        move_tail();
        return true;
    }
    bool used_up() const { return at == end_; }

    const std::uint8_t* at;
    const std::uint8_t* limit;

private:
    void move_tail() {
        const auto rest = static_cast<std::size_t>(end_ - at);
        if (rest > 0) std::memcpy(tail_.data(), at, rest);
        at = tail_.data();
        limit = end_ = at + rest;
        in_tail_ = true;
    }

    const std::uint8_t* end_;
    bool in_tail_ = false;
    std::array<std::uint8_t, 3 * kStepBytes> tail_{};
};

struct DecodeJob {
    const Bank& bank;
    std::span<const std::uint8_t> tables;
    std::size_t tokens;
    const Target& target;
};

// Where in the slots each lane's table begins, for the block of columns from `first` on.
inline States bases_of(const DecodeJob& job, std::size_t first) {
    States bases;
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
        const bool rests = first + lane >= job.tables.size();
        bases[lane] = static_cast<std::uint32_t>((rests ? job.bank.tables() : job.tables[first + lane]) * kSlots);
    }
    return bases;
}

struct EncodeJob {
    const Bank& bank;
    std::span<const std::uint8_t> tables;
    std::size_t tokens;
    const std::uint8_t* symbols;
    std::size_t stride;
};

// False: the words ran out. All begin with states in [2^15, 2^31) and keep them there.
using DecodeKernel = bool (*)(const DecodeJob& job, Words& words, States& states);

bool decode_portable(const DecodeJob& job, Words& words, States& states);

// Writes words downwards from `at`, which ends as the first of them. False: a symbol has no frequency.
bool encode_portable(const EncodeJob& job, std::uint8_t*& at, States& states);

#if defined(__x86_64__)
bool avx2_usable();
bool avx512_usable();
bool decode_avx2(const DecodeJob& job, Words& words, States& states);
bool decode_avx512(const DecodeJob& job, Words& words, States& states);
#endif

}  // namespace kvstore::rans
