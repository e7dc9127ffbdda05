/* Operations that move data. */
#include "parity.h"

enum { BIG = 4 << 20 };

/* A word is itself ('_' is a blank); "#N" is N octets of a pattern. */
static char *data_of(const char *text, size_t *len)
{
    char *data;
    if (text[0] == '#') {
        *len = strtoul(text + 1, NULL, 0);
        data = malloc(*len + 1);
        for (size_t i = 0; i < *len; i++)
            data[i] = (char)('a' + i % 23);
    } else {
        data = strdup(text);
        *len = strlen(data);
    }
    if (!data)
        abort();
    return data;
}

static void op_send(const struct words *w)
{
    size_t len;
    char *data = data_of(w->w[2], &len);
    int fd = fd_of(w->w[1]);
    if (is(w, "send"))
        out_ret(send(fd, data, len, flags_of(word(w, 3, "nosignal"), msg_names)));
    else if (is(w, "write"))
        out_ret(write(fd, data, len));
    else {
        struct endpoint e = endpoint_of(w->w[3]);
        out_ret(sendto(fd, data, len, flags_of(word(w, 4, "nosignal"), msg_names), (void *)&e.addr, e.len));
    }
    free(data);
}

static void op_recv(const struct words *w)
{
    size_t len = (size_t)number(w, 2, 100);
    char *data = calloc(1, len + 1);
    struct sockaddr_storage addr = {0};
    socklen_t addr_len = sizeof addr;
    ssize_t r;
    int fd = fd_of(w->w[1]), flags = flags_of(word(w, 3, "0"), msg_names);
    if (is(w, "recv"))
        r = recv(fd, data, len, flags);
    else if (is(w, "read"))
        r = read(fd, data, len);
    else
        r = recvfrom(fd, data, len, flags, (void *)&addr, &addr_len);
    out_ret(r);
    if (r > 0 && !(flags & MSG_TRUNC && is(w, "recv") && r > (ssize_t)len))
        out_data(data, (size_t)r < len ? (size_t)r : len);
    if (r >= 0 && is(w, "recvfrom"))
        out_addr(&addr, addr_len);
    free(data);
}

static void out_cmsg(struct msghdr *m)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        out(" cmsg %d/%d[%zu]", c->cmsg_level, c->cmsg_type, (size_t)c->cmsg_len);
        int *v = (int *)CMSG_DATA(c);
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR)
            /* struct sock_extended_err: errno, origin, type, code, pad, info, data; then the offender. */
            out(" %s origin %u type %u code %u info %u", errno_name(v[0]), v[1] & 0xff, v[1] >> 8 & 0xff, v[1] >> 16 & 0xff, (unsigned)v[2]),
                out_addr(v + 4, sizeof(struct sockaddr_in));
        else if (c->cmsg_level == IPPROTO_IP && (c->cmsg_type == IP_TTL || c->cmsg_type == IP_TOS))
            out(" %d", c->cmsg_type == IP_TOS ? v[0] & 0xff : v[0]);
        else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo *p = (void *)v;
            char spec[32], dst[32];
            out(" if %s", p->ipi_ifindex == 1 ? "lo" : "eth");
            out(" %s %s", strcpy(spec, inet_ntoa(p->ipi_spec_dst)), strcpy(dst, inet_ntoa(p->ipi_addr)));
        }
    }
}

/* recvmsg x BUFFER-SIZES(+ between) FLAGS CONTROL-ROOM */
static void op_recvmsg(const struct words *w)
{
    char buf[4][4096], control[512];
    struct iovec iov[4];
    struct sockaddr_storage addr = {0};
    struct msghdr m = {.msg_name = &addr, .msg_namelen = sizeof addr, .msg_iov = iov};
    m.msg_control = control;
    m.msg_controllen = (size_t)number(w, 4, sizeof control);
    char sizes[64];
    snprintf(sizes, sizeof sizes, "%s", word(w, 2, "100"));
    for (char *at = sizes, *one; (one = strsep(&at, "+")) && m.msg_iovlen < 4; m.msg_iovlen++)
        iov[m.msg_iovlen] = (struct iovec){buf[m.msg_iovlen], strtoul(one, NULL, 0)};
    ssize_t r = recvmsg(fd_of(w->w[1]), &m, flags_of(word(w, 3, "0"), msg_names));
    out_ret(r);
    if (r < 0)
        return;
    size_t left = (size_t)r;
    for (size_t i = 0; i < m.msg_iovlen && left; i++) {
        size_t part = left < iov[i].iov_len ? left : iov[i].iov_len;
        out_data(buf[i], part);
        left -= part;
    }
    out(" flags ");
    out_flags((unsigned)m.msg_flags, msg_names);
    out_addr(&addr, m.msg_namelen);
    out_cmsg(&m);
}

