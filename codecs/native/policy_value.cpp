#include "policy_value.hpp"

#include "policy_value_cursor.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace kvstore {

namespace {

// Uses after which what was counted is halved: a thousand for each kind, and more where the cache is large.
constexpr double kLeastMemory = 80'000;
constexpr double kMemoryPerRow = 64;
// The horizon of the reuse model, in times that the cache is filled anew.
constexpr double kHorizonFillings = 3;

// All that lay for longer are of the last age.
constexpr std::uint64_t kLongest = std::uint64_t{1} << 30;

// The shortest wait that a density is taken over, in uses a chunk that is here.
constexpr double kLeastWait = .25;

// 1, 2, 3-4, 5-8, and so on; step `most` is open.
std::uint32_t often(const Known& known, std::size_t most) {
    return std::min(static_cast<std::uint32_t>(most), static_cast<std::uint32_t>(std::bit_width(known.uses - 1U)));
}

// And whether it ends its prompt.
std::uint32_t group_of(const Known& known) {
    return often(known, Hazards::kGroups / 2 - 1) * 2 + ((known.flags & KnownChunks::kTail) != 0);
}

}  // namespace

ValuePolicy::ValuePolicy(std::uint32_t max_rows)
    : queues_(max_rows), rows_(max_rows), known_(max_rows), shadows_(max_rows), max_rows_(max_rows) {
    rank();
}

void ValuePolicy::admit(std::uint32_t row, const Arrival& chunk, std::int64_t now_ms) {
    queues_.check(row);
    begin_event(now_ms);
    if (ordered_ || (order_ && order_->contains(row))) order_->admit(row, chunk, now_ms);
    if (contains(row)) {
        rows_[row].size = size_of(chunk);
        shadows_.resized(chunk);
        const bool queued = dequeue(known_at(row));
        appraise(row);
        if (queued) enqueue(known_at(row));
        return;
    }
    std::uint64_t key = chunk.key;
    std::uint32_t node = known_.find(key);
    while (node != 0 && !known_.is_ghost(node)) node = known_.find(key = mixed_key(key + 1));  // another of this hash
    if (node == 0) node = make_node(key);
    Known& known = known_[node];
    const bool linked = chunk.parent != 0 || chunk.position == 0;
    const bool told = (known.flags & KnownChunks::kTold) != 0;
    const bool moved = place(known, chunk);
    if (linked) request_.admit(key, chunk.parent, place_of(known.position), known.uses == 0);
    if (known.uses > 0) {
        known_.unlink(node);
        known_.exhume(node);
    }
    known.here = true;
    known.row = row;
    if (known_.is_alone(node) == linked) known.last = static_cast<std::uint32_t>(clock_.read(!linked));
    known.flags = static_cast<std::uint8_t>(known.flags & ~(KnownChunks::kTold | KnownChunks::kAlone));
    if (!linked) known.flags |= KnownChunks::kAlone;
    if (known.uses > 0) known_.append(node);
    if (!told) use(node, request_.is_last(key));
    ++admissions_;
    known.young = true;
    seat(row, node, chunk, moved, now_ms);
}

