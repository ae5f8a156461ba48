#include "base.h"

#include <time.h>

double es_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
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
