// See shadow.h.
#include "shadow.h"

#include <link.h>

#include <algorithm>
#include <string>
#include <vector>

#include "block.h"

extern "C" {
void __asan_poison_memory_region(const void volatile* data, size_t bytes) __attribute__((weak));
void __asan_unpoison_memory_region(const void volatile* data, size_t bytes) __attribute__((weak));
}

namespace gpu::host {
namespace {

const Block& b = running_block;

// Two bytes of memory. Barriers count from the start of the block, so that an access is after another one of its block
// exactly if its thread has passed more of them.
struct Cell {
    const void* writer_pc;
    const void* reader_pc;
    uint32_t writer_block_syncs, writer_warp_syncs;
    uint32_t reader_block_syncs, reader_warp_syncs;
    uint32_t reader_warps;  // since that block_sync, one bit each
    uint32_t reader_lanes;  // of the last reader's warp, since that warp_sync
    int32_t writer_block, reader_block;
    int16_t writer, reader, copier;  // threads; -1: none
    bool written, atomic;
};
Cell fresh(bool written) {
    Cell cell{};
    cell.writer = cell.reader = cell.copier = -1;
    cell.written = written;
    return cell;
}

struct Region {
    uintptr_t begin = 0, end = 0;
    std::vector<Cell> cells;
    std::string name;
    Access access = Access::both;
    bool is_shared = false;

    bool near(uintptr_t a) const { return a + kZone >= begin && a < end + kZone; }
};

Region shared_memory;
std::vector<Region> buffers;
struct Range {
    uintptr_t begin, end;
    bool has(uintptr_t a) const { return a >= begin && a < end; }
};
Range arguments{0, 0};
bool hooked = false;

bool checking() { return hooked && b.options.check; }

// Where this library lies: constants and the variables of block.h.
Range find_image() {
    struct Search {
        uintptr_t inside;
        Range image;
    } search{reinterpret_cast<uintptr_t>(&find_image), {0, 0}};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
            auto& search = *static_cast<Search*>(data);
            Range image{UINTPTR_MAX, 0};
            for (int i = 0; i < info->dlpi_phnum; ++i)
                if (info->dlpi_phdr[i].p_type == PT_LOAD) {
                    const uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
                    image.begin = std::min(image.begin, begin);
                    image.end = std::max<uintptr_t>(image.end, begin + info->dlpi_phdr[i].p_memsz);
                }
            if (!image.has(search.inside)) return 0;
            search.image = image;
            return 1;
        },
        &search);
    return search.image;
}

Finding finding_here(Fault fault, Touch how, const void* pc) {
    Finding f{fault, pc};
    f.touch = how, f.thread = b.running, f.block = b.index;
    return f;
}

void report_at(Fault fault, const Region& r, uintptr_t a, Touch how, const void* pc) {
    Finding f = finding_here(fault, how, pc);
    f.region = r.name;
    f.byte = static_cast<int64_t>(a - r.begin);
    report(f);
}

// `other_*`: the access before this one.
void report_pair(Fault fault, const Region& r, uintptr_t a, Touch how, const void* pc, int other, int other_block,
                 const void* other_pc, Touch other_how) {
    Finding f = finding_here(fault, how, pc);
    f.region = r.name, f.byte = static_cast<int64_t>(a - r.begin);
    f.other = other_pc, f.other_thread = other, f.other_block = other_block, f.other_touch = other_how;
    report(f);
}

