// Threads that write, read and delete in one striped memory; then its slots are restored. Prints `ok` if all was right.
#include "striped_memory.hpp"
#include "xxh3.hpp"

#include <cstdio>
#include <cstring>
#include <random>

using namespace kvstore;

namespace {

constexpr std::size_t kUnit = 8192, kMost = 1'500'000, kHeader = 4096;
std::atomic<int> wrong = 0;

struct Writer {
    StripedMemory& memory;
    std::mt19937 choose;
    std::vector<std::uint8_t> header = std::vector<std::uint8_t>(kHeader);
    std::vector<std::uint8_t> body = std::vector<std::uint8_t>(kMost), out = std::vector<std::uint8_t>(kMost);
    std::vector<std::uint64_t> mine;

    void turn(int number) {
        const std::uint64_t stored = choose() % kMost + 1;
        const std::uint16_t header_blocks = 1;
        std::memset(body.data(), number, stored);
        std::memcpy(header.data() + kHeaderBlocksAt, &header_blocks, sizeof header_blocks);
        std::memcpy(header.data() + kHeaderStoredAt, &stored, sizeof stored);
        const std::int64_t location = memory.write(header, body.data(), stored);
        if (location >= 0) {
            mine.push_back(static_cast<std::uint64_t>(location));
            if (memory.read({mine.back(), kHeader, out.data(), stored}) != StripedMemory::kDone ||
                std::memcmp(out.data(), body.data(), stored) != 0)
                ++wrong;
        }
        if ((location < 0 || choose() % 3 == 0) && !mine.empty()) {
            if (!memory.remove(mine.back())) ++wrong;
            mine.pop_back();
        }
        const std::array<std::uint8_t, 3> units{static_cast<std::uint8_t>(1 + choose() % 4), 2, 1};
        memory.set_units(units);
    }
};

}  // namespace

int main() {
    // What is streamed past the cache is not seen by a sanitizer.
    set_simd_level(SimdLevel::portable);
    std::vector<std::vector<std::uint8_t>> devices(3, std::vector<std::uint8_t>(4 << 20));
    std::vector<RecordSlot> slots(256);
    std::vector<DeviceMemory> all;
    for (auto& each : devices) all.push_back({each.data(), each.size()});
    StripedMemory memory(all, slots.size(), kUnit, 2, RecordSlots(slots.data(), slots.size(), true));
    for (const DeviceRange& each : memory.restore().unused) memory.release(each);
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 4; ++seed)
        threads.emplace_back([&memory, seed] {
            Writer writer{.memory = memory, .choose = std::mt19937(seed)};
            for (int number = 0; number < 100; ++number) writer.turn(number);
        });
    for (std::thread& each : threads) each.join();
    const std::uint64_t used = memory.used(), records = memory.records();
    memory.close();
    StripedMemory again(all, slots.size(), kUnit, 0, RecordSlots(slots.data(), slots.size(), true));
    const auto found = again.restore();
    if (again.used() != used || found.valid.size() != records || found.torn + found.damaged + found.overlapping != 0) ++wrong;
    std::puts(wrong == 0 && records > 0 ? "ok" : "wrong");
}
