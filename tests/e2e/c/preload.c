/* What the object in front of the C library must not change, and what it must save. Prints the same on the machine and on an emulated
 * host.
 *
 *   preload files|sets|waits|pointers|numbers|forks|cancel|sandbox|hostile|full
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MANY = 2000, PAGE = 4096 };

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void say(const char *what, long result)
{
    printf("%s %ld%s%s\n", what, result, result < 0 ? " " : "", result < 0 ? strerrorname_np(errno) : "");
}

/* Calls enough that the process is worth a window. */
static void warm_up(void)
{
    int value;
    socklen_t len = sizeof value;
    for (int i = 0; i < 64; i++)
        getsockopt(-1, SOL_SOCKET, SO_TYPE, &value, &len);
}

/* How often this process has waited so far: each trapped call is a wait. */
static long waits(void)
{
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage))
        fail("getrusage");
    return usage.ru_nvcsw;
}

static void few(const char *what, long since)
{
    long n = waits() - since;
    if (n < MANY / 4)
        printf("%s: few waits\n", what);
    else
        printf("%s: %ld waits\n", what, n);
}

/* A connection over loopback. */
static void connected(int pair[2])
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof to;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&to, len) || listen(listener, 1) || getsockname(listener, (struct sockaddr *)&to, &len))
        fail("listen");
    pair[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(pair[0], (struct sockaddr *)&to, len))
        fail("connect");
    pair[1] = accept(listener, NULL, NULL);
    if (pair[1] < 0)
        fail("accept");
    close(listener);
}

static int scratch(void)
{
    char path[] = "/tmp/preload-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0)
        fail("mkstemp");
    unlink(path);
    return fd;
}

static void files(void)
{
    char block[512], got[512];
    int fd = scratch(), pipes[2];
    long sum = 0, since = waits();
    for (int i = 0; i < MANY; i++) {
        memset(block, i, sizeof block);
        sum += write(fd, block, sizeof block);
    }
    lseek(fd, 0, SEEK_SET);
    for (int i = 0; i < MANY; i++) {
        sum += read(fd, got, sizeof got);
        sum += got[0] == (char)i;
    }
    say("end", read(fd, got, sizeof got));
    few("files", since);
    if (pipe(pipes))
        fail("pipe");
    since = waits();
    for (int i = 0; i < MANY; i++)
        sum += write(pipes[1], block, 8) + read(pipes[0], got, 8);
    few("pipe", since);
    since = waits();
    for (int i = 0; i < MANY / 8; i++) {
        int copy = dup(fd);
        read(copy, got, 1);
        if (close(copy) || close(copy) != -1 || errno != EBADF)
            fail("close");
    }
    say("closed twice", close(pipes[0]) + close(pipes[0]));
    close(pipes[1]);
    say("sum", sum);
    say("read", read(pipes[1], got, 1));
}

static void change(const char *what, int set, int op, int fd, uint32_t events)
{
    struct epoll_event e = { .events = events, .data.fd = fd };
    say(what, epoll_ctl(set, op, fd, &e));
}

static void look(const char *what, int set)
{
    struct epoll_event events[4];
    int n = epoll_wait(set, events, 4, 0);
    printf("%s %d", what, n);
    for (int i = 0; i < n; i++)
        printf(" %x:%s", events[i].events, events[i].data.fd > 2 ? "fd" : "?");
    puts("");
}

