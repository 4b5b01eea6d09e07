/* A clock with an offset, for LD_PRELOAD: Python's time of day.

   CLOCK_OFFSET_FILE names a file that all processes share, with a number of seconds in eight bytes.
   The offset applies to calls from Python itself only. Libraries in C++ wait for a time of day that
   the kernel measures, and would wait for hours. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <link.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST 8

static const volatile int64_t *offset_s;
static struct { uintptr_t start, end; } of_python[MOST];
static int n_of_python;

static int note(struct dl_phdr_info *object, size_t size, void *program)
{
    const char *path = *object->dlpi_name ? object->dlpi_name : program;
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    (void)size;
    if (strncmp(name, "python", 6) && strncmp(name, "libpython", 9))
        return 0;
    for (int i = 0; i < object->dlpi_phnum && n_of_python < MOST; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_X))
            continue;
        of_python[n_of_python].start = object->dlpi_addr + part->p_vaddr;
        of_python[n_of_python].end = of_python[n_of_python].start + part->p_memsz;
        n_of_python++;
    }
    return 0;
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CLOCK_OFFSET_FILE");
    char program[4096] = "";
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof *offset_s, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED || readlink("/proc/self/exe", program, sizeof program - 1) < 0)
        return;
    offset_s = mapped;
    dl_iterate_phdr(note, program);
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    uintptr_t caller = (uintptr_t)__builtin_return_address(0);
    int failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && clock == CLOCK_REALTIME)
        for (int i = 0; i < n_of_python; i++)
            if (of_python[i].start <= caller && caller < of_python[i].end)
                at->tv_sec += *offset_s;
    return failed;
}
