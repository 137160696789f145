#include "driver.h"

#include <dlfcn.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <utility>

namespace swk::cuda {
namespace {

// Types and constants of cuda.h, which is not needed to build.
using Result = int;
using Device = int;
using Context = void*;
using Library = void*;
using Kernel = void*;
constexpr Result kInvalidImage = 200, kNoBinaryForGpu = 209;
constexpr int kMultiprocessors = 16, kMajor = 75, kMinor = 76, kSharedOptIn = 97;  // CUdevice_attribute
constexpr int kMostDynamicShared = 8;                                              // CUfunction_attribute
constexpr unsigned kSharedWithoutOptIn = 48 * 1024;

struct Driver {
    std::string absent;  // why the others are null, or ""
    Result (*init)(unsigned);
    Result (*error_string)(Result, const char**);
    Result (*version)(int*);
    Result (*device_attribute)(int*, int, Device);
    Result (*primary_context)(Context*, Device);
    Result (*current_context)(Context*);
    Result (*push_context)(Context);
    Result (*pop_context)(Context*);
    Result (*load)(Library*, const void*, void*, void**, unsigned, void*, void**, unsigned);
    Result (*get_kernel)(Kernel*, Library, const char*);
    Result (*set_attribute)(int, int, Kernel, Device);
    Result (*parameter)(Kernel, size_t, size_t*, size_t*);  // since 12.4, or null
    Result (*launch)(Kernel, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
};

Driver load_driver() {
    Driver found{};
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char* const why = dlerror();
        found.absent = std::string("libcuda.so.1 could not be loaded (") + (why ? why : "no reason given") + ")";
        return found;
    }
    const auto get = [&](auto& function, const char* name, bool optional = false) {
        function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
        if (function == nullptr && !optional && found.absent.empty())
            found.absent = std::string("the driver has no ") + name + ", which CUDA 12.0 brought; install a newer driver";
    };
    get(found.init, "cuInit");
    get(found.error_string, "cuGetErrorString");
    get(found.version, "cuDriverGetVersion");
    get(found.device_attribute, "cuDeviceGetAttribute");
    get(found.primary_context, "cuDevicePrimaryCtxRetain");
    get(found.current_context, "cuCtxGetCurrent");
    get(found.push_context, "cuCtxPushCurrent_v2");
    get(found.pop_context, "cuCtxPopCurrent_v2");
    get(found.load, "cuLibraryLoadData");
    get(found.get_kernel, "cuLibraryGetKernel");
    get(found.set_attribute, "cuKernelSetAttribute");
    get(found.launch, "cuLaunchKernel");
    get(found.parameter, "cuKernelGetParamInfo", true);
    if (!found.absent.empty()) return found;
    const Result result = found.init(0);
    if (result != 0) {
        const char* text = nullptr;
        found.error_string(result, &text);
        found.absent = std::string("cuInit failed: ") + (text ? text : "error " + std::to_string(result));
    }
    return found;
}

const Driver& any_driver() {
    static const Driver loaded = load_driver();
    return loaded;
}

const Driver& driver() {
    const Driver& found = any_driver();
    if (!found.absent.empty()) throw DriverError(found.absent);
    return found;
}

void check(Result result, const std::string& what) {
    if (result == 0) return;
    const char* text = nullptr;
    driver().error_string(result, &text);
    throw DriverError(what + " failed: " + (text ? text : "unknown error") + " (" + std::to_string(result) + ")");
}

// Makes the primary context of a device current while it lives. torch's calls have usually done so already.
class InContext {
public:
    explicit InContext(Context wanted) {
        Context current = nullptr;
        check(driver().current_context(&current), "cuCtxGetCurrent");
        if (current == wanted) return;
        check(driver().push_context(wanted), "cuCtxPushCurrent");
        pushed_ = true;
    }
    ~InContext() {
        Context before = nullptr;
        if (pushed_) driver().pop_context(&before);
    }
    InContext(const InContext&) = delete;
    InContext& operator=(const InContext&) = delete;

private:
    bool pushed_ = false;
};

struct Loaded {
    Kernel kernel;
    size_t argument_bytes;  // 0 if the driver cannot tell
    unsigned shared_bytes;  // what a block may ask for so far
};

// What has been loaded. Contexts and libraries are kept until the process ends.
class Cache {
public:
    Context context(Device device) {
        const std::lock_guard<std::mutex> locked(mutex_);
        const auto found = contexts_.find(device);
        if (found != contexts_.end()) return found->second;
        Context made = nullptr;
        check(driver().primary_context(&made, device), "cuDevicePrimaryCtxRetain of device " + std::to_string(device));
        return contexts_[device] = made;
    }

