#include "arrival.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace kvstore {

RawPart::RawPart(const SpecDigest& spec, std::vector<Range> groups) : spec_(spec), groups_(std::move(groups)), bytes_(0) {
    for (const Range& each : groups_) {
        if (each.offset != bytes_ || each.length == 0)
            throw std::invalid_argument("the layer groups of a raw part follow one another");
        bytes_ += each.length;
    }
}

std::optional<Digests> RawPart::digests(std::span<const std::uint8_t> message, const ItemRef& item) const {
    const std::optional<PlainAnswer> answer = parse_answer(message);
    if (!answer || answer->payload != bytes_ || answer->spec != spec_) return {};
    if (std::memcmp(&answer->item, &item, sizeof item) != 0) return {};
    if (answer->groups.size() != groups_.size() * sizeof(GroupEntry)) return {};
    Digests digests(groups_.size());
    for (std::size_t i = 0; i < groups_.size(); ++i) {
        GroupEntry entry;
        std::memcpy(&entry, answer->groups.data() + i * sizeof entry, sizeof entry);
        if (entry.offset != groups_[i].offset || entry.length != groups_[i].length) return {};
        digests[i] = entry.digest;
    }
    return digests;
}

void PartArrival::take(std::span<const std::uint8_t> bytes) {
    while (!bytes.empty() && group_ < groups_.size()) {
        const std::size_t length = groups_[group_].length;
        const std::size_t now = std::min(length - taken_, bytes.size());
        if (now == length) {  // nearly always, where groups are smaller than pieces
            compare(xxh3_128(bytes.data(), length));
        } else {
            if (taken_ == 0) state_ = Xxh3State();
            state_.update(bytes.data(), now);
            taken_ += now;
            if (taken_ == length) compare(state_.digest());
        }
        bytes = bytes.subspan(now);
    }
}

void PartArrival::compare(const Hash128& found) {
    std::array<std::uint8_t, kDigestBytes> digest;
    found.write_canonical(digest.data());
    if (digest != expected_[group_]) damaged_.push_back(static_cast<std::uint32_t>(group_));
    ++group_;
    taken_ = 0;
}

}  // namespace kvstore
