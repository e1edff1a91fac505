#include "shared_table.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace kvstore {

namespace {

constexpr std::array<char, 8> kMagic = {'k', 'v', 's', 't', 'a', 'b', 'l', 'e'};
constexpr std::uint32_t kVersion = 2;
constexpr std::size_t kHeaderBytes = 4096;
constexpr std::uint64_t kStaleMs = 2000;
constexpr std::size_t kBlock = 32;  // references whose buckets are on their way at once
static_assert(sizeof(SharedHeader) <= kHeaderBytes);
static_assert(std::endian::native == std::endian::little, "tags and header are little-endian");

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }
[[noreturn]] void refuse(const std::string& reason) { throw std::invalid_argument("no shared index: " + reason); }

// Monotonic: a clock that is set does not make a dead server look alive.
std::uint64_t now_ms() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1000 + static_cast<std::uint64_t>(now.tv_nsec) / 1'000'000;
}

std::uint64_t bucket_count(std::size_t entries) {
    return std::bit_ceil(std::max<std::uint64_t>(2, (2 * entries + TagBuckets::kSlots - 1) / TagBuckets::kSlots));
}

TagBuckets::Bucket* buckets_behind(SharedHeader* header) {
    return reinterpret_cast<TagBuckets::Bucket*>(reinterpret_cast<std::uint8_t*>(header) + kHeaderBytes);
}

}  // namespace

SharedTable::SharedTable(std::size_t entries)
    : bytes_(kHeaderBytes + bucket_count(entries) * sizeof(TagBuckets::Bucket)),
      rows_(bucket_count(entries) * TagBuckets::kSlots) {
    fd_ = memfd_create("kvstore-shared-index", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd_ < 0) fail("memfd_create");
    try {
        map();
    } catch (...) {
        if (header_ != nullptr) munmap(header_, bytes_);
        close(fd_);
        throw;
    }
    buckets_ = TagBuckets(buckets_behind(header_), bucket_count(entries));
    header_->magic = kMagic;
    header_->version = kVersion;
    header_->slots = TagBuckets::kSlots;
    header_->buckets = bucket_count(entries);
    beat();
}

