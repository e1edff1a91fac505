/* Stands in for NVIDIA's libcuda.so.1 where there is no GPU: device memory is host memory, a copy is done when it is
   queued, and every call wants the context current that a real one wants. Tests only. */
#include <stdint.h>
#include <string.h>

typedef void *Pointer;
static char primary;
static _Thread_local Pointer current[8];
static _Thread_local int depth;
static uint64_t registered, registered_bytes;
static unsigned registered_flags;

enum { OK = 0, INVALID_VALUE = 1, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, ALREADY_REGISTERED = 712, NOT_REGISTERED = 713 };
#define IN_CONTEXT if (depth == 0 || current[depth - 1] != &primary) return INVALID_CONTEXT

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : OK; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return ordinal < 2 ? OK : INVALID_DEVICE; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 113 && device == 40;
    return OK;
}
int cuDevicePrimaryCtxRetain(Pointer *context, int device) { *context = &primary; return device >= 40 ? OK : INVALID_DEVICE; }
int cuCtxPushCurrent_v2(Pointer context) { current[depth++] = context; return OK; }
int cuCtxPopCurrent_v2(Pointer *context) {
    if (depth == 0) return INVALID_CONTEXT;
    *context = current[--depth];
    return OK;
}
int cuMemcpyAsync(uint64_t to, uint64_t from, size_t bytes, Pointer stream) {
    IN_CONTEXT;
    if (!stream) return INVALID_VALUE;
    memcpy((void *)to, (void *)from, bytes);
    return OK;
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Pointer stream) {
    IN_CONTEXT;
    if (!stream) return INVALID_VALUE;
    memset((void *)to, value, bytes);
    return OK;
}
int cuStreamSynchronize(Pointer stream) { IN_CONTEXT; return stream ? OK : INVALID_VALUE; }
int cuMemHostRegister_v2(Pointer start, size_t bytes, unsigned flags) {
    IN_CONTEXT;
    if (registered) return ALREADY_REGISTERED;
    registered = (uint64_t)start, registered_bytes = bytes, registered_flags = flags;
    return OK;
}
int cuMemHostUnregister(Pointer start) {
    IN_CONTEXT;
    if ((uint64_t)start != registered) return NOT_REGISTERED;
    registered = 0;
    return OK;
}
int cuMemGetAddressRange_v2(uint64_t *start, size_t *bytes, uint64_t at) {
    IN_CONTEXT;
    *start = at & ~(uint64_t)4095, *bytes = 8192;
    return OK;
}
int cuGetErrorName(int code, const char **name) {
    *name = code == ALREADY_REGISTERED ? "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED" : "CUDA_ERROR_OTHER";
    return OK;
}
unsigned seen_flags(void) { return registered_flags; }
int seen_depth(void) { return depth; }
