/*
 * Two timers of 1 kHz against every call that waits: nothing is lost, nothing comes twice, no call ends with an error that it
 * cannot end with. Prints one line, the same on Linux and on an emulated host.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 600, OCTETS = 30000, WAITS = 8 };
static struct sockaddr_in at = {.sin_family = AF_INET};
static volatile sig_atomic_t handled;
static unsigned char data[OCTETS], back[OCTETS];
static bool restart;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void on_signal(int signo)
{
    (void)signo;
    handled++;
}

static void timers(void)
{
    timer_t timer;
    for (int i = 0; i < 2; i++) {
        int signo = i ? SIGUSR1 : SIGALRM;
        sigaction(signo, &(struct sigaction){.sa_handler = on_signal, .sa_flags = restart ? SA_RESTART : 0}, NULL);
        if (timer_create(CLOCK_MONOTONIC, &(struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signo}, &timer) ||
            timer_settime(timer, 0, &(struct itimerspec){{0, 1000000 + i * 37000}, {0, 1000000}}, NULL))
            die("timer");
    }
}

/* True if a call that is restarted, or not, was rightly interrupted. */
static bool again(const char *what)
{
    if (errno != EINTR || restart)
        die(what);
    return true;
}

static void fill(unsigned round)
{
    for (unsigned i = 0; i < OCTETS; i++)
        data[i] = (unsigned char)((i * 7 + round * 13) % 251);
}

/* Waits for input, each time by another call. Only these end with EINTR whatever the handler's flags. */
static void wait_for(int fd, int how)
{
    for (;;) {
        sigset_t none;
        sigemptyset(&none);
        struct timespec limit = {20, 0};
        struct epoll_event e;
        fd_set reads;
        FD_ZERO(&reads);
        FD_SET(fd, &reads);
        int r, set = -1;
        if (how >= 4) {
            set = epoll_create1(0);
            if (set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN}))
                die("epoll");
        }
        switch (how) {
        case 0: r = poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 20000); break;
        case 1: r = ppoll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, &limit, &none); break;
        case 2: r = select(fd + 1, &reads, NULL, NULL, &(struct timeval){20, 0}); break;
        case 3: r = pselect(fd + 1, &reads, NULL, NULL, &limit, &none); break;
        case 4: r = epoll_wait(set, &e, 1, 20000); break;
        case 5: r = epoll_pwait(set, &e, 1, 20000, &none); break;
        case 6: r = epoll_pwait(set, &e, 1, 20000, NULL); break;
        default: r = (int)syscall(SYS_epoll_pwait2, set, &e, 1, &limit, &none, 8L); break;
        }
        int error = errno;
        if (set >= 0 && close(set))
            die("close");
        errno = error;
        if (r == 1)
            return;
        if (r == 0 || errno != EINTR)
            die("wait");
    }
}

static void send_all(int fd, int how)
{
    for (size_t done = 0; done < OCTETS;) {
        size_t left = OCTETS - done, half = (left + 1) / 2;
        struct iovec iov[2] = {{data + done, half}, {data + done + half, left - half}};
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2};
        struct mmsghdr many[2] = {{.msg_hdr = {.msg_iov = iov, .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = iov + 1, .msg_iovlen = 1}}};
        ssize_t n = 0;
        int r;
        switch (how % 5) {
        case 0: n = write(fd, data + done, left); break;
        case 1: n = sendmsg(fd, &m, 0); break;
        case 2: n = writev(fd, iov, 2); break;
        case 3: n = send(fd, data + done, left, 0); break;
        default:
            /* A part of a message ends the call. */
            r = sendmmsg(fd, many, 1, 0);
            n = r < 0 ? -1 : (ssize_t)many[0].msg_len;
        }
        if (n < 0)
            again("send");
        done += n > 0 ? (size_t)n : 0;
    }
}

