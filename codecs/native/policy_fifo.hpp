// First in, first out, whatever is used. 8 bytes a row and no ghosts.
#pragma once

#include "policy_list.hpp"
#include "row_links.hpp"

namespace kvstore {

class FifoPolicy final : public ListPolicy {
public:
    explicit FifoPolicy(std::uint32_t max_rows) : links_(max_rows) {}

    void admit(std::uint32_t row, const Arrival&, std::int64_t) override {
        links_.check(row);
        if (!links_.contains(row)) links_.append(list_, row);
    }
    void hit(const std::uint32_t*, std::size_t, std::int64_t) override {}
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
