/* The terminal: taking it over, giving it back whatever happens, and the signals that ask for either. */
#include "ui_internal.h"

#define NCURSES_NOMACROS 1
#include <errno.h>
#include <fcntl.h>
#include <ncurses.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <term.h>
#include <termios.h>
#include <unistd.h>

/* Signal handlers can reach only what is static; there is one terminal in a process. */
static struct {
    bool taken;
    volatile sig_atomic_t asked; /* times a polite end was asked for */
    int pipe[2];
    struct termios before;
    char restore[256]; size_t n_restore; /* what a dying program writes: made beforehand, because nothing may be computed then */
    struct sigaction old[32];
    SCREEN *screen;
    FILE *sink[2];
} term = {.pipe = {-1, -1}};

static const int fatal[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL}, polite[] = {SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGCONT, SIGWINCH};

static void give_back_now(void)
{
    if (!term.taken)
        return;
    term.taken = false;
    ssize_t ignored = write(STDOUT_FILENO, term.restore, term.n_restore);
    (void)ignored;
    tcsetattr(STDIN_FILENO, TCSANOW, &term.before);
}

static void on_fatal(int signal_number)
{
    give_back_now();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void on_polite(int signal_number)
{
    int saved = errno;
    if (signal_number == SIGINT || signal_number == SIGTERM || signal_number == SIGHUP) {
        if (++term.asked > 2) { /* the loop does not answer */
            give_back_now();
            signal(signal_number, SIG_DFL);
            raise(signal_number);
        }
    }
    unsigned char byte = (unsigned char)signal_number;
    ssize_t ignored = write(term.pipe[1], &byte, 1); /* full means: already woken */
    (void)ignored;
    errno = saved;
}

int ui_term_signal_fd(void)
{
    return term.pipe[0];
}

static void handlers(void)
{
    static char stack[64 * 1024]; /* so that an overflown stack still gives the terminal back */
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL);
    struct sigaction a = {0};
    sigfillset(&a.sa_mask);
    a.sa_handler = on_polite;
    a.sa_flags = SA_RESTART;
    for (size_t i = 0; i < sizeof polite / sizeof *polite; i++)
        sigaction(polite[i], &a, &term.old[polite[i]]);
    a.sa_handler = on_fatal;
    a.sa_flags = (int)SA_RESETHAND | SA_NODEFER | SA_ONSTACK;
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++)
        sigaction(fatal[i], &a, &term.old[fatal[i]]);
}

static void say_to_terminal(const char *s)
{
    size_t n = strlen(s);
    while (n > 0) {
        ssize_t k = write(STDOUT_FILENO, s, n);
        if (k < 0 && errno != EINTR)
            return;
        if (k > 0)
            s += k, n -= (size_t)k;
    }
}

static const char *capability(const char *name)
{
    const char *s = tigetstr(name);
    return s && s != (char *)-1 && strlen(s) < 40 ? s : "";
}

/* Terminals that are known to take the questions and modes of xterm. */
static bool like_xterm(void)
{
    static const char *const names[] = {"xterm", "tmux", "screen", "rxvt", "alacritty", "foot", "kitty", "wezterm", "vte", "konsole", "st-", "gnome"};
    const char *name = termname();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (name && !strncmp(name, names[i], strlen(names[i])))
            return true;
    return false;
}

static void modes_on(es_ui *u)
{
    if (!like_xterm())
        return;
    say_to_terminal("\x1b[?2004h");
    if (u->o.mouse)
        say_to_terminal("\x1b[?1000h\x1b[?1006h");
    if (!u->background_known)
        say_to_terminal("\x1b]11;?\x1b\\");
}

static void modes_off(es_ui *u)
{
    if (!like_xterm())
        return;
    if (u->o.mouse)
        say_to_terminal("\x1b[?1006l\x1b[?1000l");
    say_to_terminal("\x1b[?2004l");
}

static void size_now(es_ui *u)
{
    struct winsize w;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_row > 0 && w.ws_col > 0)
        resizeterm(w.ws_row < 1000 ? w.ws_row : 1000, w.ws_col < 1000 ? w.ws_col : 1000);
    getmaxyx(stdscr, u->h, u->w);
}

static void curses_modes(void)
{
    raw();
    noecho();
    nonl();
    leaveok(stdscr, FALSE);
    scrollok(stdscr, FALSE);
    if (has_colors()) {
        start_color();
        use_default_colors();
    }
}

#define CANNOT_PLACE "this terminal type cannot place text (is TERM unset or 'dumb'?): try TERM=xterm-256color, or use 'espalier chat'"

