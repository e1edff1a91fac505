#include "policy_value_verdict.hpp"

#include <algorithm>
#include <cmath>

namespace kvstore {

namespace {

constexpr double kLeastSpans = 16;         // that make evidence
constexpr double kErrors = 3;              // a policy must be ahead by so many standard errors
constexpr double kMargin = .02;            // and by so much of all tokens
constexpr double kLeastMemory = 40'000;  // uses after which what was seen counts half,
constexpr double kMemoryPerRow = 8;      // and more where the cache is large
constexpr double kSettle = 1;            // uses a chunk that is here, until what another order left has gone
// A policy is followed for so many times as long as `value` was tried, twice as long as before if it failed again within
// that, and for at most so many memories.
constexpr double kTerm = 1;
constexpr double kMostTerm = 16;

}  // namespace

std::size_t Verdict::choose(double tokens, const Hits& hits, std::uint64_t uses, std::size_t size) {
    const auto rows = static_cast<double>(size);
    const double memory = kLeastMemory + kMemoryPerRow * rows;
    const auto since = static_cast<double>(uses - chosen_at_);
    observe(std::max(tokens, 1.0), hits, std::exp2(-static_cast<double>(uses - seen_at_) / memory));
    seen_at_ = uses;
    if (since < kSettle * rows) {
        forget();
        return chosen_;
    }
    std::size_t next = best(rows);
    if (next == chosen_ && (chosen_ == kNone || since < term_)) return chosen_;
    if (next == chosen_) next = kNone;  // its term is over
    if (chosen_ == kNone)
        term_ = since < term_ ? std::min(2 * term_, kMostTerm * memory) : kTerm * std::min(since, memory);
    chosen_ = next;
    chosen_at_ = uses;
    forget();
    return chosen_;
}

void Verdict::observe(double tokens, const Hits& hits, double decay) {
    tokens_ = tokens_ * decay + tokens;
    spans_ = spans_ * decay + 1;
    square_spans_ = square_spans_ * decay * decay + 1;
    for (std::size_t policy = 0; policy < kNone; ++policy) {
        const double ahead = hits[policy] - hits[kNone], share = ahead / tokens;
        leads_[policy].tokens = leads_[policy].tokens * decay + ahead;
        leads_[policy].sum = leads_[policy].sum * decay + share;
        leads_[policy].squares = leads_[policy].squares * decay + share * share;
    }
}

void Verdict::forget() {
    leads_ = {};
    tokens_ = spans_ = square_spans_ = 0;
}

// The policy that is ahead of the real cache beyond doubt, or the one at hand.
std::size_t Verdict::best(double rows) const {
    if (spans_ < kLeastSpans) return chosen_;
    const double margin = std::max(kMargin, 1 / std::sqrt(rows / sample_));  // the error of the sample itself
    std::size_t found = chosen_;
    double most = 0;
    for (std::size_t policy = 0; policy < kNone; ++policy) {
        if (policy == chosen_) continue;
        const double mean = leads_[policy].sum / spans_;
        const double variance = std::max(0.0, leads_[policy].squares / spans_ - mean * mean);
        const double error = std::sqrt(variance * square_spans_) / spans_;
        const double beyond = leads_[policy].tokens / tokens_ - std::max(margin, kErrors * error);
        if (beyond <= most) continue;
        most = beyond;
        found = policy;
    }
    return found;
}

}  // namespace kvstore
