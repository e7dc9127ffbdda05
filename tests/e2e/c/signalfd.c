/* What an epoll set with a signalfd beside sockets reports: signals, sockets, or both. One line a step, the same on the machine and on an
   emulated host. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int set, sig, server, client, peer;

static void check(int ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static int by_data(const void *a, const void *b) {
    const struct epoll_event *x = a, *y = b;
    return (x->data.u64 > y->data.u64) - (x->data.u64 < y->data.u64);
}

static int report(const char *step, int max, int timeout, const sigset_t *mask) {
    struct epoll_event events[8];
    int n = epoll_pwait(set, events, max, timeout, mask);
    printf("%s: %d", step, n < 0 ? -errno : n);
    if (n > 0)
        qsort(events, n, sizeof events[0], by_data);
    for (int i = 0; i < n; i++)
        printf(" %c=%x", (int)events[i].data.u64, events[i].events);
    printf("\n");
    return n;
}

static void take_signal(void) {
    struct signalfd_siginfo info;
    ssize_t n = read(sig, &info, sizeof info);
    printf("signal %d\n", n == sizeof info ? (int)info.ssi_signo : -errno);
}

static void take_octet(int fd) {
    char c;
    ssize_t n = read(fd, &c, 1);
    printf("octet %c\n", n == 1 ? c : '-');
}

static void add(int op, int fd, uint32_t events, char name) {
    struct epoll_event event = {.events = events, .data.u64 = name};
    check(epoll_ctl(set, op, fd, &event) == 0, "epoll_ctl");
}

/* After a while, from another process: what the waiting one does meanwhile is wait. */
static pid_t later(void (*act)(void)) {
    pid_t pid = fork();
    check(pid >= 0, "fork");
    if (pid == 0) {
        usleep(100000);
        act();
        _exit(0);
    }
    return pid;
}

static void signal_parent(void) { kill(getppid(), SIGUSR1); }
static void signal_otherwise(void) { kill(getppid(), SIGUSR2); }
static void handler(int nr) { (void)!write(1, nr == SIGUSR2 ? "handler\n" : "another\n", 8); }
static void write_octet(void) { check(write(peer, "w", 1) == 1, "write"); }
static void both(void) { signal_parent(); write_octet(); }
static void end_peer(void) { shutdown(peer, SHUT_WR); }

static void over(pid_t pid) { check(waitpid(pid, NULL, 0) == pid, "waitpid"); }

static void connect_both(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    server = socket(AF_INET, SOCK_STREAM, 0);
    check(bind(server, (void *)&at, len) == 0 && listen(server, 8) == 0, "listen");
    check(getsockname(server, (void *)&at, &len) == 0, "getsockname");
    client = socket(AF_INET, SOCK_STREAM, 0);
    check(connect(client, (void *)&at, len) == 0, "connect");
    peer = accept(server, NULL, NULL);
    check(peer >= 0, "accept");
}

int main(void) {
    sigset_t usr, two;
    setvbuf(stdout, NULL, _IONBF, 0);
    sigemptyset(&usr);
    sigaddset(&usr, SIGUSR1);
    two = usr;
    sigaddset(&two, SIGUSR2);
    sigprocmask(SIG_BLOCK, &two, NULL);
    connect_both();
    set = epoll_create1(EPOLL_CLOEXEC);
    sig = signalfd(-1, &usr, SFD_NONBLOCK | SFD_CLOEXEC);
    check(set >= 0 && sig >= 0, "signalfd");
    add(EPOLL_CTL_ADD, sig, EPOLLIN, 's');
    add(EPOLL_CTL_ADD, client, EPOLLIN | EPOLLRDHUP, 'c');
    report("nothing", 8, 0, NULL);
    report("nothing for a while", 8, 20, NULL);

    raise(SIGUSR1);
    report("pending", 8, 0, NULL);
    report("pending, with time", 8, -1, NULL);
    take_signal();
    pid_t pid = later(signal_parent);
    report("a signal while it waits", 8, -1, NULL);
    take_signal();
    over(pid);
    report("taken", 8, 0, NULL);

    pid = later(write_octet);
    report("an octet while it waits", 8, -1, NULL);
    report("still there", 8, 0, NULL);
    take_octet(client);
    over(pid);
    report("taken", 8, 0, NULL);

    pid = later(both);
    over(pid);
    /* One may be reported without the other, but not for ever. */
    for (int seen = 0; seen != 3;) {
        struct epoll_event events[8];
        int n = epoll_wait(set, events, 1, -1);
        check(n == 1, "epoll_wait");
        seen |= events[0].data.u64 == 's' ? 1 : 2;
    }
    take_signal();
    take_octet(client);
    report("both taken", 8, 0, NULL);

    /* What a socket had to say is not said of one that is gone, or not asked for. */
    write_octet();
    report("an octet", 8, -1, NULL);
    add(EPOLL_CTL_MOD, client, EPOLLOUT, 'd');
    report("asked for anew", 8, -1, NULL);
    add(EPOLL_CTL_MOD, client, EPOLLIN | EPOLLOUT | EPOLLET, 'e');
    report("edge", 8, -1, NULL);
    report("no edge", 8, 0, NULL);
    add(EPOLL_CTL_DEL, client, 0, 0);
    report("removed", 8, 20, NULL);
    take_octet(client);
    add(EPOLL_CTL_ADD, client, EPOLLIN | EPOLLRDHUP, 'f');

    /* A mask that lets another signal through: its handler runs. */
    signal(SIGUSR2, handler);
    pid = later(signal_otherwise);
    report("interrupted", 8, -1, &usr);
    over(pid);

    pid = later(end_peer);
    over(pid);
    end_peer();
    report("end", 8, -1, NULL);
    struct linger linger = {.l_onoff = 1};
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(peer);
    report("reset", 8, -1, NULL);
    close(client);
    report("closed", 8, 20, NULL);
    raise(SIGUSR1);
    report("signals remain", 8, -1, NULL);
    take_signal();
    return 0;
}
