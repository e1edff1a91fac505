#include "load_plan.hpp"

#include <algorithm>

namespace kvstore {

namespace {

// Loads from the front up to a cut, then computes: every cut is tried, from none on.
void try_cuts(LoadPlan& best, const StoredChunk* chunks, std::size_t count, std::uint64_t start, std::uint64_t prompt,
              const Prefill& prefill, const TierSpeed* speeds) {
    LoadTime load(speeds);
    std::uint64_t at = start;
    for (std::size_t i = 0; i < count; ++i) {
        load.add(chunks[i]);
        at = std::min(prompt, at + chunks[i].tokens);
        const double seconds = prefill.step_s + load.seconds() + prefill.seconds(double(at), double(prompt));
        // Of two that take as long the one that computes less.
        if (seconds <= best.seconds)
            best = {start, at, seconds, best.recompute_s, i + 1 < count ? PlanReason::cut : PlanReason::all};
    }
}

// Loads from the back down to where the engine, which computes from the front meanwhile, has come.
void try_meeting_points(LoadPlan& best, const StoredChunk* chunks, std::size_t count, std::uint64_t start,
                        std::uint64_t prompt, const Prefill& prefill, const TierSpeed* speeds) {
    LoadTime load(speeds);
    std::uint64_t end = start;
    for (std::size_t i = 0; i < count; ++i) end += chunks[i].tokens;
    const std::uint64_t to = std::min(prompt, end);
    const double after = prefill.seconds(double(to), double(prompt));
    for (std::size_t i = count; i-- > 1;) {
        load.add(chunks[i]);
        end -= chunks[i].tokens;
        const double meanwhile = prefill.seconds(double(start), double(end));
        const double seconds = prefill.step_s + std::max(load.seconds(), meanwhile) + after;
        if (seconds < best.seconds) best = {end, to, seconds, best.recompute_s, PlanReason::meet};
    }
}

}  // namespace

LoadPlan plan_load(const StoredChunk* chunks, std::size_t count, std::uint64_t start, std::uint64_t prompt,
                   const Prefill& prefill, const TierSpeed* speeds, bool overlap) {
    LoadPlan best;
    best.from = best.to = start;
    best.seconds = best.recompute_s = prefill.seconds(double(start), double(prompt));
    if (count == 0) return best;
    best.reason = PlanReason::slower;
    try_cuts(best, chunks, count, start, prompt, prefill, speeds);
    if (overlap) try_meeting_points(best, chunks, count, start, prompt, prefill, speeds);
    return best;
}

}  // namespace kvstore
