// See block.h: scheduling, barriers and asynchronous copies.
#include "block.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

#include "report.h"
#include "shadow.h"
#include "traffic.h"

namespace gpu::host {

Thread current;
Block running_block;

namespace {

Block& b = running_block;
Kernel kernel;
const void* arguments;

void suspend() {
    Fiber& fiber = b.fibers[b.running];
    switch_context(fiber.context, b.scheduler);
}

void wait_here(Where where) {
    Fiber& fiber = b.fibers[b.running];
    fiber.waits = where, fiber.ready = false;
    suspend();
}

void report_text(Fault fault, const std::string& text) {
    Finding finding{fault};
    finding.text = text;
    report(finding);
}

void fiber_main() {
    kernel(arguments);
    Fiber& fiber = b.fibers[b.running];
    for (const auto& group : fiber.copies)
        if (!group.empty()) {
            Finding finding{Fault::copies_at_end, group.front().pc};
            finding.text = "copy not waited for: a thread ends before what it copied at " +
                           source_line(group.front().pc) + " has come";
            report(finding);
            break;
        }
    fiber.done = true, fiber.ready = false;
    suspend();
    std::abort();
}

void start_block(int index, std::vector<int>& order) {
    b.index = index, b.at_barrier = 0;
    b.at_warp.assign(b.threads / 32, 0);
    std::memset(b.shared, 0xff, b.shared_bytes);  // NaN in every type
    shadow_of_shared_memory(b.shared, b.shared_bytes);
    unpoison(b.stacks.begin(), b.stacks.bytes());  // of fibers that never ended
    b.fibers.assign(b.threads, Fiber{});
    for (int t = 0; t < b.threads; ++t) {
        prepare(b.fibers[t].context, b.stacks.bottom(t) + Stacks::kPage, Stacks::kBytes - Stacks::kPage, fiber_main);
        order[t] = t;
    }
}

// Runs the threads of order[from, to) that can go on, once each. Whether any could.
bool go_round(const std::vector<int>& order, int from, int to) {
    bool moved = false;
    for (int i = from; i < to && !b.stopped; ++i) {
        Fiber& fiber = b.fibers[order[i]];
        if (!fiber.ready) continue;
        b.running = order[i];
        current.thread = order[i];
        switch_context(b.scheduler, fiber.context);
        b.running = -1;
        moved = true;
    }
    return moved;
}

void run_block(std::vector<int>& order, std::mt19937& random) {
    const Schedule schedule = b.options.schedule;
    const bool reversed = schedule == Schedule::reverse || schedule == Schedule::warp_by_warp_reverse;
    if (reversed) std::reverse(order.begin(), order.end());
    const bool by_warp = schedule == Schedule::warp_by_warp || schedule == Schedule::warp_by_warp_reverse;
    const int step = by_warp ? 32 : b.threads;
    for (bool moved = true; moved && !b.stopped;) {
        moved = false;
        if (schedule == Schedule::random) std::shuffle(order.begin(), order.end(), random);
        for (int from = 0; from < b.threads; from += step)
            while (go_round(order, from, from + step)) {
                moved = true;
                if (!by_warp) break;
            }
    }
}

bool same(const Where& a, const Where& b) {
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

bool same(const Part& a, const Part& b) {
    return a.operation == b.operation && same(a.where, b.where) && (a.operation == Operation::shuffle || a.size == b.size);
}

// Threads that still wait when nobody can go on.
void report_waiting() {
    const auto waiting = std::find_if(b.fibers.begin(), b.fibers.end(), [](const Fiber& f) { return !f.done; });
    if (b.stopped || waiting == b.fibers.end()) return;
    const auto thread = waiting - b.fibers.begin();
    const auto ended = std::count_if(b.fibers.begin(), b.fibers.end(), [](const Fiber& f) { return f.done; });
    std::string text = "never ends: thread " + std::to_string(thread) + " (warp " + std::to_string(thread / 32) +
                       ", block " + std::to_string(b.index) + ") waits at " + text_of(waiting->waits) + " for others that ";
    const auto elsewhere = std::find_if(b.fibers.begin(), b.fibers.end(), [&](const Fiber& f) {
        return !f.done && !same(f.waits, waiting->waits);
    });
    if (elsewhere != b.fibers.end()) text += "wait at " + text_of(elsewhere->waits);
    else text += "have ended, " + std::to_string(ended) + " of " + std::to_string(b.threads);
    report_text(Fault::never_ends, text);
    b.stopped = true;
}

}  // namespace

std::string text_of(const Where& where) {
    const char* slash = std::strrchr(where.file, '/');
    return std::string(slash ? slash + 1 : where.file) + ":" + std::to_string(where.line);
}

void stop() {
    b.stopped = true;
    b.fibers[b.running].ready = false;
    suspend();
    std::abort();
}

void collective(Part part) {
    part.pc = __builtin_return_address(0);
    const int warp = b.running / 32, first = 32 * warp;
    b.fibers[b.running].part = &part;
    if (++b.at_warp[warp] < 32) return wait_here(part.where);
    const Part* parts[32];
    for (int i = 0; i < 32; ++i) parts[i] = b.fibers[first + i].part;
    for (int i = 1; i < 32; ++i)
        if (!same(*parts[i], *parts[0])) {
            report_text(Fault::divergence, "divergence: lanes of warp " + std::to_string(warp) +
                                               " are at different operations of the warp, lane 0 at " +
                                               text_of(parts[0]->where) + ", lane " + std::to_string(i) + " at " +
                                               text_of(parts[i]->where));
            stop();
        }
    perform(parts, first);
    b.at_warp[warp] = 0;
    for (int i = 0; i < 32; ++i) b.fibers[first + i].ready = true;
}

void barrier(Where where) {
    if (++b.at_barrier < b.threads) return wait_here(where);
    b.at_barrier = 0;
    b.fibers[b.running].waits = where;
    for (Fiber& fiber : b.fibers) {
        if (!same(fiber.waits, where))
            report_text(Fault::divergence, "divergence: threads of a block are at different barriers, at " +
                                               text_of(fiber.waits) + " and " + text_of(where));
        ++fiber.block_syncs, fiber.ready = true;
    }
}

void async_copy(void* to, const void* from, int bytes) {
    const void* pc = __builtin_return_address(0);
    count_access(to, bytes, pc);
    touch_shared(to, bytes, Touch::write, pc);
    touch(from, bytes, Touch::read, pc);
    if (b.options.late_copies) std::memset(to, 0xff, bytes);
    else std::memcpy(to, from, bytes);
    begin_copy(to, bytes);
    Fiber& fiber = b.fibers[b.running];
    if (fiber.copies.empty()) fiber.copies.emplace_back();
    fiber.copies.back().push_back({static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, pc});
}

void async_commit() {
    Fiber& fiber = b.fibers[b.running];
    if (fiber.copies.empty()) fiber.copies.emplace_back();
    fiber.copies.emplace_back();
}

void async_wait(int pending) {
    Fiber& fiber = b.fibers[b.running];
    while (static_cast<int>(fiber.copies.size()) > pending + 1) {
        for (const Copy& copy : fiber.copies.front()) {
            if (b.options.late_copies) std::memcpy(copy.to, copy.from, copy.bytes);
            end_copy(copy.to, copy.bytes, copy.pc);
        }
        fiber.copies.erase(fiber.copies.begin());
    }
}

int atomic(Atomic operation, int* to, int v) {
    touch(to, sizeof *to, Touch::atomic, __builtin_return_address(0));
    const int before = *to;
    if (operation == Atomic::add) *to = static_cast<int>(static_cast<unsigned>(before) + static_cast<unsigned>(v));
    if (operation == Atomic::max) *to = std::max(before, v);
    if (operation == Atomic::min) *to = std::min(before, v);
    return before;
}

void run_grid(Kernel function, const void* values, int blocks, int threads, size_t shared_bytes, const Options& options) {
    kernel = function, arguments = values;
    b.threads = threads, b.shared_bytes = shared_bytes, b.options = options, b.stopped = false;
    b.stacks.reserve(threads);
    constexpr size_t kAlign = 1024;
    std::vector<unsigned char> arena(shared_bytes + 2 * kZone + kAlign);
    unsigned char* base = arena.data() + kZone;
    b.shared = base + (kAlign - reinterpret_cast<uintptr_t>(base) % kAlign) % kAlign;
    const size_t before = b.shared - arena.data(), after = arena.size() - before - shared_bytes;
    poison(arena.data(), before);
    poison(b.shared + shared_bytes, after);
    std::mt19937 random(options.seed);
    std::vector<int> order(threads);
    for (int i = 0; i < blocks && !b.stopped; ++i) {
        current = {0, i, blocks, b.shared};
        start_block(i, order);
        run_block(order, random);
        report_waiting();
    }
    shadow_of_shared_memory(nullptr, 0);
    unpoison(arena.data(), arena.size());
}

}  // namespace gpu::host
