#include "policy.hpp"

#include "policy_arc.hpp"
#include "policy_fifo.hpp"
#include "policy_frequency.hpp"
#include "policy_lru.hpp"
#include "policy_mq.hpp"
#include "policy_s3fifo.hpp"
#include "policy_value.hpp"

#include <array>
#include <stdexcept>
#include <string>
#include <utility>

namespace kvstore {

namespace {

using Maker = std::unique_ptr<Policy> (*)(std::uint32_t max_rows);

template <typename Kind>
std::unique_ptr<Policy> make(std::uint32_t max_rows) {
    return std::make_unique<Kind>(max_rows);
}

constexpr std::array kMakers = std::to_array<std::pair<std::string_view, Maker>>({
    {"lru", make<LruPolicy>},
    {"fifo", make<FifoPolicy>},
    {"lfu", make<LfuPolicy>},
    {"s3fifo", make<S3FifoPolicy>},
    {"arc", make<ArcPolicy>},
    {"gdsf", make<GdsfPolicy>},
    {"mq", make<MqPolicy>},
    {"value", make<ValuePolicy>},
});

}  // namespace

std::unique_ptr<Policy> make_policy(std::string_view name, std::uint32_t max_rows) {
    for (const auto& [known, maker] : kMakers)
        if (known == name) return maker(max_rows);
    throw std::invalid_argument("there is no policy '" + std::string(name) + "'");
}

const std::vector<std::string_view>& policy_names() {
    static const std::vector<std::string_view> names = [] {
        std::vector<std::string_view> found;
        for (const auto& each : kMakers) found.push_back(each.first);
        return found;
    }();
    return names;
}

}  // namespace kvstore
