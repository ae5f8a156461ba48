/* The event loop: keys are answered at once, the studio's news at most some 30 times a second. */
#include "ui_internal.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static const double frame = 1.0 / 30, escape_wait = 0.04;

static void emit(void *user, const ui_event *e)
{
    ui_event_handle(user, e);
}

/* What arrived as signals; true when the loop shall end. */
static bool signals(es_ui *u)
{
    unsigned char byte[64];
    bool size = false, stop = false, back = false;
    ssize_t n;
    while ((n = read(ui_term_signal_fd(), byte, sizeof byte)) > 0)
        for (ssize_t i = 0; i < n; i++) {
            if (byte[i] == SIGINT || byte[i] == SIGTERM || byte[i] == SIGHUP)
                return true;
            size = size || byte[i] == SIGWINCH;
            stop = stop || byte[i] == SIGTSTP;
            back = back || byte[i] == SIGCONT;
        }
    if (stop) {
        ui_term_stop(u);
    } else if (back) { /* stopped by SIGSTOP, and a shell has used the terminal since */
        ui_term_suspend(u);
        ui_term_resume(u);
    } else if (size) {
        ui_term_resize(u);
    }
    return false;
}

int es_ui_run(es_studio *studio, const es_ui_options *o, es_error *err)
{
    es_ui *u = NULL;
    int r = ui_open(&u, studio, o, err);
    if (r < 0)
        return r;
    if ((r = ui_term_open(u, err)) < 0) {
        ui_close(u);
        return r;
    }
    double drawn = 0, typed = 0;
    bool news = false, now = true;
    while (!u->leave) {
        double t = es_seconds();
        if (now || ((u->dirty || news) && t >= drawn + frame)) {
            if (news)
                ui_take_view(u);
            ui_draw(u);
            drawn = t;
            news = now = false;
        }
        double wait = 3600;
        t = es_seconds();
        if (u->dirty || news)
            wait = drawn + frame - t;
        if (ui_input_waits(&u->input) && typed + escape_wait - t < wait)
            wait = typed + escape_wait - t;
        if (u->message[0] && u->message_until - t + 0.01 < wait)
            wait = u->message_until - t + 0.01;
        struct pollfd fd[3] = {{STDIN_FILENO, POLLIN, 0}, {ui_term_signal_fd(), POLLIN, 0}, {es_studio_fd(studio), POLLIN, 0}};
        int ready = poll(fd, 3, wait <= 0 ? 0 : (int)(wait * 1000) + 1);
        if (ready < 0 && errno != EINTR && errno != EAGAIN) {
            r = es_fail(err, ES_ERR_IO, "cannot wait for input: %s", strerror(errno));
            break;
        }
        if (ready < 0)
            continue;
        if (fd[1].revents && signals(u))
            break;
        if (fd[2].revents) {
            es_studio_ack(studio);
            news = true;
        }
        if (fd[0].revents) {
            char bytes[65536];
            ssize_t n = read(STDIN_FILENO, bytes, sizeof bytes);
            if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) {
                r = es_fail(err, ES_ERR_IO, "the terminal went away");
                break;
            }
            if (n > 0) {
                ui_feed(u, bytes, (size_t)n);
                typed = es_seconds();
                now = u->input.state == 0 || !ui_input_waits(&u->input);
                if (poll(fd, 1, 0) > 0 && typed < drawn + 0.1)
                    now = false; /* more keys wait already: one drawing for all of them, though not for ever */
            }
        } else if (ui_input_waits(&u->input) && es_seconds() >= typed + escape_wait) {
            ui_input_flush(&u->input, emit, u);
            now = true;
        }
        if (u->message[0] && es_seconds() >= u->message_until)
            u->dirty = true;
    }
    ui_term_close(u);
    ui_close(u);
    return r;
}
