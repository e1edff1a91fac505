#include "striped_memory.hpp"

#include "copy.hpp"
#include "persist.hpp"

#include <chrono>
#include <cstring>

namespace kvstore {

namespace {

constexpr std::uint32_t kLastLife = 0x7FFFFFFF;  // a location stays below 2^63
constexpr std::uint64_t kHelpedBytes = 1 << 20;  // below, waking a thread costs more than it saves
constexpr std::uint64_t kTimedBytes = 64 << 10;
constexpr std::uint64_t kSampled = 64;  // one transfer in so many tells what each device gives
constexpr std::uint64_t kTried = 32;    // and another of them what helpers give

std::uint64_t now() {
    return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

std::uint64_t whole_blocks(std::uint64_t bytes) { return (bytes + kStripeBlock - 1) / kStripeBlock * kStripeBlock; }

std::uint64_t locate(std::uint32_t life, std::uint32_t slot) { return std::uint64_t{life} << kStripedSlotBits | slot; }

// Races between two that update it lose one of them.
void average(std::atomic<std::uint64_t>& of, std::uint64_t nanoseconds, std::uint64_t bytes) {
    const std::uint64_t each = nanoseconds * (1 << 20) / bytes, before = of.load(std::memory_order_relaxed);
    of.store(before == 0 ? each : (before * 7 + each) / 8, std::memory_order_relaxed);
}

void add(Traffic& traffic, std::uint64_t bytes, std::uint64_t start) {
    ++traffic.records;
    if (bytes < kTimedBytes) return;
    traffic.bytes += bytes;
    traffic.nanoseconds += now() - start;
}

}  // namespace

// Copies to or from devices, with the device of each.
struct StripedMemory::Transfer {
    std::vector<Piece> pieces;
    std::vector<std::uint8_t> devices;

