// When chunks are used again: a life table for each kind of chunk, and the hits per time and place that waiting for one
// promises.
#pragma once

#include "policy_value_known.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace kvstore {

// Kinds are groups of equally frequent chunks, and within a group what the reuse model expects of them. Those that stand
// alone are a kind for each frequency.
class Hazards {
public:
    static constexpr std::size_t kGroups = 10;
    static constexpr std::size_t kLevels = 8;
    static constexpr std::size_t kAlone = 8;
    static constexpr std::size_t kKinds = kGroups * kLevels + kAlone;

    static std::size_t kind(std::size_t group, double log_odds) {
        const double level = std::floor(log_odds) + kLevels / 2;
        return group * kLevels + static_cast<std::size_t>(std::clamp(level, 0.0, kLevels - 1.0));
    }
    static bool is_alone(std::size_t kind) { return kind >= kGroups * kLevels; }
    static std::size_t kind_alone(std::size_t often) { return kGroups * kLevels + often; }

    // A chunk was used and is new again; it has come to this age unused; it was used at this age.
    void begun(std::size_t kind, double weight) {
        at_risk_[kind][0] += weight;
        ++begun_;
    }
    void survived(std::size_t kind, std::size_t age, double weight) { at_risk_[kind][age] += weight; }
    void used(std::size_t kind, std::size_t age, double weight) { uses_[kind][age] += weight; }

    // Halves what was counted once it is more than `most` uses, so that the new outweighs the old.
    void decay(double most);

    // What waiting for a chunk's next use promises: the most, over all times to give up, of P(used by then) / E[time
    // waited], from the age at which it is. Where the chance rises with age (think time, loops) an old chunk is worth more
    // than a new one. It is the Gittins index of a chunk that is used once; LHD (Beckmann, Chen, Cidon, NSDI 2018) has
    // the same density without the choice when to give up. Nobody gives up before `least` uses: a
    // chance that is over sooner is no reason to keep anything, and mostly noise. `run`: the weight of chunks that share their fate.
    void rate(double run, double least, double least_alone);
    double density(std::size_t kind, std::size_t age) const { return density_[kind][age]; }

private:
    using Row = std::array<double, kAges>;

    void rate_kinds(std::size_t from, std::size_t to, const Row& all, double prior, double least);
    static Row shrunk(const Row& uses, const Row& at_risk, const Row& towards, double prior);
    void rate_kind(const Row& hazards, double least, Row& density) const;

    Ages ages_;
    std::array<Row, kKinds> at_risk_{};
    std::array<Row, kKinds> uses_{};
    std::array<Row, kKinds> density_{};
    double begun_ = 0;
};

}  // namespace kvstore
