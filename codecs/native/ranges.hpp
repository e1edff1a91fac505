// Ranges of a buffer, and a copy that hashes them on its way.
#pragma once

#include "buffer.hpp"
#include "copy.hpp"

#include <span>
#include <vector>

namespace kvstore {

// Offsets and lengths (uint64) that Python names, checked: ValueError for one that ends outside a buffer of `bytes`
// bytes.
class Ranges {
public:
    Ranges(nb::handle offsets, nb::handle lengths, std::size_t bytes);

    std::size_t size() const { return ranges_.size(); }
    std::size_t offset(std::size_t i) const { return ranges_[i].offset; }
    std::size_t length(std::size_t i) const { return ranges_[i].length; }
    std::size_t total() const;
    std::span<const Range> all() const { return ranges_; }
    // ValueError unless they ascend and do not overlap.
    void require_ascending() const;

private:
    std::vector<Range> ranges_;
};

// ValueError unless both have the same length and do not overlap.
void check_pair(const std::uint8_t* dst, std::size_t dst_bytes, const BufferView& src);

}  // namespace kvstore
