#include "bind.hpp"

NB_MODULE(_native, m) {
    // A store that a program leaves open at its end is no leak of this module.
    nanobind::set_leak_warnings(false);
    m.doc() = "What kvstore does in C++: checksums, copies, the arena's allocator, the chunk index.";
    kvstore::bind_admission(m);
    kvstore::bind_allocator(m);
    kvstore::bind_append(m);
    kvstore::bind_cachegen(m);
    kvstore::bind_files(m);
    kvstore::bind_frames(m);
    kvstore::bind_gets(m);
    kvstore::bind_hash(m);
    kvstore::bind_hazards(m);
    kvstore::bind_index(m);
    kvstore::bind_lossless(m);
    kvstore::bind_mapping(m);
    kvstore::bind_memory(m);
    kvstore::bind_paged(m);
    kvstore::bind_policy(m);
    kvstore::bind_populate(m);
    kvstore::bind_puts(m);
    kvstore::bind_quantize(m);
    kvstore::bind_rans(m);
    kvstore::bind_record(m);
    kvstore::bind_shared(m);
    kvstore::bind_sim(m);
    kvstore::bind_striped(m);
    kvstore::bind_transform(m);
}