static void sets(void)
{
    int pair[2], set = epoll_create1(0), outer = epoll_create1(0);
    connected(pair);
    struct epoll_event e = { .events = EPOLLIN, .data.fd = pair[0] };
    change("add", set, EPOLL_CTL_ADD, pair[0], EPOLLIN);
    long since = waits();
    for (int i = 0; i < MANY; i++) {
        e.events = i % 2 ? EPOLLIN : EPOLLIN | EPOLLOUT;
        if (epoll_ctl(set, EPOLL_CTL_MOD, pair[0], &e))
            fail("epoll_ctl");
    }
    for (int i = 0; i < MANY; i++)
        if (epoll_ctl(set, i % 2 ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, pair[0], &e))
            fail("epoll_ctl");
    few("changes", since);
    look("nothing to read", set);
    change("both", set, EPOLL_CTL_MOD, pair[0], EPOLLIN | EPOLLOUT);
    look("room", set);
    change("twice", set, EPOLL_CTL_ADD, pair[0], EPOLLIN);
    change("del", set, EPOLL_CTL_DEL, pair[0], 0);
    change("del again", set, EPOLL_CTL_DEL, pair[0], 0);
    change("mod of none", set, EPOLL_CTL_MOD, pair[0], EPOLLIN);
    look("empty", set);
    change("add exclusive", set, EPOLL_CTL_ADD, pair[0], EPOLLIN | EPOLLEXCLUSIVE);
    change("mod exclusive", set, EPOLL_CTL_MOD, pair[0], EPOLLIN);
    change("del exclusive", set, EPOLL_CTL_DEL, pair[0], 0);
    change("add once", set, EPOLL_CTL_ADD, pair[0], EPOLLOUT | EPOLLONESHOT);
    look("once", set);
    look("not again", set);
    change("arm", set, EPOLL_CTL_MOD, pair[0], EPOLLOUT | EPOLLONESHOT);
    look("armed", set);
    change("edge", set, EPOLL_CTL_MOD, pair[0], EPOLLOUT | EPOLLET);
    look("edge", set);
    look("no edge", set);
    change("edge", set, EPOLL_CTL_MOD, pair[0], EPOLLOUT | EPOLLET);
    look("new edge", set);
    /* A set in a set, and one that is polled. */
    change("level", set, EPOLL_CTL_MOD, pair[0], EPOLLIN);
    change("nest", outer, EPOLL_CTL_ADD, set, EPOLLIN);
    look("outer quiet", outer);
    change("ready", set, EPOLL_CTL_MOD, pair[0], EPOLLOUT);
    look("outer", outer);
    struct pollfd p = { .fd = set, .events = POLLIN };
    change("unready", set, EPOLL_CTL_MOD, pair[0], EPOLLIN);
    say("poll", poll(&p, 1, 0));
    change("ready", set, EPOLL_CTL_MOD, pair[0], EPOLLOUT);
    say("poll", poll(&p, 1, 0));
    /* The number stands for another connection, or for another set. */
    int other[2];
    connected(other);
    change("twice", set, EPOLL_CTL_ADD, pair[0], EPOLLIN);
    dup2(other[0], pair[0]);
    change("other", set, EPOLL_CTL_ADD, pair[0], EPOLLIN);
    change("gone", set, EPOLL_CTL_DEL, pair[1], 0);
    close(set);
    change("closed", set, EPOLL_CTL_ADD, pair[1], EPOLLIN);
    int fresh = epoll_create1(0);
    change("fresh", fresh, EPOLL_CTL_ADD, pair[1], EPOLLIN);
    change("fresh", fresh, EPOLL_CTL_DEL, pair[1], 0);
    change("itself", fresh, EPOLL_CTL_ADD, fresh, EPOLLIN);
    change("none", fresh, EPOLL_CTL_ADD, 999, EPOLLIN);
    say("null", epoll_ctl(fresh, EPOLL_CTL_ADD, pair[1], NULL));
}

static int waited, pair_of[2];

static void *waiter(void *arg)
{
    struct epoll_event e;
    (void)arg;
    return (void *)(long)epoll_wait(waited, &e, 1, 20000);
}

static bool sleeps(pid_t pid, pid_t tid)
{
    char path[64], text[4096] = "";
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
    int fd = syscall(SYS_open, path, O_RDONLY);
    if (fd < 0)
        return false;
    long n = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    char *end = n > 0 ? strrchr(text, ')') : NULL;
    return end && end[2] == 'S';
}

/* Waits until all other threads of a process sleep, again and again. */
static void until_asleep(pid_t pid)
{
    for (int calm = 0; calm < 20; usleep(5000)) {
        calm++;
        for (pid_t tid = pid; tid < pid + 3; tid++) {
            char path[64];
            snprintf(path, sizeof path, "/proc/%d/task/%d", pid, tid);
            if (tid != gettid() && access(path, F_OK) == 0 && !sleeps(pid, tid))
                calm = 0;
        }
    }
}

