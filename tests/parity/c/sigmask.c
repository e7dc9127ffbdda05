/* Waits with a signal mask of their own: ppoll, pselect, epoll_pwait, epoll_pwait2. */
#include "parity.h"
#include <setjmp.h>

/* What a handler saw: how often it ran, what was blocked meanwhile. */
static volatile sig_atomic_t ran, order[8], blocked_in_handler;
static sigjmp_buf back;

static sigset_t set_of(const char *names)
{
    sigset_t set;
    sigemptyset(&set);
    if (strstr(names, "usr1"))
        sigaddset(&set, SIGUSR1);
    if (strstr(names, "usr2"))
        sigaddset(&set, SIGUSR2);
    if (strstr(names, "all"))
        sigfillset(&set);
    return set;
}

static int blocked_now(void)
{
    sigset_t now;
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    return sigismember(&now, SIGUSR1) | sigismember(&now, SIGUSR2) << 1 | sigismember(&now, SIGTERM) << 2;
}

static void on_usr(int signo)
{
    if (ran < 8)
        order[ran] = signo == SIGUSR1 ? 1 : 2;
    ran++;
    blocked_in_handler = blocked_now();
}

static void on_jump(int signo)
{
    (void)signo;
    ran++;
    siglongjmp(back, 1);
}

static void handle(int signo, void (*how)(int), int flags) { sigaction(signo, &(struct sigaction){.sa_handler = how, .sa_flags = flags}, NULL); }

static void block(const char *names)
{
    sigset_t set = set_of(names);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
}

static bool pending(int signo)
{
    sigset_t set;
    sigpending(&set);
    return sigismember(&set, signo);
}

static const char *const calls[] = {"ppoll", "pselect", "epoll_pwait", "epoll_pwait2"};
enum { CALLS = sizeof calls / sizeof *calls };
static int set_fd = -1, pipe_fd[2] = {-1, -1};
static bool with_pipe;

/* One wait for input from `c`, and from a pipe; how it ended, and what it left. */
static long waits(int call, int ms, const char *mask)
{
    sigset_t set = set_of(mask ? mask : ""), *at = mask ? &set : NULL;
    struct timespec t = {ms / 1000, ms % 1000 * 1000000}, *limit = ms < 0 ? NULL : &t;
    struct epoll_event e = {0};
    int c = slots['c'];
    if (call == 0)
        return ppoll((struct pollfd[]){{.fd = c, .events = POLLIN}, {.fd = pipe_fd[0], .events = POLLIN}}, with_pipe ? 2 : 1, limit, at);
    if (call == 1) {
        fd_set reads;
        FD_ZERO(&reads);
        FD_SET(c, &reads);
        if (with_pipe)
            FD_SET(pipe_fd[0], &reads);
        return pselect((c > pipe_fd[0] ? c : pipe_fd[0]) + 1, &reads, NULL, NULL, limit, at);
    }
    if (call == 2)
        return epoll_pwait(set_fd, &e, 1, ms, at);
    return syscall(SYS_epoll_pwait2, set_fd, &e, 1, limit, at, 8L);
}

static void says(const char *what, int call, long ret)
{
    int saved = errno;
    printf("a %s %s: %ld %s ran %d", what, calls[call], ret, ret < 0 ? errno_name(saved) : "-", ran);
    for (int i = 0; i < ran && i < 8; i++)
        printf(" %d", order[i]);
    printf(" in handler %d after %d pending %d%d\n", blocked_in_handler, blocked_now(), pending(SIGUSR1), pending(SIGUSR2));
    ran = blocked_in_handler = 0;
}

static void begin(void)
{
    script(LINK);
    if (pipe(pipe_fd) || (set_fd = epoll_create1(0)) < 0 || epoll_ctl(set_fd, EPOLL_CTL_ADD, slots['c'], &(struct epoll_event){.events = EPOLLIN}))
        abort();
    if (with_pipe)
        epoll_ctl(set_fd, EPOLL_CTL_ADD, pipe_fd[0], &(struct epoll_event){.events = EPOLLIN});
}

/* Another thread that sends a signal, or data, when this one waits. */
struct later {
    pthread_t waiter, thread;
    int signo, second, tid;
    bool data;
};

