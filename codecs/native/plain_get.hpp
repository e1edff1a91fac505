// The plainest get, as it travels: one whole part, sent as the raw bytes that it is. The messages are GetRequest and
// GetResponse of proto/kvstore/v1/kvstore.proto; whatever else they say is not plain, and Python's to understand.
#pragma once

#include "copy.hpp"
#include "index.hpp"

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace kvstore {

// A layer group as records and messages name it; kvstore/record.py describes the same bytes.
struct GroupEntry {
    std::uint64_t offset;
    std::uint64_t length;
    std::array<std::uint8_t, kDigestBytes> digest;
};
static_assert(sizeof(GroupEntry) == 32);

struct PlainGet {
    SpecDigest spec;
    ItemRef item;
};

// What a request asks for: nothing unless it is one exact part, all of it and not to be verified first.
std::optional<PlainGet> parse_get(std::span<const std::uint8_t> message);

// A raw part that is sent.
struct PlainAnswer {
    SpecDigest spec;
    ItemRef item;
    std::uint64_t payload;  // bytes that follow
    std::span<const std::uint8_t> groups;  // GroupEntry each, not aligned; inside the message
};

// Nothing for a failure, for frames of a codec, and for what is malformed.
std::optional<PlainAnswer> parse_answer(std::span<const std::uint8_t> message);

// What a record's header says of itself.
struct RecordFields {
    Key key;
    Key parent;
    SpecDigest spec;
    std::array<std::uint8_t, 16> artefact;
    PartId part;
    std::uint32_t position;
    std::uint32_t tokens;
    std::uint32_t first_valid;
    std::uint64_t logical;
    std::uint64_t stored;
    std::uint16_t level;
    bool exact;
};

// The answer that announces a whole raw part, byte for byte as Python writes it.
std::vector<std::uint8_t> write_answer(const RecordFields& record, std::span<const std::uint8_t> groups);

}  // namespace kvstore
