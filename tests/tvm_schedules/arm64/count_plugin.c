/* qemu TCG plugin (API version 1, declared by hand: Debian ships no header): executed instructions of every symbol that
 * begins with "ev_", written as "symbol count" lines to the file that COUNTS names. On Hexagon qemu's unit is a packet;
 * with COUNT_WORDS set its 32-bit words are counted instead. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { INLINE_ADD_U64 = 0, MAX_SYMBOLS = 4096 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *instruction, int operation, void *pointer, uint64_t value);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t, void *), void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *instruction);
extern const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *instruction);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static struct {
    char *name;
    uint64_t count;
} symbols[MAX_SYMBOLS];
static int n_symbols;

static uint64_t *counter(const char *name) {
    for (int i = 0; i < n_symbols; ++i)
        if (!strcmp(symbols[i].name, name)) return &symbols[i].count;
    if (n_symbols == MAX_SYMBOLS) abort();
    symbols[n_symbols].name = strdup(name);
    return &symbols[n_symbols++].count;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    const size_t n = qemu_plugin_tb_n_insns(block);
    const int words = getenv("COUNT_WORDS") != NULL;
    for (size_t i = 0; i < n; ++i) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        const char *name = qemu_plugin_insn_symbol(instruction);
        const uint64_t value = words ? qemu_plugin_insn_size(instruction) / 4 : 1;
        if (name && !strncmp(name, "ev_", 3)) qemu_plugin_register_vcpu_insn_exec_inline(instruction, INLINE_ADD_U64, counter(name), value);
    }
}

static void finished(qemu_plugin_id_t id, void *data) {
    (void)id, (void)data;
    FILE *file = fopen(getenv("COUNTS"), "w");
    if (!file) abort();
    for (int i = 0; i < n_symbols; ++i) fprintf(file, "%s %llu\n", symbols[i].name, (unsigned long long)symbols[i].count);
    fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
    (void)info, (void)argc, (void)argv;
    if (!getenv("COUNTS")) return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