static void until_it_waits(int tid)
{
    char path[64], text[32];
    snprintf(path, sizeof path, "/proc/%d/syscall", tid);
    for (int i = 0, seen = 0; i < 20000 && seen < 40; i++) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
        long nr = text[0] >= '0' && text[0] <= '9' ? strtol(text, NULL, 10) : -1;
        bool waits = nr == SYS_ppoll || nr == SYS_pselect6 || nr == SYS_epoll_pwait || nr == SYS_epoll_pwait2;
        seen = waits ? seen + 1 : 0;
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
}

static void *acts_later(void *arg)
{
    struct later *l = arg;
    until_it_waits(l->tid);
    if (l->signo)
        pthread_kill(l->waiter, l->signo);
    if (l->second) {
        until_it_waits(l->tid);
        pthread_kill(l->waiter, l->second);
    }
    if (l->data) {
        until_it_waits(l->tid);
        if (with_pipe) {
            if (write(pipe_fd[1], "p", 1) != 1)
                abort();
        } else
            send(slots['s'], "x", 1, 0);
    }
    return NULL;
}

static void later(struct later *l, int signo, int second, bool data)
{
    sigset_t all, own;
    *l = (struct later){.waiter = pthread_self(), .signo = signo, .second = second, .data = data, .tid = (int)syscall(SYS_gettid)};
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &own);
    if (pthread_create(&l->thread, NULL, acts_later, l))
        abort();
    pthread_sigmask(SIG_SETMASK, &own, NULL);
}

static void over(struct later *l)
{
    pthread_join(l->thread, NULL);
    char byte[4];
    if (recv(slots['c'], byte, sizeof byte, MSG_DONTWAIT) < 0 && errno != EAGAIN)
        abort();
    if (l->data && with_pipe && read(pipe_fd[0], byte, sizeof byte) != 1)
        abort();
    fflush(stdout);
}

/* Both ends on this host: another thread sends the data. */
static void begin_loop(void)
{
    script(LOOP);
    if (pipe(pipe_fd) || (set_fd = epoll_create1(0)) < 0 || epoll_ctl(set_fd, EPOLL_CTL_ADD, slots['c'], &(struct epoll_event){.events = EPOLLIN}))
        abort();
    if (with_pipe)
        epoll_ctl(set_fd, EPOLL_CTL_ADD, pipe_fd[0], &(struct epoll_event){.events = EPOLLIN});
}

static void signal_in_the_wait(int flags)
{
    struct later l;
    begin_loop();
    handle(SIGUSR1, on_usr, flags);
    block("usr1");
    for (int i = 0; i < CALLS; i++) {
        later(&l, SIGUSR1, 0, false);
        says("unblocked", i, waits(i, 5000, ""));
        over(&l);
        later(&l, SIGUSR1, 0, false);
        says("unblocked for ever", i, waits(i, -1, "usr2"));
        over(&l);
        says("limit", i, waits(i, 30, ""));
        says("limit 0", i, waits(i, 0, ""));
    }
}
static void interrupted(void) { signal_in_the_wait(0); }
static void interrupted_restart(void) { signal_in_the_wait(SA_RESTART); }
static void interrupted_with_pipe(void) { with_pipe = true, signal_in_the_wait(0); }

static void pending_before(void)
{
    begin_loop();
    handle(SIGUSR1, on_usr, 0);
    block("usr1");
    for (int i = 0; i < CALLS; i++) {
        static const int limits[] = {5000, -1, 0};
        for (int k = 0; k < 3; k++) {
            pthread_kill(pthread_self(), SIGUSR1);
            says("pending", i, waits(i, limits[k], ""));
            block("");
            block("usr1");
            ran = 0;
        }
    }
}

static void ready_goes_first(void)
{
    begin_loop();
    handle(SIGUSR1, on_usr, 0);
    block("usr1");
    send(slots['s'], "x", 1, 0);
    script("a await c in");
    for (int i = 0; i < CALLS; i++)
        for (int ms = -1; ms < 1; ms++) {
            pthread_kill(pthread_self(), SIGUSR1);
            says("ready and pending", i, waits(i, ms, ""));
            block("");
            printf("a then it ran %d\n", ran);
            ran = 0;
            block("usr1");
        }
}

