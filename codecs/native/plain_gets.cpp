#include "plain_gets.hpp"

namespace kvstore {

namespace {

constexpr std::uint16_t kRaw = 0;

// Fills in what is sent; false for a header with a bit off or of another record than the index says.
bool announce(const PartScope& scope, const PlainGet& get, const std::uint8_t* record, std::uint64_t header,
              std::uint64_t stored, HeldPart& held) {
    const RecordHeader found({record, header});
    if (!found.intact() || found.form() != kRaw || found.fields().stored != stored) return false;
    const RecordFields& fields = found.fields();
    const ChunkRef& chunk = get.item.chunk;
    if (fields.key != chunk.key || fields.spec != get.spec || found.owner() != scope.ns ||
        !(fields.part == get.item.part) || fields.position != chunk.position || fields.tokens != chunk.tokens)
        return false;
    held.message = write_answer(fields, found.groups());
    held.payload = {record + header, stored};
    return true;
}

}  // namespace

bool PlainGets::add_scope(const SpecDigest& spec, PartScope scope) {
    const std::lock_guard held(lock_);
    if (scopes_.size() >= kMaxScopes) return false;
    scopes_.emplace(spec, std::move(scope));
    return true;
}

const PartScope* PlainGets::scope_of(const SpecDigest& spec) {
    const std::lock_guard held(lock_);
    const auto known = scopes_.find(spec);
    return known == scopes_.end() ? nullptr : &known->second;
}

std::unique_ptr<HeldPart> PlainGets::find(const FrameHead& head, std::span<const std::uint8_t> message) {
    if (head.method != method_ || head.flags != 0 || head.payload != 0) return {};
    const std::optional<PlainGet> get = parse_get(message);
    const PartScope* const scope = get ? scope_of(get->spec) : nullptr;
    const std::uint32_t header = scope ? scope->header_of(get->item.part) : 0;
    if (header == 0) return {};
    const ChunkRef& asked = get->item.chunk;
    const auto place = hold(*scope, asked.key, get->item.part, [&](std::uint32_t chunk, const PlacementRow& found) {
        const ChunkRow& known = scope->intake->index.chunk(chunk);
        if (known.position != asked.position || known.tokens != asked.tokens || found.codec != kRaw) return false;
        count_hit(*scope, chunk, unix_ms());
        return true;
    });
    if (!place) return {};
    auto held = std::make_unique<HeldPart>(*scope, freed_, place->placement);
    const std::uint8_t* const record = scope->holdings->at(place->location);
    if (record == nullptr || !announce(*scope, *get, record, header, place->stored, *held)) return {};
    return held;
}

}  // namespace kvstore
