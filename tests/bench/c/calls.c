/* What single calls cost. One program for figures and references: run on an emulated host and on the machine.
 *
 *   calls null N          ns of a getsockopt on a TCP socket
 *   calls bare N          ns of a call that another process answers by user notification, and does nothing else
 *   calls copies N        the same, and the other process copies what a getsockopt reads and writes
 *   calls file PATH N     octets a second of N reads and N writes of 64 KiB
 *   calls passed PATH N   the same, each notified and let go by a process that does nothing else
 *   calls hops N          ns of a wake-up's way from a process through two others to a fourth and back, one each 5 ms
 *   calls sleeps N        ns by which N sleeps of 10 ms are too long, 99th percentile
 *   calls idle PORT N     serves N connections, one with something to read; ns of an epoll_wait
 *   calls flock HOST PORT N   makes the N connections, and keeps them until the server is done
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, uint64_t)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP 1
#endif

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

/* ns of a getsockopt, of n; the first tenth is not counted. */
static double null_call(int fd, long n)
{
    int type;
    double began = 0;
    for (long i = -n / 10; i < n; i++) {
        socklen_t len = sizeof type;
        if (i == 0)
            began = now();
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
            fail("getsockopt");
    }
    return (now() - began) / n;
}

static void null(long n)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        fail("socket");
    printf("%.1f\n", null_call(fd, n));
}

static void file(const char *path, long n)
{
    static char block[64 << 10];
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0)
        fail(path);
    double began = now();
    for (long i = 0; i < n; i++) {
        /* Within the page cache: the disk is not what is measured. */
        if (i % 256 == 0)
            lseek(fd, 0, SEEK_SET);
        if (write(fd, block, sizeof block) != sizeof block)
            fail("write");
    }
    for (long i = 0; i < n; i++) {
        if (i % 256 == 0)
            lseek(fd, 0, SEEK_SET);
        if (read(fd, block, sizeof block) != sizeof block)
            fail("read");
    }
    printf("%.0f\n", 2.0 * n * sizeof block / (now() - began) * 1e9);
    unlink(path);
}

/* Installs a filter that notifies of getsockopt, read and write; its listener. */
static int install(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_getsockopt, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_read, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_write, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = { sizeof code / sizeof *code, code };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        fail("no_new_privs");
    int fd = syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
    if (fd < 0)
        fail("seccomp");
    return fd;
}

/* What getsockopt reads and writes: the length, then value and length. */
static void copy(const struct seccomp_notif *call)
{
    int value = 0;
    socklen_t len;
    void *val_at = (void *)call->data.args[3], *len_at = (void *)call->data.args[4];
    struct iovec local[2] = { { &len, sizeof len }, { &value, sizeof value } };
    struct iovec remote[2] = { { len_at, sizeof len }, { val_at, sizeof value } };
    if (process_vm_readv(call->pid, local, 1, remote, 1, 0) != sizeof len
        || process_vm_writev(call->pid, local, 2, remote, 2, 0) != sizeof len + sizeof value)
        fail("process_vm");
}

static void answer(int listener, int copies)
{
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, (unsigned long)SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
    for (;;) {
        struct seccomp_notif call;
        memset(&call, 0, sizeof call);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call))
            return;
        struct seccomp_notif_resp done = { .id = call.id };
        if (call.data.nr != __NR_getsockopt)
            done.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        else if (copies)
            copy(&call);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &done))
            return;
    }
}

/* On one CPU hand-overs are cheapest. */
static void stay(void)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    if (sched_setaffinity(0, sizeof one, &one))
        fail("sched_setaffinity");
}

enum { HOPS = 6 };

/* Who is woken by each hop: 0 is the sender, 1 and 2 are in between, 3 is the other end. */
static const int woken[HOPS] = { 1, 2, 3, 2, 1, 0 };

static int watch(const int *bells, int who)
{
    int epoll = epoll_create1(0);
    for (int hop = 0; hop < HOPS; hop++) {
        struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u32 = hop };
        if (woken[hop] == who && epoll_ctl(epoll, EPOLL_CTL_ADD, bells[hop], &event))
            fail("epoll_ctl");
    }
    return epoll;
}

