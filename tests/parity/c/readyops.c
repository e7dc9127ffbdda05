/* Operations that wait: poll, select, epoll; and the other descriptors that sets hold. */
#include "parity.h"

/* "x", "x:in,out" */
static struct pollfd entry(const char *text)
{
    char copy[64], *events;
    snprintf(copy, sizeof copy, "%s", text);
    if ((events = strchr(copy, ':')))
        *events++ = 0;
    short all = POLLIN | POLLOUT | POLLPRI | POLLRDHUP;
    return (struct pollfd){.fd = fd_of(copy), .events = events ? (short)flags_of(events, poll_names) : all};
}

/* poll MILLISECONDS x[:events]… */
static void op_poll(const struct words *w)
{
    struct pollfd p[WORDS];
    int n = 0;
    for (int i = 2; i < w->n; i++)
        p[n++] = entry(w->w[i]);
    out_ret(poll(p, (nfds_t)n, (int)number(w, 1, 0)));
    for (int i = 0; i < n; i++) {
        out(" ");
        out_flags((unsigned short)p[i].revents, poll_names);
    }
}

/* select MILLISECONDS r:x w:x e:x… ; pselect the same */
static void op_select(const struct words *w)
{
    fd_set sets[3];
    int max = -1, n = 0, fds[WORDS], which[WORDS];
    for (int i = 0; i < 3; i++)
        FD_ZERO(&sets[i]);
    for (int i = 2; i < w->n; i++, n++) {
        which[n] = w->w[i][0] == 'r' ? 0 : w->w[i][0] == 'w' ? 1 : 2;
        fds[n] = fd_of(w->w[i] + 2);
        FD_SET(fds[n], &sets[which[n]]);
        max = fds[n] > max ? fds[n] : max;
    }
    long ms = number(w, 1, 0);
    struct timeval tv = {ms / 1000, ms % 1000 * 1000};
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
    int r = is(w, "select") ? select(max + 1, &sets[0], &sets[1], &sets[2], &tv)
                            : pselect(max + 1, &sets[0], &sets[1], &sets[2], &ts, NULL);
    out_ret(r);
    for (int i = 0; i < n && r >= 0; i++)
        out(" %d", FD_ISSET(fds[i], &sets[which[i]]) != 0);
}

static void op_epoll_ctl(const struct words *w)
{
    int op = is(w, "add") ? EPOLL_CTL_ADD : is(w, "mod") ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
    struct epoll_event e = {.events = (uint32_t)flags_of(word(w, 3, "in"), epoll_names), .data.u64 = (unsigned char)w->w[2][0]};
    if (w->n > 4)
        e.data.u64 = (unsigned char)w->w[4][0];
    out_ret(epoll_ctl(fd_of(w->w[1]), op, fd_of(w->w[2]), &e));
}

/* epwait e MAX MILLISECONDS */
static void op_epoll_wait(const struct words *w)
{
    struct epoll_event e[32];
    int max = (int)number(w, 2, 16), r = epoll_wait(fd_of(w->w[1]), e, max, (int)number(w, 3, 0));
    out_ret(r);
    for (int i = 0; i < r; i++) {
        out(" %c:", (int)e[i].data.u64);
        out_flags(e[i].events, epoll_names);
    }
}

static void op_counter(const struct words *w)
{
    uint64_t value = (uint64_t)number(w, 2, 1);
    if (is(w, "evwrite"))
        out_ret(write(fd_of(w->w[1]), &value, 8));
    else {
        ssize_t r = read(fd_of(w->w[1]), &value, 8);
        out_ret(r);
        if (r == 8)
            out(" %llu", (unsigned long long)value);
    }
}

/* settimer t MILLISECONDS [INTERVAL] */
static void op_timer(const struct words *w)
{
    long ms = number(w, 2, 0), interval = number(w, 3, 0);
    struct itimerspec t = {.it_value = {ms / 1000, ms % 1000 * 1000000}, .it_interval = {interval / 1000, interval % 1000 * 1000000}};
    out_ret(timerfd_settime(fd_of(w->w[1]), 0, &t, NULL));
}

static void op_two(const struct words *w)
{
    int two[2] = {-1, -1};
    int flags = is(w, "pipe") ? O_NONBLOCK : is(w, "ppipe") ? O_DIRECT : 0;
    int r = strstr(w->w[0], "pipe") ? pipe2(two, flags) : socketpair(AF_UNIX, is(w, "pair") ? SOCK_STREAM : SOCK_DGRAM, 0, two);
    slots[(int)w->w[1][0]] = two[0];
    slots[(int)w->w[2][0]] = two[1];
    out_ret(r);
}

/* await x EVENTS: until the socket has them, at most 3 s; says nothing of others. */
static void op_await(const struct words *w)
{
    struct pollfd p = {.fd = fd_of(w->w[1]), .events = (short)flags_of(word(w, 2, "in"), poll_names)};
    struct timespec t = {.tv_nsec = 500000};
    for (int i = 0; i < 3000; i++) {
        if (poll(&p, 1, 1) > 0 && p.revents & p.events) {
            out(" -> yes");
            return;
        }
        nanosleep(&t, NULL);
    }
    out(" -> never");
}

/* sendfd u x: passes a descriptor over an AF_UNIX socket; recvfd u y takes it. */
static void op_pass(const struct words *w)
{
    char byte = 'f', control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    int fd = fd_of(w->w[2]);
    if (is(w, "sendfd")) {
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
        out_ret(sendmsg(fd_of(w->w[1]), &m, 0));
        return;
    }
    ssize_t r = recvmsg(fd_of(w->w[1]), &m, 0);
    struct cmsghdr *c = r > 0 ? CMSG_FIRSTHDR(&m) : NULL;
    if (c && c->cmsg_type == SCM_RIGHTS)
        memcpy(&slots[(int)w->w[2][0]], CMSG_DATA(c), sizeof fd);
    out_ret(r);
    out(c ? " with a descriptor" : " without");
}

bool ready_op(const struct words *w)
{
    if (is(w, "poll"))
        op_poll(w);
    else if (is(w, "select") || is(w, "pselect"))
        op_select(w);
    else if (is(w, "epoll"))
        out_ret((slots[(int)w->w[1][0]] = epoll_create1(EPOLL_CLOEXEC)) >= 0 ? 0 : -1);
    else if (is(w, "add") || is(w, "mod") || is(w, "del"))
        op_epoll_ctl(w);
    else if (is(w, "epwait"))
        op_epoll_wait(w);
    else if (is(w, "eventfd"))
        out_ret((slots[(int)w->w[1][0]] = eventfd((unsigned)number(w, 2, 0), EFD_NONBLOCK)) >= 0 ? 0 : -1);
    else if (is(w, "timerfd"))
        out_ret((slots[(int)w->w[1][0]] = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)) >= 0 ? 0 : -1);
    else if (is(w, "settimer"))
        op_timer(w);
    else if (is(w, "evwrite") || is(w, "evread"))
        op_counter(w);
    else if (is(w, "pipe") || is(w, "bpipe") || is(w, "ppipe") || is(w, "pair") || is(w, "dpair"))
        op_two(w);
    else if (is(w, "await"))
        op_await(w);
    else if (is(w, "sendfd") || is(w, "recvfd"))
        op_pass(w);
    else
        return false;
    return true;
}
