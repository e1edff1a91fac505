#include "append.hpp"

#include "record_header.hpp"
#include "xxh3.hpp"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace kvstore {

namespace {

constexpr std::size_t kGenerationAt = 16;
constexpr std::size_t kSealAt = 24;

void put(std::uint8_t* at, std::uint64_t value) {
    for (int i = 0; i < 8; ++i) at[i] = static_cast<std::uint8_t>(value >> (8 * i));
}

struct Free {
    void operator()(std::uint8_t* memory) const { std::free(memory); }
};

// Blocks of this thread's own for a header and the end of a payload, which have to be aligned for O_DIRECT.
std::uint8_t* scratch(std::size_t bytes) {
    thread_local std::unique_ptr<std::uint8_t, Free> memory;
    thread_local std::size_t size = 0;
    if (size < bytes) {
        memory.reset(static_cast<std::uint8_t*>(std::aligned_alloc(kBlock, bytes)));
        size = memory ? bytes : 0;
    }
    return memory.get();
}

// pwritev until all is written; 0, or what went wrong.
int write_all(int fd, std::vector<iovec>& pieces, std::uint64_t offset) {
    std::size_t first = 0;
    while (first < pieces.size()) {
        const int count = static_cast<int>(pieces.size() - first);
        const ssize_t done = pwritev(fd, pieces.data() + first, count, static_cast<off_t>(offset));
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return done < 0 ? errno : EIO;
        offset += static_cast<std::uint64_t>(done);
        auto left = static_cast<std::size_t>(done);
        while (first < pieces.size() && left >= pieces[first].iov_len) left -= pieces[first++].iov_len;
        if (left > 0) {
            pieces[first].iov_base = static_cast<std::uint8_t*>(pieces[first].iov_base) + left;
            pieces[first].iov_len -= left;
        }
    }
    return 0;
}

// The row of a record (`RECOVERED_DTYPE`), from its header.
void write_row(std::uint8_t* row, const std::uint8_t* header, std::uint64_t location) {
    struct Move {
        std::size_t from, to, bytes;
    };
    constexpr Move moves[] = {
        {32, 0, 32}, {64, 32, 32}, {112, 64, 16}, {96, 80, 16}, {144, 96, 8}, {152, 104, 12}, {184, 116, 4},
        {188, 120, 1}, {6, 122, 2}, {168, 124, 16}, {192, 148, 8},
    };
    for (const Move& move : moves) std::memcpy(row + move.to, header + move.from, move.bytes);
    put(row + 140, location);
}

void write_entry(std::uint8_t* entry, const LogPlace& place, const std::uint8_t* header) {
    std::memset(entry, 0, kEntryBytes);
    put(entry + 8, place.sequence);
    put(entry + 16, place.generation);
    entry[24] = place.op;
    write_row(entry + 32, header, place.location);
    std::array<std::uint8_t, 16> digest;
    xxh3_128(entry + 8, kEntryBytes - 8).write_canonical(digest.data());
    std::memcpy(entry, digest.data(), 8);
}

}  // namespace

Outcome append_record(const LogPlace& place, std::span<const std::uint8_t> header,
                      std::span<const std::uint8_t> payload, std::size_t stored) {
    const std::size_t whole = payload.size() >= (stored + kBlock - 1) / kBlock * kBlock
                                  ? (stored + kBlock - 1) / kBlock * kBlock
                                  : stored / kBlock * kBlock;
    std::uint8_t* const head = scratch(header.size() + kBlock);
    if (head == nullptr) return {Stage::record, ENOMEM};
    std::memcpy(head, header.data(), header.size());
    put(head + kGenerationAt, place.generation);
    std::array<std::uint8_t, 24> sealed;
    std::memcpy(sealed.data(), head + kHeaderChecksumAt, 8);
    put(sealed.data() + 8, place.generation);
    put(sealed.data() + 16, place.location);
    put(head + kSealAt, xxh3_64(sealed.data(), sealed.size()));
    std::vector<iovec> pieces{{head, header.size()}};
    if (whole > 0) pieces.push_back({const_cast<std::uint8_t*>(payload.data()), whole});
    if (whole < stored) {
        std::uint8_t* const tail = head + header.size();
        std::memset(tail, 0, kBlock);
        std::memcpy(tail, payload.data() + whole, stored - whole);
        pieces.push_back({tail, kBlock});
    }
    if (const int error = write_all(place.fd, pieces, place.offset)) return {Stage::record, error};
    std::array<std::uint8_t, kEntryBytes> entry;
    write_entry(entry.data(), place, header.data());
    std::vector<iovec> one{{entry.data(), entry.size()}};
    return {Stage::journal, write_all(place.journal_fd, one, place.journal_offset)};
}

}  // namespace kvstore
