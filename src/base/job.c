#include "base.h"

#include <sys/resource.h>
#include <time.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

double es_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Ten steps: a thread that wants a processor too gets nine tenths of it. The idle class would leave it everything, and a chat that
 * does not end would stop what is learned; with less, two threads that wait for each other at every product lose more than the share. */
enum { GIVE_WAY = 10 };

void es_thread_give_way(void)
{
#ifdef __linux__ /* where a thread has its own niceness, which those that it starts inherit */
    const id_t self = (id_t)syscall(SYS_gettid);
    setpriority(PRIO_PROCESS, self, getpriority(PRIO_PROCESS, self) + GIVE_WAY); /* cut to 19 */
#endif
}

void es_progress_report(const es_progress *p, const char *what, double done, double total, const char *unit)
{
    if (p && p->report)
        p->report(p->user, what, done, total, unit);
}

bool es_progress_cancelled(const es_progress *p)
{
    return p && p->cancel && __atomic_load_n(p->cancel, __ATOMIC_RELAXED);
}
