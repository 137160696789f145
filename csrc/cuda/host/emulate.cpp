// The C entry: runs a kernel by name on copies of the caller's buffers, with guard zones round them.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "block.h"
#include "report.h"
#include "shadow.h"
#include "traffic.h"

namespace gpu::host {
namespace {

// Instances come from the kernels' files before main, in any order.
std::vector<const Instance*>& instances() {
    static std::vector<const Instance*> all;
    return all;
}

}  // namespace

Instance::Instance(const char* n, Kernel k, int t, size_t bytes, bool wanted)
    : name(n), kernel(k), threads(t), argument_bytes(bytes) {
    if (wanted) instances().push_back(this);
}

extern "C" {
// Memory that the kernel may touch. Access: 0 input, 1 output (starts as NaN), 2 both.
struct swk_buffer {
    void* data;
    int64_t bytes;
    const char* name;
    int32_t access;
};
}

namespace {

Options defaults;
std::mutex one_at_a_time;

bool same(const swk_buffer& a, const swk_buffer& b) { return a.data == b.data && a.bytes == b.bytes; }

// A buffer's copy, aligned to 512 bytes as memory of a GPU is (and to 16 no better than the original), with kZone bytes of
// nobody's before and after it.
class Guarded {
public:
    Guarded(const swk_buffer& buffer, Access a)
        : original(buffer), access(a), memory(size_t(buffer.bytes) + 2 * kZone + kAlign) {
        const uintptr_t place = reinterpret_cast<uintptr_t>(buffer.data) % 16;
        begin = memory.data() + kZone;
        begin += (place + kAlign - reinterpret_cast<uintptr_t>(begin) % kAlign) % kAlign;
        std::memset(memory.data(), 0xff, memory.size());
        if (access != Access::output) std::memcpy(begin, buffer.data, size_t(buffer.bytes));
        poison(memory.data(), size_t(begin - memory.data()));
        const unsigned char* end = begin + original.bytes;
        poison(end, size_t(memory.data() + memory.size() - end));
        add_buffer(begin, size_t(buffer.bytes), buffer.name != nullptr ? buffer.name : "a buffer", access);
    }
    ~Guarded() { unpoison(memory.data(), memory.size()); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;

    // How far the copy is from the original, for an address in it (or just past it, if `past`), else 0.
    uintptr_t distance(uintptr_t address, bool past) const {
        const uintptr_t from = reinterpret_cast<uintptr_t>(original.data), size = uintptr_t(original.bytes);
        const bool has = past ? address == from + size : address - from < size;
        return has ? reinterpret_cast<uintptr_t>(begin) - from : 0;
    }
    void give_back() const {
        if (access != Access::input) std::memcpy(original.data, begin, size_t(original.bytes));
    }
    bool is(const swk_buffer& buffer) const { return same(original, buffer); }

private:
    static constexpr uintptr_t kAlign = 512;
    swk_buffer original;
    Access access;
    std::vector<unsigned char> memory;
    unsigned char* begin;
};

std::vector<std::unique_ptr<Guarded>> guard(const swk_buffer* buffers, int count) {
    std::vector<std::unique_ptr<Guarded>> guarded;
    for (int i = 0; i < count; ++i) {
        bool have = buffers[i].bytes == 0 || buffers[i].data == nullptr;
        for (const auto& other : guarded) have = have || other->is(buffers[i]);
        if (have) continue;
        Access access = static_cast<Access>(buffers[i].access);
        for (int j = i + 1; j < count; ++j)
            if (same(buffers[i], buffers[j]) && buffers[i].access != buffers[j].access) access = Access::both;  // in place
        guarded.push_back(std::make_unique<Guarded>(buffers[i], access));
    }
    return guarded;
}

uintptr_t distance_to_copy(const std::vector<std::unique_ptr<Guarded>>& guarded, uint64_t address) {
    for (const bool past : {false, true})
        for (const auto& buffer : guarded)
            if (const uintptr_t distance = buffer->distance(address, past)) return distance;
    return 0;
}

const Instance* find(const char* name) {
    for (const Instance* instance : instances())
        if (std::strcmp(instance->name, name) == 0) return instance;
    return nullptr;
}

// Why a launch cannot be, or nothing.
std::string refuse(const char* name, const Instance* instance, int grid, int threads, int shared, int argument_bytes) {
    if (instance == nullptr) return std::string("there is no kernel ") + name;
    const std::string start = std::string(name) + ": ", own = std::to_string(instance->threads);
    if (threads != instance->threads)
        return start + "launched with " + std::to_string(threads) + " threads a block, made for " + own;
    if (threads % 32 != 0 || threads < 32 || threads > 1024)
        return start + std::to_string(threads) + " threads a block, a multiple of 32 up to 1024 is needed";
    if (grid < 1 || shared < 0) return start + "needs at least one block and no negative amount of shared memory";
    if (shared > 227 << 10)
        return start + std::to_string(shared) + " bytes of shared memory, more than any GPU has (232448)";
    if (argument_bytes > int(instance->argument_bytes) || argument_bytes + 8 <= int(instance->argument_bytes))
        return start + std::to_string(argument_bytes) + " bytes of arguments given, it takes " +
               std::to_string(instance->argument_bytes);
    return "";
}

int answer(const std::string& text, int result, char* to, int capacity) {
    if (to != nullptr && capacity > 0) std::snprintf(to, size_t(capacity), "%s", text.c_str());
    return result;
}

}  // namespace

#define SWK_EXPORT extern "C" __attribute__((visibility("default")))

// Options of launches that bring none.
SWK_EXPORT void swk_set_options(const Options* options) { defaults = *options; }

// The names of all kernels, a line each; how many there are.
SWK_EXPORT int swk_names(char* text, int capacity) {
    std::string all;
    for (const Instance* instance : instances()) all += std::string(instance->name) + "\n";
    return answer(all, int(instances().size()), text, capacity);
}

// Runs a kernel. `arguments`: its struct, whose 8-byte words may be addresses in `buffers`; with no buffers at all the
// kernel works on the addresses as they are. `report`: a sentence for each fault, one a line; the number of different
// faults is returned, -1 if the launch itself is refused.
SWK_EXPORT int swk_emulate(const char* name, int grid, int threads, int shared, const void* arguments, int argument_bytes,
                           const swk_buffer* buffers, int buffer_count, const Options* options, char* report, int capacity) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    const Instance* instance = find(name);
    const std::string refusal = refuse(name, instance, grid, threads, shared, argument_bytes);
    if (!refusal.empty()) return answer(refusal, -1, report, capacity);

    forget_findings(), forget_traffic(), forget_buffers();
    const auto guarded = guard(buffers, buffer_count);
    std::vector<uint64_t> words((instance->argument_bytes + 7) / 8);
    std::memcpy(words.data(), arguments, size_t(argument_bytes));
    for (uint64_t& word : words) word += distance_to_copy(guarded, word);
    set_arguments(words.data(), 8 * words.size());
    run_grid(instance->kernel, words.data(), grid, threads, size_t(shared), options != nullptr ? *options : defaults);
    for (const auto& buffer : guarded) buffer->give_back();
    return answer(sentences(), count_findings(), report, capacity);
}

// The traffic of the last launch (traffic.h).
SWK_EXPORT int swk_traffic(char* text, int capacity) {
    const std::string table = traffic_table();
    return answer(table, int(table.size()), text, capacity);
}

}  // namespace gpu::host
