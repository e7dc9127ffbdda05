/* What signals do to calls on sockets: prints one line a case, the same on Linux and on an emulated host. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int listener, near, far, set, inner[2];
static volatile sig_atomic_t handled;
static struct sockaddr_in at = {.sin_family = AF_INET};
static sigjmp_buf back;
static char buffer[1 << 16];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Handlers make calls of their own, on sockets too. */
static void on_alarm(int signo)
{
    int saved = errno;
    char byte;
    (void)signo;
    handled++;
    while (write(inner[1], "x", 1) != 1 || read(inner[0], &byte, 1) != 1)
        if (errno != EINTR)
            _exit(9);
    poll(&(struct pollfd){.fd = near, .events = POLLIN}, 1, 0);
    recv(listener, &byte, 1, MSG_DONTWAIT);
    errno = saved;
}

static void on_jump(int signo)
{
    (void)signo;
    siglongjmp(back, 1);
}

static void handler(void (*does)(int), bool restart)
{
    sigaction(SIGALRM, &(struct sigaction){.sa_handler = does, .sa_flags = restart ? SA_RESTART : 0}, NULL);
    handled = 0;
}

static void alarm_in(int ms) { setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {ms / 1000, ms % 1000 * 1000}}, NULL); }

static void connection(void)
{
    near = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(near, (void *)&at, sizeof at) || (far = accept(listener, NULL, NULL)) < 0)
        die("connection");
}

static void limit(int fd, int name, int ms) { setsockopt(fd, SOL_SOCKET, name, &(struct timeval){ms / 1000, ms % 1000 * 1000}, sizeof(struct timeval)); }

