// What every fuzz target has: one input, and inputs to begin with. `TARGET --seeds=FOLDER` writes these and ends.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <span>
#include <string>
#include <vector>

using Bytes = std::vector<std::uint8_t>;
using Input = std::span<const std::uint8_t>;

// Defined by each target.
void fuzz_one(Input input);
std::vector<Bytes> seeds();

// What must hold whatever the input is.
inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "this does not hold: %s\n", what);
    std::abort();
}

// Small numbers from the front of an input; zeros when it is used up. The rest is the bytes to decode.
class Reader {
public:
    explicit Reader(Input input) : input_(input) {}
    std::size_t number(std::size_t least, std::size_t most) {
        const std::size_t value = input_.empty() ? 0 : input_[0];
        if (!input_.empty()) input_ = input_.subspan(1);
        return least + value % (most - least + 1);
    }
    Input rest() const { return input_; }

private:
    Input input_;
};

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz_one({data, size});
    return 0;
}

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
    const std::string option = "--seeds=";
    if (*argc != 2 || std::strncmp((*argv)[1], option.c_str(), option.size()) != 0) return 0;
    std::size_t number = 0;
    for (const Bytes& seed : seeds()) {
        std::ofstream file((*argv)[1] + option.size() + std::string("/seed-") + std::to_string(number++), std::ios::binary);
        file.write(reinterpret_cast<const char*>(seed.data()), static_cast<std::streamsize>(seed.size()));
        require(file.good(), "the folder for seeds can be written");
    }
    std::exit(0);
}