void SharedTable::map() {
    if (ftruncate(fd_, static_cast<off_t>(bytes_)) != 0) fail("ftruncate");
    void* mapped = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (mapped == MAP_FAILED) fail("mmap");
    header_ = static_cast<SharedHeader*>(mapped);
    // After the mapping that writes: from here on nobody gets another, whoever opens the descriptor again.
    if (fcntl(fd_, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        fail("F_ADD_SEALS");
    // Tags fall anywhere, so that a few thousand chunks touch every page. Better now than under the store's lock.
    // Kernels before 5.14 cannot, and do it then.
    if (madvise(mapped, bytes_, MADV_POPULATE_WRITE) != 0 && errno != EINVAL) fail("madvise");
}

SharedTable::~SharedTable() {
    // Readers learn of an end that was not told them by the heartbeat: here it could be that of a forked child.
    munmap(header_, bytes_);
    close(fd_);
}

// Versions of 20 bits: two stores of one place that a reader could mix up are a million stores apart.
std::uint64_t SharedTable::next_place(std::uint64_t block) {
    version_ = (version_ + 1) & ((1U << kVersionBits) - 1);
    return block == 0 ? 0 : block << kVersionBits | version_;
}

std::uint32_t SharedTable::slot_of(std::uint64_t tag, std::uint32_t row) const {
    buckets_.prefetch(tag);
    return buckets_.find(tag, [&](std::uint32_t slot) { return rows_[slot] == row + 1; });
}

void SharedTable::insert(std::uint64_t tag, std::uint32_t row, std::uint64_t block) {
    buckets_.prefetch(tag);
    const std::uint64_t first = buckets_.first(tag), second = buckets_.second(tag);
    const std::uint32_t slot = buckets_.free_in(buckets_.used(second) < buckets_.used(first) ? second : first);
    if (slot == TagBuckets::kNoSlot) {
        header_->overflowed.store(overflowed() + 1, std::memory_order_release);
        return;
    }
    rows_[slot] = row + 1;
    buckets_.place(slot).store(next_place(block), std::memory_order_relaxed);
    buckets_.tag(slot).store(tag, std::memory_order_release);  // after the place: who sees the one sees the other
}

void SharedTable::update(std::uint64_t tag, std::uint32_t row, std::uint64_t block) {
    const std::uint32_t slot = slot_of(tag, row);
    if (slot == TagBuckets::kNoSlot) return;  // overflowed
    auto& place = buckets_.place(slot);
    if (place.load(std::memory_order_relaxed) >> kVersionBits != block)
        place.store(next_place(block), std::memory_order_release);
}

void SharedTable::remove(std::uint64_t tag, std::uint32_t row) {
    const std::uint32_t slot = slot_of(tag, row);
    if (slot == TagBuckets::kNoSlot) {
        header_->overflowed.store(overflowed() - 1, std::memory_order_release);
        return;
    }
    rows_[slot] = 0;
    // The tag first: as long as a place stands there, the tag beside it is its own or none.
    buckets_.tag(slot).store(0, std::memory_order_relaxed);
    buckets_.place(slot).store(0, std::memory_order_release);
}

std::uint32_t SharedTable::row_in(std::uint32_t slot) const {
    return slot < rows_.size() && rows_[slot] != 0 ? rows_[slot] - 1 : kNone;
}

void SharedTable::beat() { header_->heartbeat_ms.store(now_ms(), std::memory_order_relaxed); }

void SharedTable::set_state(TableState state) { header_->state.store(state, std::memory_order_release); }

SharedTableReader::SharedTableReader(int fd, std::size_t bytes) : bytes_(bytes) {
    constexpr int kFixed = F_SEAL_SHRINK | F_SEAL_GROW;
    struct stat status {};
    if (fstat(fd, &status) != 0) fail("fstat");
    if (const int seals = fcntl(fd, F_GET_SEALS); seals < 0 || (seals & kFixed) != kFixed)
        refuse("the file is not sealed, so that it may shrink while it is read");
    if (static_cast<std::uint64_t>(status.st_size) != bytes || bytes <= kHeaderBytes)
        refuse("the file has " + std::to_string(status.st_size) + " bytes, not " + std::to_string(bytes));
    void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (mapped == MAP_FAILED) fail("mmap");
    header_ = static_cast<SharedHeader*>(mapped);
    const std::uint64_t buckets = (bytes - kHeaderBytes) / sizeof(TagBuckets::Bucket);
    if ((bytes - kHeaderBytes) % sizeof(TagBuckets::Bucket) == 0 && header_->magic == kMagic &&
        header_->version == kVersion && header_->slots == TagBuckets::kSlots && header_->buckets == buckets &&
        std::has_single_bit(buckets) && buckets > 1) {
        buckets_ = TagBuckets(buckets_behind(header_), buckets);
        return;
    }
    munmap(mapped, bytes);
    refuse("the header is not one of version " + std::to_string(kVersion) + " for " + std::to_string(buckets) +
           " buckets");
}

SharedTableReader::~SharedTableReader() { munmap(header_, bytes_); }

bool SharedTableReader::is_live() const {
    if (header_->state.load(std::memory_order_acquire) != TableState::open) return false;
    const auto age = static_cast<std::int64_t>(now_ms() - header_->heartbeat_ms.load(std::memory_order_relaxed));
    return std::abs(age) <= static_cast<std::int64_t>(kStaleMs);
}

bool SharedTableReader::lookup(const SpecDigest& spec, const std::uint8_t* refs, std::size_t count,
                               std::uint8_t* present, Sighting* seen) const {
    if (!is_live()) return false;
    bool all = true;
    for (std::size_t begin = 0; begin < count; begin += kBlock) {
        const std::size_t end = std::min(count, begin + kBlock);
        std::uint64_t tags[kBlock];
        for (std::size_t i = begin; i < end; ++i) {
            tags[i - begin] = chunk_tag(spec, refs + i * sizeof(ChunkRef));
            buckets_.prefetch(tags[i - begin]);
        }
        for (std::size_t i = begin; i < end; ++i) {
            const std::uint32_t slot = buckets_.find(tags[i - begin]);
            present[i] = slot != TagBuckets::kNoSlot;
            all &= present[i] != 0;
            if (seen != nullptr)
                seen[i] = {tags[i - begin], present[i] ? buckets_.place(slot).load(std::memory_order_acquire) : 0, slot};
        }
    }
    // After the slots: a chunk that found none was counted before anybody was told of it.
    return all || header_->overflowed.load(std::memory_order_acquire) == 0;
}

bool SharedTableReader::is_still(const Sighting& seen) const {
    // In this order: the place is the one seen before, so that it was all the while, and the tag in between its own.
    return buckets_.tag(seen.slot).load(std::memory_order_acquire) == seen.tag &&
           buckets_.place(seen.slot).load(std::memory_order_acquire) == seen.place;
}

SharedReach reach_of(const std::uint8_t* refs, std::size_t count, const std::uint8_t* present) {
    const auto number = [&](std::size_t i, std::size_t offset) {
        std::uint32_t value;
        std::memcpy(&value, refs + i * sizeof(ChunkRef) + offset, sizeof value);
        return value;
    };
    const auto start = [&](std::size_t i) { return number(i, offsetof(ChunkRef, position)); };
    const auto end = [&](std::size_t i) { return start(i) + number(i, offsetof(ChunkRef, tokens)); };
    if (count == 0) return {0, true, 0, {}};
    bool chained = true;
    for (std::size_t i = 1; i < count && chained; ++i) chained = start(i) == end(i - 1);
    if (chained) {
        const auto reached = static_cast<std::size_t>(std::find(present, present + count, 0) - present);
        return {reached > 0 ? end(reached - 1) : start(0), true, reached, {}};
    }
    SharedReach reach{start(0), false, 0, {}};
    std::size_t best = count;
    for (std::size_t i = 0; i <= count; ++i) {
        if (best < count && (i == count || start(i) != reach.tokens)) {
            reach.used.push_back(static_cast<std::uint32_t>(best));
            reach.tokens = end(best);
            best = count;
        }
        if (i < count && start(i) == reach.tokens && present[i] && (best == count || end(i) > end(best))) best = i;
    }
    reach.count = reach.used.size();
    return reach;
}

}  // namespace kvstore
