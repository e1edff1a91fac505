// Which policy a cache should follow, by how caches under other policies have done beside it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvstore {

// `value` is tried until another policy is ahead of it beyond doubt, which is then followed for a term. After that
// `value` is tried again: each time that it fails soon the next term is twice as long, so that trying costs little.
class Verdict {
public:
    static constexpr std::size_t kPolicies = 3;
    static constexpr std::size_t kNone = kPolicies;  // `value` by itself
    using Hits = std::array<double, kPolicies + 1>;  // in tokens; the last are the real cache's

    // One chunk in `sample` is seen.
    explicit Verdict(double sample) : sample_(sample) {}

    // Of a span of requests: so many tokens were asked for, and so many hit. `uses` of all chunks until now, of which
    // `size` are here. Gives what to follow from now on.
    std::size_t choose(double tokens, const Hits& hits, std::uint64_t uses, std::size_t size);
    std::size_t chosen() const { return chosen_; }

private:
    struct Lead {  // of a policy over the real cache: sums over spans, older ones count less
        double tokens = 0, sum = 0, squares = 0;  // tokens, and shares of those asked for
    };

    void observe(double tokens, const Hits& hits, double decay);
    void forget();
    std::size_t best(double rows) const;

    double sample_;
    std::array<Lead, kPolicies> leads_{};
    double tokens_ = 0, spans_ = 0, square_spans_ = 0;
    std::uint64_t seen_at_ = 0, chosen_at_ = 0;  // in uses of the real cache
    double term_ = 0;
    std::size_t chosen_ = kNone;
};

}  // namespace kvstore
