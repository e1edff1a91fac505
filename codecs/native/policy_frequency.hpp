// Policies that rank by how often a chunk was used: LFU and GDSF. O(log n) an event, 48 bytes a row, no ghosts.
#pragma once

#include "mapped_array.hpp"
#include "ordered_rows.hpp"
#include "policy_list.hpp"

namespace kvstore {

// Rows by rank, lowest first. A subclass says what the rank is.
class RankedPolicy : public ListPolicy {
public:
    explicit RankedPolicy(std::uint32_t max_rows) : order_(max_rows), known_(max_rows) {}

    void admit(std::uint32_t row, const Arrival& chunk, std::int64_t now_ms) override;
    void hit(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms) override;
    void remove(std::uint32_t row, bool evicted, std::int64_t now_ms) override;
    std::size_t size() const override { return order_.size(); }
    bool contains(std::uint32_t row) const override { return order_.contains(row); }

protected:
    std::int64_t following(std::int64_t row) override;
    struct Known {
        std::uint64_t bytes;
        std::uint32_t tokens;
        std::uint32_t uses;
    };

    virtual double rank(const Known& known) const = 0;
    // The chunk of this rank was evicted.
    virtual void evicted_at(double rank) { (void)rank; }

private:
    OrderedRows order_;
    MappedArray<Known> known_;
};

// Least frequently used first, of these the one whose last use is longest ago. Uses are forgotten at eviction.
class LfuPolicy final : public RankedPolicy {
public:
    using RankedPolicy::RankedPolicy;

private:
    double rank(const Known& known) const override { return known.uses; }
};

// GreedyDual-Size with frequency (Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching
// policy", HP Labs 1998): L + uses · cost / size, where L rises to the rank of each chunk evicted. The cost of a chunk
// is its tokens, which is what recomputing it costs; that makes what a codec has shrunk worth more.
class GdsfPolicy final : public RankedPolicy {
public:
    using RankedPolicy::RankedPolicy;

private:
    double rank(const Known& known) const override {
        const double cost = known.tokens == 0 ? 1 : known.tokens;
        return inflation_ + known.uses * cost / static_cast<double>(known.bytes == 0 ? 1 : known.bytes);
    }
    void evicted_at(double rank) override {
        if (rank > inflation_) inflation_ = rank;
    }

    double inflation_ = 0;
};

}  // namespace kvstore
