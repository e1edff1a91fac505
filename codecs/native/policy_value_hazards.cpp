#include "policy_value_hazards.hpp"

#include <algorithm>
#include <cmath>

namespace kvstore {

namespace {

constexpr double kFirstGuess = .05;  // of a hazard of which nothing is known
constexpr double kPriorRuns = 4;     // so many requests' chunks weigh as much as what the hazard is shrunk to
constexpr std::size_t kPasses = 4;   // of smoothing, each over an age and its neighbours

using Row = std::array<double, kAges>;

void add(Row& sum, const Row& each) {
    for (std::size_t age = 0; age < kAges; ++age) sum[age] += each[age];
}

// Over two octaves either way: one request of a hundred chunks leaves a spike that no waiting should be built on, and a
// gap beside it.
Row smoothed(Row counts) {
    for (std::size_t pass = 0; pass < kPasses; ++pass) {
        const Row rough = counts;
        for (std::size_t age = 0; age < kAges; ++age) {
            const std::size_t before = age > 0 ? age - 1 : age, after = std::min(age + 1, kAges - 1);
            counts[age] = (2 * rough[age] + rough[before] + rough[after]) / 4;
        }
    }
    return counts;
}

}  // namespace

void Hazards::decay(double most) {
    if (begun_ <= most) return;
    begun_ /= 2;
    for (std::size_t kind = 0; kind < kKinds; ++kind)
        for (std::size_t age = 0; age < kAges; ++age) {
            at_risk_[kind][age] *= .5;
            uses_[kind][age] *= .5;
        }
}

// The shape of `towards`, at the height that these chunks show in all, and by age where they are many.
Row Hazards::shrunk(const Row& uses, const Row& at_risk, const Row& towards, double prior) {
    double seen = prior / 4, expected = prior / 4;
    for (std::size_t age = 0; age < kAges; ++age) {
        seen += uses[age];
        expected += at_risk[age] * towards[age];
    }
    const double ratio = seen / expected;
    const Row near = smoothed(uses), lived = smoothed(at_risk);
    Row hazards;
    for (std::size_t age = 0; age < kAges; ++age) {
        const double base = std::min(.95, towards[age] * ratio);
        hazards[age] = std::min(.99, (near[age] + prior * base) / (lived[age] + prior));
    }
    return hazards;
}

void Hazards::rate(double run, double least, double least_alone) {
    const double prior = kPriorRuns * std::max(1.0, run);
    Row uses{}, at_risk{};
    for (std::size_t kind = 0; kind < kKinds; ++kind) {
        add(uses, uses_[kind]);
        add(at_risk, at_risk_[kind]);
    }
    const Row near = smoothed(uses), lived = smoothed(at_risk);
    Row all;
    for (std::size_t age = 0; age < kAges; ++age) all[age] = (near[age] + prior * kFirstGuess) / (lived[age] + prior);
    for (std::size_t group = 0; group < kGroups; ++group)
        rate_kinds(group * kLevels, (group + 1) * kLevels, all, prior, least);
    for (std::size_t kind = kGroups * kLevels; kind < kKinds; ++kind) rate_kinds(kind, kind + 1, all, kPriorRuns, least_alone);
}

// Those of one group.
void Hazards::rate_kinds(std::size_t from, std::size_t to, const Row& all, double prior, double least) {
    Row uses{}, at_risk{};
    for (std::size_t kind = from; kind < to; ++kind) {
        add(uses, uses_[kind]);
        add(at_risk, at_risk_[kind]);
    }
    const Row of_group = shrunk(uses, at_risk, all, prior);
    for (std::size_t kind = from; kind < to; ++kind)
        rate_kind(shrunk(uses_[kind], at_risk_[kind], of_group, prior), least, density_[kind]);
}

void Hazards::rate_kind(const Row& hazards, double least, Row& density) const {
    for (std::size_t from = 0; from < kAges; ++from) {
        double left = 1, used = 0, waited = 0, best = 0;
        for (std::size_t age = from; age < kAges; ++age) {
            double width = ages_.begin[age + 1] - ages_.begin[age], hazard = hazards[age];
            if (age == from) {  // it is half through it
                width /= 2;
                hazard = 1 - std::sqrt(1 - hazard);
            }
            used += left * hazard;
            waited += left * width * (1 - hazard / 2);
            left *= 1 - hazard;
            const bool over = left < 1e-3 || age + 1 == kAges;  // waiting on changes nothing any more
            if (over || ages_.begin[age + 1] - ages_.begin[from] >= least) best = std::max(best, used / waited);
            if (over) break;
        }
        density[from] = best;
    }
}

}  // namespace kvstore