static long does_poll(int ms) { return poll((struct pollfd[]){{.fd = near, .events = POLLIN}, {.fd = inner[0], .events = POLLIN}}, 2, ms); }
static long does_ppoll(int ms) { return ppoll(&(struct pollfd){.fd = near, .events = POLLIN}, 1, &(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL); }
static long does_select(int ms)
{
    fd_set reads;
    FD_ZERO(&reads);
    FD_SET(near, &reads);
    return select(near + 1, &reads, NULL, NULL, &(struct timeval){ms / 1000, ms % 1000 * 1000});
}
static long does_pselect(int ms)
{
    fd_set reads;
    FD_ZERO(&reads);
    FD_SET(near, &reads);
    return pselect(near + 1, &reads, NULL, NULL, &(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}
static long does_epoll(int ms) { return epoll_wait(set, &(struct epoll_event){0}, 1, ms); }
static long does_recv(int ms)
{
    limit(near, SO_RCVTIMEO, ms);
    return recv(near, buffer, 1, 0);
}
static long does_read(int ms)
{
    limit(near, SO_RCVTIMEO, ms);
    return read(near, buffer, 1);
}
static long does_accept(int ms)
{
    limit(listener, SO_RCVTIMEO, ms);
    return accept(listener, NULL, NULL);
}
static long does_send(int ms)
{
    limit(near, SO_SNDTIMEO, ms);
    while (send(near, buffer, sizeof buffer, MSG_DONTWAIT) > 0)
        ;
    return send(near, buffer, 1, 0);
}

static const char *text(long result)
{
    static char line[32];
    snprintf(line, sizeof line, "%ld", result);
    return result < 0 ? strerrorname_np(errno) : line;
}

/* Calls with a time limit: one EINTR for a handler, whatever its flags; then the limit. */
static void never_restarted(void)
{
    const struct {
        const char *name;
        long (*does)(int ms);
    } calls[] = {{"poll", does_poll},   {"ppoll", does_ppoll}, {"select", does_select}, {"pselect", does_pselect}, {"epoll_wait", does_epoll},
                 {"recv", does_recv}, {"read", does_read},   {"accept", does_accept}, {"send", does_send}};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        for (int restart = 0; restart < 2; restart++) {
            handler(on_alarm, restart);
            alarm_in(100);
            printf("%s %d: %s", calls[i].name, restart, text(calls[i].does(20000)));
            printf(" %d", handled);
            printf(" %s\n", text(calls[i].does(50)));
        }
    /* One EINTR for each handler, not for each pair of them. */
    handler(on_alarm, true);
    for (int i = 0; i < 3; i++) {
        alarm_in(50);
        printf("again: %s\n", text(does_poll(20000)));
    }
    limit(near, SO_RCVTIMEO, 0), limit(listener, SO_RCVTIMEO, 0), limit(near, SO_SNDTIMEO, 0);
}

static void *sends_later(void *octets)
{
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    return (void *)(long)send(far, octets, strlen(octets), 0);
}

static void restarted(void)
{
    sigset_t alarm_only;
    pthread_t thread;
    sigemptyset(&alarm_only), sigaddset(&alarm_only, SIGALRM);
    for (int restart = 0; restart < 2; restart++) {
        handler(on_alarm, restart);
        pthread_sigmask(SIG_BLOCK, &alarm_only, NULL);
        pthread_create(&thread, NULL, sends_later, "late");
        pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL);
        alarm_in(100);
        printf("recv without limit %d: %s", restart, text(recv(near, buffer, 9, 0)));
        printf(" %d\n", handled);
        if (!restart)
            printf("recv again: %s\n", text(recv(near, buffer, 9, 0)));
        pthread_join(thread, NULL);
    }
}

static void left_by_a_jump(void)
{
    volatile int jumps = 0;
    handler(on_jump, true);
    if (sigsetjmp(back, 1))
        jumps++;
    if (!jumps)
        alarm_in(100);
    printf("poll after %d jump: %s\n", jumps, text(does_poll(jumps ? 50 : 20000)));
}

static void waits_for_all(void)
{
    handler(on_alarm, false);
    send(far, "abc", 3, 0);
    alarm_in(100);
    printf("part: %s", text(recv(near, buffer, 6, MSG_WAITALL)));
    printf(" %.3s\n", buffer);
    send(far, "def", 3, 0);
    printf("rest: %s", text(recv(near, buffer, 3, MSG_WAITALL)));
    printf(" %.3s\n", buffer);
    handler(on_alarm, true);
    struct iovec iov[2] = {{buffer, 3}, {buffer + 3, 3}};
    struct mmsghdr many[2] = {{.msg_hdr = {.msg_iov = iov, .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = iov + 1, .msg_iovlen = 1}}};
    send(far, "ghi", 3, 0);
    alarm_in(100);
    printf("messages: %s", text(recvmmsg(near, many, 2, MSG_WAITALL, NULL)));
    printf(" %.3s\n", buffer);
}

/* Two timers interrupt everything, handlers too. Nothing ends with EINTR that cannot; no octet is lost or comes twice. */
enum { OCTETS = 4 << 20 };

static void checks(void)
{
    unsigned next = 0;
    for (ssize_t n; (n = recv(far, buffer, sizeof buffer, 0)) > 0;)
        for (ssize_t i = 0; i < n; i++, next++)
            if ((unsigned char)buffer[i] != next % 251) {
                printf("octet %u is wrong\n", next);
                exit(1);
            }
    printf("received %u\n", next);
    exit(next != OCTETS);
}

static void storm(bool restart)
{
    sigset_t none;
    timer_t timers[2];
    int status, bad = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        close(near), checks();
    close(far);
    handler(on_alarm, restart);
    sigemptyset(&none);
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_alarm, .sa_flags = restart ? 0 : SA_RESTART, .sa_mask = none}, NULL);
    for (int i = 0; i < 2; i++) {
        timer_create(CLOCK_MONOTONIC, &(struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = i ? SIGUSR1 : SIGALRM}, &timers[i]);
        timer_settime(timers[i], 0, &(struct itimerspec){{0, 700000 + i * 331000}, {0, 1000000}}, NULL);
    }
    for (unsigned done = 0; done < OCTETS;) {
        unsigned want = OCTETS - done < 9000 ? OCTETS - done : 9000;
        for (unsigned i = 0; i < want; i++)
            buffer[i] = (done + i) % 251;
        ssize_t n = send(near, buffer, want, 0);
        if (n < 0 && errno != EINTR)
            die("send");
        done += n > 0 ? n : 0;
        int on = 1, other = socket(AF_INET, SOCK_DGRAM, 0);
        bad += other < 0;
        bad += setsockopt(other, SOL_SOCKET, SO_BROADCAST, &on, sizeof on) != 0;
        bad += close(other) != 0;
    }
    for (int i = 0; i < 2; i++)
        timer_delete(timers[i]);
    shutdown(near, SHUT_WR);
    while (waitpid(child, &status, 0) < 0)
        ;
    printf("storm %d: child %d, %d bad calls, %s\n", restart, WEXITSTATUS(status), bad, handled > 10 ? "many signals" : "few signals");
}

int main(int argc, char **argv)
{
    const char *which = argc > 1 ? argv[1] : "";
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    set = epoll_create1(0);
    if (pipe(inner) || bind(listener, (void *)&at, sizeof at) || listen(listener, 8))
        die("listen");
    getsockname(listener, (void *)&at, &(socklen_t){sizeof at});
    connection();
    epoll_ctl(set, EPOLL_CTL_ADD, near, &(struct epoll_event){.events = EPOLLIN});
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(which, "limits"))
        never_restarted();
    else if (!strcmp(which, "restarts"))
        restarted(), left_by_a_jump();
    else if (!strcmp(which, "parts"))
        waits_for_all();
    else if (!strcmp(which, "storm"))
        storm(argc > 2);
    else
        return 2;
    return 0;
}
