#include "hazard_table.hpp"

#include "clocks.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace kvstore {

namespace {

constexpr std::array<char, 8> kMagic = {'k', 'v', 'h', 'a', 'z', 'a', 'r', 'd'};
constexpr std::uint32_t kVersion = 1;
static_assert(sizeof(HazardHeader) <= kHazardHeaderBytes);

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

// A hazard counts a little longer than it says. Client and server may be in containers whose monotonic clocks differ;
// by more than the age of a heartbeat they cannot, or the client would take no hazards (SharedTableReader::is_live).
constexpr std::uint64_t kGraceMs = 3000;

std::uint64_t over_before() {
    const auto now = static_cast<std::uint64_t>(steady_ms());
    return now > kGraceMs ? now - kGraceMs : 0;
}

}  // namespace

HazardMemory::HazardMemory(int fd) {
    memory_ = mmap(nullptr, kHazardTableBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory_ == MAP_FAILED) fail("mmap");
    auto* bytes = static_cast<std::uint8_t*>(memory_);
    hazards_ = reinterpret_cast<Hazard*>(bytes + kHazardHeaderBytes);
    marks_ = reinterpret_cast<std::atomic<std::uint32_t>*>(hazards_ + kHazards);
}

HazardMemory::~HazardMemory() { munmap(memory_, kHazardTableBytes); }

int HazardTable::make() {
    const int fd = memfd_create("kvstore-hazards", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) fail("memfd_create");
    if (ftruncate(fd, static_cast<off_t>(kHazardTableBytes)) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        return fd;
    const int error = errno;
    close(fd);
    errno = error;
    fail("hazard table");
}

HazardTable::HazardTable(int anchor) : anchor_(anchor), fd_(make()), memory_(fd_), held_(kHazards) {
    HazardHeader& header = memory_.header();
    header.magic = kMagic;
    header.version = kVersion;
    header.hazards = kHazards;
    header.marks = kMarks;
}

HazardTable::~HazardTable() { close_fd(); }

void HazardTable::close_fd() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
}

bool HazardTable::is_honoured() const {
    // What was read before this must not be read after it: the server stores 0 before it frees what was held.
    std::atomic_thread_fence(std::memory_order_acquire);
    return anchor_ >= 0 && memory_.header().honoured.load(std::memory_order_acquire) == 1;
}

bool HazardTable::is_connected() const {
    if (anchor_ < 0) return false;
    // Nothing is said on the anchor. That something is to be read is its end, however the server came to its own.
    pollfd anchor{anchor_, POLLIN | POLLRDHUP, 0};
    return poll(&anchor, 1, 0) == 0;
}

std::uint32_t HazardTable::next_free() {
    if (free_.empty()) return unused_ < kHazards ? unused_++ : kHazards;
    const std::uint32_t number = free_.back();
    free_.pop_back();
    return number;
}

bool HazardTable::take(const SharedTableReader& table, const Sighting* seen, const std::uint32_t* which,
                       std::size_t count, std::uint64_t until, std::vector<std::uint32_t>& numbers) {
    if (held_count_ + count > kHazards || !is_connected()) return false;
    const std::size_t before = numbers.size();
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t number = next_free();
        held_[number] = true;
        ++held_count_;
        numbers.push_back(number);
        Hazard& hazard = memory_.hazard(number);
        hazard.until.store(until, std::memory_order_relaxed);
        // After `until`, which else could be read as that of the hazard that was here before.
        hazard.block.store(seen[which[i]].place >> kVersionBits, std::memory_order_release);
    }
    if (memory_.header().high_water.load(std::memory_order_relaxed) < unused_)
        memory_.header().high_water.store(unused_, std::memory_order_relaxed);
    // Hazards first, then a look at the table: no weaker fence keeps a load from passing a store, on any processor.
    // The server does the reverse with a fence of its own (HazardBoard::holds), so that either it finds the hazards
    // or what follows finds the chunk gone.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    bool good = is_honoured() && table.is_live();
    for (std::size_t i = 0; i < count && good; ++i) good = table.is_still(seen[which[i]]);
    if (good) return true;
    release(numbers.data() + before, count);
    numbers.resize(before);
    return false;
}

void HazardTable::release(const std::uint32_t* numbers, std::size_t count) {
    if (anchor_ < 0) return;
    for (std::size_t i = 0; i < count; ++i) {
        if (numbers[i] >= kHazards || !held_[numbers[i]]) continue;
        held_[numbers[i]] = false;
        --held_count_;
        free_.push_back(numbers[i]);
        // Release: all reads of the memory come before this.
        memory_.hazard(numbers[i]).block.store(0, std::memory_order_release);
    }
    if (held_count_ == 0) {  // so that the server has the fewest to look at
        free_.clear();
        unused_ = 0;
        memory_.header().high_water.store(0, std::memory_order_release);
    }
}

void HazardTable::mark(std::uint32_t mark) {
    HazardHeader& header = memory_.header();
    const std::uint64_t at = header.marked.load(std::memory_order_relaxed);
    if (at - header.drained.load(std::memory_order_acquire) >= kMarks) {
        header.lost.store(header.lost.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
        return;
    }
    memory_.mark(at).store(mark, std::memory_order_relaxed);
    header.marked.store(at + 1, std::memory_order_release);
}

void HazardBoard::set_honoured(bool honoured) {
    memory_.header().honoured.store(honoured ? 1 : 0, std::memory_order_release);
    // Before anything is freed that was held here.
    std::atomic_thread_fence(std::memory_order_seq_cst);
}

std::uint32_t HazardBoard::high_water() const {
    return std::min(memory_.header().high_water.load(std::memory_order_acquire), kHazards);
}

bool HazardBoard::holds(std::uint64_t block) const {
    if (block == 0) return false;
    // The other half of the one in HazardTable::take: the table was changed before, hazards are looked for after.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const std::uint32_t count = high_water();
    for (std::uint32_t i = 0; i < count; ++i) {
        const Hazard& hazard = memory_.hazard(i);
        if (hazard.block.load(std::memory_order_acquire) != block) continue;
        if (hazard.until.load(std::memory_order_relaxed) >= over_before()) return true;
    }
    return false;
}

std::vector<std::uint64_t> HazardBoard::locations() const {
    std::vector<std::uint64_t> found;
    std::atomic_thread_fence(std::memory_order_seq_cst);  // as in holds()
    const std::uint32_t count = high_water();
    const std::uint64_t over = over_before();
    for (std::uint32_t i = 0; i < count; ++i) {
        const Hazard& hazard = memory_.hazard(i);
        const std::uint64_t block = hazard.block.load(std::memory_order_acquire);
        if (block != 0 && hazard.until.load(std::memory_order_relaxed) >= over) found.push_back(block << kBlockBits);
    }
    return found;
}

std::vector<std::uint32_t> HazardBoard::drain(std::size_t limit) {
    const std::uint64_t marked = memory_.header().marked.load(std::memory_order_acquire);
    const std::uint64_t waiting = marked - drained_;
    std::vector<std::uint32_t> marks;
    if (waiting > kMarks) {  // no client of ours
        drained_ = marked;
    } else {
        const std::size_t count = std::min<std::size_t>(waiting, limit);
        marks.reserve(count);
        for (std::size_t i = 0; i < count; ++i) marks.push_back(memory_.mark(drained_++).load(std::memory_order_relaxed));
    }
    memory_.header().drained.store(drained_, std::memory_order_release);
    return marks;
}

}  // namespace kvstore
