/* The clock and the disk of a machine as a test sets them while a real process runs there: by LD_PRELOAD, from two numbers
 * in the file that E2E_MACHINE names. The monotonic clock and what is written stay as they are. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define SLICE (SECOND / 50)

struct machine {
    /* How far the clock is ahead of the true one, and how long a sync takes. */
    _Atomic int64_t ahead_ms, sync_ms;
};
static struct machine real, *machine = &real;

__attribute__((constructor)) static void look(void) {
    const char *path = getenv("E2E_MACHINE");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *map = mmap(NULL, sizeof *machine, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map != MAP_FAILED)
        machine = map;
    close(file);
}

static int64_t nanoseconds(clockid_t clock) {
    struct timespec now;
    syscall(SYS_clock_gettime, clock, &now);
    return now.tv_sec * SECOND + now.tv_nsec + (clock == CLOCK_REALTIME ? machine->ahead_ms * 1000000 : 0);
}

static struct timespec timespec_of(int64_t nanoseconds) {
    return (struct timespec){.tv_sec = nanoseconds / SECOND, .tv_nsec = nanoseconds % SECOND};
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (clock != CLOCK_REALTIME)
        return syscall(SYS_clock_gettime, clock, now);
    *now = timespec_of(nanoseconds(clock));
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    int64_t at = nanoseconds(CLOCK_REALTIME);
    *now = (struct timeval){.tv_sec = at / SECOND, .tv_usec = at % SECOND / 1000};
    return 0;
}

int timespec_get(struct timespec *now, int base) {
    *now = timespec_of(nanoseconds(CLOCK_REALTIME));
    return base;
}

time_t time(time_t *now) {
    time_t at = nanoseconds(CLOCK_REALTIME) / SECOND;
    if (now)
        *now = at;
    return at;
}

/* As with the real clock: who waits until a time of day waits for days when the clock is set back by days. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    for (;;) {
        // In slices: the clock may be set meanwhile.
        int64_t left = until->tv_sec * SECOND + until->tv_nsec - nanoseconds(CLOCK_REALTIME);
        int64_t wait = left < SLICE ? left : SLICE;
        struct timespec end = timespec_of(nanoseconds(CLOCK_MONOTONIC) + (wait > 0 ? wait : 0));
        int ended = pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &end);
        if (ended != ETIMEDOUT || left <= SLICE)
            return ended;
    }
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
    switch (pthread_cond_timedwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, until)) {
    case 0:
        return thrd_success;
    case ETIMEDOUT:
        return thrd_timedout;
    default:
        return thrd_error;
    }
}

/* A sync that waits ends when the disk becomes fast again. */
static void wait_for_disk(void) {
    int64_t begun = nanoseconds(CLOCK_MONOTONIC);
    const struct timespec slice = timespec_of(SLICE);
    while (nanoseconds(CLOCK_MONOTONIC) - begun < machine->sync_ms * 1000000)
        nanosleep(&slice, NULL);
}

int fdatasync(int file) {
    wait_for_disk();
    return syscall(SYS_fdatasync, file);
}

int fsync(int file) {
    wait_for_disk();
    return syscall(SYS_fsync, file);
}
