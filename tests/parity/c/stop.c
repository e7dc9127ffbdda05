/* Programs that are stopped and continued during a call: without a handler some calls end with EINTR, others go on (signal(7)). */
#include "parity.h"
#include <setjmp.h>

static int set_fd = -1, pipe_fd[2];
static sigset_t none;
static sigjmp_buf back;
static struct epoll_event event;
static const struct timespec limit = {60, 0};

static void begin(void)
{
    script(LOOP "a server m P1\na udp u\na bind u lo:P3");
    sigemptyset(&none);
    if (pipe(pipe_fd) || (set_fd = epoll_create1(0)) < 0 || epoll_ctl(set_fd, EPOLL_CTL_ADD, slots['c'], &(struct epoll_event){.events = EPOLLIN}))
        abort();
}

/* A limit on the time of what is received, or sent. */
static void limited(int name) { setsockopt(slots['c'], SOL_SOCKET, name, &(struct timeval){60, 0}, sizeof(struct timeval)); }
static void full(void)
{
    static char octets[1 << 16];
    while (send(slots['c'], octets, sizeof octets, MSG_DONTWAIT) > 0)
        ;
}
static void blocks_usr1(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

static struct pollfd polled(void) { return (struct pollfd){.fd = slots['c'], .events = POLLIN}; }
static long does_epoll_wait(void) { return epoll_wait(set_fd, &event, 1, -1); }
static long does_epoll_wait_limit(void) { return epoll_wait(set_fd, &event, 1, 60000); }
static long does_epoll_pwait(void) { return epoll_pwait(set_fd, &event, 1, -1, &none); }
static long does_epoll_pwait_mask(void) { return blocks_usr1(), epoll_pwait(set_fd, &event, 1, -1, &none); }
static long does_epoll_pwait2_mask(void) { return blocks_usr1(), syscall(SYS_epoll_pwait2, set_fd, &event, 1, &limit, &none, 8L); }
static long does_epoll_pipe(void)
{
    epoll_ctl(set_fd, EPOLL_CTL_ADD, pipe_fd[0], &(struct epoll_event){.events = EPOLLIN});
    return epoll_wait(set_fd, &event, 1, -1);
}
static long does_poll(void) { struct pollfd p = polled(); return poll(&p, 1, -1); }
static long does_poll_limit(void) { struct pollfd p = polled(); return poll(&p, 1, 60000); }
static long does_ppoll_mask(void) { struct pollfd p = polled(); return blocks_usr1(), ppoll(&p, 1, &limit, &none); }
static long selects(const struct timespec *t, const sigset_t *mask)
{
    fd_set reads;
    FD_ZERO(&reads);
    FD_SET(slots['c'], &reads);
    return pselect(slots['c'] + 1, &reads, NULL, NULL, t, mask);
}
static long does_select(void) { return selects(&limit, NULL); }
static long does_pselect_mask(void) { return blocks_usr1(), selects(NULL, &none); }
static char byte[8];
static long does_recv(void) { return recv(slots['c'], byte, 1, 0); }
static long does_recv_limited(void) { return limited(SO_RCVTIMEO), recv(slots['c'], byte, 1, 0); }
static long does_read(void) { return read(slots['c'], byte, 1); }
static long does_read_limited(void) { return limited(SO_RCVTIMEO), read(slots['c'], byte, 1); }
static long does_recvmsg_limited(void)
{
    struct iovec part = {byte, 1};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
    return limited(SO_RCVTIMEO), recvmsg(slots['c'], &msg, 0);
}
static long does_recvmmsg(void)
{
    struct iovec part = {byte, 1};
    struct mmsghdr msg = {.msg_hdr = {.msg_iov = &part, .msg_iovlen = 1}};
    return recvmmsg(slots['c'], &msg, 1, 0, NULL);
}
static long does_recvfrom(void) { return recvfrom(slots['u'], byte, 1, 0, NULL, NULL); }
static long does_splice(void) { return splice(slots['c'], NULL, pipe_fd[1], NULL, 1, 0); }
static long does_splice_limited(void) { return limited(SO_RCVTIMEO), splice(slots['c'], NULL, pipe_fd[1], NULL, 1, 0); }
static long accepts(int fd)
{
    int got = accept(fd, NULL, NULL);
    return got < 0 ? got : 0;
}
static long does_accept(void) { return accepts(slots['m']); }
static long does_accept_limited(void)
{
    setsockopt(slots['m'], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){60, 0}, sizeof(struct timeval));
    return accepts(slots['m']);
}
static long does_send(void) { return full(), send(slots['c'], byte, 1, 0); }
static long does_send_limited(void) { return full(), limited(SO_SNDTIMEO), send(slots['c'], byte, 1, 0); }
static long does_write_limited(void) { return full(), limited(SO_SNDTIMEO), write(slots['c'], byte, 1); }