    // One for each thread, so that a copy allocates nothing.
    static Transfer& empty() {
        thread_local Transfer transfer;
        transfer.pieces.clear();
        transfer.devices.clear();
        return transfer;
    }
};

StripedMemory::StripedMemory(std::vector<DeviceMemory> devices, std::size_t records, std::uint64_t unit,
                             unsigned helpers, std::optional<RecordSlots> slots)
    : devices_(std::move(devices)), unit_(unit), slots_(slots), pool_(helpers), taken_(devices_.size()),
      entries_(records), samples_(devices_.size()) {
    if (devices_.empty() || devices_.size() > kMaxDevices)
        throw std::invalid_argument("1 to " + std::to_string(kMaxDevices) + " devices");
    if (unit == 0 || unit % kStripeBlock != 0) throw std::invalid_argument("a stripe has whole blocks of 4096 bytes");
    if (records == 0 || records > 0xFFFFFFFF) throw std::invalid_argument("1 to 2^32 - 1 records");
    if (slots_ && slots_->count() < records) throw std::invalid_argument("a slot for each record");
    for (const DeviceMemory& each : devices_) {
        if (each.bytes / kStripeBlock > 0xFFFFFFFF) throw std::invalid_argument("a device of 16 TiB at most");
        allocators_.emplace_back(each.bytes, kStripeBlock);
        if (allocators_.back().capacity() > 0) allocators_.back().allocate(allocators_.back().capacity());
        units_[allocators_.size() - 1] = 1;
    }
}

void StripedMemory::release(const DeviceRange& range) {
    if (range.device >= devices_.size()) throw std::invalid_argument("no such device");
    const std::lock_guard held(mutex_);
    allocators_[range.device].release(range.offset, range.bytes);
}

void StripedMemory::set_units(std::span<const std::uint8_t> units) {
    if (units.size() != devices_.size() || std::count(units.begin(), units.end(), 0) != 0)
        throw std::invalid_argument("a number of units of 1 to 255 for each device");
    const std::lock_guard held(mutex_);
    std::copy(units.begin(), units.end(), units_.begin());
}

std::size_t StripedMemory::least_used(const Stripes& stripes) const {
    std::size_t best = devices_.size();
    for (std::size_t d = 0; d < devices_.size(); ++d) {
        if (stripes.units[d] == 0) continue;
        if (best == devices_.size() || taken_[d] * stripes.units[best] < taken_[best] * stripes.units[d]) best = d;
    }
    return best;
}

bool StripedMemory::place(Stripes& stripes, std::uint64_t bytes, std::size_t& full) {
    for (std::size_t d = 0; d < devices_.size(); ++d) {
        const std::uint64_t share = unit_share(stripes, d, bytes);
        if (share == 0) continue;
        const std::int64_t offset = allocators_[d].allocate(share);
        if (offset < 0) {
            for (std::size_t before = 0; before < d; ++before)
                if (const std::uint64_t given = unit_share(stripes, before, bytes); given > 0)
                    allocators_[before].release(stripes.starts[before] * kStripeBlock, given);
            full = d;
            return false;
        }
        stripes.starts[d] = static_cast<std::uint32_t>(static_cast<std::uint64_t>(offset) / kStripeBlock);
    }
    return true;
}

std::uint64_t StripedMemory::unit_share(const Stripes& stripes, std::size_t device, std::uint64_t bytes) const {
    return share_of(stripes, devices_.size(), unit_, device, bytes);
}

// With the lock. A device without room for its share has none of the record.
std::int64_t StripedMemory::reserve(std::uint64_t bytes) {
    if (closed_) return kClosed;
    if (free_.empty() && fresh_ == entries_.size()) return kNoSlot;
    Stripes stripes{.units = units_};
    for (std::size_t full = 0;;) {
        stripes.first = static_cast<std::uint8_t>(least_used(stripes));
        if (place(stripes, bytes, full)) break;
        stripes.units[full] = 0;
        if (stripes.turn_units() == 0) return kNoRoom;
    }
    std::uint32_t slot = fresh_;
    if (free_.empty()) {
        ++fresh_;
    } else {
        slot = free_.back();
        free_.pop_back();
    }
    life_ = life_ == kLastLife ? 1 : life_ + 1;
    entries_[slot] = {stripes, life_, static_cast<std::uint32_t>(bytes / kStripeBlock), 0, kWriting};
    for (std::size_t d = 0; d < devices_.size(); ++d) taken_[d] += unit_share(stripes, d, bytes);
    used_ += bytes;
    ++records_;
    ++users_;
    return static_cast<std::int64_t>(locate(life_, slot));
}

// With the lock.
void StripedMemory::give_back(std::uint32_t slot) {
    Entry& entry = entries_[slot];
    const std::uint64_t bytes = entry.blocks * kStripeBlock;
    for (std::size_t d = 0; d < devices_.size(); ++d) {
        const std::uint64_t share = unit_share(entry.stripes, d, bytes);
        if (share == 0) continue;
        allocators_[d].release(entry.stripes.starts[d] * kStripeBlock, share);
        taken_[d] -= share;
    }
    entry.state = kFree;
    free_.push_back(slot);
}

// With the lock.
StripedMemory::Entry* StripedMemory::find(std::uint64_t location) {
    const std::uint64_t slot = location & 0xFFFFFFFF;
    if (slot >= fresh_) return nullptr;
    Entry& entry = entries_[slot];
    return entry.state == kLive && entry.life == location >> kStripedSlotBits ? &entry : nullptr;
}

// With the lock.
void StripedMemory::leave() {
    if (--users_ == 0 && closed_) left_.notify_all();
}

std::int64_t StripedMemory::write(std::span<const std::uint8_t> header, const std::uint8_t* payload,
                                  std::uint64_t stored) {
    const std::uint64_t start = now(), filled = header.size() + stored, total = whole_blocks(filled);
    std::int64_t reserved;
    Stripes stripes;
    {
        const std::lock_guard held(mutex_);
        reserved = reserve(total);
        if (reserved < 0) return reserved;
        stripes = entries_[static_cast<std::uint32_t>(reserved)].stripes;
    }
    const auto location = static_cast<std::uint64_t>(reserved);
    const auto slot = static_cast<std::uint32_t>(location);
    if (slots_) slots_->begin(slot, header.data(), location, stripes);
    Transfer& transfer = Transfer::empty();
    // The pieces of a write are only read from.
    add_runs(transfer, stripes, 0, header.size(), const_cast<std::uint8_t*>(header.data()), false);
    add_runs(transfer, stripes, header.size(), stored, const_cast<std::uint8_t*>(payload), false);
    carry_out(transfer, total, false);
    each_run(stripes, devices_.size(), unit_, filled, total - filled,
             [&](std::size_t d, std::uint64_t at, std::uint64_t, std::uint64_t bytes) {
                 std::memset(devices_[d].data + at, 0, bytes);
                 if (slots_ && slots_->flushes()) write_back(devices_[d].data + at, bytes);
             });
    if (slots_) slots_->commit(slot);
    const std::lock_guard held(mutex_);
    entries_[slot].state = kLive;
    add(writes_, total, start);
    leave();
    return reserved;
}

void StripedMemory::add_runs(Transfer& transfer, const Stripes& stripes, std::uint64_t from, std::uint64_t length,
                             std::uint8_t* memory, bool out) {
    each_run(stripes, devices_.size(), unit_, from, length,
             [&](std::size_t d, std::uint64_t at, std::uint64_t logical, std::uint64_t bytes) {
                 std::uint8_t *there = devices_[d].data + at, *here = memory + (logical - from);
                 transfer.pieces.push_back(out ? Piece{here, there, bytes} : Piece{there, here, bytes});
                 transfer.devices.push_back(static_cast<std::uint8_t>(d));
             });
}

void StripedMemory::carry_out(const Transfer& transfer, std::uint64_t whole, bool out) {
    const std::uint64_t number = transfers_.fetch_add(1, std::memory_order_relaxed) % kSampled;
    const Help help = help_.load(std::memory_order_relaxed);
    const bool large = whole >= kHelpedBytes && pool_.helpers() > 0 && help != Help::never;
    const bool timed = whole >= kTimedBytes && number == 0;
    const bool with_help = large && !timed && (help == Help::always || number == kTried || helped());
    const std::uint64_t start = large ? now() : 0;
    if (timed) {
        carry_out_timed(transfer, whole);
    } else if (with_help) {
        pool_.copy(transfer.pieces, whole);
    } else {
        copy_in_order(transfer.pieces, whole);
    }
    if (large) average(with_help ? helped_ns_ : alone_ns_, now() - start, whole);
    if (out || !slots_ || !slots_->flushes()) return;
    // What was streamed is on its way already, but for the lines at the ends of a piece.
    const bool streamed = whole >= kStreamBytes;
    for (const Piece& each : transfer.pieces) {
        const std::uint64_t ends = streamed ? std::min<std::uint64_t>(each.length, 64) : each.length;
        write_back(each.output, ends);
        write_back(each.output + each.length - ends, ends);
    }
}

// Worth a second processor when it takes a fifth of the time less.
bool StripedMemory::helped() const {
    const Help help = help_.load(std::memory_order_relaxed);
    if (help != Help::measured || pool_.helpers() == 0) return help == Help::always && pool_.helpers() > 0;
    const std::uint64_t helped = helped_ns_.load(std::memory_order_relaxed);
    return helped > 0 && helped * 5 < alone_ns_.load(std::memory_order_relaxed) * 4;
}

void StripedMemory::carry_out_timed(const Transfer& transfer, std::uint64_t whole) {
    std::vector<Traffic> seen(devices_.size());
    std::uint64_t before = now();
    for (std::size_t i = 0; i < transfer.pieces.size(); ++i) {
        const Piece& each = transfer.pieces[i];
        copy_piece(each.output, each.input, each.length, whole);
        end_copy();
        const std::uint64_t after = now();
        seen[transfer.devices[i]].bytes += each.length;
        seen[transfer.devices[i]].nanoseconds += after - before;
        before = after;
    }
    const std::lock_guard held(mutex_);
    for (std::size_t d = 0; d < devices_.size(); ++d) {
        samples_[d].bytes += seen[d].bytes;
        samples_[d].nanoseconds += seen[d].nanoseconds;
    }
}

// The record stays where it is until `unpin`.
int StripedMemory::pin(const Read& read) {
    const std::lock_guard held(mutex_);
    if (closed_) return kShut;
    Entry* entry = find(read.location);
    if (entry == nullptr) return kMissing;
    const std::uint64_t bytes = entry->blocks * kStripeBlock;
    if (read.offset > bytes || read.length > bytes - read.offset) return kBeyond;
    ++entry->readers;
    ++users_;
    return kDone;
}

// With the lock.
void StripedMemory::unpin(const Read& read) {
    const auto slot = static_cast<std::uint32_t>(read.location);
    if (--entries_[slot].readers == 0 && entries_[slot].state == kDying) give_back(slot);
    leave();
}

int StripedMemory::read(const Read& read) {
    int outcome = kDone;
    read_many({&read, 1}, &outcome);
    return outcome;
}

void StripedMemory::read_many(std::span<const Read> reads, int* outcomes) {
    const std::uint64_t start = now();
    Transfer& transfer = Transfer::empty();
    std::uint64_t whole = 0;
    for (std::size_t i = 0; i < reads.size(); ++i) {
        outcomes[i] = pin(reads[i]);
        if (outcomes[i] != kDone) continue;
        // A pinned entry does not change.
        const Stripes& stripes = entries_[static_cast<std::uint32_t>(reads[i].location)].stripes;
        add_runs(transfer, stripes, reads[i].offset, reads[i].length, reads[i].output, true);
        whole += reads[i].length;
    }
    carry_out(transfer, whole, true);
    const std::lock_guard held(mutex_);
    std::uint64_t done = 0;
    for (std::size_t i = 0; i < reads.size(); ++i) {
        if (outcomes[i] != kDone) continue;
        unpin(reads[i]);
        ++done;
    }
    if (done == 0) return;
    add(reads_, whole, start);
    reads_.records += done - 1;
}

bool StripedMemory::remove(std::uint64_t location) {
    const std::lock_guard held(mutex_);
    Entry* entry = closed_ ? nullptr : find(location);
    if (entry == nullptr) return false;
    const auto slot = static_cast<std::uint32_t>(location);
    if (slots_) slots_->clear(slot);
    used_ -= entry->blocks * kStripeBlock;
    --records_;
    entry->state = kDying;
    if (entry->readers == 0) give_back(slot);
    return true;
}

std::vector<DeviceRange> StripedMemory::where(std::uint64_t location, std::uint64_t offset, std::uint64_t length) {
    std::vector<DeviceRange> found;
    const Read read{location, offset, nullptr, length};
    if (pin(read) != kDone) return found;
    each_run(entries_[static_cast<std::uint32_t>(location)].stripes, devices_.size(), unit_, offset, length,
             [&](std::size_t d, std::uint64_t at, std::uint64_t, std::uint64_t bytes) {
                 found.push_back({d, at, bytes});
             });
    const std::lock_guard held(mutex_);
    unpin(read);
    return found;
}

std::uint64_t StripedMemory::scan(std::uint8_t* output, std::uint64_t length, std::span<const std::size_t> devices) {
    Stripes stripes;
    for (const std::size_t d : devices) {
        if (d >= devices_.size()) throw std::invalid_argument("no such device");
        stripes.units[d] = 1;
        stripes.first = static_cast<std::uint8_t>(d);
    }
    if (devices.empty()) throw std::invalid_argument("a device at least");
    for (const std::size_t d : devices)
        if (unit_share(stripes, d, length) > devices_[d].bytes) throw std::invalid_argument("longer than the devices");
    Transfer& transfer = Transfer::empty();
    add_runs(transfer, stripes, 0, length, output, true);
    const std::uint64_t start = now();
    copy_in_order(transfer.pieces, length);
    return now() - start;
}

void StripedMemory::close() {
    std::unique_lock held(mutex_);
    closed_ = true;
    left_.wait(held, [&] { return users_ == 0; });
}

std::uint64_t StripedMemory::used() {
    const std::lock_guard held(mutex_);
    return used_;
}

std::uint64_t StripedMemory::records() {
    const std::lock_guard held(mutex_);
    return records_;
}

Traffic StripedMemory::reads() {
    const std::lock_guard held(mutex_);
    return reads_;
}

Traffic StripedMemory::writes() {
    const std::lock_guard held(mutex_);
    return writes_;
}

std::vector<Traffic> StripedMemory::samples() {
    const std::lock_guard held(mutex_);
    return samples_;
}

}  // namespace kvstore
