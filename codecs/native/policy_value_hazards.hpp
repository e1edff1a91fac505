// When chunks are used again: a life table for each kind of chunk, and the hits per time and place that waiting for one
// promises.
#pragma once

#include "policy_value_known.hpp"

#include <array>
#include <cstdint>

namespace kvstore {

// Kinds are groups of equally frequent chunks, and within a group what the reuse model expects of them.
class Hazards {
public:
    static constexpr std::size_t kGroups = 10;
    static constexpr std::size_t kLevels = 8;
    static constexpr std::size_t kKinds = kGroups * kLevels;

    // A chunk has come to this age unused; it was used at this age.
    void survived(std::size_t kind, std::size_t age) { ++at_risk_[kind][age]; }
    void used(std::size_t kind, std::size_t age) { ++uses_[kind][age]; }

    // Halves what was counted once it is more than `most` uses, so that the new outweighs the old.
    void decay(double most);

    // What waiting for a chunk's next use promises: the most, over all times to give up, of P(used by then) / E[time
    // waited], from the age at which it is. Where the chance rises with age (think time, loops) an old chunk is worth more
    // than a new one. It is the Gittins index of a chunk that is used once; LHD (Beckmann, Chen, Cidon, NSDI 2018) has
    // the same density without the choice when to give up. Nobody gives up before `least` uses: a
    // chance that is over sooner is no reason to keep anything, and mostly noise. `run`: chunks that share their fate.
    void rate(double run, double least);
    double density(std::size_t kind, std::size_t age) const { return density_[kind][age]; }

private:
    using Row = std::array<double, kAges>;

    static Row shrunk(const Row& uses, const Row& at_risk, const Row& towards, double prior);
    void rate_kind(const Row& hazards, double least, Row& density) const;

    Ages ages_;
    std::array<Row, kKinds> at_risk_{};
    std::array<Row, kKinds> uses_{};
    std::array<Row, kKinds> density_{};
};

}  // namespace kvstore
