// Plain gets (plain_get.hpp) answered without Python: found, held, announced; docs/channels.md.
#pragma once

#include "held_part.hpp"
#include "plain_get.hpp"
#include "record_header.hpp"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>

namespace kvstore {

// The specs that one session has read before. Frames of `method` are answered where what they ask for is there, raw,
// exact and in DRAM; not misses, slower tiers, and a record that is not what it should be.
class PlainGets : public PartSource {
public:
    static constexpr std::size_t kMaxScopes = 1024;

    PlainGets(std::uint16_t method, std::function<void()> freed) : method_(method), freed_(std::move(freed)) {}

    // Has gets of a spec answered from now on. False where there are too many of them.
    bool add_scope(const SpecDigest& spec, PartScope scope);

    std::unique_ptr<HeldPart> find(const FrameHead& head, std::span<const std::uint8_t> message) override;

private:
    const PartScope* scope_of(const SpecDigest& spec);

    std::uint16_t method_;
    std::function<void()> freed_;
    std::mutex lock_;  // of the map; what is in it stays
    std::map<SpecDigest, PartScope> scopes_;
};

}  // namespace kvstore
