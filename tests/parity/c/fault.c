/* Wild pointers: EFAULT where Linux says so, and nothing lost where it does not take anything. */
#include "parity.h"

enum { PAGE = 4096 };
static char *hole;      /* a page, then one that cannot be touched */
static char *read_only;

static void *wild(int kind)
{
    switch (kind) {
    case 0: return NULL;
    case 1: return (void *)8;
    case 2: return hole + PAGE;
    case 3: return (void *)0xffff800000000000ul;
    default: return (void *)0x7ffffffffff0ul;
    }
}
static const char *const kinds[] = {"null", "low", "unmapped", "kernel", "top"};
enum { KINDS = 5 };

static void prepare(void)
{
    hole = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(hole + PAGE, PAGE, PROT_NONE);
    read_only = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void said(const char *what, const char *kind, long ret)
{
    int number = errno;
    printf("a %s %s -> %ld%s%s\n", what, kind, ret < 0 ? -1 : ret, ret < 0 ? " " : "", ret < 0 ? errno_name(number) : "");
}
#define EACH for (int k = 0; k < KINDS; k++)
#define TRY(what, call) EACH { void *p = wild(k); said(what, kinds[k], (call)); }

static void addresses(void)
{
    prepare();
    script("a server l\na tcp c\na udp u\na tcp d\na connect d lo:P0");
    int c = slots['c'], u = slots['u'], d = slots['d'];
    TRY("bind", bind(c, p, 16))
    TRY("bind/0", bind(c, p, 0))
    TRY("connect", connect(c, p, 16))
    TRY("udp connect", connect(u, p, 16))
    TRY("sendto name", sendto(u, "x", 1, 0, p, 16))
    TRY("sendto name/0", sendto(u, "x", 1, 0, p, 0))
    TRY("getsockname name", ({ socklen_t n = 16; getsockname(c, p, &n); }))
    TRY("getsockname length", ({ struct sockaddr_in s; getsockname(c, (void *)&s, p); }))
    TRY("getsockname room 0", ({ socklen_t n = 0; getsockname(c, p, &n); }))
    TRY("getpeername name", ({ socklen_t n = 16; getpeername(d, p, &n); }))
    TRY("getpeername unconnected", ({ socklen_t n = 16; getpeername(c, p, &n); }))
    said("bind crossing", "hole", bind(c, (void *)(hole + PAGE - 8), 16));
    said("bind huge", "hole", bind(c, (void *)hole, 1 << 20));
}

static void accepts(void)
{
    prepare();
    script("a server l\na nb l");
    TRY("accept empty", accept(slots['l'], p, p))
    for (int i = 0; i < 4; i++)
        script("a tcp c\na connect c lo:P0");
    said("accept name", "unmapped", accept(slots['l'], wild(2), &(socklen_t){16}));
    said("accept length", "unmapped", accept(slots['l'], (void *)&(struct sockaddr_in){0}, wild(2)));
    said("accept negative", "length", accept(slots['l'], (void *)&(struct sockaddr_in){0}, &(socklen_t){-1}));
    said("accept nothing asked", "null", accept(slots['l'], NULL, NULL) >= 0 ? 0 : -1);
    said("accept none left", "null", accept(slots['l'], NULL, NULL) >= 0 ? 0 : -1);
}

static void buffers(void)
{
    prepare();
    script(LOOP "a udp u\na bind u lo:P1\na connect u lo:P1");
    int c = slots['c'], s = slots['s'], u = slots['u'];
    TRY("send", send(c, p, 10, 0))
    TRY("send 0", send(c, p, 0, 0))
    TRY("udp send", send(u, p, 10, 0))
    TRY("write", write(c, p, 10))
    TRY("recv empty", recv(s, p, 10, MSG_DONTWAIT))
    script("a recv s 10 dontwait\na send c abcdef");
    TRY("recv", recv(s, p, 10, 0))
    TRY("recv 0", recv(s, p, 0, MSG_DONTWAIT))
    TRY("read", read(s, p, 10))
    said("recv", "read-only", recv(s, read_only, 10, 0));
    script("a recv s 10 dontwait\na send c abcdef");
    said("recv crossing", "hole", recv(s, hole + PAGE - 3, 6, 0));
    script("a recv s 10 dontwait");
    memset(hole, 'h', PAGE);
    said("send crossing", "hole", send(c, hole + PAGE - 3, 6, 0));
    script("a recv s 10 dontwait");
    said("udp send crossing", "hole", send(u, hole + PAGE - 3, 6, 0));
    script("a recv u 10 dontwait\na send u abcdef");
    said("udp recv", "unmapped", recv(u, wild(2), 10, MSG_DONTWAIT));
    script("a recv u 10 dontwait\na send u abcdef");
    said("udp recv crossing", "hole", recv(u, hole + PAGE - 3, 6, MSG_DONTWAIT));
    script("a recv u 10 dontwait");
}

static void vectors(void)
{
    prepare();
    script(LOOP);
    int c = slots['c'], s = slots['s'];
    TRY("writev", writev(c, p, 1))
    TRY("writev 0", writev(c, p, 0))
    TRY("sendmsg", sendmsg(c, p, 0))
    TRY("recvmsg", recvmsg(s, p, MSG_DONTWAIT))
    TRY("sendmsg iov", ({ struct msghdr m = {.msg_iov = p, .msg_iovlen = 1}; sendmsg(c, &m, 0); }))
    TRY("sendmsg control", ({ struct msghdr m = {.msg_control = p, .msg_controllen = 20}; sendmsg(c, &m, 0); }))
    TRY("sendmmsg", sendmmsg(c, p, 1, 0))
    TRY("recvmmsg", recvmmsg(s, p, 1, MSG_DONTWAIT, NULL))
    TRY("writev base", ({ struct iovec v[2] = {{"ab", 2}, {p, 2}}; writev(c, v, 2); }))
    script("a recv s 20 dontwait\na send c abcd");
    TRY("readv base", ({ char b[2]; struct iovec v[2] = {{b, 2}, {p, 2}}; readv(s, v, 2); }))
    script("a recv s 20 dontwait");
    said("writev count", "negative", syscall(SYS_writev, c, &(struct iovec){"a", 1}, -1));
    said("writev count", "1025", syscall(SYS_writev, c, &(struct iovec){"a", 1}, 1025));
    said("writev length", "negative", writev(c, &(struct iovec){"a", (size_t)-1}, 1));
    said("sendmsg name length", "negative", sendmsg(c, &(struct msghdr){.msg_name = hole, .msg_namelen = -1}, 0));
    said("sendmsg iov count", "1025", sendmsg(c, &(struct msghdr){.msg_iov = (void *)hole, .msg_iovlen = 1025}, 0));
}

static void options(void)
{
    prepare();
    script("a tcp c");
    int c = slots['c'];
    TRY("setsockopt", setsockopt(c, SOL_SOCKET, SO_KEEPALIVE, p, 4))
    TRY("setsockopt linger", setsockopt(c, SOL_SOCKET, SO_LINGER, p, 8))
    TRY("setsockopt timeout", setsockopt(c, SOL_SOCKET, SO_RCVTIMEO, p, 16))
    TRY("setsockopt tcp", setsockopt(c, IPPROTO_TCP, TCP_NODELAY, p, 4))
    TRY("setsockopt congestion", setsockopt(c, IPPROTO_TCP, TCP_CONGESTION, p, 4))
    TRY("setsockopt ip", setsockopt(c, IPPROTO_IP, IP_TTL, p, 4))
    TRY("setsockopt unknown", setsockopt(c, SOL_SOCKET, 9999, p, 4))
    TRY("getsockopt", ({ socklen_t n = 4; getsockopt(c, SOL_SOCKET, SO_TYPE, p, &n); }))
    TRY("getsockopt length", ({ int v; getsockopt(c, SOL_SOCKET, SO_TYPE, &v, p); }))
    TRY("getsockopt room 0", ({ socklen_t n = 0; getsockopt(c, SOL_SOCKET, SO_TYPE, p, &n); }))
    TRY("getsockopt tcp", ({ socklen_t n = 4; getsockopt(c, IPPROTO_TCP, TCP_NODELAY, p, &n); }))
    TRY("ioctl fionread", ioctl(c, FIONREAD, p))
    TRY("ioctl fionbio", ioctl(c, FIONBIO, p))
}

static void waits(void)
{
    prepare();
    script(LOOP "a epoll e\na add e c out");
    int c = slots['c'], e = slots['e'];
    TRY("poll", poll(p, 1, 0))
    TRY("poll 0", poll(p, 0, 0))
    TRY("select", syscall(SYS_select, c + 1, p, NULL, NULL, &(struct timeval){0, 0}))
    TRY("select timeout", ({ fd_set f; FD_ZERO(&f); FD_SET(c, &f); k ? syscall(SYS_select, c + 1, NULL, &f, NULL, p) : 1; }))
    TRY("epoll_ctl add", epoll_ctl(e, EPOLL_CTL_ADD, slots['s'], p))
    TRY("epoll_ctl del", epoll_ctl(e, EPOLL_CTL_DEL, slots['s'], p))
    TRY("epoll_wait", epoll_wait(e, p, 1, 0))
    script("a epwait e\na fill c\na epwait e");
    TRY("epoll_wait nothing", epoll_wait(e, p, 1, 0))
    TRY("ppoll timeout", ({ struct pollfd f = {c, POLLIN, 0}; k ? syscall(SYS_ppoll, &f, 1, p, NULL, 8) : 0; }))
    said("poll many", "hole", poll((void *)(hole + PAGE - 8), 2, 0));
}

static const struct test_case cases[] = {{"addresses", NULL, addresses}, {"accepts", NULL, accepts}, {"buffers", NULL, buffers},
                                         {"vectors", NULL, vectors},     {"options", NULL, options}, {"waits", NULL, waits},
                                         {0}};
const struct family fault_family = {"fault", cases};
