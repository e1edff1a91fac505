// Policies whose order is there before anyone asks: one list, or lists that follow one another.
#pragma once

#include "policy.hpp"

#include <memory>

namespace kvstore {

class ListPolicy : public Policy {
public:
    std::int64_t victim() final { return following(-1); }
    std::shared_ptr<Victims> victims() final { return std::make_shared<Walk>(*this); }

protected:
    // The row that goes after this one; the first one where this is not here, or -1; -1: there is none.
    virtual std::int64_t following(std::int64_t row) = 0;

private:
    // Knows what comes after the row that it has told of, which may go. If that is gone too it begins anew.
    class Walk final : public Victims {
    public:
        explicit Walk(ListPolicy& policy) : policy_(policy) {}

        std::int64_t next() override {
            const bool gone = next_ >= 0 && !policy_.contains(static_cast<std::uint32_t>(next_));
            if (gone || !begun_) next_ = policy_.victim();
            begun_ = true;
            const std::int64_t row = next_;
            if (row >= 0) next_ = policy_.following(row);
            return row;
        }

    private:
        ListPolicy& policy_;
        std::int64_t next_ = -1;
        bool begun_ = false;
    };
};

}  // namespace kvstore
