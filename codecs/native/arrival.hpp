// A raw part as its destination expects it, and its checksums while it arrives.
#pragma once

#include "plain_get.hpp"

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace kvstore {

using Digests = std::vector<std::array<std::uint8_t, kDigestBytes>>;

// A part of a spec with so many tokens: its layer groups follow one another.
class RawPart {
public:
    // std::invalid_argument unless they do, from 0 on.
    RawPart(const SpecDigest& spec, std::vector<Range> groups);

    std::uint64_t bytes() const { return bytes_; }
    std::span<const Range> groups() const { return groups_; }
    // The checksums in an answer that announces this part of `item`; nothing if it announces anything else.
    std::optional<Digests> digests(std::span<const std::uint8_t> message, const ItemRef& item) const;

private:
    SpecDigest spec_;
    std::vector<Range> groups_;
    std::uint64_t bytes_;
};

// Bytes of a part that come in any pieces, in order, hashed while they are warm.
class PartArrival {
public:
    PartArrival(std::span<const Range> groups, Digests expected) : groups_(groups), expected_(std::move(expected)) {}

    void take(std::span<const std::uint8_t> bytes);
    // The numbers of the layer groups that are not what was announced, of those that have come.
    const std::vector<std::uint32_t>& damaged() const { return damaged_; }

private:
    void compare(const Hash128& found);

    std::span<const Range> groups_;
    Digests expected_;
    std::vector<std::uint32_t> damaged_;
    std::size_t group_ = 0;  // that comes now
    std::size_t taken_ = 0;  // bytes of it
    Xxh3State state_;
};

}  // namespace kvstore