static void receive_all(int fd, int how, unsigned char *to)
{
    for (size_t done = 0; done < OCTETS;) {
        size_t left = OCTETS - done, half = (left + 1) / 2;
        struct iovec iov[2] = {{to + done, half}, {to + done + half, left - half}};
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2};
        struct mmsghdr many[2] = {{.msg_hdr = {.msg_iov = iov, .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = iov + 1, .msg_iovlen = 1}}};
        ssize_t n = 0;
        int r;
        switch (how % 7) {
        case 0: n = read(fd, to + done, left); break;
        case 1: n = recvmsg(fd, &m, 0); break;
        case 2: n = readv(fd, iov, 2); break;
        case 3: n = recv(fd, to + done, left, MSG_WAITALL); break;
        case 4: n = recvmsg(fd, &m, MSG_WAITALL); break;
        case 5: n = recvfrom(fd, to + done, left, 0, NULL, NULL); break;
        default:
            r = recvmmsg(fd, many, 1, MSG_WAITALL, NULL);
            n = r < 0 ? -1 : (ssize_t)many[0].msg_len;
        }
        if (n < 0)
            again("receive");
        if (n == 0 && how % 7 != 6) {
            fprintf(stderr, "ended after %zu octets\n", done);
            exit(1);
        }
        done += n > 0 ? (size_t)n : 0;
    }
}

/* An interrupted connect goes on by itself. */
static int connected(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), error = 0;
    if (fd < 0)
        die("socket");
    if (connect(fd, (void *)&at, sizeof at) == 0)
        return fd;
    again("connect");
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    while (poll(&p, 1, 20000) != 1)
        if (errno != EINTR)
            die("poll");
    /* Whether it was begun before the signal came, only the state tells. */
    if (p.revents & POLLHUP) {
        close(fd);
        return connected();
    }
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error}) || error)
        die("connection");
    return fd;
}

static void serve(int listener)
{
    timers();
    for (unsigned round = 0; round < ROUNDS; round++) {
        int fd;
        while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
            again("accept");
        receive_all(fd, (int)round, data);
        send_all(fd, (int)round + 2);
        char end;
        ssize_t n;
        while ((n = read(fd, &end, 1)) < 0)
            again("read");
        if (n || close(fd))
            die("end");
    }
    exit(0);
}

static void every_call(void)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), status = 0;
    if (bind(listener, (void *)&at, sizeof at) || listen(listener, 8))
        die("listen");
    getsockname(listener, (void *)&at, &(socklen_t){sizeof at});
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        serve(listener);
    close(listener);
    timers();
    for (unsigned round = 0; round < ROUNDS; round++) {
        int fd = connected();
        fill(round);
        send_all(fd, (int)round);
        wait_for(fd, (int)(round % WAITS));
        memset(back, 0xff, sizeof back);
        receive_all(fd, (int)round, back);
        if (memcmp(data, back, OCTETS)) {
            fprintf(stderr, "round %u: other octets came back\n", round);
            exit(1);
        }
        if (close(fd))
            die("close");
        while ((fd = open("/proc/net/dev", O_RDONLY)) < 0)
            again("open");
        ssize_t n;
        while ((n = read(fd, back, sizeof back)) < 0)
            again("read");
        if (n < 100 || close(fd))
            die("/proc/net/dev");
    }
    while (waitpid(child, &status, 0) < 0)
        ;
    printf("every call %d: child %d, %s\n", restart, status, handled > 10 ? "many signals" : "few signals");
}

/* Signals come only while a wait lets them through: a handler has run exactly if the wait says EINTR. */
static void only_in_the_wait(void)
{
    int pair[2], listener = socket(AF_INET, SOCK_STREAM, 0), status = 0, wrong = 0, interrupted = 0;
    sigset_t both, none;
    if (bind(listener, (void *)&at, sizeof at) || listen(listener, 8))
        die("listen");
    getsockname(listener, (void *)&at, &(socklen_t){sizeof at});
    pair[0] = connected();
    pair[1] = accept(listener, NULL, NULL);
    enum { MESSAGES = 1500 };
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        for (unsigned i = 0; i < MESSAGES; i++) {
            if (send(pair[1], &(unsigned char){(unsigned char)i}, 1, 0) != 1)
                die("send");
            nanosleep(&(struct timespec){.tv_nsec = 200000 + i % 7 * 100000}, NULL);
        }
        exit(0);
    }
    int fd = pair[0], set = epoll_create1(0);
    close(pair[1]);
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN | EPOLLET});
    sigemptyset(&none), sigemptyset(&both), sigaddset(&both, SIGALRM), sigaddset(&both, SIGUSR1);
    sigprocmask(SIG_BLOCK, &both, NULL);
    timers();
    unsigned next = 0;
    for (unsigned turn = 0; next < MESSAGES; turn++) {
        struct timespec limit = {20, 0};
        struct epoll_event e;
        fd_set reads;
        FD_ZERO(&reads);
        FD_SET(fd, &reads);
        int before = handled, r;
        switch (turn % 4) {
        case 0: r = ppoll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, &limit, &none); break;
        case 1: r = pselect(fd + 1, &reads, NULL, NULL, &limit, &none); break;
        case 2: r = epoll_pwait(set, &e, 1, 20000, &none); break;
        default: r = (int)syscall(SYS_epoll_pwait2, set, &e, 1, &limit, &none, 8L); break;
        }
        if (r < 0 && errno != EINTR)
            die("wait");
        wrong += r == 0 || (r < 0) != (handled != before);
        interrupted += r < 0;
        for (unsigned char byte; recv(fd, &byte, 1, MSG_DONTWAIT) == 1; next++)
            wrong += byte != (unsigned char)next;
    }
    sigset_t now;
    sigprocmask(SIG_SETMASK, NULL, &now);
    wrong += !sigismember(&now, SIGALRM) || !sigismember(&now, SIGUSR1) || sigismember(&now, SIGTERM);
    while (waitpid(child, &status, 0) < 0)
        ;
    printf("only in the wait %d: child %d, %d wrong, %s\n", restart, status, wrong, interrupted > 10 ? "many interrupted" : "few interrupted");
}