/* Out of a handler by a jump, and into the same call again: nothing has stopped it. */
static void on_jump(int signo)
{
    (void)signo;
    siglongjmp(back, 1);
}
static long does_epoll_after_jump(void)
{
    sigaction(SIGUSR2, &(struct sigaction){.sa_handler = on_jump}, NULL);
    sigsetjmp(back, 1);
    return epoll_wait(set_fd, &event, 1, -1);
}
static void on_nothing(int signo) { (void)signo; }
static long does_epoll_after_handler(void)
{
    sigaction(SIGUSR2, &(struct sigaction){.sa_handler = on_nothing, .sa_flags = SA_RESTART}, NULL);
    long first = epoll_wait(set_fd, &event, 1, -1);
    return first < 0 && errno == EINTR ? epoll_wait(set_fd, &event, 1, -1) : 99;
}
static long does_recv_after_handler(void)
{
    sigaction(SIGUSR2, &(struct sigaction){.sa_handler = on_nothing, .sa_flags = SA_RESTART}, NULL);
    return recv(slots['c'], byte, 1, 0);
}
/* In the handler the same call is made as was interrupted. */
static volatile long in_handler = 99;
static void on_wait(int signo)
{
    (void)signo;
    in_handler = epoll_wait(set_fd, &event, 1, -1);
}
static long does_epoll_in_handler(void)
{
    sigaction(SIGUSR2, &(struct sigaction){.sa_handler = on_wait}, NULL);
    long r = epoll_wait(set_fd, &event, 1, -1);
    int saved = errno;
    printf("a in the handler %ld\n", in_handler);
    errno = saved;
    return r;
}

/* True when a process has slept in one call for a while; false when it has ended. */
static bool sleeps(pid_t pid)
{
    char path[64], text[32];
    snprintf(path, sizeof path, "/proc/%d/syscall", pid);
    for (int i = 0, seen = 0; i < 40000 && seen < 60; i++) {
        siginfo_t info = {0};
        if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid)
            return false;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
        seen = text[0] >= '0' && text[0] <= '9' && strtol(text, NULL, 10) != SYS_exit_group ? seen + 1 : 0;
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
    return true;
}

static void stop(pid_t pid, int ms)
{
    siginfo_t info;
    kill(pid, SIGSTOP);
    waitid(P_PID, (id_t)pid, &info, WSTOPPED);
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
    kill(pid, SIGCONT);
}

/* Lets go whoever waits. */
static void wake(void)
{
    static char octets[1 << 16];
    int d = socket(AF_INET, SOCK_STREAM, 0);
    struct endpoint m = endpoint_of("lo:P1"), u = endpoint_of("lo:P3");
    while (recv(slots['s'], octets, sizeof octets, MSG_DONTWAIT) > 0)
        ;
    send(slots['s'], "x", 1, 0);
    sendto(slots['u'], "x", 1, 0, (void *)&u.addr, u.len);
    connect(d, (void *)&m.addr, m.len);
}

/* A child makes a call, gets signals and stops as `acts` says (`u`: SIGUSR2, `s`: a stop), and if it waits still, what it waits for. */
static void runs(long (*does)(void), const char *acts)
{
    begin();
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        on_link = false;
        long r = does();
        printf("a call ends: %ld %s\n", r, r < 0 ? errno_name(errno) : "-");
        fflush(stdout);
        _exit(0);
    }
    bool waits = sleeps(pid);
    for (; *acts && waits; acts++) {
        if (*acts == 's')
            stop(pid, 0);
        else
            kill(pid, SIGUSR2);
        waits = sleeps(pid);
    }
    printf("a it %s\n", waits ? "waits" : "has ended");
    fflush(stdout);
    if (waits)
        wake();
    waitpid(pid, NULL, 0);
    fence();
}

/* The time of a call goes on while it stands. */
static void time_goes_on(void)
{
    struct timespec t0, t1;
    int status;
    begin();
    fflush(stdout);
    clock_gettime(CLOCK_MONOTONIC, &t0);
    pid_t pid = fork();
    if (pid == 0) {
        struct pollfd p = polled();
        _exit(poll(&p, 1, 4000) == 0 ? 0 : 1);
    }
    sleeps(pid);
    stop(pid, 3500);
    waitpid(pid, &status, 0);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    printf("a ended %d, %s\n", status, t1.tv_sec - t0.tv_sec < 4 ? "early" : t1.tv_sec - t0.tv_sec < 7 ? "in time" : "late");
}

#define STOPPED(name) \
    static void stop_##name(void) { runs(does_##name, "s"); }
#define EACH(X) \
    X(epoll_wait) X(epoll_wait_limit) X(epoll_pwait) X(epoll_pwait_mask) X(epoll_pwait2_mask) X(epoll_pipe) X(poll) X(poll_limit) X(ppoll_mask) \
    X(select) X(pselect_mask) X(recv) X(recv_limited) X(read) X(read_limited) X(recvmsg_limited) X(recvmmsg) X(recvfrom) X(splice) \
    X(splice_limited) X(accept) X(accept_limited) X(send) X(send_limited) X(write_limited)
EACH(STOPPED)
static void often(void) { runs(does_recv, "sss"); }
static void often_masked(void) { runs(does_ppoll_mask, "sss"); }
static void after_a_jump(void) { runs(does_epoll_after_jump, "u"); }
static void after_a_jump_stopped(void) { runs(does_epoll_after_jump, "us"); }
static void after_a_handler(void) { runs(does_epoll_after_handler, "us"); }
static void restarted_and_stopped(void) { runs(does_recv_after_handler, "usu"); }
static void in_a_handler(void) { runs(does_epoll_in_handler, "u"); }

#define CASE(name) {#name, NULL, stop_##name},
static const struct test_case cases[] = {
    EACH(CASE)
    {"often", NULL, often},
    {"often_masked", NULL, often_masked},
    {"after_a_jump", NULL, after_a_jump},
    {"after_a_jump_stopped", NULL, after_a_jump_stopped},
    {"after_a_handler", NULL, after_a_handler},
    {"restarted_and_stopped", NULL, restarted_and_stopped},
    {"in_a_handler", NULL, in_a_handler},
    {"time_goes_on", NULL, time_goes_on},
    {0}};
const struct family stop_family = {"stop", cases};
