// Whether a chunk will be used again soon: logistic regression, learned online, over what is known at its use.
#pragma once

#include <array>
#include <cstdint>

namespace kvstore {

// What a request looks like to one of its chunks, in chunks.
struct UseTraits {
    std::uint32_t fresh;    // of the request: never seen before
    std::uint32_t length;   // of the request
    std::uint32_t place;    // before this one
    std::uint32_t gap_age;  // the age at which it was used this time, plus one; 0: the first use
};

class ReuseModel {
public:
    // Each trait by its logarithm, eight steps a trait, packed.
    static std::uint16_t pack(const UseTraits& traits);
    // Of the request, to the power of two below, at most 128.
    static double length_of(std::uint16_t traits) { return static_cast<double>(1U << (traits >> 6 & 7)); }

    // The log of the odds that it is used again before the horizon. `frequency` < kFrequencies.
    double log_odds(std::uint16_t traits, std::uint32_t frequency) const;

    // What became of a use. Chunks of one request share their fate, so each counts `weight`, one in all together.
    void learn(std::uint16_t traits, std::uint32_t frequency, bool reused, double weight);

    static constexpr std::uint32_t kFrequencies = 10;

private:
    static constexpr std::size_t kTraits = 5;
    static constexpr std::size_t kSteps = 8;
    static constexpr std::size_t kWeights = 1 + kFrequencies + kTraits * kSteps;
    using Slots = std::array<std::uint8_t, kTraits + 2>;

    static Slots slots(std::uint16_t traits, std::uint32_t frequency);

    std::array<double, kWeights> weights_{};
    std::array<double, kWeights> seen_{};
};

}  // namespace kvstore