/* The mask keeps a signal back that is not blocked otherwise: it is handled when the call returns. */
static void blocked_in_the_wait(void)
{
    struct later l;
    begin_loop();
    handle(SIGUSR1, on_usr, 0);
    for (int i = 0; i < CALLS; i++) {
        later(&l, SIGUSR1, 0, true);
        says("blocked", i, waits(i, 5000, "usr1"));
        over(&l);
        later(&l, SIGUSR1, 0, false);
        says("blocked, limit", i, waits(i, 200, "usr1 usr2"));
        over(&l);
    }
}
static void blocked_with_pipe(void) { with_pipe = true, blocked_in_the_wait(); }

/* One is blocked in the wait, the other outside. */
static void exchanged(void)
{
    struct later l;
    begin_loop();
    handle(SIGUSR1, on_usr, 0);
    handle(SIGUSR2, on_usr, SA_RESTART);
    for (int i = 0; i < CALLS; i++) {
        block("usr2");
        later(&l, SIGUSR1, SIGUSR2, false);
        says("exchanged", i, waits(i, 5000, "usr1"));
        over(&l);
    }
}

static void two_pending(void)
{
    begin_loop();
    handle(SIGUSR1, on_usr, 0);
    handle(SIGUSR2, on_usr, 0);
    block("usr1 usr2");
    for (int i = 0; i < CALLS; i++) {
        pthread_kill(pthread_self(), SIGUSR1);
        pthread_kill(pthread_self(), SIGUSR2);
        says("two pending", i, waits(i, 5000, ""));
    }
}

static void same_as_outside(void)
{
    struct later l;
    begin_loop();
    handle(SIGUSR1, on_usr, 0);
    for (int i = 0; i < CALLS; i++) {
        block("usr2");
        later(&l, SIGUSR1, 0, false);
        says("same mask", i, waits(i, 5000, "usr2"));
        over(&l);
        block("usr1");
        later(&l, SIGUSR1, 0, true);
        says("same mask, blocked", i, waits(i, 5000, "usr1"));
        over(&l);
        block("");
        ran = 0;
        later(&l, SIGUSR1, 0, false);
        says("no mask", i, waits(i, 5000, NULL));
        over(&l);
    }
}

static void left_by_a_jump(void)
{
    struct later l;
    begin_loop();
    handle(SIGUSR1, on_jump, 0);
    for (int i = 0; i < CALLS; i++)
        for (volatile int save = 0; save < 2; save++) {
            block("usr1");
            volatile bool again = sigsetjmp(back, save);
            if (!again)
                later(&l, SIGUSR1, 0, false);
            long r = waits(i, again ? 20 : 5000, "");
            says("after a jump", i, r);
            over(&l);
        }
}

static void on_info(int signo, siginfo_t *info, void *context)
{
    (void)info;
    (void)signo;
    ran++;
    sigaddset(&((ucontext_t *)context)->uc_sigmask, SIGTERM);
}

/* A handler may change what is blocked after it. */
static void changed_by_the_handler(void)
{
    begin_loop();
    sigaction(SIGUSR1, &(struct sigaction){.sa_sigaction = on_info, .sa_flags = SA_SIGINFO}, NULL);
    for (int i = 0; i < CALLS; i++) {
        struct later l;
        block("usr1");
        later(&l, SIGUSR1, 0, false);
        says("handler blocks", i, waits(i, 5000, ""));
        over(&l);
        block("");
        later(&l, SIGUSR1, 0, false);
        says("handler blocks, no mask", i, waits(i, 5000, NULL));
        over(&l);
    }
}

static void ignored_signals(void)
{
    static const int ignored[] = {SIGURG, SIGWINCH, SIGUSR2};
    struct later l;
    begin_loop();
    signal(SIGUSR2, SIG_IGN);
    handle(SIGUSR1, on_usr, 0);
    block("usr1");
    for (int i = 0; i < CALLS; i++)
        for (int k = 0; k < 3; k++) {
            later(&l, ignored[k], SIGUSR1, false);
            says("ignored, then handled", i, waits(i, 5000, ""));
            over(&l);
        }
}