static void wait_sets(void)
{
    struct epoll_event e = { .events = 0 };
    connected(pair_of);
    for (int round = 0; round < 3; round++) {
        waited = epoll_create1(0);
        epoll_ctl(waited, EPOLL_CTL_ADD, pair_of[0], &e);
        for (int i = 0; i < 3; i++)
            epoll_ctl(waited, EPOLL_CTL_MOD, pair_of[0], &e);
        /* A thread that waits already is told of a change; so is a child that has the set, too. */
        pthread_t thread;
        pid_t child = 0;
        void *woken = NULL;
        int status;
        if (round == 1) {
            fflush(stdout);
            child = fork();
            if (child == 0) {
                warm_up();
                _exit(epoll_wait(waited, &e, 1, 20000));
            }
            until_asleep(child);
        } else {
            if (pthread_create(&thread, NULL, waiter, NULL))
                fail("pthread_create");
            until_asleep(getpid());
        }
        e.events = EPOLLOUT;
        say("change", epoll_ctl(waited, EPOLL_CTL_MOD, pair_of[0], &e));
        if (child) {
            waitpid(child, &status, 0);
            say("child", WEXITSTATUS(status));
        } else {
            pthread_join(thread, &woken);
            say("woken", (long)woken);
        }
        e.events = 0;
        close(waited);
    }
}

/* Addresses at which a call fails, or does only a part. */
static void pointers(void)
{
    int pair[2], file = scratch(), set = epoll_create1(0);
    connected(pair);
    char *map = mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(map + PAGE, PAGE);
    mprotect(map + 3 * PAGE, PAGE, PROT_NONE);
    mprotect(map + 5 * PAGE, PAGE, PROT_READ);
    struct { const char *name; char *at; } places[] = {
        { "null", NULL }, { "one", (char *)1 }, { "hole", map + PAGE }, { "before a hole", map + PAGE - 8 }, { "no access", map + 3 * PAGE },
        { "before no access", map + 3 * PAGE - 8 }, { "read only", map + 5 * PAGE }, { "before read only", map + 5 * PAGE - 8 },
        { "kernel", (char *)0xffff800000000000 }, { "end", (char *)-8 }, { "fine", map + 2 * PAGE },
    };
    char drain[4096];
    memset(drain, 'd', sizeof drain);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char *at = places[i].at;
        struct iovec parts[2] = { { drain, 4 }, { at, 32 } };
        int value = 1;
        socklen_t len = sizeof value;
        printf("- %s\n", places[i].name);
        say("write", write(pair[0], at, 32));
        say("send", send(pair[0], at, 32, 0));
        say("writev", writev(pair[0], parts, 2));
        say("writev of it", writev(pair[0], (struct iovec *)at, 1));
        while (recv(pair[1], drain, sizeof drain, MSG_DONTWAIT) > 0)
            ;
        send(pair[0], "0123456789abcdefghijklmnopqrstuv", 32, 0);
        say("peek", recv(pair[1], at, 32, MSG_PEEK));
        say("recv", recv(pair[1], at, 32, MSG_DONTWAIT));
        while (recv(pair[1], drain, sizeof drain, MSG_DONTWAIT) > 0)
            ;
        send(pair[0], "x", 1, 0);
        say("read", read(pair[1], at, 32));
        while (recv(pair[1], drain, sizeof drain, MSG_DONTWAIT) > 0)
            ;
        say("getsockopt", getsockopt(pair[0], SOL_SOCKET, SO_TYPE, at, &len));
        say("its length", getsockopt(pair[0], SOL_SOCKET, SO_TYPE, &value, (socklen_t *)at));
        say("setsockopt", setsockopt(pair[0], SOL_SOCKET, SO_KEEPALIVE, at, sizeof value));
        say("fionread", ioctl(pair[0], FIONREAD, at));
        say("poll", poll((struct pollfd *)at, 2, 0));
        say("add", epoll_ctl(set, EPOLL_CTL_ADD, pair[0], (struct epoll_event *)at));
        epoll_ctl(set, EPOLL_CTL_DEL, pair[0], NULL);
        epoll_ctl(set, EPOLL_CTL_ADD, pair[0], &(struct epoll_event){ .events = EPOLLOUT });
        say("wait", epoll_wait(set, (struct epoll_event *)at, 2, 0));
        epoll_ctl(set, EPOLL_CTL_DEL, pair[0], NULL);
        lseek(file, 0, SEEK_SET);
        say("to a file", write(file, at, 32));
        lseek(file, 0, SEEK_SET);
        say("from a file", read(file, at, 32));
    }
    /* Of a stream this writes nothing. */
    strcpy(drain, "before");
    send(pair[0], "after!", 6, 0);
    say("truncated", recv(pair[1], drain, 6, MSG_TRUNC));
    puts(drain);
    char option[64];
    memset(option, 'o', sizeof option);
    socklen_t room = 2;
    setsockopt(pair[0], IPPROTO_TCP, 13 /* TCP_CONGESTION */, "reno", 4);
    say("short option", getsockopt(pair[0], IPPROTO_TCP, 13 /* TCP_CONGESTION */, option, &room));
    printf("%.*s %u\n", 6, option, room);
    room = -1;
    say("negative", getsockopt(pair[0], SOL_SOCKET, SO_TYPE, option, &room));
}

