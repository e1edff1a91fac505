#include "staged_puts.hpp"

#include "clocks.hpp"
#include "frames.hpp"
#include "use.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>

namespace kvstore {

namespace {

constexpr std::uint8_t kDram = 0;  // the tier that a put goes to

// Whether a put adds something to a chunk that is not there, or is and nothing is the matter with it. Needs the lock.
bool is_plain(const Index& index, const PutShape& shape, const StagedPut& put) {
    const std::int64_t row = index.find(shape.scope, put.key);
    if (row < 0) return true;
    const ChunkRow& chunk = index.chunk(static_cast<std::uint64_t>(row));
    return chunk.flags == 0 && chunk.position == put.position && chunk.tokens == put.tokens &&
           index.find_part(static_cast<std::uint64_t>(row), put.part) < 0;
}

bool may_come(const PutShape& shape, const StagedPut& put) {
    const Intake& intake = *shape.intake;
    const std::lock_guard held(intake.lock);
    return !intake.closed && !intake.watched.load() && is_plain(intake.index, shape, put);
}

void write_record(const PutShape& shape, const StagedPut& put, const std::uint8_t* source, std::uint8_t* record,
                  std::vector<std::uint8_t>& digests, std::int64_t now_ms) {
    std::uint8_t* const payload = record + shape.header;
    copy_hash_ranges(payload, source, shape.payload, shape.groups, digests.data());
    std::memset(payload + shape.payload, 0, shape.total - shape.header - shape.payload);
    auto fixed = shape.fixed;
    std::memcpy(fixed.data() + kHeaderKeyAt, put.key.data(), put.key.size());
    std::memcpy(fixed.data() + kHeaderParentAt, put.parent.data(), put.parent.size());
    std::memcpy(fixed.data() + kHeaderPositionAt, &put.position, sizeof put.position);
    std::memcpy(fixed.data() + kHeaderCreatedAt, &now_ms, sizeof now_ms);
    write_record_header({record, shape.header}, fixed, shape.groups, digests.data());
}

// Makes a written part visible, unless something has come in between.
bool publish(const PutShape& shape, const StagedPut& put, std::uint64_t location, std::int64_t now_ms) {
    Intake& intake = *shape.intake;
    const std::lock_guard held(intake.lock);
    if (intake.closed || intake.watched.load() || !is_plain(intake.index, shape, put)) return false;
    try {
        const Index::Inserted done = intake.index.insert({put.key, put.parent, shape.scope, put.position, put.tokens,
                                                          put.part, 0, 0, 0, 1, kDram, 0, shape.payload, location,
                                                          shape.payload, now_ms, 0});
        if (done.placement < 0) return false;
        admit_chunk(intake.index, *shape.order, done.chunk, kDram, now_ms);
    } catch (const std::exception&) {  // the index is full: Python makes room
        return false;
    }
    shape.tally->stored += 1;
    shape.tally->stored_bytes += shape.payload;
    shape.tally->used += static_cast<std::int64_t>(shape.total);
    return true;
}

}  // namespace

bool StagedPuts::add_memory(std::uint32_t number, std::span<const std::uint8_t> memory) {
    const std::lock_guard held(lock_);
    return memory_.emplace(number, memory).second;
}

bool StagedPuts::add_shape(const SpecDigest& spec, const PartId& part, std::uint32_t tokens, PutShape shape) {
    const std::lock_guard held(lock_);
    if (shapes_.size() >= kMaxShapes) return false;
    shapes_.emplace(shape_key(spec, part, tokens), std::move(shape));
    return true;
}

bool StagedPuts::take(std::span<const std::uint8_t> message, int fd) {
    StagedPut put;
    if (message.size() != prefix_.size() + sizeof put || !std::equal(prefix_.begin(), prefix_.end(), message.begin()))
        return false;
    std::memcpy(&put, message.data() + prefix_.size(), sizeof put);
    if (put.first_valid != 0 || put.ack != 0 || put.zero != 0 || put.zeros != 0) return false;
    if (put.position > std::numeric_limits<std::uint32_t>::max() - put.tokens) return false;
    const PutShape* shape;
    const std::uint8_t* source;
    {
        const std::lock_guard held(lock_);
        const auto known = shapes_.find(shape_key(put.spec, put.part, put.tokens));
        const auto memory = memory_.find(put.staging);
        if (known == shapes_.end() || memory == memory_.end()) return false;
        shape = &known->second;
        if (put.offset > memory->second.size() || shape->payload > memory->second.size() - put.offset) return false;
        source = memory->second.data() + put.offset;
    }
    if (!may_come(*shape, put)) return false;
    std::vector<std::uint8_t> digests(shape->groups.size() * kDigestBytes);  // first: nothing may fail from here on
    const std::optional<Plot> plot = shape->holdings->take(shape->total);
    if (!plot) return false;
    const std::int64_t now_ms = unix_ms();
    write_record(*shape, put, source, plot->data, digests, now_ms);
    if (peer_has_ended(fd) || !publish(*shape, put, plot->location, now_ms)) {
        shape->holdings->give_back(*plot, shape->total);
        return false;
    }
    shape->holdings->keep();
    return true;
}

StagedPuts::ShapeKey StagedPuts::shape_key(const SpecDigest& spec, const PartId& part, std::uint32_t tokens) {
    ShapeKey key;
    std::memcpy(key.data(), spec.data(), sizeof spec);
    std::memcpy(key.data() + sizeof spec, &part, sizeof part);
    std::memcpy(key.data() + sizeof spec + sizeof part, &tokens, sizeof tokens);
    return key;
}

}  // namespace kvstore
