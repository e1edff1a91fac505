// What clients see of the index: the whole chunks of a scope, in a table that they share.
#include "index.hpp"
#include "shared_table.hpp"

namespace kvstore {

void Index::publish_to(std::uint32_t scope, SharedTable* table, const SpecDigest& spec, std::uint32_t parts) {
    if (parts == 0) throw std::invalid_argument("a spec has at least one part");
    if (scope >= publications_.size()) publications_.resize(scope + 1);
    if (publications_[scope].table != nullptr)
        throw std::invalid_argument("scope " + std::to_string(scope) + " is published already");
    publications_[scope] = {table, spec, parts};
}

std::int64_t Index::publish_rows(std::uint32_t start, std::size_t limit) {
    std::int64_t next = -1;
    for (const std::uint32_t row : live_chunks(start, limit, next)) republish(row);
    return next;
}

bool Index::is_whole(const ChunkRow& chunk, std::uint32_t parts) const {
    std::uint32_t exact = 0;
    for (std::uint32_t part = chunk.first_part; part != kNone; part = parts_[part].next)
        exact += has_placement(parts_[part], true);
    return exact == parts;
}

void Index::prefetch_published(std::uint32_t row) const {
    const ChunkRow& chunk = chunks_[row];
    if (chunk.scope < publications_.size() && publications_[chunk.scope].table != nullptr)
        publications_[chunk.scope].table->prefetch(tag_of(publications_[chunk.scope], chunk));
}

std::uint64_t Index::tag_of(const Publication& publication, const ChunkRow& chunk) {
    const ChunkRef ref{chunk.key, chunk.position, chunk.tokens};
    return chunk_tag(publication.spec, reinterpret_cast<const std::uint8_t*>(&ref));
}

// Where clients may read a chunk without asking: a spec of one part, whose DRAM copy is exact and raw.
std::uint64_t Index::readable_block(const ChunkRow& chunk, std::uint32_t parts) const {
    if (parts != 1 || chunk.first_part == kNone || parts_[chunk.first_part].next != kNone) return 0;
    const std::uint32_t row = placement_in(parts_[chunk.first_part], kReadableTier);
    if (row == kNone || !placements_[row].exact || placements_[row].codec != kRawForm) return 0;
    return block_of(placements_[row].loc);
}

void Index::republish_in(const Publication& publication, std::uint32_t row) {
    ChunkRow& chunk = chunks_[row];
    const bool visible = (chunk.flags & ChunkRow::kHidden) == 0 && is_whole(chunk, publication.parts);
    const bool was_visible = chunk.published != 0;
    if (!visible && !was_visible) return;
    chunk.published = visible;
    const std::uint64_t tag = tag_of(publication, chunk);
    if (!visible) {
        publication.table->remove(tag, row);
        return;
    }
    const std::uint64_t block = readable_block(chunk, publication.parts);
    if (was_visible) {
        publication.table->update(tag, row, block);
    } else {
        publication.table->insert(tag, row, block);
    }
}

std::uint64_t Index::tokens(const std::uint32_t* rows, std::size_t count) const {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += chunks_[rows[i]].tokens;
    return sum;
}

}  // namespace kvstore