/* Numbers that stand for something else now. */
static void numbers(void)
{
    char got[16] = "";
    int pair[2], file = scratch();
    connected(pair);
    write(file, "from the file...", 16);
    for (int i = 0; i < 100; i++)
        pread(file, got, 4, 0), lseek(file, 0, SEEK_SET), read(file, got, 4);
    write(pair[0], "by dup2, by dup", 15);
    int spare = dup(file);
    read(spare, got, 4);
    dup2(pair[1], file);
    say("dup2", read(file, got, 8));
    printf("%.8s\n", got);
    read(spare, got, 4);
    close(spare);
    int again = dup(pair[1]);
    printf("same number %d\n", again == spare);
    say("dup", read(again, got, 7));
    printf("%.7s\n", got);
    say("write", write(again, "back", 4));
    say("at its peer", read(pair[0], got, 16));
    close(again);
    again = fcntl(pair[1], F_DUPFD, spare);
    write(pair[0], "f", 1);
    say("fcntl", read(again, got, 1));
    close_range(again, again, 0);
    int opened = open("/dev/zero", O_RDONLY);
    printf("same number %d\n", again == opened);
    say("zero", read(opened, got, 16));
    printf("%d\n", got[3]);
    close(opened);
    say("closed", read(opened, got, 16));
}

static void forks(void)
{
    char got[64];
    int pair[2], file = scratch();
    connected(pair);
    for (int i = 0; i < 100; i++)
        write(file, "x", 1);
    for (int generation = 0; generation < 3; generation++) {
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            /* Numbers of the parent's files are the child's sockets. */
            dup2(pair[0], file);
            for (int i = 0; i < 100; i++)
                if (write(file, "y", 1) != 1)
                    _exit(1);
            _exit(0);
        }
        int status;
        waitpid(pid, &status, 0);
        say("child", status);
        say("got", recv(pair[1], got, sizeof got, MSG_WAITALL));
        say("more", recv(pair[1], got, 36, MSG_WAITALL));
        say("file", write(file, "x", 1));
    }
    fflush(stdout);
    pid_t pid = vfork();
    if (pid == 0) {
        dup2(pair[0], file);
        write(file, "from a child of vfork", 21);
        execl("/bin/echo", "echo", "executed", NULL);
        _exit(1);
    }
    waitpid(pid, NULL, 0);
    say("got", recv(pair[1], got, 21, MSG_WAITALL));
    printf("%.21s\n", got);
    say("file", lseek(file, 0, SEEK_END));
}

static void *reader(void *arg)
{
    char got[8];
    int *fd = arg;
    read(*fd, got, sizeof got);
    return NULL;
}

