/* Calls in the background: in a thread of their own, so that they can block; and signals to them. */
#include "parity.h"

enum { CALLS = 8 };
struct call {
    pthread_t thread;
    char line[256], result[4096];
    atomic_int tid, done;
};
static struct call calls[CALLS];
static int started;
atomic_int signals_seen[65];

static void on_signal(int signo) { atomic_fetch_add(&signals_seen[signo], 1); }

void watch_signal(int signo, bool restart)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = restart ? SA_RESTART : 0};
    sigaction(signo, &action, NULL);
}

static void *background(void *arg)
{
    struct call *c = arg;
    atomic_store(&c->tid, (int)syscall(SYS_gettid));
    do_op(c->line);
    bg_capture(c->result, sizeof c->result);
    atomic_store(&c->done, 1);
    return NULL;
}

static void a_moment(void)
{
    struct timespec t = {.tv_nsec = 200000};
    nanosleep(&t, NULL);
}

/* True if the thread sleeps in a system call other than a futex. */
static bool sleeps(int tid)
{
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0 || text[0] < '0' || text[0] > '9')
        return false;
    long nr = strtol(text, NULL, 10);
    return nr != SYS_futex && nr != SYS_mmap && nr != SYS_mprotect && nr != SYS_madvise;
}

/* Until the call has blocked or is over. */
static void settle(struct call *c)
{
    for (int i = 0, seen = 0; i < 10000 && seen < 3 && !atomic_load(&c->done); i++) {
        int tid = atomic_load(&c->tid);
        seen = tid && sleeps(tid) ? seen + 1 : 0;
        a_moment();
    }
}

void bg_start(const char *line)
{
    struct call *c = &calls[started++ % CALLS];
    snprintf(c->line, sizeof c->line, "%s", line);
    atomic_store(&c->done, 0);
    atomic_store(&c->tid, 0);
    if (pthread_create(&c->thread, NULL, background, c))
        abort();
    settle(c);
    out("bg%d: %s", started, line);
}

static struct call *call_of(const struct words *w) { return &calls[(number(w, 1, started) - 1) % CALLS]; }

static bool over(struct call *c, int milliseconds)
{
    for (int i = 0; i < milliseconds * 5 && !atomic_load(&c->done); i++)
        a_moment();
    return atomic_load(&c->done);
}

bool bg_op(const struct words *w)
{
    if (is(w, "join")) {
        struct call *c = call_of(w);
        if (!over(c, 4000)) {
            out(" -> still blocked");
            return true;
        }
        pthread_join(c->thread, NULL);
        out(": %s", c->result);
    } else if (is(w, "blocked")) {
        out(" -> %s", over(call_of(w), 20) ? "over" : "blocked");
    } else if (is(w, "sig") || is(w, "sigr")) {
        watch_signal(flags_of(w->w[1], signal_names), is(w, "sigr"));
    } else if (is(w, "kill")) {
        struct call *c = call_of(w);
        int signo = flags_of(word(w, 2, "usr1"), signal_names), before = atomic_load(&signals_seen[signo]);
        pthread_kill(c->thread, signo);
        for (int i = 0; i < 10000 && atomic_load(&signals_seen[signo]) == before; i++)
            a_moment();
        settle(c);
    } else if (is(w, "sigs")) {
        for (int i = 1; i < 65; i++)
            if (atomic_load(&signals_seen[i]))
                out(" %s=%d", sigabbrev_np(i), atomic_load(&signals_seen[i]));
    } else if (is(w, "awaitsig")) {
        int signo = flags_of(w->w[1], signal_names);
        for (int i = 0; i < 10000 && !atomic_load(&signals_seen[signo]); i++)
            a_moment();
        out(" -> %s", atomic_load(&signals_seen[signo]) ? "seen" : "never");
    } else {
        return false;
    }
    return true;
}