int ui_term_open(es_ui *u, es_error *err)
{
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return es_fail(err, ES_ERR_USAGE, "the workbench needs a terminal for input and output; in a pipe use 'espalier chat --prompt TEXT'");
    int status = 0;
    if (setupterm(NULL, STDOUT_FILENO, &status) != OK)
        return es_fail(err, ES_ERR_USAGE, CANNOT_PLACE);
    TERMINAL *probe = cur_term; /* newterm makes its own */
    bool places = *capability("cup") && *capability("clear");
    del_curterm(probe);
    if (!places)
        return es_fail(err, ES_ERR_USAGE, CANNOT_PLACE);
    if (tcgetattr(STDIN_FILENO, &term.before) < 0)
        return es_fail(err, ES_ERR_IO, "cannot read the terminal's settings: %s", strerror(errno));
    if (pipe2(term.pipe, O_NONBLOCK | O_CLOEXEC) < 0)
        return es_fail(err, ES_ERR_IO, "cannot make a pipe: %s", strerror(errno));
    term.asked = 0;
    term.screen = newterm(NULL, stdout, stdin);
    if (!term.screen) {
        close(term.pipe[0]);
        close(term.pipe[1]);
        return es_fail(err, ES_ERR_USAGE, "cannot use this terminal type: try TERM=xterm-256color, or use 'espalier chat'");
    }
    snprintf(term.restore, sizeof term.restore, "%s%s%s%s", like_xterm() ? "\x1b[?1006l\x1b[?1000l\x1b[?2004l" : "", capability("sgr0"), capability("cnorm"), capability("rmcup"));
    /* Terminfo's padding marks ($<5>) are for drivers that wait; leave them out. */
    for (char *p; (p = strstr(term.restore, "$<"));) {
        char *end = strchr(p, '>');
        if (!end)
            break;
        memmove(p, end + 1, strlen(end + 1) + 1);
    }
    strncat(term.restore, "\r\n", sizeof term.restore - strlen(term.restore) - 1);
    term.n_restore = strlen(term.restore);
    term.taken = true;
    handlers();
    curses_modes();
    ui_colours(u);
    modes_on(u);
    size_now(u);
    u->drawn = true;
    return 0;
}

void ui_term_suspend(es_ui *u)
{
    modes_off(u);
    endwin();
    term.taken = false;
}

void ui_term_resume(es_ui *u)
{
    term.taken = true;
    refresh();
    curses_modes();
    modes_on(u);
    size_now(u);
    u->redraw_all = true;
    u->dirty = true;
}

void ui_term_resize(es_ui *u)
{
    size_now(u);
    u->redraw_all = u->dirty = true;
}

void ui_term_stop(es_ui *u)
{
    ui_term_suspend(u);
    struct sigaction now;
    sigaction(SIGTSTP, &(struct sigaction){.sa_handler = SIG_DFL}, &now);
    raise(SIGTSTP); /* back here with SIGCONT */
    sigaction(SIGTSTP, &now, NULL);
    ui_term_resume(u);
}

void ui_term_close(es_ui *u)
{
    if (!term.screen)
        return;
    modes_off(u);
    endwin();
    term.taken = false;
    tcflush(STDIN_FILENO, TCIFLUSH); /* a late answer to a question is not the shell's input */
    for (size_t i = 0; i < sizeof polite / sizeof *polite; i++)
        sigaction(polite[i], &term.old[polite[i]], NULL);
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++)
        sigaction(fatal[i], &term.old[fatal[i]], NULL);
    delscreen(term.screen);
    term.screen = NULL;
    close(term.pipe[0]);
    close(term.pipe[1]);
    term.pipe[0] = term.pipe[1] = -1;
    u->drawn = false;
}

/* ---- a screen nobody sees ---- */

int ui_screen_open(es_ui *u, const char *type, int h, int w, es_error *err)
{
    term.sink[0] = fopen("/dev/null", "r");
    term.sink[1] = fopen("/dev/null", "w");
    term.screen = term.sink[0] && term.sink[1] ? newterm(type, term.sink[1], term.sink[0]) : NULL;
    if (!term.screen)
        return es_fail(err, ES_ERR_USAGE, "no screen of type %s", type);
    curses_modes();
    ui_colours(u);
    u->drawn = true;
    ui_screen_resize(u, h, w);
    return 0;
}

void ui_screen_resize(es_ui *u, int h, int w)
{
    resizeterm(h, w);
    getmaxyx(stdscr, u->h, u->w);
    u->redraw_all = u->dirty = true;
}

void ui_screen_close(es_ui *u)
{
    if (term.screen) {
        endwin();
        delscreen(term.screen);
    }
    term.screen = NULL;
    for (int i = 0; i < 2; i++)
        if (term.sink[i])
            fclose(term.sink[i]);
    term.sink[0] = term.sink[1] = NULL;
    u->drawn = false;
}
