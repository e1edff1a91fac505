// What a persistent tier's slots say, believed as far as it makes sense.
#include "striped_memory.hpp"

namespace kvstore {

// Memory of one record on one device.
struct StripedMemory::Claim {
    std::uint64_t begin;
    std::uint64_t end;
    std::uint32_t slot;
};

StripedMemory::Restored StripedMemory::restore() {
    if (!slots_) throw std::invalid_argument("there are no slots to restore from");
    const std::lock_guard held(mutex_);
    Restored found;
    for (std::uint32_t slot = 0; slot < entries_.size(); ++slot) {
        const std::uint64_t mark = slots_->mark_of(slot);
        if (mark == kNoRecord) continue;
        if (mark != kBegun && adopt(slot)) {
            found.valid.push_back(slot);
        } else {
            ++(mark == kBegun ? found.torn : found.damaged);
            slots_->clear(slot);
        }
    }
    drop_overlapping(found);
    count_in(found);
    return found;
}

// Enters a committed record; false if its slot is not what a tier with these devices writes.
bool StripedMemory::adopt(std::uint32_t slot) {
    const std::uint64_t location = slots_->location_of(slot), life = location >> kStripedSlotBits;
    const std::uint64_t blocks = slots_->blocks_of(slot);
    const Stripes stripes = slots_->stripes_of(slot);
    if (!slots_->intact(slot) || (location & 0xFFFFFFFF) != slot || life == 0 || life > 0x7FFFFFFF) return false;
    if (blocks == 0 || blocks > 0xFFFFFFFF || stripes.first >= devices_.size() || stripes.turn_units() == 0)
        return false;
    for (std::size_t d = 0; d < kMaxDevices; ++d) {
        if (stripes.units[d] == 0) continue;
        if (d >= devices_.size()) return false;
        const std::uint64_t begin = stripes.starts[d] * kStripeBlock;
        if (begin > devices_[d].bytes || unit_share(stripes, d, blocks * kStripeBlock) > devices_[d].bytes - begin)
            return false;
    }
    entries_[slot] = {stripes, static_cast<std::uint32_t>(life), static_cast<std::uint32_t>(blocks), 0, kLive};
    return true;
}

std::vector<std::vector<StripedMemory::Claim>> StripedMemory::claims_of(std::span<const std::uint32_t> slots) const {
    std::vector<std::vector<Claim>> claims(devices_.size());
    for (const std::uint32_t slot : slots) {
        const Entry& entry = entries_[slot];
        for (std::size_t d = 0; d < devices_.size(); ++d) {
            const std::uint64_t begin = entry.stripes.starts[d] * kStripeBlock;
            const std::uint64_t share = unit_share(entry.stripes, d, entry.blocks * kStripeBlock);
            if (share > 0) claims[d].push_back({begin, begin + share, slot});
        }
    }
    for (auto& each : claims)
        std::sort(each.begin(), each.end(), [](const Claim& a, const Claim& b) { return a.begin < b.begin; });
    return claims;
}

// After power loss a record may be back whose memory another had got: neither is believed.
void StripedMemory::drop_overlapping(Restored& restored) {
    for (const auto& claims : claims_of(restored.valid)) {
        const Claim* last = nullptr;
        for (const Claim& each : claims) {
            if (last != nullptr && each.begin < last->end) entries_[each.slot].state = entries_[last->slot].state = kDying;
            if (last == nullptr || each.end > last->end) last = &each;
        }
    }
    std::erase_if(restored.valid, [&](std::uint32_t slot) {
        if (entries_[slot].state == kLive) return false;
        entries_[slot].state = kFree;
        slots_->clear(slot);
        ++restored.overlapping;
        return true;
    });
}

// Counts the records that are valid, and lists the memory that they leave.
void StripedMemory::count_in(Restored& restored) {
    const auto claims = claims_of(restored.valid);
    for (std::size_t d = 0; d < devices_.size(); ++d) {
        std::uint64_t free_from = 0;
        for (const Claim& each : claims[d]) {
            if (each.begin > free_from) restored.unused.push_back({d, free_from, each.begin - free_from});
            free_from = each.end;
            taken_[d] += each.end - each.begin;
        }
        const std::uint64_t end = allocators_[d].capacity();
        if (end > free_from) restored.unused.push_back({d, free_from, end - free_from});
    }
    for (const std::uint32_t slot : restored.valid) {
        for (; fresh_ < slot; ++fresh_) free_.push_back(fresh_);
        fresh_ = slot + 1;
        life_ = std::max(life_, entries_[slot].life);
        used_ += entries_[slot].blocks * kStripeBlock;
        ++records_;
    }
}

}  // namespace kvstore