static void ring(int bell)
{
    uint64_t one = 1;
    if (write(bell, &one, sizeof one) != sizeof one)
        fail("write");
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void hops(long n)
{
    int bells[HOPS], pids[4];
    struct epoll_event event;
    double *times = calloc(n, sizeof *times);
    stay();
    for (int hop = 0; hop < HOPS; hop++)
        if ((bells[hop] = eventfd(0, EFD_NONBLOCK)) < 0)
            fail("eventfd");
    for (int who = 1; who < 4; who++) {
        if ((pids[who] = fork()) < 0)
            fail("fork");
        if (pids[who] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            int epoll = watch(bells, who);
            for (;;)
                if (epoll_wait(epoll, &event, 1, -1) == 1)
                    ring(bells[event.data.u32 + 1]);
        }
    }
    int epoll = watch(bells, 0);
    for (long i = 0; i < n; i++) {
        usleep(5000);
        double began = now();
        ring(bells[0]);
        if (epoll_wait(epoll, &event, 1, -1) != 1)
            fail("epoll_wait");
        times[i] = now() - began;
    }
    for (int who = 1; who < 4; who++) {
        kill(pids[who], SIGKILL);
        waitpid(pids[who], NULL, 0);
    }
    qsort(times, n, sizeof *times, compare);
    printf("%.1f\n", times[n / 2]);
}

static void sleeps(long n)
{
    const struct timespec time = { .tv_nsec = 10000000 };
    double *times = calloc(n, sizeof *times);
    stay();
    if (prctl(PR_SET_TIMERSLACK, 1))
        fail("timer slack");
    for (long i = 0; i < n; i++) {
        double began = now();
        nanosleep(&time, NULL);
        times[i] = now() - began - time.tv_nsec;
    }
    qsort(times, n, sizeof *times, compare);
    printf("%.1f\n", times[n * 99 / 100]);
}

/* The caller's descriptors are this process's as well: the listener needs no passing but of its number. With `path`
 * the calls are those of `file`. */
static void bare(const char *path, long n, int copies)
{
    stay();
    volatile int *number = mmap(NULL, sizeof *number, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (number == MAP_FAILED)
        fail("mmap");
    int pid = syscall(__NR_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
    if (pid < 0)
        fail("clone");
    if (pid == 0) {
        *number = install();
        if (path)
            file(path, n);
        else
            printf("%.1f\n", null_call(0, n));
        fflush(stdout);
        _exit(0);
    }
    while (*number == 0)
        if (waitpid(pid, NULL, WNOHANG) != 0 || usleep(1000))
            fail("no listener");
    answer(*number, copies);
    waitpid(pid, NULL, 0);
}

static void many_files(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void idle(int port, int n)
{
    many_files();
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    struct sockaddr_in addr = { .sin_family = AF_INET, .sin_port = htons(port) };
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&addr, sizeof addr) || listen(listener, 4096))
        fail("listen");
    printf("ready\n");
    fflush(stdout);
    for (int i = 0; i < n; i++) {
        struct epoll_event event = { .events = EPOLLIN };
        event.data.fd = accept(listener, NULL, NULL);
        if (event.data.fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event))
            fail("accept");
    }
    struct epoll_event events[64];
    long calls = 20000;
    double began = 0;
    for (long i = -calls / 10; i < calls; i++) {
        if (i == 0)
            began = now();
        if (epoll_wait(epoll, events, 64, -1) != 1)
            fail("epoll_wait");
    }
    printf("%.1f\n", (now() - began) / calls);
}

static void flock_of(const char *host, int port, int n)
{
    many_files();
    struct sockaddr_in addr = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = inet_addr(host) };
    int first = -1;
    for (int i = 0; i < n; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof addr))
            fail("connect");
        if (first < 0)
            first = fd;
    }
    char c = 'x';
    if (write(first, &c, 1) != 1)
        fail("write");
    /* Until the server ends: it has closed with an octet unread, which is a reset. */
    while (read(first, &c, 1) > 0)
        ;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "null"))
        null(atol(argv[2]));
    else if (argc == 3 && !strcmp(argv[1], "bare"))
        bare(NULL, atol(argv[2]), 0);
    else if (argc == 3 && !strcmp(argv[1], "copies"))
        bare(NULL, atol(argv[2]), 1);
    else if (argc == 3 && !strcmp(argv[1], "hops"))
        hops(atol(argv[2]));
    else if (argc == 3 && !strcmp(argv[1], "sleeps"))
        sleeps(atol(argv[2]));
    else if (argc == 4 && !strcmp(argv[1], "passed"))
        bare(argv[2], atol(argv[3]), 0);
    else if (argc == 4 && !strcmp(argv[1], "file"))
        file(argv[2], atol(argv[3]));
    else if (argc == 4 && !strcmp(argv[1], "idle"))
        idle(atoi(argv[2]), atoi(argv[3]));
    else if (argc == 5 && !strcmp(argv[1], "flock"))
        flock_of(argv[2], atoi(argv[3]), atoi(argv[4]));
    else
        return 2;
    return 0;
}
