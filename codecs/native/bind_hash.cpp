// Checksums, and copies that compute them on the way.
#include "bind.hpp"
#include "buffer.hpp"
#include "copy.hpp"
#include "ranges.hpp"
#include "xxh3.hpp"

namespace kvstore {

namespace {

nb::bytes to_bytes(const Hash128& hash) {
    std::uint8_t digest[kDigestBytes];
    hash.write_canonical(digest);
    return nb::bytes(digest, kDigestBytes);
}

nb::bytes hash_128(nb::handle object) {
    const BufferView buffer(object, "buffer");
    Hash128 hash;
    {
        const ReleaseGilFor release(buffer.bytes());
        hash = xxh3_128(buffer.data(), buffer.bytes());
    }
    return to_bytes(hash);
}

std::uint64_t hash_64(nb::handle object) {
    const BufferView buffer(object, "buffer");
    const ReleaseGilFor release(buffer.bytes());
    return xxh3_64(buffer.data(), buffer.bytes());
}

nb::object hash_128_many(nb::handle object, nb::handle offsets, nb::handle lengths) {
    const BufferView buffer(object, "buffer");
    const Ranges ranges(offsets, lengths, buffer.bytes());
    NewArray digests("u1", ranges.size(), kDigestBytes);
    {
        const ReleaseGilFor release(ranges.total());
        for (std::size_t i = 0; i < ranges.size(); ++i)
            xxh3_128(buffer.data() + ranges.offset(i), ranges.length(i))
                .write_canonical(digests.data<std::uint8_t>() + i * kDigestBytes);
    }
    return digests.release();
}

void copy(nb::handle dst_object, nb::handle src_object) {
    const BufferView dst(dst_object, "dst", true);
    const BufferView src(src_object, "src");
    check_pair(dst.data(), dst.bytes(), src);
    const ReleaseGilFor release(src.bytes());
    copy_bytes(dst.data(), src.data(), src.bytes());
}

nb::bytes copy_hash(nb::handle dst_object, nb::handle src_object) {
    const BufferView dst(dst_object, "dst", true);
    const BufferView src(src_object, "src");
    check_pair(dst.data(), dst.bytes(), src);
    Hash128 hash;
    {
        const ReleaseGilFor release(src.bytes());
        hash = xxh3_128_copy(dst.data(), src.data(), src.bytes(), store_for(dst.data(), src.bytes()));
    }
    return to_bytes(hash);
}

nb::object copy_hash_many(nb::handle dst_object, nb::handle src_object, nb::handle offsets, nb::handle lengths) {
    const BufferView dst(dst_object, "dst", true);
    const BufferView src(src_object, "src");
    check_pair(dst.data(), dst.bytes(), src);
    const Ranges ranges(offsets, lengths, src.bytes());
    ranges.require_ascending();
    NewArray digests("u1", ranges.size(), kDigestBytes);
    {
        const ReleaseGilFor release(src.bytes());
        copy_hash_ranges(dst.data(), src.data(), src.bytes(), ranges.all(), digests.data<std::uint8_t>());
    }
    return digests.release();
}

constexpr const char* kLevelNames[] = {"portable", "avx2", "avx512"};

const char* level_name() { return kLevelNames[static_cast<std::size_t>(simd_level())]; }

void set_level_by_name(const std::string& name) {
    for (const SimdLevel level : {SimdLevel::portable, SimdLevel::avx2, SimdLevel::avx512}) {
        if (name != kLevelNames[static_cast<std::size_t>(level)]) continue;
        if (!simd_supported(level)) throw nb::value_error(("this processor has no " + name).c_str());
        return set_simd_level(level);
    }
    throw nb::value_error(("no SIMD level '" + name + "': portable, avx2 or avx512").c_str());
}

class Hasher {
public:
    void update(nb::handle object) {
        const BufferView buffer(object, "buffer");
        const ReleaseGilFor release(buffer.bytes());
        state_.update(buffer.data(), buffer.bytes());
    }
    nb::bytes digest() const { return to_bytes(state_.digest()); }

private:
    Xxh3State state_;
};

}  // namespace

void bind_hash(nb::module_& m) {
    using namespace nb::literals;
    m.def("xxh3_128", hash_128, "buffer"_a);
    m.def("xxh3_64", hash_64, "buffer"_a);
    m.def("xxh3_128_many", hash_128_many, "buffer"_a, "offsets"_a, "lengths"_a);
    m.def("copy", copy, "dst"_a, "src"_a);
    m.def("copy_hash", copy_hash, "dst"_a, "src"_a);
    m.def("copy_hash_many", copy_hash_many, "dst"_a, "src"_a, "offsets"_a, "lengths"_a);
    m.def("address_of", [](nb::handle object) {
        return reinterpret_cast<std::uintptr_t>(BufferView(object, "buffer").data());
    }, "buffer"_a);
    m.def("simd_level", level_name);
    m.def("set_simd_level", set_level_by_name, "name"_a);
    nb::class_<Hasher>(m, "Xxh3_128").def(nb::init<>()).def("update", &Hasher::update, "buffer"_a).def("digest", &Hasher::digest);
}

}  // namespace kvstore
