// What each file adds to the module.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

namespace kvstore {

void bind_admission(nanobind::module_& m);
void bind_allocator(nanobind::module_& m);
void bind_append(nanobind::module_& m);
void bind_cachegen(nanobind::module_& m);
void bind_files(nanobind::module_& m);
void bind_frames(nanobind::module_& m);
void bind_gets(nanobind::module_& m);
void bind_hash(nanobind::module_& m);
void bind_hazards(nanobind::module_& m);
void bind_index(nanobind::module_& m);
void bind_lossless(nanobind::module_& m);
void bind_mapping(nanobind::module_& m);
void bind_memory(nanobind::module_& m);
void bind_paged(nanobind::module_& m);
void bind_policy(nanobind::module_& m);
void bind_populate(nanobind::module_& m);
void bind_puts(nanobind::module_& m);
void bind_quantize(nanobind::module_& m);
void bind_rans(nanobind::module_& m);
void bind_record(nanobind::module_& m);
void bind_shared(nanobind::module_& m);
void bind_sim(nanobind::module_& m);
void bind_striped(nanobind::module_& m);
void bind_transform(nanobind::module_& m);

}  // namespace kvstore
