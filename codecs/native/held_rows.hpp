// What a policy knows of the chunks that are here, in several queues, oldest first, each with its bytes.
#pragma once

#include "mapped_array.hpp"
#include "policy.hpp"
#include "row_links.hpp"

#include <array>
#include <cstdint>

namespace kvstore {

struct HeldRow {
    std::uint64_t key;
    std::uint64_t bytes;
    std::int64_t time;  // what it means is the policy's
    std::uint32_t uses;
    std::uint32_t queue;
};

template <std::size_t kQueues>
class HeldRows {
public:
    explicit HeldRows(std::uint32_t max_rows) : rows_(max_rows), links_(max_rows) {}

    void check(std::uint32_t row) const { links_.check(row); }
    bool contains(std::uint64_t row) const { return links_.contains(row); }
    HeldRow& operator[](std::uint32_t row) { return rows_[row]; }
    const HeldRow& operator[](std::uint32_t row) const { return rows_[row]; }

    // As the newest of its queue.
    void add(std::uint32_t row, const HeldRow& held) {
        rows_[row] = held;
        links_.append(queues_[held.queue], row);
        bytes_[held.queue] += held.bytes;
    }
    // The same, or just before its parent where that is in the same queue.
    void add(std::uint32_t row, const HeldRow& held, std::uint32_t parent_row) {
        if (!contains(parent_row) || rows_[parent_row].queue != held.queue) return add(row, held);
        rows_[row] = held;
        links_.insert_older(queues_[held.queue], row, parent_row);
        bytes_[held.queue] += held.bytes;
    }
    void remove(std::uint32_t row) {
        links_.unlink(queues_[rows_[row].queue], row);
        bytes_[rows_[row].queue] -= rows_[row].bytes;
    }
    // As the newest of this queue.
    void move(std::uint32_t row, std::size_t queue) {
        remove(row);
        rows_[row].queue = static_cast<std::uint32_t>(queue);
        add(row, rows_[row]);
    }
    void resize(std::uint32_t row, std::uint64_t bytes) {
        bytes_[rows_[row].queue] += bytes - rows_[row].bytes;
        rows_[row].bytes = bytes;
    }

    std::int64_t oldest(std::size_t queue) const { return RowLinks::oldest(queues_[queue]); }
    std::int64_t newer(std::uint32_t row) const { return links_.newer(row); }
    std::uint64_t bytes(std::size_t queue) const { return bytes_[queue]; }
    std::size_t size(std::size_t queue) const { return queues_[queue].size; }

    std::uint64_t all_bytes() const {
        std::uint64_t sum = 0;
        for (const std::uint64_t each : bytes_) sum += each;
        return sum;
    }
    std::size_t all() const {
        std::size_t sum = 0;
        for (const RowLinks::List& each : queues_) sum += each.size;
        return sum;
    }

    // The row after `row`, or the first one, where all queues follow one another in this order; -1 at the end.
    std::int64_t walk(std::int64_t row, const std::array<std::uint8_t, kQueues>& order) const {
        std::size_t next = 0;
        if (row >= 0 && contains(static_cast<std::uint64_t>(row))) {
            const auto at = static_cast<std::uint32_t>(row);
            if (newer(at) >= 0) return newer(at);
            while (order[next] != rows_[at].queue) ++next;
            ++next;
        }
        for (; next < kQueues; ++next)
            if (queues_[order[next]].size > 0) return oldest(order[next]);
        return -1;
    }

private:
    MappedArray<HeldRow> rows_;
    RowLinks links_;
    std::array<RowLinks::List, kQueues> queues_{};
    std::array<std::uint64_t, kQueues> bytes_{};
};

}  // namespace kvstore
