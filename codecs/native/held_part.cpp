#include "held_part.hpp"

#include "use.hpp"

#include <algorithm>

namespace kvstore {

std::uint32_t PartScope::header_of(const PartId& part) const {
    const auto known = std::find(table.parts.begin(), table.parts.end(), part);
    return known == table.parts.end() ? 0 : table.headers[static_cast<std::size_t>(known - table.parts.begin())];
}

HeldPart::~HeldPart() {
    Intake& intake = *scope_->intake;
    bool awaited;
    {
        const std::lock_guard held(intake.lock);
        intake.index.drop_reader(placement_);
        awaited = intake.lock.awaited > 0;
    }
    scope_->holdings->end_reading();
    if (awaited) (*freed_)();
}

void count_hit(const PartScope& scope, std::uint32_t chunk, std::int64_t now_ms) {
    scope.tally->hits_dram += 1;
    use_unleased(scope.intake->index, scope.orders, chunk, now_ms);
}

}  // namespace kvstore
