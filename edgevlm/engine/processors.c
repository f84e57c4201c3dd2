/* How many CPUs there are, and what the quotas of control groups leave of them: the same rule as edgevlm/cgroups.py. */
#include "processors.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PATH_SIZE = 1024, FILE_SIZE = 1 << 16 };

/* Reads a whole file as text; 0 when it cannot be read. What is longer than the buffer is cut off. */
static int read_text(const char *path, char *text, size_t size) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    size_t used = 0;
    for (ssize_t n; used < size - 1 && (n = read(file, text + used, size - 1 - used)) > 0;) used += (size_t)n;
    close(file);
    text[used] = 0;
    return 1;
}

/* The whole number at `text`, -1 when there is none; *end is set behind it. */
static int64_t number_at(const char *text, const char **end) {
    int64_t number = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; ++at)
        if (number < (int64_t)1 << 50) number = number * 10 + (*at - '0');
    if (end) *end = at;
    return at == text ? -1 : number;
}

/* Whether `name` is one of the words of `list`, which commas part and which ends at `stop`. */
static int has_word(const char *list, char stop, const char *name) {
    const size_t length = strlen(name);
    for (const char *word = list; *word && *word != stop && *word != '\n';) {
        const char *end = word;
        while (*end && *end != ',' && *end != stop && *end != '\n') ++end;
        if ((size_t)(end - word) == length && !strncmp(word, name, length)) return 1;
        word = *end == ',' ? end + 1 : end;
    }
    return 0;
}

static int32_t least(int32_t a, int32_t b) { return !a || (b && b < a) ? b : a; }

/* CPUs' worth of the quota of one group, rounded up; 0: none. */
static int32_t quota_of(const char *directory, int version) {
    char path[PATH_SIZE + 32], text[64];
    const char *end;
    int64_t quota, period;
    snprintf(path, sizeof path, version == 2 ? "%s/cpu.max" : "%s/cpu.cfs_quota_us", directory);
    if (!read_text(path, text, sizeof text)) return 0;
    quota = number_at(text, &end);
    if (version == 2) {
        period = *end == ' ' ? number_at(end + 1, NULL) : -1;
    } else {
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", directory);
        if (!read_text(path, text, sizeof text)) return 0;
        period = number_at(text, NULL);
    }
    if (quota <= 0 || period <= 0) return 0; /* "max" or -1 */
    const int64_t cpus = (quota + period - 1) / period;
    return cpus > INT32_MAX ? INT32_MAX : (int32_t)cpus;
}

/* The least quota of the group `own` and those above it, of a hierarchy whose group `root` is at `mounted`. */
static int32_t quota_upwards(const char *mounted, const char *root, const char *own, int version) {
    char directory[PATH_SIZE];
    const size_t head = strlen(mounted), skip = strcmp(root, "/") ? strlen(root) : 0;
    const int inside = !strncmp(own, root, skip) && (own[skip] == '/' || !own[skip]);
    if (snprintf(directory, sizeof directory, "%s%s", mounted, inside && strcmp(own + skip, "/") ? own + skip : "") >= (int)sizeof directory) return 0;
    int32_t quota = 0;
    for (size_t length = strlen(directory);;) {
        quota = least(quota, quota_of(directory, version));
        if (length <= head) return quota;
        while (length > head && directory[length - 1] != '/') --length;
        directory[--length] = 0;
    }
}

/* Copies the n-th word, from 0, of a line whose words spaces part. */
static void copy_word(const char *line, int n, char *word, size_t size) {
    size_t used = 0;
    for (; n > 0 && *line && *line != '\n'; ++line) n -= *line == ' ';
    while (*line && *line != ' ' && *line != '\n' && used < size - 1) word[used++] = *line++;
    word[used] = 0;
}

/* The least quota over all mounted hierarchies that hold the group `own`; the fallback's when none is mounted. */
static int32_t quota_in_mounts(const char *mounts, const char *fallback, const char *own, int version) {
    char mounted[PATH_SIZE], root[PATH_SIZE];
    int32_t quota = 0;
    int found = 0;
    for (const char *line = mounts; *line;) {
        const char *rest = line;
        while (*rest && *rest != '\n' && strncmp(rest, " - ", 3)) ++rest;
        if (!strncmp(rest, version == 2 ? " - cgroup2 " : " - cgroup ", version == 2 ? 11 : 10)) {
            char options[PATH_SIZE];
            copy_word(rest + 3, 2, options, sizeof options);
            if (version == 2 || has_word(options, 0, "cpu")) {
                copy_word(line, 3, root, sizeof root);
                copy_word(line, 4, mounted, sizeof mounted);
                quota = least(quota, quota_upwards(mounted, root, own, version));
                found = 1;
            }
        }
        while (*line && *line++ != '\n') continue;
    }
    if (found) return quota;
    snprintf(mounted, sizeof mounted, version == 2 ? "%s" : "%s/cpu", fallback);
    return quota_upwards(mounted, "/", own, version);
}

int32_t ev_quota_cpus(const char *proc, const char *fallback) {
    static const char here[] = "0::/\n0:cpu:/\n"; /* the roots, should the process's own groups not be told */
    char path[PATH_SIZE], own[PATH_SIZE], groups[4096], mounts[FILE_SIZE];
    const size_t room = sizeof groups - sizeof here;
    snprintf(path, sizeof path, "%s/self/cgroup", proc);
    if (!read_text(path, groups, room)) groups[0] = 0;
    size_t used = strlen(groups);
    if (used && groups[used - 1] != '\n') groups[used++] = '\n';
    memcpy(groups + used, here, sizeof here);
    snprintf(path, sizeof path, "%s/self/mountinfo", proc);
    if (!read_text(path, mounts, sizeof mounts)) mounts[0] = 0;
    int32_t quota = 0;
    for (const char *line = groups; *line;) {
        const char *names = line, *group;
        while (*names && *names != ':' && *names != '\n') ++names;
        group = *names == ':' ? names + 1 : names;
        const int version = *group == ':' ? 2 : 1, counts = version == 2 || has_word(group, ':', "cpu");
        while (*group && *group != ':' && *group != '\n') ++group;
        if (counts && *group == ':') {
            copy_word(group + 1, 0, own, sizeof own);
            quota = least(quota, quota_in_mounts(mounts, fallback, own, version));
        }
        while (*line && *line++ != '\n') continue;
    }
    return quota;
}

int32_t ev_usable_cpus(void) {
    uint64_t mask[16] = {0};
    int32_t n = 0;
    if (syscall(SYS_sched_getaffinity, 0, sizeof mask, mask) <= 0) return 1;
    for (size_t i = 0; i < sizeof mask / sizeof *mask; ++i)
        for (uint64_t bits = mask[i]; bits; bits &= bits - 1) ++n;
    const int32_t quota = ev_quota_cpus("/proc", "/sys/fs/cgroup");
    return n < 1 ? 1 : quota && quota < n ? quota : n;
}

/* The file lists ranges, such as "0-3,6". */
int32_t ev_machine_cpus(void) {
    char text[4096];
    int64_t n = 0;
    if (!read_text("/sys/devices/system/cpu/present", text, sizeof text)) return 0;
    for (const char *at = text; *at >= '0' && *at <= '9'; at += *at == ',') {
        const int64_t first = number_at(at, &at), last = *at == '-' ? number_at(at + 1, &at) : first;
        if (last >= first) n += last - first + 1;
    }
    return n > INT32_MAX ? INT32_MAX : (int32_t)n;
}