// It goes on at the age that it has. What was not seen counts for nothing: chunks of which nobody could have told that they
// were used would look as if nothing ever were (delayed entry, in the words of survival analysis). Of its first request
// nothing is known but that it was as long as to here.
void ValuePolicy::restore(std::uint32_t row, const Arrival& chunk, const Idle& idle, std::int64_t now_ms) {
    std::uint32_t node = known_.find(chunk.key);
    if (contains(row) || (node != 0 && (known_[node].uses > 0 || known_[node].here))) {
        admit(row, chunk, now_ms);
        return;
    }
    queues_.check(row);
    begin_event(now_ms);
    if (ordered_) order_->admit(row, chunk, now_ms);
    if (node == 0) node = make_node(chunk.key);
    Known& known = known_[node];
    const bool alone = chunk.parent == 0 && chunk.position != 0;
    const bool moved = place(known, chunk);
    const std::uint32_t place = place_of(known.position);
    known.here = true;
    known.row = row;
    known.uses = 1;
    known.traits = ReuseModel::pack({place + 1, place + 1, place, 0});
    known.flags = KnownChunks::kRestored;
    if (alone) known.flags |= KnownChunks::kAlone;
    if (!alone && chunk.tokens < chunk_tokens_) known.flags |= KnownChunks::kTail;
    classify(known, alone);
    const std::uint64_t lay = idle.uses + (alone ? 0 : static_cast<std::uint64_t>(std::max<std::int64_t>(idle.ms, 0)));
    known.last = static_cast<std::uint32_t>(clock_.read(alone) - std::min(lay, kLongest));
    known.age = ages_.at(std::min(lay, kLongest));
    known_.append(node);
    seat(row, node, chunk, moved, now_ms);
}

void ValuePolicy::hit(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms) {
    begin_event(now_ms);
    while (count > 0 && !contains(rows[count - 1])) --count;
    if (count == 0) return;
    const Known& deepest = known_at(rows[count - 1]);
    const std::uint32_t place = place_of(deepest.position);
    if ((deepest.flags & KnownChunks::kAlone) == 0) request_.hit(deepest.key, place);
    if (ordered_) order_->hit(rows, count, now_ms);
    keys_.clear();
    for (std::size_t i = 0; i < count; ++i)
        if (contains(rows[i])) keys_.push_back(known_at(rows[i]).key);
    shadows_.used(keys_, place + 1U == keys_.size(), now_ms);
    for (std::size_t i = count; i-- > 0;) {
        const std::uint32_t row = rows[i];
        if (!contains(row)) continue;
        Known& known = known_at(row);
        hint(row, Hint::none);
        dequeue(known);
        known.young = known.severed = false;
        appraise(row);
        use(rows_[row].node, i + 1 == count && request_.missing() == 0);
        if (known.children == 0) enqueue(known);
    }
}

void ValuePolicy::demand(const std::uint64_t* keys, std::size_t count, std::int64_t now_ms) {
    if (count == 0) return;
    begin_event(now_ms);
    follow();
    if (ordered_) order_->demand(keys, count, now_ms);
    shadows_.asked({keys, count}, now_ms);
    std::size_t fresh = 0, length = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t node = known_.find(keys[i]);
        if (node == 0 || known_[node].uses == 0) {
            ++fresh;
            continue;
        }
        const std::size_t end = place_of(known_[node].position) + count;
        length = std::max(length, end - std::min(i, end));
    }
    request_.begin(keys[0], keys[count - 1], count, fresh, length);
    for (std::size_t i = count; i-- > 0;) {
        const std::uint32_t node = known_.find(keys[i]);
        if (node == 0 || known_[node].uses == 0 || !known_.is_ghost(node)) continue;
        use(node, i + 1 == count);
        known_[node].flags |= KnownChunks::kTold;
    }
}

// Chunks of one request share their fate, and long requests would drown the others.
double ValuePolicy::weight_of(const Known& known) {
    return (known.flags & KnownChunks::kAlone) != 0 ? 1 : 1 / std::sqrt(ReuseModel::length_of(known.traits));
}

// Counts a use, and what it says about the one before. The chunk is in no queue. `last`: the request ends with it.
void ValuePolicy::use(std::uint32_t node, bool last) {
    Known& known = known_[node];
    const bool alone = known_.is_alone(node);
    std::uint32_t gap = 0;
    if (known.uses > 0) {
        known_.unlink(node);
        come_of_age(known);
        hazards_.used(known.kind, known.age, weight_of(known));
        resolve(known, true);
        gap = known.age + 1U;
    }
    clock_.use();
    if (known.uses < 0xFF) ++known.uses;
    known.flags = static_cast<std::uint8_t>(known.flags & ~KnownChunks::kTail);
    if (last && !alone && known.children == 0) known.flags |= KnownChunks::kTail;
    if (!alone) {
        known.flags |= KnownChunks::kUnresolved;
        known.traits = ReuseModel::pack(request_.traits(place_of(known.position), gap));
    }
    classify(known, alone);
    known.age = 0;
    known.last = static_cast<std::uint32_t>(clock_.read(alone));
    known_.append(node);
    hazards_.begun(known.kind, weight_of(known));
    grow_older();
}

