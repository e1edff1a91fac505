// Plain gets (plain_get.hpp) answered without Python: found, held, announced; docs/channels.md.
#pragma once

#include "plain_get.hpp"
#include "record_header.hpp"
#include "staged_puts.hpp"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

namespace kvstore {

// Where the parts of one spec are looked for, and who is told that they were used.
struct GetScope {
    Intake* intake;
    Holdings* holdings;
    Tally* tally;
    std::vector<Policy*> orders;  // of every tier
    std::uint32_t scope;
    SpecDigest ns;
    PartTable table;
};

// A part that stays where it is until this is gone: there is a reader on its placement, and the store does not give
// its extents back.
class HeldPart {
public:
    // `freed` is called, without any lock, where somebody waits for readers to go.
    HeldPart(const GetScope& scope, const std::function<void()>& freed, std::uint32_t placement)
        : scope_(&scope), freed_(&freed), placement_(placement) {}
    ~HeldPart();
    HeldPart(const HeldPart&) = delete;
    HeldPart& operator=(const HeldPart&) = delete;

    // A message that announces the payload.
    std::vector<std::uint8_t> message;
    std::span<const std::uint8_t> payload;

private:
    const GetScope* scope_;
    const std::function<void()>* freed_;
    std::uint32_t placement_;
};

// The specs that one session has read before. Any thread may call.
class PlainGets {
public:
    static constexpr std::size_t kMaxScopes = 1024;

    explicit PlainGets(std::function<void()> freed) : freed_(std::move(freed)) {}

    // Has gets of a spec answered from now on. False where there are too many of them.
    bool add_scope(const SpecDigest& spec, GetScope scope);

    // What a get asks for, if it is there, raw, exact and in DRAM, and is counted as used. Where it is nothing nothing
    // was done, and the general way must see to it: misses, slower tiers, and a record that is not what it should be.
    std::unique_ptr<HeldPart> find(std::span<const std::uint8_t> message);

private:
    struct Hit {
        std::uint32_t placement;
        std::uint64_t location;
        std::uint64_t stored;
    };

    const GetScope* scope_of(const SpecDigest& spec);
    static std::optional<Hit> hold(const GetScope& scope, const ItemRef& item);

    std::function<void()> freed_;
    std::mutex lock_;  // of the map; what is in it stays
    std::map<SpecDigest, GetScope> scopes_;
};

}  // namespace kvstore
