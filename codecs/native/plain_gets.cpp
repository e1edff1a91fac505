#include "plain_gets.hpp"

#include "use.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace kvstore {

namespace {

constexpr std::uint8_t kDram = 0;
constexpr std::uint16_t kRaw = 0;

std::int64_t unix_ms() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

std::uint32_t header_of(const GetScope& scope, const PartId& part) {
    const auto known = std::find(scope.table.parts.begin(), scope.table.parts.end(), part);
    return known == scope.table.parts.end() ? 0 : scope.table.headers[known - scope.table.parts.begin()];
}

// Tells of a use as Core.count_one does. Needs the lock.
void count(const GetScope& scope, std::uint32_t chunk) {
    scope.tally->hits_dram += 1;
    use_unleased(scope.intake->index, scope.orders, chunk, unix_ms());
}

// Fills in what is sent; false for a header with a bit off or of another record than the index says.
bool announce(const GetScope& scope, const PlainGet& get, const std::uint8_t* record, std::uint64_t header,
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

HeldPart::~HeldPart() {
    Intake& intake = *scope_->intake;
    bool awaited;
    {
        const std::lock_guard held(intake.lock);
        intake.index.drop_reader(placement_);
        awaited = intake.lock.awaited > 0;
    }
    scope_->holdings->end_reading();
    if (awaited) (*freed_)();
}

bool PlainGets::add_scope(const SpecDigest& spec, GetScope scope) {
    const std::lock_guard held(lock_);
    if (scopes_.size() >= kMaxScopes) return false;
    scopes_.emplace(spec, std::move(scope));
    return true;
}

const GetScope* PlainGets::scope_of(const SpecDigest& spec) {
    const std::lock_guard held(lock_);
    const auto known = scopes_.find(spec);
    return known == scopes_.end() ? nullptr : &known->second;
}

// Puts a reader on what is asked for, and keeps the store from giving its extents back.
std::optional<PlainGets::Hit> PlainGets::hold(const GetScope& scope, const ItemRef& item) {
    scope.holdings->begin_reading();  // before the store is seen to be open: it waits for readers once it is not
    const std::lock_guard held(scope.intake->lock);
    Index& index = scope.intake->index;
    const auto nothing = [&] {
        scope.holdings->end_reading();
        return std::nullopt;
    };
    if (scope.intake->closed) return nothing();
    const std::int64_t row = index.find(scope.scope, item.chunk.key);
    if (row < 0) return nothing();
    const auto chunk = static_cast<std::uint32_t>(row);
    const ChunkRow& known = index.chunk(chunk);
    if (known.flags != 0 || known.position != item.chunk.position || known.tokens != item.chunk.tokens)
        return nothing();
    const std::int64_t part = index.find_part(chunk, item.part);
    const std::int64_t placement = part < 0 ? -1 : index.find_placement(static_cast<std::uint64_t>(part), kDram);
    if (placement < 0) return nothing();
    const PlacementRow& place = index.placement(static_cast<std::uint64_t>(placement));
    if (place.codec != kRaw || !place.exact) return nothing();
    index.add_reader(static_cast<std::uint64_t>(placement));
    count(scope, chunk);
    return Hit{static_cast<std::uint32_t>(placement), place.loc, place.stored};
}

std::unique_ptr<HeldPart> PlainGets::find(std::span<const std::uint8_t> message) {
    const std::optional<PlainGet> get = parse_get(message);
    const GetScope* const scope = get ? scope_of(get->spec) : nullptr;
    const std::uint32_t header = scope ? header_of(*scope, get->item.part) : 0;
    if (header == 0) return {};
    const std::optional<Hit> hit = hold(*scope, get->item);
    if (!hit) return {};
    auto held = std::make_unique<HeldPart>(*scope, freed_, hit->placement);
    const std::uint8_t* const record = scope->holdings->at(hit->location);
    if (record == nullptr || !announce(*scope, *get, record, header, hit->stored, *held)) return {};
    return held;
}

}  // namespace kvstore
