// Open addressing from a hash to a row number. Probing is linear and a removal shifts the run behind it back,
// so there are no tombstones and no rehash.
#pragma once

#include "mapped_array.hpp"

#include <bit>
#include <cstdint>

namespace kvstore {

class KeyTable {
public:
    // At most two thirds full.
    explicit KeyTable(std::size_t max_rows)
        : slots_(std::bit_ceil(max_rows + max_rows / 2 + 1)), mask_(slots_.size() - 1) {}

    // The first row under `hash` that `matches` accepts, or -1.
    template <typename Matches>
    std::int64_t find(std::uint64_t hash, Matches matches) const {
        const Tag tag = to_tag(hash);
        for (std::size_t i = tag & mask_; slots_[i].link != kEmpty; i = (i + 1) & mask_)
            if (slots_[i].tag == tag && matches(slots_[i].link - 1)) return slots_[i].link - 1;
        return -1;
    }

    void insert(std::uint64_t hash, std::uint32_t row) {
        const Tag tag = to_tag(hash);
        std::size_t i = tag & mask_;
        while (slots_[i].link != kEmpty) i = (i + 1) & mask_;
        slots_[i] = {row + 1, tag};
    }

    void remove(std::uint64_t hash, std::uint32_t row) {
        std::size_t hole = to_tag(hash) & mask_;
        while (slots_[hole].link != row + 1) hole = (hole + 1) & mask_;
        for (std::size_t i = (hole + 1) & mask_; slots_[i].link != kEmpty; i = (i + 1) & mask_) {
            const std::size_t from_home = (i - slots_[i].tag) & mask_;
            if (from_home < ((i - hole) & mask_)) continue;
            slots_[hole] = slots_[i];
            hole = i;
        }
        slots_[hole] = {kEmpty, 0};
    }

    void prefetch(std::uint64_t hash) const { __builtin_prefetch(&slots_[to_tag(hash) & mask_]); }
    std::size_t bytes() const { return slots_.size() * sizeof(Slot); }

private:
    // Half the hash beside the row number: a probe reads a row only when it is almost certainly the right one.
    using Tag = std::uint32_t;
    static constexpr std::uint32_t kEmpty = 0;

    struct Slot {
        std::uint32_t link;
        Tag tag;
    };

    static Tag to_tag(std::uint64_t hash) { return static_cast<Tag>(hash); }

    MappedArray<Slot> slots_;
    std::size_t mask_;
};

}  // namespace kvstore