    Loaded kernel(const Launch& asked) {
        const std::lock_guard<std::mutex> locked(mutex_);
        const auto key = std::make_tuple(asked.image, asked.kernel, asked.device);
        auto found = kernels_.find(key);
        if (found == kernels_.end()) found = kernels_.emplace(key, load(asked)).first;
        Loaded& loaded = found->second;
        if (asked.shared_bytes > loaded.shared_bytes) {
            const int wanted = static_cast<int>(asked.shared_bytes);
            check(driver().set_attribute(kMostDynamicShared, wanted, loaded.kernel, asked.device),
                  "asking for " + std::to_string(wanted) + " bytes of shared memory for " + asked.kernel);
            loaded.shared_bytes = asked.shared_bytes;
        }
        return loaded;
    }

private:
    Loaded load(const Launch& asked) {
        Loaded made{nullptr, 0, kSharedWithoutOptIn};
        check(driver().get_kernel(&made.kernel, library(asked.image), asked.kernel.c_str()),
              "cuLibraryGetKernel of " + asked.kernel + " in " + asked.image);
        size_t offset = 0;
        if (driver().parameter != nullptr)
            check(driver().parameter(made.kernel, 0, &offset, &made.argument_bytes),
                  "cuKernelGetParamInfo of " + asked.kernel);
        return made;
    }

    Library library(const std::string& image) {
        const auto found = libraries_.find(image);
        if (found != libraries_.end()) return found->second;
        std::ifstream file(image, std::ios::binary);
        const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        if (!file || bytes.empty()) throw DriverError("the kernels in " + image + " could not be read");
        Library made = nullptr;
        const Result result = driver().load(&made, bytes.data(), nullptr, nullptr, 0, nullptr, nullptr, 0);
        if (result == kNoBinaryForGpu || result == kInvalidImage)
            throw DriverError(image + " holds no kernels for this GPU or driver (" + std::to_string(result) + ")");
        check(result, "cuLibraryLoadData of " + image);
        return libraries_[image] = made;
    }

    std::mutex mutex_;
    std::map<Device, Context> contexts_;
    std::map<std::string, Library> libraries_;
    std::map<std::tuple<std::string, std::string, Device>, Loaded> kernels_;
};

Cache& cache() {
    static Cache& kept = *new Cache;  // never destroyed: the driver may be gone by then
    return kept;
}

// The struct that the kernel takes, padded at its end as the compiler pads it.
std::vector<unsigned char> arguments_of(const Launch& asked) {
    const size_t pointers = 8 * asked.pointers.size(), integers = 4 * asked.integers.size(),
                 floats = 4 * asked.floats.size();
    std::vector<unsigned char> bytes((pointers + integers + floats + 7) / 8 * 8);
    if (pointers) std::memcpy(bytes.data(), asked.pointers.data(), pointers);
    if (integers) std::memcpy(bytes.data() + pointers, asked.integers.data(), integers);
    if (floats) std::memcpy(bytes.data() + pointers + integers, asked.floats.data(), floats);
    return bytes;
}

}  // namespace

std::string why_absent() { return any_driver().absent; }

int driver_version() {
    int version = 0;
    check(driver().version(&version), "cuDriverGetVersion");
    return version;
}

DeviceFacts device_facts(int device) {
    const auto attribute = [&](int which) {
        int value = 0;
        check(driver().device_attribute(&value, which, device), "cuDeviceGetAttribute of device " + std::to_string(device));
        return value;
    };
    return {attribute(kMajor), attribute(kMinor), attribute(kMultiprocessors), attribute(kSharedOptIn)};
}

void launch(const Launch& asked) {
    if (asked.grid == 0) return;
    const InContext in_context(cache().context(asked.device));
    const Loaded loaded = cache().kernel(asked);
    std::vector<unsigned char> bytes = arguments_of(asked);
    if (loaded.argument_bytes != 0 && loaded.argument_bytes != bytes.size())
        throw DriverError(asked.kernel + " takes " + std::to_string(loaded.argument_bytes) + " bytes of arguments, found " +
                          std::to_string(bytes.size()));
    void* parameters[] = {bytes.data()};
    const Result result = driver().launch(loaded.kernel, asked.grid, 1, 1, asked.threads, 1, 1, asked.shared_bytes,
                                          reinterpret_cast<void*>(asked.stream), parameters, nullptr);
    check(result, "the launch of " + asked.kernel + " (" + std::to_string(asked.grid) + " blocks of " +
                      std::to_string(asked.threads) + " threads, " + std::to_string(asked.shared_bytes) +
                      " bytes of shared memory)");
}

}  // namespace swk::cuda
