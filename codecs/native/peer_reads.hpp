// Reads of other servers answered without Python: bytes of records and of objects that lie in DRAM; docs/channels.md.
#pragma once

#include "held_part.hpp"

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

namespace kvstore {

// The specs of which another server has read a record before, of any namespace, and the objects. Frames of two methods
// are answered (RecordRequest and ReadObjectRequest of proto/kvstore/v1/kvstore.proto) where what they ask for is there
// as they say it is, exact and in DRAM; not misses, slower tiers, lossy copies, and what is out of bounds.
class PeerReads : public PartSource {
public:
    // A use that was told of so lately is not told again by the reads that follow it.
    static constexpr std::int64_t kRecentMs = 10'000;

    PeerReads(std::uint16_t record_method, std::uint16_t object_method, std::function<void()> freed)
        : record_method_(record_method), object_method_(object_method), freed_(std::move(freed)) {}

    // Has records of a spec in a namespace answered from now on.
    void add_records(const SpecDigest& spec, PartScope scope);
    // Has objects answered from now on, whose spec has one part; their bytes begin `data_at` in it.
    void add_objects(PartScope scope, std::uint64_t data_at);

    std::unique_ptr<HeldPart> find(const FrameHead& head, std::span<const std::uint8_t> message) override;

private:
    using ScopeKey = std::array<SpecDigest, 2>;  // namespace, spec
    struct Objects {
        PartScope scope;
        std::uint64_t data_at;
    };

    std::unique_ptr<HeldPart> find_record(std::span<const std::uint8_t> message);
    std::unique_ptr<HeldPart> find_object(std::span<const std::uint8_t> message);
    const PartScope* scope_of(const ScopeKey& key);
    const Objects* objects();

    std::uint16_t record_method_, object_method_;
    std::function<void()> freed_;
    std::mutex lock_;  // of the scopes; what is there stays
    std::map<ScopeKey, PartScope> scopes_;
    std::optional<Objects> objects_;
};

}  // namespace kvstore
