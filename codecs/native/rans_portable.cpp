// rANS without SIMD.
#include "rans_kernels.hpp"

#include "float_formats.hpp"

#include <algorithm>

namespace kvstore::rans {

namespace {

constexpr std::uint32_t kSlotMask = kSlots - 1;

struct AsSymbols {
    using Element = std::uint8_t;
    static Element of(std::uint32_t symbol, const Target&, std::size_t) { return static_cast<Element>(symbol); }
};

struct AsLevels {
    using Element = std::int16_t;
    static Element of(std::uint32_t symbol, const Target&, std::size_t) {
        return static_cast<Element>(static_cast<int>(symbol) - 128);
    }
};

// Two roundings, as NumPy has it: contraction to one is off for this file.
inline float value_of(std::uint32_t symbol, const Target& target, std::size_t column) {
    const float product = target.scale[column] * static_cast<float>(static_cast<int>(symbol) - 128);
    return product + target.mean[column];
}

struct AsFp32 {
    using Element = float;
    static Element of(std::uint32_t symbol, const Target& target, std::size_t column) {
        return value_of(symbol, target, column);
    }
};

struct AsBf16 {
    using Element = std::uint16_t;
    static Element of(std::uint32_t symbol, const Target& target, std::size_t column) {
        return bf16_bits(value_of(symbol, target, column));
    }
};

struct AsFp16 {
    using Element = std::uint16_t;
    static Element of(std::uint32_t symbol, const Target& target, std::size_t column) {
        return fp16_bits(value_of(symbol, target, column));
    }
};

template <typename As>
bool decode_as(const DecodeJob& job, Words& words, States& states) {
    const Target& target = job.target;
    auto* const out = static_cast<typename As::Element*>(target.data);
    const std::size_t columns = job.tables.size();
    for (std::size_t first = 0; first < columns; first += kLanes) {
        const std::size_t lanes = std::min(kLanes, columns - first);
        std::array<const std::uint32_t*, kLanes> slots{};
        for (std::size_t lane = 0; lane < lanes; ++lane)
            slots[lane] = job.bank.slots() + job.tables[first + lane] * kSlots;
        for (std::size_t token = 0; token < job.tokens; ++token) {
            if (words.at > words.limit && !words.refill()) return false;
            auto* const row = out + token * target.stride + first;
            const std::uint8_t* at = words.at;
            for (std::size_t lane = 0; lane < lanes; ++lane) {
                const std::uint32_t entry = slots[lane][states[lane] & kSlotMask];
                std::uint32_t state = ((entry >> 8 & kSlotMask) + 1) * (states[lane] >> 12) + (entry >> 20);
                std::uint16_t word;
                std::memcpy(&word, at, sizeof word);
                const bool takes = state < kLow;
                state = takes ? state << 16 | word : state;
                at += takes ? sizeof word : 0;
                states[lane] = state;
                row[lane] = As::of(entry & 0xFF, target, first + lane);
            }
            words.at = at;
        }
    }
    return true;
}

}  // namespace

bool decode_portable(const DecodeJob& job, Words& words, States& states) {
    switch (job.target.format) {
        case Format::symbols: return decode_as<AsSymbols>(job, words, states);
        case Format::levels: return decode_as<AsLevels>(job, words, states);
        case Format::bf16: return decode_as<AsBf16>(job, words, states);
        case Format::fp16: return decode_as<AsFp16>(job, words, states);
        case Format::fp32: return decode_as<AsFp32>(job, words, states);
    }
    return false;
}

bool encode_portable(const EncodeJob& job, std::uint8_t*& at, States& states) {
    const std::size_t columns = job.tables.size();
    std::uint8_t* out = at;
    bool all_present = true;
    for (std::size_t block = (columns + kLanes - 1) / kLanes; block-- > 0;) {
        const std::size_t first = block * kLanes;
        const std::size_t lanes = std::min(kLanes, columns - first);
        std::array<const Coding*, kLanes> codings{};
        for (std::size_t lane = 0; lane < lanes; ++lane) codings[lane] = job.bank.codings(job.tables[first + lane]);
        for (std::size_t token = job.tokens; token-- > 0;) {
            const std::uint8_t* const row = job.symbols + token * job.stride + first;
            for (std::size_t lane = lanes; lane-- > 0;) {
                const Coding& coding = codings[lane][row[lane]];
                std::uint32_t state = states[lane];
                all_present &= coding.reciprocal != 0;
                // The word is written always and kept only if it is given: a lane gives one per symbol at most, so
                // there is room below for each.
                const auto word = static_cast<std::uint16_t>(state);
                std::memcpy(out - sizeof word, &word, sizeof word);
                const bool gives = state >= coding.limit;
                out -= gives ? sizeof word : 0;
                state = gives ? state >> 16 : state;
                const auto quotient =
                    static_cast<std::uint32_t>(std::uint64_t{state} * coding.reciprocal >> (31 + coding.shift));
                states[lane] = state + quotient * coding.complement + coding.start;
            }
        }
    }
    at = out;
    return all_present;
}

}  // namespace kvstore::rans
