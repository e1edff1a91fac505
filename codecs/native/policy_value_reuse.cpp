#include "policy_value_reuse.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

namespace kvstore {

namespace {

std::uint32_t log_step(std::uint32_t count) {
    return std::min(7U, static_cast<std::uint32_t>(std::bit_width(std::max(count, 1U))) - 1);
}

}  // namespace

std::uint16_t ReuseModel::pack(const UseTraits& traits) {
    // An octave a step, from the third step of ages on.
    const std::uint32_t gap =
        traits.gap_age == 0 ? 0 : 1 + std::min(6U, (std::max(traits.gap_age, 3U) - 3) / 2);
    const std::uint32_t behind = traits.length - std::min(traits.length, traits.place);
    return static_cast<std::uint16_t>(gap | log_step(traits.fresh + 1) << 3 | log_step(traits.length) << 6 |
                                      log_step(traits.place + 1) << 9 | log_step(behind) << 12);
}

ReuseModel::Slots ReuseModel::slots(std::uint16_t traits, std::uint32_t frequency) {
    Slots slots{0, static_cast<std::uint8_t>(1 + frequency)};
    for (std::size_t i = 0; i < kTraits; ++i)
        slots[2 + i] = static_cast<std::uint8_t>(1 + kFrequencies + i * kSteps + (traits >> 3 * i & 7));
    return slots;
}

double ReuseModel::log_odds(std::uint16_t traits, std::uint32_t frequency) const {
    double sum = 0;
    for (const std::uint8_t slot : slots(traits, frequency)) sum += weights_[slot];
    return sum;
}

// AdaGrad's steps with a unit learning rate: each weight settles by what it has seen itself.
void ReuseModel::learn(std::uint16_t traits, std::uint32_t frequency, bool reused, double weight) {
    const double expected = 1 / (1 + std::exp(-log_odds(traits, frequency)));
    const double error = ((reused ? 1.0 : 0.0) - expected) * weight;
    for (const std::uint8_t slot : slots(traits, frequency)) {
        seen_[slot] += weight;
        weights_[slot] += error / std::sqrt(1 + seen_[slot]);
    }
}

}  // namespace kvstore
