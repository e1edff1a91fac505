// Checksums, and copies that compute them on the way.
#include "bind.hpp"
#include "buffer.hpp"
#include "copy.hpp"
#include "xxh3.hpp"

namespace kvstore {

namespace {

constexpr std::size_t kDigestBytes = 16;

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

// Checked ranges of one buffer.
class Ranges {
public:
    Ranges(nb::handle offsets, nb::handle lengths, std::size_t bytes)
        : offsets_(offsets, "offsets"), lengths_(lengths, "lengths") {
        if (offsets_.size() != lengths_.size())
            throw nb::value_error(("offsets has " + std::to_string(offsets_.size()) + " items, lengths " +
                                   std::to_string(lengths_.size()))
                                      .c_str());
        for (std::size_t i = 0; i < size(); ++i) {
            if (offset(i) <= bytes && length(i) <= bytes - offset(i)) continue;
            throw nb::value_error(("range " + std::to_string(i) + " (offset " + std::to_string(offset(i)) +
                                   ", length " + std::to_string(length(i)) + ") ends outside the buffer of " +
                                   std::to_string(bytes) + " bytes")
                                      .c_str());
        }
    }

    std::size_t size() const { return offsets_.size(); }
    std::size_t offset(std::size_t i) const { return static_cast<std::size_t>(offsets_[i]); }
    std::size_t length(std::size_t i) const { return static_cast<std::size_t>(lengths_[i]); }

    std::size_t total() const {
        std::size_t sum = 0;
        for (std::size_t i = 0; i < size(); ++i) sum += length(i);
        return sum;
    }

    void require_ascending() const {
        for (std::size_t i = 1; i < size(); ++i)
            if (offset(i) < offset(i - 1) + length(i - 1))
                throw nb::value_error(("range " + std::to_string(i) + " begins at " + std::to_string(offset(i)) +
                                       ", before the end of the range ahead of it")
                                          .c_str());
    }

private:
    Words offsets_;
    Words lengths_;
};

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

void check_pair(const BufferView& dst, const BufferView& src) {
    if (dst.bytes() != src.bytes())
        throw nb::value_error(("dst has " + std::to_string(dst.bytes()) + " bytes, src " + std::to_string(src.bytes()))
                                  .c_str());
    if (dst.data() < src.data() + src.bytes() && src.data() < dst.data() + dst.bytes())
        throw nb::value_error("dst and src overlap");
}

void copy(nb::handle dst_object, nb::handle src_object) {
    const BufferView dst(dst_object, "dst", true);
    const BufferView src(src_object, "src");
    check_pair(dst, src);
    const ReleaseGilFor release(src.bytes());
    copy_bytes(dst.data(), src.data(), src.bytes());
}

nb::bytes copy_hash(nb::handle dst_object, nb::handle src_object) {
    const BufferView dst(dst_object, "dst", true);
    const BufferView src(src_object, "src");
    check_pair(dst, src);
    Hash128 hash;
    {
        const ReleaseGilFor release(src.bytes());
        hash = xxh3_128_copy(dst.data(), src.data(), src.bytes(), store_for(dst.data(), src.bytes()));
    }
    return to_bytes(hash);
}

void copy_hash_ranges(const BufferView& dst, const BufferView& src, const Ranges& ranges, std::uint8_t* digests) {
    std::size_t done = 0;
    for (std::size_t i = 0; i < ranges.size(); ++i) {
        const std::size_t offset = ranges.offset(i);
        copy_bytes(dst.data() + done, src.data() + done, offset - done);
        xxh3_128_copy(dst.data() + offset, src.data() + offset, ranges.length(i),
                      store_for(dst.data() + offset, src.bytes()))
            .write_canonical(digests + i * kDigestBytes);
        done = offset + ranges.length(i);
    }
    copy_bytes(dst.data() + done, src.data() + done, src.bytes() - done);
}

nb::object copy_hash_many(nb::handle dst_object, nb::handle src_object, nb::handle offsets, nb::handle lengths) {
    const BufferView dst(dst_object, "dst", true);
    const BufferView src(src_object, "src");
    check_pair(dst, src);
    const Ranges ranges(offsets, lengths, src.bytes());
    ranges.require_ascending();
    NewArray digests("u1", ranges.size(), kDigestBytes);
    {
        const ReleaseGilFor release(src.bytes());
        copy_hash_ranges(dst, src, ranges, digests.data<std::uint8_t>());
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
    m.def("simd_level", level_name);
    m.def("set_simd_level", set_level_by_name, "name"_a);
    nb::class_<Hasher>(m, "Xxh3_128").def(nb::init<>()).def("update", &Hasher::update, "buffer"_a).def("digest", &Hasher::digest);
}

}  // namespace kvstore