/* One that waits already when the mask lets it through: a set's wait ends for it, the others go on. */
static void ignored_and_pending(void)
{
    static const int ignored[] = {SIGCHLD, SIGURG, SIGWINCH, SIGCONT, SIGUSR2};
    struct later l;
    sigset_t set = set_of("all");
    begin_loop();
    signal(SIGUSR2, SIG_IGN);
    for (int i = 0; i < CALLS; i++)
        for (int k = 0; k < 5; k++)
            for (int whole = 0; whole < 2; whole++) {
                pthread_sigmask(SIG_SETMASK, &set, NULL);
                whole ? kill(getpid(), ignored[k]) : pthread_kill(pthread_self(), ignored[k]);
                says("ignored, pending, limit 0", i, waits(i, 0, ""));
                whole ? kill(getpid(), ignored[k]) : pthread_kill(pthread_self(), ignored[k]);
                printf("a pending %d", pending(ignored[k]));
                says("ignored, pending, limit", i, waits(i, 60, ""));
                printf("a pending %d\n", pending(ignored[k]));
                says("ignored, gone", i, waits(i, 30, ""));
                whole ? kill(getpid(), ignored[k]) : pthread_kill(pthread_self(), ignored[k]);
                later(&l, 0, 0, true);
                long r = waits(i, 5000, "");
                says("ignored, pending, data", i, r);
                if (r < 0)
                    says("again", i, waits(i, 5000, ""));
                over(&l);
                printf("a still blocked %d\n", blocked_now());
                block("");
            }
}

static void bad_masks(void)
{
    begin_loop();
    struct pollfd p = {.fd = slots['c'], .events = POLLIN};
    struct epoll_event e;
    fd_set reads;
    struct timespec zero = {0, 0};
    sigset_t none;
    sigemptyset(&none);
    const struct {
        const void *at;
        size_t size;
    } masks[] = {{(void *)8, 8}, {&none, 4}, {&none, 16}, {NULL, 77}, {&none, 8}};
    for (int i = 0; i < 5; i++) {
        const void *pair[2] = {masks[i].at, (void *)masks[i].size};
        FD_ZERO(&reads);
        FD_SET(slots['c'], &reads);
        long r[4];
        const char *why[4];
        r[0] = syscall(SYS_ppoll, &p, 1L, &zero, masks[i].at, masks[i].size), why[0] = errno_name(r[0] < 0 ? errno : 0);
        r[1] = syscall(SYS_pselect6, (long)slots['c'] + 1, &reads, NULL, NULL, &zero, pair), why[1] = errno_name(r[1] < 0 ? errno : 0);
        r[2] = syscall(SYS_epoll_pwait, set_fd, &e, 1L, 0L, masks[i].at, masks[i].size), why[2] = errno_name(r[2] < 0 ? errno : 0);
        r[3] = syscall(SYS_epoll_pwait2, set_fd, &e, 1L, &zero, masks[i].at, masks[i].size), why[3] = errno_name(r[3] < 0 ? errno : 0);
        for (int k = 0; k < 4; k++)
            printf("a bad mask %d %s: %ld %s\n", i, calls[k], r[k], r[k] < 0 ? why[k] : "-");
    }
    printf("a bad pair: %ld", syscall(SYS_pselect6, 0L, NULL, NULL, NULL, &zero, (void *)8));
    printf(" %s\n", errno_name(errno));
}

/* KILL and STOP cannot be blocked; all others can. */
static void everything_blocked(void)
{
    struct later l;
    begin_loop();
    handle(SIGUSR1, on_usr, 0);
    for (int i = 0; i < CALLS; i++) {
        later(&l, SIGUSR1, 0, true);
        says("all blocked", i, waits(i, 5000, "all"));
        over(&l);
    }
}

