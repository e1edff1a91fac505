// From a key to the item that has it, in memory that grows with what is in it.
#pragma once

#include "mapped_array.hpp"
#include "mixed_key.hpp"

#include <cstdint>

namespace kvstore {

// For tables of which a store has several for each tenant in each tier, most of them nearly empty: KeyTable touches all
// its pages as soon as it has a few hundred rows. Linear hashing (Litwin, VLDB 1980): each item that comes splits one
// bucket, so there is a bucket to each item and no rehash. An item has `key` and `chain`, which is the table's, so that a
// chain leads from item to item and takes four bytes of each.
template <typename Item>
class KeyChains {
public:
    // The items are the caller's, and outlive this.
    explicit KeyChains(MappedArray<Item>& items) : items_(items), heads_(items.size() + 1) {}

    // An item's place, or -1.
    std::int64_t find(std::uint64_t key) const {
        for (std::uint32_t link = heads_[bucket_of(key)]; link != kEnd; link = items_[link - 1].chain)
            if (items_[link - 1].key == key) return link - 1;
        return -1;
    }

    // The item must not be in the table, nor another one of its key.
    void insert(std::uint32_t at) {
        if (++size_ > buckets_) split();
        prepend(bucket_of(items_[at].key), at);
    }

    // The item must be in the table.
    void remove(std::uint32_t at) {
        std::uint32_t* link = &heads_[bucket_of(items_[at].key)];
        while (*link != at + 1) link = &items_[*link - 1].chain;
        *link = items_[at].chain;
        --size_;
    }

private:
    static constexpr std::uint32_t kEnd = 0;  // links are places plus one

    // `half_` is the power of two below the number of buckets; the upper half has come as far as `buckets_`.
    std::size_t bucket_of(std::uint64_t key) const {
        const std::size_t bucket = mixed_key(key) & (2 * half_ - 1);
        return bucket < buckets_ ? bucket : bucket - half_;
    }

    void prepend(std::size_t bucket, std::uint32_t at) {
        items_[at].chain = heads_[bucket];
        heads_[bucket] = at + 1;
    }

    // Some of the items of the lower half's next bucket belong into a new one.
    void split() {
        const std::size_t lower = buckets_++ - half_;
        std::uint32_t link = heads_[lower];
        heads_[lower] = kEnd;
        while (link != kEnd) {
            const std::uint32_t at = link - 1;
            link = items_[at].chain;
            prepend(bucket_of(items_[at].key), at);
        }
        if (buckets_ == 2 * half_) half_ = buckets_;
    }

    MappedArray<Item>& items_;
    MappedArray<std::uint32_t> heads_;
    std::size_t size_ = 0, buckets_ = 1, half_ = 1;
};

}  // namespace kvstore
