// Ranges of a buffer that Python names, and a copy that hashes them on its way.
#pragma once

#include "buffer.hpp"

namespace kvstore {

inline constexpr std::size_t kDigestBytes = 16;

// Offsets and lengths (uint64), checked: ValueError for one that ends outside a buffer of `bytes` bytes.
class Ranges {
public:
    Ranges(nb::handle offsets, nb::handle lengths, std::size_t bytes);

    std::size_t size() const { return offsets_.size(); }
    std::size_t offset(std::size_t i) const { return static_cast<std::size_t>(offsets_[i]); }
    std::size_t length(std::size_t i) const { return static_cast<std::size_t>(lengths_[i]); }
    std::size_t total() const;
    // ValueError unless they ascend and do not overlap.
    void require_ascending() const;

private:
    Words offsets_;
    Words lengths_;
};

// ValueError unless both have the same length and do not overlap.
void check_pair(const std::uint8_t* dst, std::size_t dst_bytes, const BufferView& src);

// Copies all of `src` and writes the xxh3-128 of each range, which ascend, to `digests`.
void copy_hash_ranges(std::uint8_t* dst, const BufferView& src, const Ranges& ranges, std::uint8_t* digests);

}  // namespace kvstore
