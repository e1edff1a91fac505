// Bytes in DRAM that stay where they are while they are sent; what finds them without Python.
#pragma once

#include "clocks.hpp"
#include "frames.hpp"
#include "staged_puts.hpp"

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

namespace kvstore {

// Where the parts of one spec are looked for, and who is told that they were used.
struct PartScope {
    Intake* intake;
    Holdings* holdings;
    Tally* tally;
    std::vector<Policy*> orders;  // of every tier
    std::uint32_t scope;
    SpecDigest ns;
    PartTable table;

    // Length of the header of a part's record; 0 for a part that the spec has not.
    std::uint32_t header_of(const PartId& part) const;
};

// What has a reader on it: a record's location, and the length of its payload.
struct HeldPlace {
    std::uint32_t placement;
    std::uint64_t location;
    std::uint64_t stored;
};

// A part that stays where it is until this is gone: there is a reader on its placement, and the store does not give
// its extents back.
class HeldPart {
public:
    // `freed` is called, without any lock, where somebody waits for readers to go.
    HeldPart(const PartScope& scope, const std::function<void()>& freed, std::uint32_t placement)
        : scope_(&scope), freed_(&freed), placement_(placement) {}
    ~HeldPart();
    HeldPart(const HeldPart&) = delete;
    HeldPart& operator=(const HeldPart&) = delete;

    // A message that announces the payload.
    std::vector<std::uint8_t> message;
    std::span<const std::uint8_t> payload;

private:
    const PartScope* scope_;
    const std::function<void()>* freed_;
    std::uint32_t placement_;
};

// What answers frames of some methods with parts that are held. Any thread may call.
class PartSource {
public:
    virtual ~PartSource() = default;
    // What a frame asks for, counted as used. Where it is nothing nothing was done, and the general way must see to it.
    virtual std::unique_ptr<HeldPart> find(const FrameHead& head, std::span<const std::uint8_t> message) = 0;
};

// Puts a reader on the exact copy of a part in DRAM, and keeps the store from giving its extents back. Nothing unless
// `accept(chunk, placement row)` takes it, which is called under the store's lock, and counts the use.
template <typename Accept>
std::optional<HeldPlace> hold(const PartScope& scope, const Key& key, const PartId& id, Accept accept) {
    constexpr std::uint8_t kDram = 0;
    scope.holdings->begin_reading();  // before the store is seen to be open: it waits for readers once it is not
    const std::lock_guard held(scope.intake->lock);
    Index& index = scope.intake->index;
    const std::int64_t chunk = scope.intake->closed ? -1 : index.find(scope.scope, key);
    const bool shown = chunk >= 0 && index.chunk(static_cast<std::uint64_t>(chunk)).flags == 0;
    const std::int64_t part = shown ? index.find_part(static_cast<std::uint64_t>(chunk), id) : -1;
    const std::int64_t placement = part < 0 ? -1 : index.find_placement(static_cast<std::uint64_t>(part), kDram);
    if (placement >= 0) {
        const PlacementRow place = index.placement(static_cast<std::uint64_t>(placement));
        if (place.exact && accept(static_cast<std::uint32_t>(chunk), place)) {
            index.add_reader(static_cast<std::uint64_t>(placement));
            return HeldPlace{static_cast<std::uint32_t>(placement), place.loc, place.stored};
        }
    }
    scope.holdings->end_reading();
    return {};
}

// Tells of a use as `Usage.found_one` does. Needs the store's lock.
void count_hit(const PartScope& scope, std::uint32_t chunk, std::int64_t now_ms);

}  // namespace kvstore
