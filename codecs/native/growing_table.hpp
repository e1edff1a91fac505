// From a hash to a row number, in memory that grows with what is in it.
#pragma once

#include "mapped_array.hpp"

#include <cstdint>

namespace kvstore {

// For tables of which a store has one for each tenant in each tier, most of them nearly empty: KeyTable touches all its
// pages as soon as it has a few hundred rows. Linear hashing (Litwin, VLDB 1980): each row that comes splits one bucket,
// so there is a bucket to each row and no rehash. Rows of a bucket are chained.
class GrowingTable {
public:
    explicit GrowingTable(std::size_t max_rows) : heads_(max_rows + 1), links_(max_rows) {}

    // The first row under `hash` that `matches` accepts, or -1.
    template <typename Matches>
    std::int64_t find(std::uint64_t hash, Matches matches) const {
        const Tag tag = to_tag(hash);
        for (std::uint32_t link = heads_[bucket_of(tag)]; link != kEnd; link = links_[link - 1].next)
            if (links_[link - 1].tag == tag && matches(link - 1)) return link - 1;
        return -1;
    }

    // The row must not be in the table.
    void insert(std::uint64_t hash, std::uint32_t row) {
        if (++size_ > buckets_) split();
        links_[row].tag = to_tag(hash);
        prepend(bucket_of(to_tag(hash)), row);
    }

    // The row must be in the table, under this hash.
    void remove(std::uint64_t hash, std::uint32_t row) {
        std::uint32_t* link = &heads_[bucket_of(to_tag(hash))];
        while (*link != row + 1) link = &links_[*link - 1].next;
        *link = links_[row].next;
        --size_;
    }

private:
    using Tag = std::uint32_t;
    static constexpr std::uint32_t kEnd = 0;

    struct Link {
        std::uint32_t next;  // a row plus one
        Tag tag;
    };

    static Tag to_tag(std::uint64_t hash) { return static_cast<Tag>(hash); }

    // `half_` is the power of two below the number of buckets; the upper half has come as far as `buckets_`.
    std::size_t bucket_of(Tag tag) const {
        const std::size_t bucket = tag & (2 * half_ - 1);
        return bucket < buckets_ ? bucket : bucket - half_;
    }

    void prepend(std::size_t bucket, std::uint32_t row) {
        links_[row].next = heads_[bucket];
        heads_[bucket] = row + 1;
    }

    // Some of the rows of the lower half's next bucket belong into a new one.
    void split() {
        const std::size_t lower = buckets_++ - half_;
        std::uint32_t link = heads_[lower];
        heads_[lower] = kEnd;
        while (link != kEnd) {
            const std::uint32_t row = link - 1;
            link = links_[row].next;
            prepend(bucket_of(links_[row].tag), row);
        }
        if (buckets_ == 2 * half_) half_ = buckets_;
    }

    MappedArray<std::uint32_t> heads_;
    MappedArray<Link> links_;
    std::size_t size_ = 0, buckets_ = 1, half_ = 1;
};

}  // namespace kvstore