void ValuePolicy::classify(Known& known, bool alone) {
    const std::uint32_t group = group_of(known);
    const std::size_t kind = alone ? Hazards::kind_alone(often(known, Hazards::kAlone - 1))  // of the request nothing
                                   : Hazards::kind(group, model_.log_odds(known.traits, group));
    known.kind = static_cast<std::uint8_t>(kind);
}

void ValuePolicy::resolve(Known& known, bool reused) {
    if ((known.flags & KnownChunks::kUnresolved) == 0) return;
    known.flags = static_cast<std::uint8_t>(known.flags & ~KnownChunks::kUnresolved);
    model_.learn(known.traits, group_of(known), reused, weight_of(known) / request_.run());
}

// What is due before anything is told.
void ValuePolicy::begin_event(std::int64_t now_ms) {
    drop_cursors();
    clock_.tell(now_ms);
    end_waits(now_ms);
    if (order_ && !ordered_) make_order(now_ms);
    if (clock_.uses() - ranked_at_ >= kRankEvery + std::min<std::uint64_t>(size_, clock_.uses()) / 4) rank();
}

// With each use some of the lists, so that each has its turn every 16 uses, and so many chunks at most: after a pause all
// have grown older at once. Oldest first, so that lists stay in the order of last use.
void ValuePolicy::grow_older() {
    std::size_t grown = 0;
    for (std::size_t looks = 0; looks < kListsPerUse; ++looks) {
        const std::size_t age = kAges - 2 - growing_ / 4;
        const bool ghost = growing_ % 2 != 0, alone = growing_ / 2 % 2 != 0;
        const auto now = static_cast<std::uint32_t>(clock_.read(alone));
        for (std::uint32_t node; (node = known_.oldest(age, ghost, alone)) != 0;) {
            if (now - known_[node].last < ages_.begin[age + 1]) break;
            if (grown++ == kGrownPerUse) return;
            grow_older(node);
        }
        growing_ = (growing_ + 1) % kLists;
    }
}

void ValuePolicy::grow_older(std::uint32_t node) {
    Known& known = known_[node];
    // What was hinted at keeps its turn.
    const bool moves = known.here && known.hint == Hint::none && dequeue(known);
    known_.unlink(node);
    come_of_age(known);
    known_.append(node);
    if (known.here && order_ && !ordered_ && known_.has_passed(known.age, known_.is_alone(node))) pass_by(node);
    if (moves) enqueue(known);
}

// Counts what a chunk that is in no list has lived through up to now.
void ValuePolicy::come_of_age(Known& known) {
    const double weight = weight_of(known);
    if ((known.flags & KnownChunks::kRestored) != 0) hazards_.survived(known.kind, known.age, weight);
    known.flags = static_cast<std::uint8_t>(known.flags & ~KnownChunks::kRestored);
    const bool alone = (known.flags & KnownChunks::kAlone) != 0;
    const std::uint32_t lay = static_cast<std::uint32_t>(clock_.read(alone)) - known.last;
    for (const std::uint8_t age = ages_.at(lay, known.age); known.age < age;)
        hazards_.survived(known.kind, ++known.age, weight);
    if (known.age >= horizon_) resolve(known, false);
}