void check_cell(Cell& c, const Region& r, uintptr_t a, Touch how, const void* pc) {
    const int me = b.running;
    const Fiber& fiber = b.fibers[me];
    const bool write = how != Touch::read;
    if (c.copier >= 0) report_pair(Fault::pending_copy, r, a, how, pc, c.copier, b.index, c.writer_pc, Touch::write);
    if (how == Touch::read && !c.written) report_at(Fault::uninitialised, r, a, how, pc);

    if (c.writer >= 0 && !(c.atomic && how == Touch::atomic)) {
        const Touch before = c.atomic ? Touch::atomic : Touch::write;
        const bool ordered = c.writer == me || c.writer_block_syncs < fiber.block_syncs ||
                             (c.writer / 32 == me / 32 && c.writer_warp_syncs < fiber.warp_syncs);
        if (!r.is_shared && c.writer_block != b.index)
            report_pair(Fault::race_of_blocks, r, a, how, pc, c.writer, c.writer_block, c.writer_pc, before);
        else if (!ordered && c.copier < 0)
            report_pair(Fault::race, r, a, how, pc, c.writer, b.index, c.writer_pc, before);
    }
    if (write && c.reader >= 0) {
        if (!r.is_shared && c.reader_block != b.index) {
            report_pair(Fault::race_of_blocks, r, a, how, pc, c.reader, c.reader_block, c.reader_pc, Touch::read);
        } else if (c.reader_block_syncs == fiber.block_syncs) {
            const bool other_warps = c.reader_warps & ~(1u << me / 32);
            const bool other_lanes = c.reader / 32 == me / 32 && c.reader_warp_syncs == fiber.warp_syncs &&
                                     (c.reader_lanes & ~(1u << me % 32));
            if (other_warps || other_lanes)
                report_pair(Fault::race, r, a, how, pc, c.reader, b.index, c.reader_pc, Touch::read);
        }
    }
}

void update_cell(Cell& c, Touch how, const void* pc) {
    const int me = b.running;
    const Fiber& fiber = b.fibers[me];
    if (how == Touch::read) {
        const bool same_sync = c.reader >= 0 && c.reader_block == b.index && c.reader_block_syncs == fiber.block_syncs;
        const bool same_warp = same_sync && c.reader / 32 == me / 32 && c.reader_warp_syncs == fiber.warp_syncs;
        c.reader_warps = (same_sync ? c.reader_warps : 0) | 1u << me / 32;
        c.reader_lanes = (same_warp ? c.reader_lanes : 0) | 1u << me % 32;
        c.reader = static_cast<int16_t>(me), c.reader_block = b.index, c.reader_pc = pc;
        c.reader_block_syncs = fiber.block_syncs, c.reader_warp_syncs = fiber.warp_syncs;
    } else {
        c.writer = static_cast<int16_t>(me), c.writer_block = b.index, c.writer_pc = pc;
        c.writer_block_syncs = fiber.block_syncs, c.writer_warp_syncs = fiber.warp_syncs;
        c.written = true, c.atomic = how == Touch::atomic;
    }
}

void report_outside(const Region& r, uintptr_t a, size_t bytes, Touch how, const void* pc) {
    Finding f = finding_here(Fault::out_of_bounds, how, pc);
    f.region = r.name;
    f.byte = a < r.begin ? -static_cast<int64_t>(r.begin - a) : static_cast<int64_t>(a + bytes - r.end);
    f.bytes = static_cast<int64_t>(r.end - r.begin);
    report(f);
}

void touch_region(Region& r, uintptr_t a, size_t bytes, Touch how, const void* pc) {
    if (a < r.begin || a + bytes > r.end) return report_outside(r, a, bytes, how, pc);
    if (a % bytes != 0) {
        Finding f = finding_here(Fault::misaligned, how, pc);
        f.region = r.name, f.byte = static_cast<int64_t>(a - r.begin), f.bytes = static_cast<int64_t>(bytes);
        report(f);
    }
    if (how != Touch::read && r.access == Access::input) report_at(Fault::read_only, r, a, how, pc);
    for (size_t i = (a - r.begin) / 2; i <= (a + bytes - 1 - r.begin) / 2; ++i) {
        check_cell(r.cells[i], r, a, how, pc);
        update_cell(r.cells[i], how, pc);
    }
}