static void killed_in_the_wait(void)
{
    begin_loop();
    for (int i = 0; i < CALLS; i++) {
        int status = 0;
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            block("usr1");
            pthread_kill(pthread_self(), SIGUSR1);
            waits(i, 5000, ""); /* no handler: the default ends it */
            _exit(3);
        }
        waitpid(pid, &status, 0);
        printf("a %s ended %s %d\n", calls[i], WIFSIGNALED(status) ? "by" : "with", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
}

/* Data from the other host ends a wait under a mask; an edge is reported once. */
static void data_ends_it(void)
{
    struct epoll_event e;
    begin();
    handle(SIGUSR1, on_usr, 0);
    block("usr1");
    epoll_ctl(set_fd, EPOLL_CTL_MOD, slots['c'], &(struct epoll_event){.events = EPOLLIN | EPOLLET});
    epoll_wait(set_fd, &e, 1, 0);
    for (int i = 0; i < CALLS; i++) {
        script("b send s x");
        says("data", i, waits(i, 5000, ""));
        script("a recv c 9");
        if (i > 1) {
            script("b send s y");
            pthread_kill(pthread_self(), SIGUSR1);
            says("edge, pending", i, waits(i, 5000, ""));
            says("pending", i, waits(i, 30, ""));
            says("edge is gone", i, waits(i, 30, ""));
            script("a recv c 9");
        }
    }
}

/* The time that is left is told. */
static void rest_of_the_time(void)
{
    struct later l;
    begin_loop();
    handle(SIGUSR1, on_usr, 0);
    block("usr1");
    for (int i = 0; i < 2; i++)
        for (int masked = 0; masked < 2; masked++) {
            fd_set reads;
            FD_ZERO(&reads);
            FD_SET(slots['c'], &reads);
            struct timespec t = {60, 0};
            sigset_t none = set_of("");
            const void *pair[2] = {&none, (void *)8};
            block(masked ? "usr1" : "");
            later(&l, SIGUSR1, 0, false);
            long r = i == 0 ? syscall(SYS_ppoll, &(struct pollfd){.fd = slots['c'], .events = POLLIN}, 1L, &t, masked ? &none : NULL, 8L)
                            : syscall(SYS_pselect6, (long)slots['c'] + 1, &reads, NULL, NULL, &t, masked ? pair : NULL);
            says("rest", i, r);
            printf("a rest %s\n", t.tv_sec == 60 ? "not told" : t.tv_sec > 1 ? "told" : "gone");
            over(&l);
        }
}

static char state_of(pid_t pid)
{
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    char *end = n > 0 ? strrchr(text, ')') : NULL;
    return end ? end[2] : '?';
}

/* A stop is no signal that ends a wait, nor does it change the mask. */
static void stopped_and_continued(void)
{
    begin_loop();
    handle(SIGUSR1, on_usr, 0);
    block("usr1");
    for (int i = 0; i < 2; i++)
        for (int data = 0; data < 2; data++) {
            fflush(stdout);
            pid_t own = getpid(), child = fork();
            if (child == 0) {
                until_it_waits(own);
                for (int stops = 0; stops < 3; stops++) {
                    kill(own, SIGSTOP);
                    for (int k = 0; k < 20000 && state_of(own) != 'T'; k++)
                        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
                    kill(own, SIGCONT);
                    until_it_waits(own);
                }
                if (data)
                    send(slots['s'], "x", 1, 0);
                else
                    kill(own, SIGUSR1);
                _exit(0);
            }
            says(data ? "stopped, data" : "stopped, signal", i, waits(i, 5000, ""));
            waitpid(child, NULL, 0);
            char byte;
            recv(slots['c'], &byte, 1, MSG_DONTWAIT);
        }
}

static const struct test_case cases[] = {
    {"interrupted", NULL, interrupted},
    {"interrupted_restart", NULL, interrupted_restart},
    {"interrupted_with_pipe", NULL, interrupted_with_pipe},
    {"pending_before", NULL, pending_before},
    {"ready_goes_first", NULL, ready_goes_first},
    {"blocked_in_the_wait", NULL, blocked_in_the_wait},
    {"blocked_with_pipe", NULL, blocked_with_pipe},
    {"exchanged", NULL, exchanged},
    {"two_pending", NULL, two_pending},
    {"same_as_outside", NULL, same_as_outside},
    {"left_by_a_jump", NULL, left_by_a_jump},
    {"changed_by_the_handler", NULL, changed_by_the_handler},
    {"ignored_signals", NULL, ignored_signals},
    {"ignored_and_pending", NULL, ignored_and_pending},
    {"bad_masks", NULL, bad_masks},
    {"everything_blocked", NULL, everything_blocked},
    {"killed_in_the_wait", NULL, killed_in_the_wait},
    {"data_ends_it", NULL, data_ends_it},
    {"stopped_and_continued", NULL, stopped_and_continued},
    {"rest_of_the_time", NULL, rest_of_the_time},
    {0}};
const struct family mask_family = {"mask", cases};