void ValuePolicy::rank() {
    for (const auto& cursor : cursors_) cursor->stir();
    ranked_at_ = clock_.uses();
    if (admissions_ > 0) {
        const double uses = static_cast<double>(ranked_at_) / static_cast<double>(admissions_);
        const double horizon = kHorizonFillings * uses * static_cast<double>(size_) * clock_.per_use();
        for (horizon_ = 0; horizon_ + 2 < kAges && ages_.begin[horizon_ + 1] < horizon;) ++horizon_;
    }
    hazards_.decay(kLeastMemory + kMemoryPerRow * static_cast<double>(size_));
    const double wait = kLeastWait * static_cast<double>(size_);
    hazards_.rate(request_.run(), wait * clock_.per_use(), wait);
    queues_.rank([&](std::size_t queue) {
        if (queue == kWorthless) return -1.0;
        if (queue == kAwaited) return std::numeric_limits<double>::infinity();
        const double density = hazards_.density(queue / kAges, queue % kAges);
        return Hazards::is_alone(queue / kAges) ? density : density * clock_.per_use();
    });
}

ValuePolicy::Size ValuePolicy::size_of(const Arrival& chunk) {
    constexpr std::uint64_t most_bytes = (std::uint64_t{1} << 40) - 1;
    constexpr std::uint32_t most_tokens = (std::uint32_t{1} << 24) - 1;
    return {std::min(chunk.bytes, most_bytes), std::min(chunk.tokens, most_tokens)};
}

// Where a chunk stands that comes. Whether it has moved: it may stand behind one that follows it.
bool ValuePolicy::place(Known& known, const Arrival& chunk) {
    chunk_tokens_ = std::max(chunk_tokens_, chunk.tokens);
    const bool moved = known.children > 0 && chunk.position > known.position;
    known.position = chunk.position;
    return moved;
}

// A prompt that is put root first may be its own victim. What follows a chunk that had to go meanwhile is of no use.
bool ValuePolicy::is_severed(std::uint64_t parent) const {
    if (parent == 0 || std::find(severed_.begin(), severed_.end(), parent) == severed_.end()) return false;
    const std::uint32_t node = known_.find(parent);
    return node == 0 || !known_[node].here;
}

// What a hit on it saves and costs, by what is known of that now. The latency of a load is not asked for: all chunks of a
// prompt wait for it once.
void ValuePolicy::appraise(std::uint32_t row) {
    const Size held = rows_[row].size;
    Known& known = known_at(row);
    const auto bytes = static_cast<double>(std::max<std::uint64_t>(held.bytes, 1));
    const double tokens = std::max(static_cast<std::uint32_t>(held.tokens), 1U);
    const double flops = costs_.flops_per_token * tokens +
                         costs_.flops_per_token2 * tokens * (known.position + tokens / 2);
    known.worthless = false;
    if (costs_.prefill_flops_per_s > 0 && costs_.load_bytes_per_s > 0) {
        double load = bytes / costs_.load_bytes_per_s;
        if (costs_.decode_bytes_per_s > 0) load += bytes / costs_.decode_bytes_per_s;
        known.worthless = flops / costs_.prefill_flops_per_s <= load;
    }
    // Between what counts tokens and what counts FLOPs, nearer to tokens: see docs/value.md.
    const double deep = costs_.flops_per_token > 0 ? flops / (costs_.flops_per_token * tokens) : 1;
    const int step = static_cast<int>(std::lround(2 * std::log2(tokens * std::sqrt(std::sqrt(deep)) / bytes)));
    if (held.tokens > usual_tokens_) {  // a partial chunk is no measure
        usual_ = step;
        usual_tokens_ = static_cast<std::uint32_t>(held.tokens);
    }
    constexpr int most = kClasses - 1;
    const int step_here = std::clamp(step - usual_ + static_cast<int>(Queues::kNeutral), 0, most);
    known.worth = static_cast<std::uint8_t>(step_here) & most;
    queues_.begin_class(known.worth);
}

}  // namespace kvstore
