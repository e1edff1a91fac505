#include "ranges.hpp"

#include <string>

namespace kvstore {

namespace {

[[noreturn]] void refuse(const std::string& reason) { throw nb::value_error(reason.c_str()); }

}  // namespace

Ranges::Ranges(nb::handle offsets_object, nb::handle lengths_object, std::size_t bytes) {
    const Words offsets(offsets_object, "offsets");
    const Words lengths(lengths_object, "lengths");
    if (offsets.size() != lengths.size())
        refuse("offsets has " + std::to_string(offsets.size()) + " items, lengths " + std::to_string(lengths.size()));
    ranges_.resize(offsets.size());
    for (std::size_t i = 0; i < size(); ++i) {
        ranges_[i] = {static_cast<std::size_t>(offsets[i]), static_cast<std::size_t>(lengths[i])};
        if (offset(i) <= bytes && length(i) <= bytes - offset(i)) continue;
        refuse("range " + std::to_string(i) + " (offset " + std::to_string(offset(i)) + ", length " +
               std::to_string(length(i)) + ") ends outside the buffer of " + std::to_string(bytes) + " bytes");
    }
}

std::size_t Ranges::total() const {
    std::size_t sum = 0;
    for (std::size_t i = 0; i < size(); ++i) sum += length(i);
    return sum;
}

void Ranges::require_ascending() const {
    for (std::size_t i = 1; i < size(); ++i)
        if (offset(i) < offset(i - 1) + length(i - 1))
            refuse("range " + std::to_string(i) + " begins at " + std::to_string(offset(i)) +
                   ", before the end of the range ahead of it");
}

void check_pair(const std::uint8_t* dst, std::size_t dst_bytes, const BufferView& src) {
    if (dst_bytes != src.bytes())
        refuse("dst has " + std::to_string(dst_bytes) + " bytes, src " + std::to_string(src.bytes()));
    if (dst < src.data() + src.bytes() && src.data() < dst + dst_bytes) refuse("dst and src overlap");
}

}  // namespace kvstore
