// Fixed-size rows with a free list. A row type says how it marks a free row: free_link(), set_free(link).
#pragma once

#include "mapped_array.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>

namespace kvstore {

// No row: the end of a list.
inline constexpr std::uint32_t kNone = 0xFFFFFFFFU;

// Leaves kNone, and the number below it that marks a free chunk, out of every table.
inline constexpr std::uint32_t kMaxRows = 0xFFFFFFF0U;

template <typename Row>
class RowTable {
public:
    RowTable(std::size_t max_rows, const char* name) : rows_(max_rows), name_(name) {}

    bool full() const { return first_free_ == kNone && high_water_ == rows_.size(); }

    // A zeroed row.
    std::uint32_t take() {
        if (full()) throw std::overflow_error("index is full");
        std::uint32_t row = first_free_;
        if (row == kNone) {
            row = high_water_++;
        } else {
            first_free_ = rows_[row].free_link();
        }
        rows_[row] = Row{};
        ++live_;
        return row;
    }

    void give_back(std::uint32_t row) {
        rows_[row].set_free(first_free_);
        first_free_ = row;
        --live_;
    }

    bool is_live(std::uint64_t row) const { return row < high_water_ && !rows_[row].is_free(); }

    // For numbers from outside.
    std::uint32_t checked(std::uint64_t row) const {
        if (!is_live(row))
            throw std::out_of_range("no " + std::string(name_) + " " + std::to_string(static_cast<std::int64_t>(row)));
        return static_cast<std::uint32_t>(row);
    }

    Row& operator[](std::uint32_t row) { return rows_[row]; }
    const Row& operator[](std::uint32_t row) const { return rows_[row]; }
    void prefetch(std::uint32_t row) const { __builtin_prefetch(&rows_[row]); }

    std::uint32_t live() const { return live_; }
    std::uint32_t high_water() const { return high_water_; }
    std::size_t touched_bytes() const { return std::size_t{high_water_} * sizeof(Row); }

private:
    MappedArray<Row> rows_;
    const char* name_;
    std::uint32_t first_free_ = kNone;
    std::uint32_t high_water_ = 0;
    std::uint32_t live_ = 0;
};

}  // namespace kvstore
