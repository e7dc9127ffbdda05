/* Processes: fork, descriptors passed over AF_UNIX, threads, signals during calls. */
#include "parity.h"
#include <sys/resource.h>

void in_child(void (*does)(void))
{
    int status = 0;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        on_link = false; /* the control connection is the parent's */
        does();
        fflush(stdout);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    printf("a child ended %s %d\n", WIFSIGNALED(status) ? "by" : "with", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    fence();
}

static void child_reads(void) { script("a recv c\na send c answer\na name c\na peer c"); }
static void fork_shares_connection(void) { script(LINK "b send s hello"), in_child(child_reads), script("b recv s\na poll 0 c"); }
static void child_closes(void) { script("a close c"); }
static void fork_close_keeps_parents(void) { script(LINK), in_child(child_closes), script("b poll 0 s\na send c x\nb recv s\na close c\nb recv s"); }
static void child_shuts(void) { script("a shutdown c wr"); }
static void fork_shutdown_is_for_all(void) { script(LINK), in_child(child_shuts), script("b recv s\na send c x"); }
static void child_flags(void) { script("a nb c\na set c SO_KEEPALIVE"); }
static void fork_shares_flags(void) { script(LINK), in_child(child_flags), script("a fl c\na get c SO_KEEPALIVE\na recv c"); }
static void child_accepts(void) { script("a accept l s\na recv s\na send s served\na close s"); }
static void fork_child_accepts(void) { script("a server l\na tcp c\na connect c lo:P0\na send c x"), in_child(child_accepts), script("a recv c\na recv c\na poll 0 l"); }
static void child_waits(void) { script("a epwait e\na recv c\na epwait e\na del e c\na epwait e"); }
static void fork_shares_set(void) { script(LINK "a epoll e\na add e c in\nb send s x"), in_child(child_waits), script("b send s y\na epwait e\na add e c in\na epwait e"); }
static void child_adds(void) { script("a tcp d\na connect d lo:P1\na add e d out\na epwait e"); }
static void fork_child_adds_and_ends(void) { script(LINK "a server m P1\na epoll e\na add e c in"), in_child(child_adds), script("a epwait e\nb send s x\na epwait e"); }
static void child_killed(void) { script("a send c before"), raise(SIGKILL); }
static void fork_killed_child(void) { script(LINK), in_child(child_killed), script("b recv s\nb poll 0 s\na send c after\nb recv s"); }
static void child_ends(void) { script("a tcp d\na connect d B:P0\na send d bye"); }
static void exit_closes(void) { script("b server l"), in_child(child_ends), script("b accept l s\nb recv s\nb recv s\nb poll 0 s"); }
static void child_ends_unread(void) { script("a tcp d\na connect d lo:P0\na accept l s\na send s unread"); }
static void exit_with_unread_resets(void) { script("a server l"), in_child(child_ends_unread); }

static void child_takes(void) { script("a recvfd v x\na recv x\na send x answer\na get x SO_TYPE\na peer x"); }
static void passed_to_child(void) { script(LINK "a pair u v\na sendfd u c\na close c\nb send s hello"), in_child(child_takes), script("a close u\na close v\nb recv s\nb recv s"); }
static void child_gives(void) { script("a tcp d\na connect d lo:P0\na send d from_child\na sendfd v d"); }
static void passed_from_child(void) { script("a server l\na pair u v"), in_child(child_gives), script("a accept l s\na recvfd u x\na recv s\na send x more\na recv s\na close x\na recv s"); }
static void child_gives_listener(void) { script("a server l P1\na sendfd v l"); }
static void passed_listener(void) { script("a pair u v"), in_child(child_gives_listener), script("a recvfd u x\na tcp c\na connect c lo:P1\na accept x s\na get x SO_ACCEPTCONN"); }
static void child_gives_set(void) { script("a epoll e\na server l P1\na tcp c\na connect c lo:P1\na add e l in\na sendfd v e\na sendfd v l"); }
static void passed_set(void) { script("a pair u v"), in_child(child_gives_set), script("a recvfd u x\na recvfd u y\na epwait x\na accept y z\na epwait x"); }

/* A child leaves a set to a child of its own, which makes no call of the network before both are told to go on. */
static int gate[2];
static void grandchild_waits(const sigset_t *told)
{
    int signo;
    struct epoll_event e[8];
    alarm(10);
    sigwait(told, &signo);
    char found = (char)('0' + epoll_wait(slots['e'], e, 8, 3000));
    if (write(gate[1], &found, 1) == 1)
        _exit(0);
}
static void child_leaves_set(void)
{
    script("a epoll e\na server l P1\na add e l in");
    sigset_t told;
    sigemptyset(&told);
    sigaddset(&told, SIGUSR1);
    sigprocmask(SIG_BLOCK, &told, NULL);
    pid_t pid = fork();
    if (pid == 0)
        grandchild_waits(&told);
    if (write(gate[1], &pid, sizeof pid) != sizeof pid)
        _exit(1);
}
static void inherited_set(void)
{
    pid_t pid = 0;
    char found = '-';
    if (pipe(gate))
        return;
    in_child(child_leaves_set);
    if (read(gate[0], &pid, sizeof pid) != sizeof pid)
        return;
    script("a tcp c\na connect c lo:P1");
    kill(pid, SIGUSR1);
    if (read(gate[0], &found, 1) == 1)
        printf("a grandchild -> %c\n", found);
}

static void exec_keeps(void)
{
    script(LINK "a tcp d cloexec\na connect d B:P0\nb accept l t");
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(slots['c'], 1);
        execl("/bin/sh", "sh", "-c", "printf from_sh; exit 4", NULL);
        _exit(9);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    printf("a sh ended %d\n", WEXITSTATUS(status));
    fence();
    script("b recv s\nb poll 0 t\na close d\nb recv t");
}

static void many_threads(void)
{
    script(LINK "a tcp d\na connect d B:P0\nb accept l t\na& recv c\na& recv d\nb send t two\na join 2\na blocked 1\nb send s one\na join 1");
}

static void sigkill_in_call(void)
{
    script(LINK);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        recv(slots['c'], &byte, 1, 0);
        _exit(0);
    }
    char path[64], text[64];
    snprintf(path, sizeof path, "/proc/%d/syscall", pid);
    for (int i = 0; i < 5000; i++) {
        int fd = open(path, O_RDONLY);
        ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        close(fd);
        if (n > 0 && text[0] >= '0' && text[0] <= '9' && strtol(text, NULL, 10) == SYS_recvfrom)
            break;
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    kill(pid, SIGKILL);
    int status = 0;
    waitpid(pid, &status, 0);
    printf("a killed by %d\n", WTERMSIG(status));
    script("b send s x\na recv c\na send c y\nb recv s");
}

/* No number is left for a connection: whether one waits or not. */
static int lowest(void)
{
    int fd = dup(0);
    close(fd);
    return fd;
}
static void limit(int most) { setrlimit(RLIMIT_NOFILE, &(struct rlimit){(rlim_t)most, 1024}); }
static void accepts(const char *what, int fd, int flags)
{
    int got = accept4(fd, NULL, NULL, flags);
    printf("a accept %s: %s\n", what, got < 0 ? errno_name(errno) : "a connection");
    if (got >= 0)
        close(got);
}
static void child_at_limit(void)
{
    int first = lowest();
    limit(first);
    accepts("of none", slots['l'], 0);
    accepts("of none, asked for more", slots['l'], SOCK_NONBLOCK);
    accepts("with bad flags", slots['l'], 77);
    accepts("of a connection", slots['c'], 0);
    accepts("of a datagram socket", slots['u'], 0);
    limit(1024);
    script("a tcp d\na connect d lo:P0\na await l in");
    first = lowest();
    limit(first);
    accepts("of one", slots['l'], 0);
    limit(first + 1);
    accepts("with one number", slots['l'], 0);
    script("a nb l");
    accepts("of none, at once", slots['l'], 0);
    /* As many are open as may be, but some of them beyond that. */
    for (int fd = 200; fd < 240; fd++)
        dup2(0, fd);
    accepts("with numbers beyond the limit", slots['l'], 0);
    limit(1024);
    script("a tcp e\na connect e lo:P0\na await l in");
    limit(lowest() + 1);
    accepts("of one with numbers beyond the limit", slots['l'], 0);
    limit(1024);
}
static void accept_at_the_limit(void) { script(LOOP "a udp u"), in_child(child_at_limit), script("a send c x\na recv s"); }

static const struct test_case cases[] = {
    {"fork_shares_connection", NULL, fork_shares_connection}, {"fork_close_keeps_parents", NULL, fork_close_keeps_parents},
    {"fork_shutdown_is_for_all", NULL, fork_shutdown_is_for_all}, {"fork_shares_flags", NULL, fork_shares_flags},
    {"fork_child_accepts", NULL, fork_child_accepts}, {"fork_shares_set", NULL, fork_shares_set},
    {"fork_child_adds_and_ends", NULL, fork_child_adds_and_ends}, {"fork_killed_child", NULL, fork_killed_child},
    {"exit_closes", NULL, exit_closes}, {"exit_with_unread_resets", NULL, exit_with_unread_resets},
    {"passed_to_child", NULL, passed_to_child}, {"passed_from_child", NULL, passed_from_child}, {"passed_listener", NULL, passed_listener},
    {"passed_set", NULL, passed_set}, {"inherited_set", NULL, inherited_set}, {"exec_keeps", NULL, exec_keeps}, {"many_threads", NULL, many_threads},
    {"sigkill_in_call", NULL, sigkill_in_call}, {"accept_at_the_limit", NULL, accept_at_the_limit},
    {"passed_to_itself", LINK "a pair u v\na sendfd u c\na recvfd v x\nb send s hello\na recv x\na close c\na send x y\nb recv s\na close x\nb recv s", NULL},
    {"passed_and_dropped", LINK "a pair u v\na sendfd u c\na close c\nb poll 0 s\na close v\nb await s in\nb recv s", NULL},
    {"passed_stays_in_set", LINK "a pair u v\na epoll e\na add e c in\na sendfd u c\na recvfd v x\na close c\nb send s y\na epwait e\na close x\na epwait e", NULL},
    {"set_in_flight", LINK "a pair u v\na epoll e\na add e c in\na sendfd u e\na close e\na tcp d\na epoll f\na close f\na tcp g\nb send s y\na recvfd v x\na epwait x\na recv c\na epwait x\na del x c\na sendfd u x\na sendfd u u\na close x\na epoll h\na close h\na recvfd v x\na add x c in\nb send s z\na epwait x", NULL},
    {"interrupted_recv", LINK "a sig usr1\na& recv c\na kill 1\na join\nb send s x\na recv c", NULL},
    {"restarted_recv", LINK "a sigr usr1\na& recv c\na kill 1\na blocked\nb send s x\na join\na sigs", NULL},
    {"restarted_many_times", LINK "a sigr usr1\na& recv c\na kill 1\na kill 1\na kill 1\na blocked\nb send s x\na join\na sigs", NULL},
    {"timeout_is_not_restarted", LINK "a sigr usr1\na set c SO_RCVTIMEO 3000\na& recv c\na kill 1\na join", NULL},
    {"interrupted_accept", "a server l\na sig usr1\na& accept l s\na kill 1\na join\na sigr usr1\na& accept l s\na kill 2\na tcp c\na connect c lo:P0\na join", NULL},
    {"interrupted_connect", "a sig usr1\na tcp c\na& connect c nobody:P0\na kill 1\na join\na nb c\na connect c nobody:P0", NULL},
    {"interrupted_send", LINK "a fill c\na sig usr1\na& send c #10\na kill 1\na join", NULL},
    {"interrupted_udp", "a udp u\na bind u A:P0\na sig usr1\na& recvfrom u\na kill 1\na join\na sigr usr1\na& recvfrom u\na kill 2\na sendto u x A:P0\na join", NULL},
    {"interrupted_select", LINK "a sigr usr1\na& select 3000 r:c\na kill 1\na join", NULL},
    {"interrupted_recvmsg_timeout", LINK "a sig usr1\na set c SO_RCVTIMEO 3000\na& recvmsg c\na kill 1\na join", NULL},
    {"data_beats_signal", LINK "a sig usr1\na& recv c\nb send s x\na join\na sigs", NULL},
    {"sigpipe_kinds", LINK "a sig pipe\na shutdown c wr\na write c x\na sigs\na send c x 0\na sigs\na send c x nosignal\na sigs\na sendmmsg c x\na sigs\na udp u\na shutdown u wr\na connect u lo:P0\na shutdown u wr\na write u x\na sigs", NULL},
    {0}};
const struct family proc_family = {"proc", cases};
