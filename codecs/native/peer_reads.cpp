#include "peer_reads.hpp"

#include "message_fields.hpp"
#include "record_header.hpp"
#include "use.hpp"

#include <cstring>
#include <initializer_list>

namespace kvstore {

namespace {

constexpr std::uint16_t kRaw = 0;
constexpr std::uint64_t kBlock = 4096;  // what records are padded to

// A name as it travels; kvstore/tiers/remote/names.py describes the same bytes.
struct RecordName {
    SpecDigest ns;
    SpecDigest spec;
    Key key;
    PartId part;
};
static_assert(sizeof(RecordName) == 72);

// What an object begins with; kvstore/objects.py describes the same bytes.
struct ObjectHead {
    std::uint16_t name;  // bytes of it, which follow
    std::uint16_t zeros[3];
    std::uint64_t bytes;
};
static_assert(sizeof(ObjectHead) == 16);

struct RecordRead {
    RecordName name{};
    std::uint64_t offset = 0, bytes = 0, form = 0, total = 0;
};

struct ObjectRead {
    Key key{};
    std::uint64_t offset = 0, bytes = 0;
};

bool inside(std::uint64_t offset, std::uint64_t bytes, std::uint64_t total) {
    return bytes <= total && offset <= total - bytes;
}

// Reads a request of one name and the numbers that follow it, fields 2 and on; false where it has any other field.
template <typename Of>
bool parse_read(std::span<const std::uint8_t> message, Of& name, std::initializer_list<std::uint64_t*> numbers) {
    Fields fields(message);
    bool named = false;
    while (fields.next()) {
        if (fields.tag == bytes_tag(1)) {
            named = fields.copy_to(name);
            continue;
        }
        const std::uint64_t at = (fields.tag >> 3) - 2;
        if (at >= numbers.size() || fields.tag != number_tag(static_cast<unsigned>(at + 2))) return false;
        *numbers.begin()[at] = fields.number;
    }
    return named && !fields.bad;
}

std::optional<RecordRead> parse_record_read(std::span<const std::uint8_t> message) {
    RecordRead read;
    if (!parse_read(message, read.name, {&read.offset, &read.bytes, &read.form, &read.total})) return {};
    return inside(read.offset, read.bytes, read.total) ? std::optional(read) : std::nullopt;
}

std::optional<ObjectRead> parse_object_read(std::span<const std::uint8_t> message) {
    ObjectRead read;
    return parse_read(message, read.key, {&read.offset, &read.bytes}) ? std::optional(read) : std::nullopt;
}

}  // namespace

void PeerReads::add_records(const SpecDigest& spec, PartScope scope) {
    const std::lock_guard held(lock_);
    const ScopeKey key{scope.ns, spec};
    scopes_.emplace(key, std::move(scope));
}

void PeerReads::add_objects(PartScope scope, std::uint64_t data_at) {
    const std::lock_guard held(lock_);
    if (!objects_) objects_.emplace(Objects{std::move(scope), data_at});
}

const PartScope* PeerReads::scope_of(const ScopeKey& key) {
    const std::lock_guard held(lock_);
    const auto known = scopes_.find(key);
    return known == scopes_.end() ? nullptr : &known->second;
}

const PeerReads::Objects* PeerReads::objects() {
    const std::lock_guard held(lock_);
    return objects_ ? &*objects_ : nullptr;
}

std::unique_ptr<HeldPart> PeerReads::find(const FrameHead& head, std::span<const std::uint8_t> message) {
    if (head.flags != 0 || head.payload != 0) return {};
    if (head.method == record_method_) return find_record(message);
    return head.method == object_method_ ? find_object(message) : nullptr;
}

std::unique_ptr<HeldPart> PeerReads::find_record(std::span<const std::uint8_t> message) {
    const std::optional<RecordRead> read = parse_record_read(message);
    const PartScope* const scope = read ? scope_of({read->name.ns, read->name.spec}) : nullptr;
    const std::uint64_t header = scope ? scope->header_of(read->name.part) : 0;
    if (header == 0) return {};
    const auto place = hold(*scope, read->name.key, read->name.part, [&](std::uint32_t chunk, const PlacementRow& row) {
        const std::uint64_t total = header + (row.stored + kBlock - 1) / kBlock * kBlock;
        if (row.codec != read->form || total != read->total) return false;
        Index& index = scope->intake->index;
        const std::int64_t now = unix_ms();
        if (index.chunk(chunk).last_use < now - kRecentMs) use_unleased(index, scope->orders, chunk, now);
        scope->tally->peer_reads += 1;
        scope->tally->peer_bytes += read->bytes;
        return true;
    });
    if (!place) return {};
    auto part = std::make_unique<HeldPart>(*scope, freed_, place->placement);
    const std::uint8_t* const record = scope->holdings->at(place->location);
    if (record == nullptr) return {};
    part->payload = {record + read->offset, read->bytes};
    return part;
}

std::unique_ptr<HeldPart> PeerReads::find_object(std::span<const std::uint8_t> message) {
    const std::optional<ObjectRead> read = parse_object_read(message);
    const Objects* const of = read ? objects() : nullptr;
    if (of == nullptr) return {};
    const std::uint64_t header = of->scope.table.headers.front();
    const auto place = hold(of->scope, read->key, of->scope.table.parts.front(),
                            [&](std::uint32_t chunk, const PlacementRow& row) {
                                if (row.codec != kRaw) return false;
                                count_hit(of->scope, chunk, unix_ms());
                                return true;
                            });
    if (!place) return {};
    auto part = std::make_unique<HeldPart>(of->scope, freed_, place->placement);
    const std::uint8_t* const record = of->scope.holdings->at(place->location);
    if (record == nullptr || std::memcmp(record + kHeaderKeyAt, &read->key, sizeof read->key) != 0) return {};
    ObjectHead object;
    std::memcpy(&object, record + header, sizeof object);
    if (!inside(of->data_at, object.bytes, place->stored) || !inside(read->offset, read->bytes, object.bytes)) return {};
    part->payload = {record + header + of->data_at + read->offset, read->bytes};
    return part;
}

}  // namespace kvstore
