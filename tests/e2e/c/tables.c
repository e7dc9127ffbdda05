/* Descriptors that change behind the supervisor's back: a process that shares its table, a thread that does not, calls of
 * i386. Each time a socket's number becomes a pipe's, and what is read there must be the pipe's.
 *
 *   tables shared|split|i386
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int sock, from[2];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* A modelled socket that the supervisor knows. */
static void make(void)
{
    int one = 1;
    sock = socket(AF_INET, SOCK_STREAM, 0);
    if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one) || pipe(from))
        fail("make");
    if (write(from[1], "pipe", 4) != 4)
        fail("write");
}

static void show(const char *who, int fd)
{
    char buf[8] = "";
    int type = 0;
    socklen_t len = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0)
        printf("%s: socket\n", who);
    else
        printf("%s: %zd %s\n", who, read(fd, buf, 4), buf);
    fflush(stdout);
}

/* Shares descriptors and nothing else. */
static void shared(void)
{
    make();
    int pid = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
    if (pid < 0)
        fail("clone");
    if (pid == 0)
        _exit(dup2(from[0], sock) != sock);
    int status;
    if (waitpid(pid, &status, 0) != pid || status != 0)
        fail("child");
    show("parent", sock);
}

static void *apart(void *unused)
{
    (void)unused;
    if (unshare(CLONE_FILES) || dup2(from[0], sock) != sock)
        fail("unshare");
    show("thread", sock);
    return NULL;
}

static void split(void)
{
    make();
    pthread_t thread;
    if (pthread_create(&thread, NULL, apart, NULL) || pthread_join(thread, NULL))
        fail("thread");
    show("main", sock);
}

static long i386(long nr, long a, long b)
{
    long ret;
    __asm__ volatile("int $0x80" : "=a"(ret) : "a"(nr), "b"(a), "c"(b) : "memory", "r8", "r9", "r10", "r11");
    return ret;
}

static void other(void)
{
    make();
    printf("close %ld\n", i386(6, sock, 0));
    int next = dup(from[0]);
    printf("same number %d\n", next == sock);
    show("dup", next);
    make();
    printf("dup2 %d\n", i386(63, from[0], sock) == sock);
    show("dup2", sock);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    if (!strcmp(argv[1], "shared"))
        shared();
    else if (!strcmp(argv[1], "split"))
        split();
    else if (!strcmp(argv[1], "i386"))
        other();
    else
        return 2;
    return 0;
}
