/* A slow disk and a clock that is set, for one process, by LD_PRELOAD: see faults.py.
 *
 * The file that CHAOS_SWITCHES names holds two 64-bit numbers: nanoseconds by which the wall clock is off, and
 * microseconds that every sync of a file takes longer.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *switches;

__attribute__((constructor)) static void find_switches(void)
{
    const char *path = getenv("CHAOS_SWITCHES");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *mapped = mmap(NULL, 16, PROT_READ, MAP_SHARED, file, 0);
        if (mapped != MAP_FAILED)
            switches = mapped;
        close(file);
    }
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && switches && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t total = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + switches[0];
        now->tv_sec = total / 1000000000;
        now->tv_nsec = total % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}

static void take_longer(void)
{
    if (switches && switches[1] > 0) {
        struct timespec pause = {switches[1] / 1000000, switches[1] % 1000000 * 1000};
        nanosleep(&pause, NULL);
    }
}

int fsync(int file)
{
    take_longer();
    return (int)syscall(SYS_fsync, file);
}

int fdatasync(int file)
{
    take_longer();
    return (int)syscall(SYS_fdatasync, file);
}
