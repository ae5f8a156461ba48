/* The other side of a bench: a Python process that answers a line of JSON with a line of JSON (tools/bench_*.py). */
#include "cmd_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

int peer_open(peer *p, const char *python, const char *name, const char *modules, es_error *err)
{
    *p = (peer){.fd = -1, .python = python, .modules = modules};
    char script[1200];
    snprintf(script, sizeof script, "%s/../tools/%s", ESPALIER_SHARE, name);
    if (access(script, R_OK) != 0)
        return es_fail(err, ES_ERR_MISSING, "the other side's script, %s, is not there", script);
    int end[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, end) != 0)
        return es_fail(err, ES_ERR_IO, "no socket for the other side: %s", strerror(errno));
    char *argv[] = {(char *)(uintptr_t)python, script, NULL};
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, end[1], 0);
    posix_spawn_file_actions_adddup2(&files, end[1], 1);
    posix_spawn_file_actions_addopen(&files, 2, "/dev/null", O_WRONLY, 0);
    int failed = posix_spawnp(&p->pid, python, &files, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    close(end[1]);
    p->fd = end[0];
    if (failed) {
        p->pid = 0;
        return es_fail(err, ES_ERR_MISSING, "cannot run '%s': %s; name with --python a Python that has %s", python, strerror(failed), modules);
    }
    return ES_OK;
}

void peer_close(peer *p, bool at_once)
{
    if (p->fd >= 0)
        close(p->fd); /* it ends when nothing more can come */
    if (p->pid > 0) {
        if (at_once)
            kill(p->pid, SIGKILL);
        while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    es_buf_free(&p->in);
    *p = (peer){.fd = -1};
}

static int peer_gone(peer *p, es_error *err)
{
    int status = 0;
    if (p->pid > 0 && waitpid(p->pid, &status, 0) == p->pid)
        p->pid = 0;
    if (WIFSIGNALED(status))
        return es_fail(err, ES_ERR_IO, "%s ended without an answer (signal %d)", p->python, WTERMSIG(status));
    return es_fail(err, ES_ERR_IO, "%s ended without an answer (exit %d); is it a Python 3 with %s?", p->python, WEXITSTATUS(status),
                   p->modules);
}

int peer_ask(peer *p, json_t *value, json_t **out, es_error *err)
{
    *out = NULL;
    char *text = value ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    json_decref(value);
    if (!text)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory");
    size_t n = strlen(text), sent = 0;
    text[n++] = '\n'; /* in the place of its end */
    while (sent < n) {
        ssize_t now = send(p->fd, text + sent, n - sent, MSG_NOSIGNAL);
        if (now < 0 && errno == EINTR)
            continue;
        if (now < 0)
            break; /* it is gone, but may have said why */
        sent += (size_t)now;
    }
    free(text);
    for (;;) {
        char *end = p->in.len ? memchr(p->in.data, '\n', p->in.len) : NULL;
        if (end) {
            size_t line = (size_t)(end - p->in.data);
            *out = json_loadb(p->in.data, line, 0, NULL);
            memmove(p->in.data, end + 1, p->in.len - line - 1);
            p->in.len -= line + 1;
            if (!json_is_object(*out)) {
                json_decref(*out);
                *out = NULL;
                return es_fail(err, ES_ERR_FORMAT, "%s gave an answer that is none", p->python);
            }
            const char *why = json_string_value(json_object_get(*out, "error"));
            int rc = why ? es_fail(err, ES_ERR_MISSING, "%s: %.400s", p->python, why) : ES_OK;
            if (rc) {
                json_decref(*out);
                *out = NULL;
            }
            return rc;
        }
        struct pollfd wait = {.fd = p->fd, .events = POLLIN};
        if (poll(&wait, 1, 200) < 0 && errno != EINTR)
            return es_fail(err, ES_ERR_IO, "waiting for %s: %s", p->python, strerror(errno));
        if (__atomic_load_n(&app_cancel, __ATOMIC_RELAXED))
            return es_fail(err, ES_ERR_CANCELLED, "cancelled");
        if (!(wait.revents & (POLLIN | POLLHUP | POLLERR)))
            continue;
        char block[4096];
        ssize_t got = recv(p->fd, block, sizeof block, 0);
        if (got <= 0 && !(got < 0 && errno == EINTR))
            return peer_gone(p, err);
        if (got > 0)
            es_buf_add(&p->in, block, (size_t)got);
        if (p->in.failed || p->in.len > 1 << 20)
            return es_fail(err, ES_ERR_FORMAT, "%s answers without an end", p->python);
    }
}

/* ---- figures ------------------------------------------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double bench_median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}
