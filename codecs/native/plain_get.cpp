#include "plain_get.hpp"

#include "message_fields.hpp"

#include <algorithm>

namespace kvstore {

namespace {

using Bytes = std::span<const std::uint8_t>;

constexpr std::uint64_t kSpecOf = bytes_tag(1), kItems = bytes_tag(2), kForms = bytes_tag(6);

namespace head {
constexpr std::uint64_t kHead = bytes_tag(1), kRecord = bytes_tag(4), kBytes = number_tag(5);
}

namespace record {
constexpr std::uint64_t kKey = bytes_tag(1), kParent = bytes_tag(2), kPart = bytes_tag(3), kPosition = number_tag(4),
                        kTokens = number_tag(5), kFirstValid = number_tag(6), kLogical = number_tag(7),
                        kStored = number_tag(8), kLevel = number_tag(10), kExact = number_tag(11),
                        kArtefact = bytes_tag(12), kGroups = bytes_tag(13), kSpec = bytes_tag(14);
}

bool parse_record(Bytes message, PlainAnswer& answer) {
    Fields fields(message);
    bool key = false, part = false, spec = false;
    ChunkRef& chunk = answer.item.chunk;
    while (fields.next()) {
        switch (fields.tag) {
            case record::kKey: key = fields.copy_to(chunk.key); break;
            case record::kPart: part = fields.copy_to(answer.item.part); break;
            case record::kSpec: spec = fields.copy_to(answer.spec); break;
            case record::kPosition: chunk.position = static_cast<std::uint32_t>(fields.number); break;
            case record::kTokens: chunk.tokens = static_cast<std::uint32_t>(fields.number); break;
            case record::kGroups: answer.groups = fields.bytes; break;
            case record::kParent:
            case record::kFirstValid:
            case record::kLogical:
            case record::kStored:
            case record::kExact:
            case record::kArtefact: break;
            default: return false;  // a form or a level first of all: not raw
        }
    }
    return !fields.bad && key && part && spec;
}

class Writer {
public:
    void number(std::uint64_t tag, std::uint64_t value) {
        if (value == 0) return;  // which goes without saying
        varint(tag);
        varint(value);
    }
    void bytes(std::uint64_t tag, Bytes value) {
        if (value.empty()) return;
        varint(tag);
        varint(value.size());
        written.insert(written.end(), value.begin(), value.end());
    }

    std::vector<std::uint8_t> written;

private:
    void varint(std::uint64_t value) {
        for (; value >= 0x80; value >>= 7) written.push_back(static_cast<std::uint8_t>(value | 0x80));
        written.push_back(static_cast<std::uint8_t>(value));
    }
};

template <typename Value>
Bytes bytes_of(const Value& value) {
    return {reinterpret_cast<const std::uint8_t*>(&value), sizeof value};
}

}  // namespace

std::optional<PlainGet> parse_get(Bytes message) {
    PlainGet get{};
    Fields fields(message);
    bool spec = false, item = false;
    while (fields.next()) {
        switch (fields.tag) {
            case kSpecOf: spec = fields.copy_to(get.spec); break;
            case kItems: item = fields.copy_to(get.item); break;
            case kForms:  // raw is always welcome; what are no small numbers is not looked into
                if (std::ranges::any_of(fields.bytes, [](std::uint8_t each) { return each >= 0x80; })) return {};
                break;
            default: return {};
        }
    }
    if (fields.bad || !spec || !item) return {};
    return get;
}

std::optional<PlainAnswer> parse_answer(Bytes message) {
    Fields outer(message);
    if (!outer.next() || outer.tag != head::kHead) return {};
    Fields inner(outer.bytes);
    if (outer.next() || outer.bad) return {};
    PlainAnswer answer{};
    bool known = false;
    while (inner.next()) {
        if (inner.tag == head::kBytes) {
            answer.payload = inner.number;
        } else if (inner.tag != head::kRecord || known || !(known = parse_record(inner.bytes, answer))) {
            return {};
        }
    }
    if (inner.bad || !known || answer.groups.size() % sizeof(GroupEntry) != 0) return {};
    return answer;
}

std::vector<std::uint8_t> write_answer(const RecordFields& of, Bytes groups) {
    Writer inner;
    inner.written.reserve(256 + groups.size());
    inner.bytes(record::kKey, of.key);
    inner.bytes(record::kParent, of.parent);
    inner.bytes(record::kPart, bytes_of(of.part));
    inner.number(record::kPosition, of.position);
    inner.number(record::kTokens, of.tokens);
    inner.number(record::kFirstValid, of.first_valid);
    inner.number(record::kLogical, of.logical);
    inner.number(record::kStored, of.stored);
    inner.number(record::kLevel, of.level);
    inner.number(record::kExact, of.exact);
    inner.bytes(record::kArtefact, of.artefact);
    inner.bytes(record::kGroups, groups);
    inner.bytes(record::kSpec, of.spec);
    Writer middle;
    middle.written.reserve(inner.written.size() + 16);
    middle.bytes(head::kRecord, inner.written);
    middle.number(head::kBytes, of.stored);
    Writer outer;
    outer.written.reserve(middle.written.size() + 8);
    outer.bytes(head::kHead, middle.written);
    return std::move(outer.written);
}

}  // namespace kvstore
