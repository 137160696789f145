// A libcuda.so.1 without a GPU for test_driver.py: writes down each call, in the file that FAKE_CUDA_LOG names, and
// answers as FAKE_CUDA_VERSION, FAKE_CUDA_FAILS (the name of the function that fails) and FAKE_CUDA_BYTES (of arguments) say.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static void* current = nullptr;

static int tell(const char* function, const char* format, ...) {
    FILE* log = std::fopen(std::getenv("FAKE_CUDA_LOG"), "a");
    std::va_list arguments;
    va_start(arguments, format);
    std::fprintf(log, "%s ", function);
    std::vfprintf(log, format, arguments);
    std::fprintf(log, "\n");
    va_end(arguments);
    std::fclose(log);
    const char* fails = std::getenv("FAKE_CUDA_FAILS");
    return fails && !std::strcmp(fails, function) ? 701 : 0;
}

static int number(const char* name, int otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atoi(text) : otherwise;
}

extern "C" {
int cuInit(unsigned flags) { return tell("cuInit", "%u", flags); }
int cuGetErrorString(int, const char** text) { return *text = "the fake refuses", 0; }
int cuDriverGetVersion(int* version) { return *version = number("FAKE_CUDA_VERSION", 13000), 0; }
int cuDeviceGetAttribute(int* value, int which, int device) { return *value = 1000 * device + which, 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = reinterpret_cast<void*>(static_cast<intptr_t>(0x100 + device));
    return tell("cuDevicePrimaryCtxRetain", "%d", device);
}
int cuCtxGetCurrent(void** context) { return *context = current, 0; }
int cuCtxPushCurrent_v2(void* context) { return current = context, tell("cuCtxPushCurrent", "%p", context); }
int cuCtxPopCurrent_v2(void** context) { return *context = current, current = nullptr, tell("cuCtxPopCurrent", ""); }
int cuLibraryLoadData(void** library, const void* code, void*, void**, unsigned, void*, void**, unsigned) {
    *library = reinterpret_cast<void*>(0x200);
    return tell("cuLibraryLoadData", "%.6s", static_cast<const char*>(code));
}
int cuLibraryGetKernel(void** kernel, void* library, const char* name) {
    *kernel = reinterpret_cast<void*>(0x300);
    return tell("cuLibraryGetKernel", "%p %s", library, name);
}
int cuKernelSetAttribute(int which, int value, void* kernel, int device) {
    return tell("cuKernelSetAttribute", "%d %d %p %d", which, value, kernel, device);
}
#ifndef FAKE_CUDA_12_3
int cuKernelGetParamInfo(void*, size_t index, size_t* offset, size_t* bytes) {
    *offset = 0, *bytes = static_cast<size_t>(number("FAKE_CUDA_BYTES", 32));
    return tell("cuKernelGetParamInfo", "%zu", index);
}
#endif
#ifndef FAKE_CUDA_11
int cuLaunchKernel(void* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned tx, unsigned ty, unsigned tz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
    uint64_t p[2];
    int32_t i[3];
    float f;
    const char* bytes = static_cast<const char*>(parameters[0]);
    std::memcpy(p, bytes, 16), std::memcpy(i, bytes + 16, 12), std::memcpy(&f, bytes + 28, 4);
    return tell("cuLaunchKernel", "%p %u,%u,%u %u,%u,%u %u %p %llu %llu %d %d %d %g %d in %p", kernel, gx, gy, gz, tx, ty, tz, shared,
                stream, (unsigned long long)p[0], (unsigned long long)p[1], i[0], i[1], i[2], f, extra == nullptr, current);
}
#endif
}
