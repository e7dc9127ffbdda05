/*
 * Parity cases: scripts of system calls on two hosts, `a` (which drives) and `b` (which answers over a control
 * connection). Each step is one line of text; its result is one line of the log. The log must be the same on
 * real Linux and on emulated hosts, so it holds no time, process number or ephemeral port.
 */
#ifndef PARITY_H
#define PARITY_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A case: a script of lines, or code that calls step(). */
struct test_case {
    const char *name;
    const char *script;
    void (*code)(void);
};
struct family {
    const char *name;
    const struct test_case *cases;
};
extern const struct family conn_family, states_family, errno_family, fault_family, ready_family, epoll_family, mixed_family, udp_family,
    opts_family, flags_family, proc_family, ports_family, files_family, mask_family, splice_family,
    stop_family;

/* A connection from `c` on a to `s` on b, or both on a over loopback. */
#define LINK "b server l\na tcp c\na connect c B:P0\nb accept l s\n"
#define LOOP "a server l\na tcp c\na connect c lo:P0\na accept l s\n"

/* run.c: steps. */
enum { WORDS = 16, SLOTS = 128 };
struct words {
    char text[512];
    char *w[WORDS];
    int n;
};
void step(const char *line);            /* "a op …", "b op …", "a& op …" */
void stepf(const char *format, ...);
void script(const char *lines);
void fence(void);                       /* everything sent so far, and the answers to it, have arrived */
bool do_op(const char *line);           /* runs an operation here; false if it does not exist */
int random_main(int argc, char **argv); /* random.c */
void start_control(void);
void end_server(void);
void end_with_parent(void);
void in_child(void (*does)(void));      /* proc.c: forks, waits for the end */
extern bool on_link;                    /* false: this process alone, over loopback */
extern const char *addr_a, *addr_b;
extern int port_base;

/* background calls (bg.c) */
void bg_start(const char *line);
bool bg_op(const struct words *w);
void watch_signal(int signo, bool restart);
extern atomic_int signals_seen[65];

/* output of a step */
void out(const char *format, ...) __attribute__((format(printf, 1, 2)));
void out_ret(long ret);                 /* " -> 3" or " -> -1 EAGAIN"; keeps errno */
void out_data(const char *data, size_t len);

void bg_capture(char *to, size_t size); /* takes the thread's line so far */

/* names.c */
const char *errno_name(int number);
struct name {
    const char *name;
    int value;
};
int flags_of(const char *text, const struct name *names);
void out_flags(unsigned value, const struct name *names);
extern const struct name msg_names[], poll_names[], epoll_names[], signal_names[];
struct option_name {
    const char *name;
    int level, number;
};
const struct option_name *option_of(const char *text);

/* ops.c */
extern int slots[SLOTS];                /* by letter or digit */
int fd_of(const char *word);
struct endpoint {
    struct sockaddr_storage addr;
    socklen_t len;
};
struct endpoint endpoint_of(const char *text);
void out_addr(const void *addr, socklen_t len);
bool socket_op(const struct words *w);
bool data_op(const struct words *w);    /* data.c */
bool ready_op(const struct words *w);   /* readyops.c */
bool option_op(const struct words *w);  /* optops.c */
bool splice_op(const struct words *w);  /* splice.c */
bool is(const struct words *w, const char *op);
const char *word(const struct words *w, int i, const char *otherwise);
long number(const struct words *w, int i, long otherwise);

#endif