/* Until EAGAIN for good: how much fits differs by the sizes of packets, that it ends does not. */
static void op_fill(const struct words *w)
{
    static char chunk[65536];
    int fd = fd_of(w->w[1]);
    ssize_t r;
    size_t all = 0;
    for (int quiet = 0; quiet < 4;) {
        r = send(fd, chunk, sizeof chunk, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (r > 0) {
            all += (size_t)r;
            quiet = 0;
            continue;
        }
        if (r < 0 && errno != EAGAIN)
            break;
        /* Acknowledgements may make room once more. */
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        poll(&p, 1, 20);
        quiet++;
        errno = EAGAIN;
    }
    out_ret(r < 0 ? -1 : 0);
    out(all > 0 ? " some" : " nothing");
}

/* quaff x: reads all there is, until nothing has come for a while. */
static void op_quaff(const struct words *w)
{
    static char chunk[65536];
    int fd = fd_of(w->w[1]);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    ssize_t r = 1;
    while (r > 0 && poll(&p, 1, 150) > 0)
        r = recv(fd, chunk, sizeof chunk, 0);
    out_ret(r > 0 ? 0 : r);
}

/* drain x [N]: reads N octets, or until the end or an error; waits at most 2 s for each. */
static void op_drain(const struct words *w)
{
    char *data = malloc(BIG);
    size_t all = 0, want = (size_t)number(w, 2, BIG);
    int fd = fd_of(w->w[1]);
    ssize_t r = 0;
    if (want > BIG)
        want = BIG;
    while (all < want) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 2000) == 0) {
            errno = ETIME;
            r = -1;
            break;
        }
        r = recv(fd, data + all, want - all, 0);
        if (r <= 0)
            break;
        all += (size_t)r;
    }
    out_ret(r > 0 ? 0 : r);
    out_data(data, all);
    free(data);
}

static void op_iov(const struct words *w)
{
    struct iovec iov[4];
    int n = 0;
    bool reads = is(w, "readv");
    size_t len;
    for (int i = 2; i < w->n && n < 4; i++, n++) {
        if (reads)
            iov[n] = (struct iovec){calloc(1, (size_t)number(w, i, 0) + 1), (size_t)number(w, i, 0)};
        else {
            iov[n].iov_base = data_of(w->w[i], &len);
            iov[n].iov_len = len;
        }
    }
    ssize_t r = reads ? readv(fd_of(w->w[1]), iov, n) : writev(fd_of(w->w[1]), iov, n);
    out_ret(r);
    for (int i = 0; i < n; i++) {
        if (reads && r > 0)
            out_data(iov[i].iov_base, strnlen(iov[i].iov_base, iov[i].iov_len));
        free(iov[i].iov_base);
    }
}

/* sendmmsg x DATA…; recvmmsg x COUNT SIZE FLAGS */
static void op_many(const struct words *w)
{
    struct mmsghdr m[8] = {0};
    struct iovec iov[8];
    static char buf[8][2048];
    bool sends = is(w, "sendmmsg");
    unsigned n = sends ? (unsigned)w->n - 2 : (unsigned)number(w, 2, 1);
    size_t len;
    for (unsigned i = 0; i < n && i < 8; i++) {
        iov[i] = (struct iovec){buf[i], (size_t)number(w, 3, 100)};
        if (sends) {
            iov[i].iov_base = data_of(w->w[i + 2], &len);
            iov[i].iov_len = len;
        }
        m[i].msg_hdr.msg_iov = &iov[i];
        m[i].msg_hdr.msg_iovlen = 1;
    }
    int flags = sends ? MSG_NOSIGNAL : flags_of(word(w, 4, "0"), msg_names);
    int r = sends ? sendmmsg(fd_of(w->w[1]), m, n, flags) : recvmmsg(fd_of(w->w[1]), m, n, flags, NULL);
    out_ret(r);
    for (int i = 0; i < r; i++) {
        out(" %u", m[i].msg_len);
        if (!sends)
            out_data(buf[i], m[i].msg_len);
    }
}

bool data_op(const struct words *w)
{
    if (is(w, "send") || is(w, "write") || is(w, "sendto"))
        op_send(w);
    else if (is(w, "recv") || is(w, "read") || is(w, "recvfrom"))
        op_recv(w);
    else if (is(w, "recvmsg"))
        op_recvmsg(w);
    else if (is(w, "fill"))
        op_fill(w);
    else if (is(w, "drain"))
        op_drain(w);
    else if (is(w, "quaff"))
        op_quaff(w);
    else if (is(w, "readv") || is(w, "writev"))
        op_iov(w);
    else if (is(w, "sendmmsg") || is(w, "recvmmsg"))
        op_many(w);
    else
        return false;
    return true;
}