/* A process ends though signals come, with its status. */
static void ends(void)
{
    enum { PROCESSES = 200, SIGNALS = 12 };
    int bad = 0, status, ready[2];
    if (pipe(ready))
        die("pipe");
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_signal, .sa_flags = restart ? SA_RESTART : 0}, NULL);
    for (int i = 0; i < PROCESSES; i++) {
        char byte;
        pid_t child = fork();
        if (child == 0) {
            while (write(ready[1], "r", 1) != 1)
                ;
            _exit(i % 100);
        }
        while (read(ready[0], &byte, 1) != 1)
            ;
        for (int k = 0; k < SIGNALS; k++) {
            kill(child, SIGUSR1);
            for (volatile int spin = 0; spin < i * 40; spin++)
                ;
        }
        while (waitpid(child, &status, 0) < 0)
            ;
        bad += !WIFEXITED(status) || WEXITSTATUS(status) != i % 100;
    }
    printf("ends %d: %d badly\n", restart, bad);
}

/* As C libraries make calls: the number stands before the instruction. */
#define CALL3(nr, a, b, c)                                                                                                              \
    ({                                                                                                                                  \
        long r_;                                                                                                                        \
        __asm__ volatile("mov %1, %%eax\n\tsyscall" : "=&a"(r_) : "i"(nr), "D"((long)(a)), "S"((long)(b)), "d"((long)(c)) : "rcx", "r11", "memory"); \
        r_;                                                                                                                             \
    })

/* Calls that do not wait end with EINTR never, though a handler without SA_RESTART runs. */
static void without_waiting(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), wrong = 0;
    char byte;
    if (bind(fd, (void *)&at, sizeof at) || getsockname(fd, (void *)&at, &(socklen_t){sizeof at}) || connect(fd, (void *)&at, sizeof at))
        die("socket");
    struct iovec iov = {&byte, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    timers();
    for (int i = 0; i < 15000 || handled < 500; i++) {
        wrong += CALL3(SYS_write, fd, &byte, 1) == -EINTR;
        wrong += CALL3(SYS_read, fd, &byte, 1) == -EINTR;
        wrong += CALL3(SYS_sendmsg, fd, &m, 0) == -EINTR;
        wrong += CALL3(SYS_recvmsg, fd, &m, 0) == -EINTR;
        wrong += CALL3(SYS_readv, fd, &iov, 1) == -EINTR;
        wrong += CALL3(SYS_fcntl, fd, F_SETFL, O_NONBLOCK) == -EINTR;
        wrong += CALL3(SYS_connect, fd, &at, sizeof at) == -EINTR;
    }
    printf("without waiting %d: %d interrupted\n", restart, wrong);
}

int main(int argc, char **argv)
{
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    restart = argc > 2;
    if (argc > 1 && !strcmp(argv[1], "calls"))
        every_call();
    else if (argc > 1 && !strcmp(argv[1], "waits"))
        only_in_the_wait();
    else if (argc > 1 && !strcmp(argv[1], "ends"))
        ends();
    else if (argc > 1 && !strcmp(argv[1], "moments"))
        without_waiting();
    else
        return 2;
    return 0;
}