static void cancel(void)
{
    int pair[2], pipes[2];
    connected(pair);
    if (pipe(pipes))
        fail("pipe");
    for (int i = 0; i < 40; i++) {
        pthread_t thread;
        void *end;
        pthread_create(&thread, NULL, reader, i % 2 ? &pair[0] : &pipes[0]);
        usleep(1000);
        pthread_cancel(thread);
        pthread_join(thread, &end);
        if (end != PTHREAD_CANCELED)
            puts("not cancelled");
    }
    char got[8];
    write(pair[1], "after", 5);
    say("read", read(pair[0], got, sizeof got));
}

/* Calls that the program does not make end it. */
static void sandbox(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_newfstatat, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = { sizeof code / sizeof *code, code };
    char got[4];
    int pair[2], file = scratch();
    connected(pair);
    setvbuf(stdout, malloc(PAGE), _IOFBF, PAGE);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
        fail("seccomp");
    for (int i = 0; i < 100; i++)
        if (write(pair[0], "ping", 4) != 4 || read(pair[1], got, 4) != 4 || write(file, got, 4) != 4)
            fail("after the filter");
    say("alive", write(file, got, 4));
    fflush(stdout);
    syscall(SYS_exit_group, 0);
}

/* A program that fills what it shares with the supervisor with nonsense, and jumps to where calls are not trapped. */
static void hostile(void)
{
    char line[256], got[64];
    uint32_t *window = NULL, seed = 1;
    int pair[2], set = epoll_create1(0);
    bool native = false;
    /* What a placeholder answers. */
    signal(SIGPIPE, SIG_IGN);
    connected(pair);
    struct epoll_event e = { .events = EPOLLIN };
    epoll_ctl(set, EPOLL_CTL_ADD, pair[0], &e);
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        if (strstr(line, "ringlab-window") && strstr(line, "rw-s"))
            window = (uint32_t *)strtoul(line, NULL, 16);
        native |= !strncmp(line, "7e9000000000", 12);
    }
    for (int i = 0; i < 20000; i++) {
        /* The words, the ring and the tables are in the first 13 pages. */
        for (int n = 0; window && n < 8; n++) {
            seed = seed * 1103515245 + 12345;
            window[1024 + (seed >> 8) % (12 * 1024)] = seed >> 4 & 1 ? seed : seed % 16;
        }
        int fd = i % 7 == 0 ? pair[0] : 3 + i % 16;
        epoll_ctl(set, 1 + i % 3, fd, &e);
        epoll_wait(set, &e, 1, 0);
        send(pair[1], "x", 1, MSG_DONTWAIT);
        recv(pair[0], got, sizeof got, MSG_DONTWAIT);
        if (native) {
            long nr[] = { SYS_read, SYS_write, SYS_close }, out, at = 0x7e9000000000;
            int to = i % 3 == 2 ? 20 + i % 8 : pair[i % 2];
            __asm__ volatile("call *%[at]" : "=a"(out) : [at] "r"(at), "a"(nr[i % 3]), "D"((long)to), "S"(got), "d"(0L) : "rcx", "r11", "memory");
        }
    }
    puts("alive");
    fflush(stdout);
}

/* There is no number for a descriptor when the process gets its window. */
static void full(void)
{
    char got[8];
    int pair[2], last = 0;
    connected(pair);
    for (int fd; (fd = dup(0)) >= 0;)
        last = fd;
    warm_up();
    say("dup", dup(0));
    close(last);
    say("one again", dup(0) == last);
    for (int i = 0; i < 100; i++)
        if (write(pair[0], "ping", 4) != 4 || read(pair[1], got, 4) != 4)
            fail("in a full table");
    puts("works");
}

int main(int argc, char **argv)
{
    struct { const char *name; void (*run)(void); } cases[] = {
        { "files", files }, { "sets", sets }, { "waits", wait_sets }, { "pointers", pointers },
        { "numbers", numbers }, { "forks", forks }, { "cancel", cancel }, { "sandbox", sandbox }, { "hostile", hostile }, { "full", full },
    };
    /* With "cold" the filter is there before the process is worth a window. */
    if (argc < 3)
        warm_up();
    for (size_t i = 0; argc > 1 && i < sizeof cases / sizeof *cases; i++)
        if (!strcmp(argv[1], cases[i].name)) {
            cases[i].run();
            return 0;
        }
    return 2;
}
