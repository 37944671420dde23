/* A plugin for qemu-user: counts the instructions and the system calls of the program that it runs.
 *
 *   qemu-aarch64 -plugin count.so,into=FILE PROGRAM
 *
 * Both counts are in FILE while the program runs: two numbers of 64 bits, in the order of this machine. So
 * they can be read before and after a load, and what a start costs is in neither. What the kernel does in
 * a system call isn't counted, because qemu leaves that to the kernel that is there. Reading a clock is a
 * system call under qemu and none on a real machine, so it isn't counted either.
 *
 * Debian has no header for such plugins, so what is used is declared here; names and types are those of
 * QEMU's documentation ("QEMU TCG Plugins"). The API's version comes from scripts/bench/arm.sh. */
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FOR_QEMU __attribute__((visibility("default")))

struct qemu_plugin_tb;
typedef uint64_t plugin_id;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id,
                                           void (*translated)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, void (*executed)(unsigned, void *),
                                          int flags, void *argument);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id,
                                          void (*called)(plugin_id, unsigned, int64_t, uint64_t, uint64_t,
                                                         uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                         uint64_t));

FOR_QEMU int qemu_plugin_version = API_VERSION;

static struct {
    uint64_t instructions, calls;
} *counts;

/* QEMU can add inline, but not atomically, and a daemon has many threads. */
static void executed(unsigned thread, void *instructions) {
    (void)thread;
    __atomic_fetch_add(&counts->instructions, (size_t)instructions, __ATOMIC_RELAXED);
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
    (void)id;
    size_t instructions = qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void *)instructions);
}

/* clock_gettime: of aarch64, and the two of 32 bits; each number has no other meaning that matters. */
static bool reads_clock(int64_t number) {
    return number == 113 || number == 263 || number == 403;
}

static void called(plugin_id id, unsigned thread, int64_t number, uint64_t a, uint64_t b, uint64_t c,
                   uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)thread, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (!reads_clock(number))
        __atomic_fetch_add(&counts->calls, 1, __ATOMIC_RELAXED);
}

FOR_QEMU int qemu_plugin_install(plugin_id id, const void *about, int argc, char **argv) {
    (void)about;
    if (argc != 1 || strncmp(argv[0], "into=", 5) != 0)
        return 1;
    int file = open(argv[0] + 5, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, sizeof *counts) != 0)
        return 1;
    counts = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (counts == MAP_FAILED)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
