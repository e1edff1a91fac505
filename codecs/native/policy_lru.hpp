// Least recently used first: 8 bytes a row and no ghosts.
#pragma once

#include "policy_list.hpp"
#include "row_links.hpp"

namespace kvstore {

class LruPolicy final : public ListPolicy {
public:
    explicit LruPolicy(std::uint32_t max_rows) : links_(max_rows) {}

    void admit(std::uint32_t row, const Arrival& chunk, std::int64_t) override {
        links_.check(row);
        if (links_.contains(row)) links_.unlink(list_, row);
        if (links_.contains(chunk.parent_row))
            links_.insert_older(list_, row, chunk.parent_row);
        else
            links_.append(list_, row);
    }

    void hit(const std::uint32_t* rows, std::size_t count, std::int64_t) override {
        while (count-- > 0)
            if (links_.contains(rows[count])) links_.make_newest(list_, rows[count]);
    }

    void remove(std::uint32_t row, bool, std::int64_t) override {
        if (links_.contains(row)) links_.unlink(list_, row);
    }

    std::size_t size() const override { return list_.size; }
    bool contains(std::uint32_t row) const override { return links_.contains(row); }

protected:
    std::int64_t following(std::int64_t row) override {
        return row >= 0 && links_.contains(static_cast<std::uint64_t>(row))
                   ? links_.newer(static_cast<std::uint32_t>(row))
                   : RowLinks::oldest(list_);
    }

private:
    RowLinks links_;
    RowLinks::List list_;
};

}  // namespace kvstore