Region make_region(const void* data, size_t bytes, const std::string& name, Access access) {
    Region r;
    r.begin = reinterpret_cast<uintptr_t>(data), r.end = r.begin + bytes;
    r.name = name, r.access = access;
    return r;
}

Region* find_buffer(uintptr_t a) {
    static size_t last = 0;
    if (last < buffers.size() && buffers[last].near(a)) return &buffers[last];
    for (size_t i = 0; i < buffers.size(); ++i)
        if (buffers[i].near(a)) return &buffers[last = i];
    return nullptr;
}

}  // namespace

void hooks_are_called() { hooked = true; }

void poison(const void* data, size_t bytes) {
    if (__asan_poison_memory_region != nullptr) __asan_poison_memory_region(data, bytes);
}
void unpoison(const void* data, size_t bytes) {
    if (__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(data, bytes);
}

void forget_buffers() { buffers.clear(); }

void add_buffer(const void* data, size_t bytes, const char* name, Access access) {
    buffers.push_back(make_region(data, bytes, name, access));
    if (hooked) buffers.back().cells.assign(bytes / 2 + 1, fresh(access != Access::output));
}

void set_arguments(const void* data, size_t bytes) {
    arguments = {reinterpret_cast<uintptr_t>(data), reinterpret_cast<uintptr_t>(data) + bytes};
}

void shadow_of_shared_memory(const void* data, size_t bytes) {
    std::vector<Cell> cells = std::move(shared_memory.cells);
    shared_memory = make_region(data, bytes, "shared memory", Access::both);
    shared_memory.is_shared = true;
    if (data != nullptr && checking()) cells.assign(bytes / 2 + 1, fresh(false));
    shared_memory.cells = std::move(cells);
}

bool is_private(const void* address) {
    static const Range image = find_image();
    const uintptr_t a = reinterpret_cast<uintptr_t>(address);
    return image.has(a) || arguments.has(a);
}

void touch(const void* address, size_t bytes, Touch how, const void* pc) {
    if (b.running < 0 || !checking() || bytes == 0) return;
    const uintptr_t a = reinterpret_cast<uintptr_t>(address);
    const uintptr_t stacks = reinterpret_cast<uintptr_t>(b.stacks.begin());
    if (a - stacks < b.stacks.bytes()) {
        if ((a - stacks) / Stacks::kBytes == static_cast<size_t>(b.running)) return;
        report(finding_here(Fault::foreign_stack, how, pc));
        stop();
    }
    if (shared_memory.near(a)) return touch_region(shared_memory, a, bytes, how, pc);
    if (is_private(address)) return;
    if (Region* buffer = find_buffer(a)) return touch_region(*buffer, a, bytes, how, pc);
    if (buffers.empty()) return;
    report(finding_here(Fault::unknown_address, how, pc));
    stop();
}

void touch_shared(const void* address, size_t bytes, Touch how, const void* pc) {
    const uintptr_t a = reinterpret_cast<uintptr_t>(address);
    if (a < shared_memory.begin || a + bytes > shared_memory.end) {
        report_outside(shared_memory, a, bytes, how, pc);
        stop();
    }
    if (checking()) return touch_region(shared_memory, a, bytes, how, pc);
}

void begin_copy(const void* to, size_t bytes) {
    if (!checking()) return;
    const size_t from = (reinterpret_cast<uintptr_t>(to) - shared_memory.begin) / 2;
    for (size_t i = from; i < from + bytes / 2; ++i) shared_memory.cells[i].copier = static_cast<int16_t>(b.running);
}

void end_copy(const void* to, size_t bytes, const void* pc) {
    if (!checking()) return;
    const size_t from = (reinterpret_cast<uintptr_t>(to) - shared_memory.begin) / 2;
    for (size_t i = from; i < from + bytes / 2; ++i) {
        shared_memory.cells[i].copier = -1;
        update_cell(shared_memory.cells[i], Touch::write, pc);
    }
}

}  // namespace gpu::host
