/* Operations on sockets as such: made, named, connected, closed. */
#include "parity.h"

int slots[SLOTS] = {[0 ... SLOTS - 1] = -1};

/* A letter is a slot; `-1` and longer numbers are themselves. */
int fd_of(const char *text)
{
    if (text[0] && !text[1] && text[0] >= 'a' && text[0] <= 'z')
        return slots[(int)text[0]];
    return (int)strtol(text, NULL, 0);
}

static int port_of(const char *text)
{
    if (text[0] == 'P')
        return port_base + atoi(text + 1);
    if (text[0] == '$') {
        struct sockaddr_in6 name = {0};
        socklen_t len = sizeof name;
        getsockname(fd_of(text + 1), (struct sockaddr *)&name, &len);
        return ntohs(name.sin6_port); /* at the same place in both families */
    }
    return atoi(text);
}

static const struct {
    const char *name;
    const char *addr;
} places[] = {{"lo", "127.0.0.1"}, {"lo2", "127.0.0.2"}, {"any", "0.0.0.0"}, {"bc", "10.99.0.255"}, {"allbc", "255.255.255.255"},
              {"group", "239.1.2.3"}, {"allhosts", "224.0.0.1"}, {"nobody", "10.99.0.77"}, {"far", "192.0.2.1"}, {"foreign", "203.0.113.9"}};
static const struct {
    const char *name;
    const char *addr;
} places6[] = {{"6lo", "::1"}, {"6any", "::"}, {"6far", "2001:db8::1"}, {"mlo", "::ffff:127.0.0.1"}, {"many", "::ffff:0.0.0.0"}};

static const char *place(const char *name, bool *six)
{
    static _Thread_local char mapped[64];
    *six = false;
    if (!strcmp(name, "A"))
        return addr_a;
    if (!strcmp(name, "B"))
        return addr_b;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (!strcmp(places[i].name, name))
            return places[i].addr;
    *six = true;
    for (size_t i = 0; i < sizeof places6 / sizeof *places6; i++)
        if (!strcmp(places6[i].name, name))
            return places6[i].addr;
    if (!strcmp(name, "mA") || !strcmp(name, "mB")) {
        snprintf(mapped, sizeof mapped, "::ffff:%s", name[1] == 'A' ? addr_a : addr_b);
        return mapped;
    }
    fprintf(stderr, "parity: no place: %s\n", name);
    abort();
}

/* "PLACE:PORT", "unspec"; with "/N" after it N octets long, with "=F" of family F. */
struct endpoint endpoint_of(const char *text)
{
    struct endpoint e = {.len = sizeof(struct sockaddr_in)};
    char copy[64], *port, *tail;
    bool six;
    snprintf(copy, sizeof copy, "%s", text);
    int len = (tail = strchr(copy, '/')) ? atoi(tail + 1) : -1;
    if (tail)
        *tail = 0;
    int family = (tail = strchr(copy, '=')) ? atoi(tail + 1) : -1;
    if (tail)
        *tail = 0;
    if (!strcmp(copy, "unspec")) {
        e.addr.ss_family = AF_UNSPEC;
    } else {
        port = strchr(copy, ':');
        if (!port)
            abort();
        *port++ = 0;
        const char *addr = place(copy, &six);
        if (six) {
            struct sockaddr_in6 *sin6 = (void *)&e.addr;
            sin6->sin6_family = AF_INET6;
            sin6->sin6_port = htons((uint16_t)port_of(port));
            inet_pton(AF_INET6, addr, &sin6->sin6_addr);
            e.len = sizeof *sin6;
        } else {
            struct sockaddr_in *sin = (void *)&e.addr;
            sin->sin_family = AF_INET;
            sin->sin_port = htons((uint16_t)port_of(port));
            inet_pton(AF_INET, addr, &sin->sin_addr);
        }
    }
    if (len >= 0)
        e.len = (socklen_t)len;
    if (family >= 0)
        e.addr.ss_family = (sa_family_t)family;
    return e;
}

static void out_port(int port)
{
    if (port >= port_base && port < port_base + 10)
        out(":P%d", port - port_base);
    else if (port >= 32768 && port <= 60999)
        out(":eph");
    else
        out(":%d", port);
}

static void out_ip4(const struct in_addr *addr)
{
    char text[INET_ADDRSTRLEN];
    inet_ntop(AF_INET, addr, text, sizeof text);
    out("%s", strcmp(text, addr_a) == 0 ? "A" : strcmp(text, addr_b) == 0 ? "B" : text);
}

void out_addr(const void *addr, socklen_t len)
{
    const struct sockaddr *sa = addr;
    char text[INET6_ADDRSTRLEN];
    if (len == 0) {
        out(" none");
    } else if (sa->sa_family == AF_INET) {
        const struct sockaddr_in *sin = addr;
        out(" ");
        out_ip4(&sin->sin_addr);
        out_port(ntohs(sin->sin_port));
    } else if (sa->sa_family == AF_INET6) {
        const struct sockaddr_in6 *sin6 = addr;
        out(" ");
        if (IN6_IS_ADDR_V4MAPPED(&sin6->sin6_addr)) {
            out("m");
            out_ip4((const struct in_addr *)&sin6->sin6_addr.s6_addr[12]);
        } else
            out("[%s]", inet_ntop(AF_INET6, &sin6->sin6_addr, text, sizeof text));
        out_port(ntohs(sin6->sin6_port));
    } else
        out(" family %d", sa->sa_family);
    out("/%u", len);
}

static const struct name domains[] = {{"inet", AF_INET}, {"inet6", AF_INET6}, {"unix", AF_UNIX}, {0, 0}};
static const struct name types[] = {{"stream", SOCK_STREAM}, {"dgram", SOCK_DGRAM}, {"raw", SOCK_RAW}, {"seqpacket", SOCK_SEQPACKET},
                                    {"rdm", SOCK_RDM}, {"nb", SOCK_NONBLOCK}, {"cloexec", SOCK_CLOEXEC}, {0, 0}};
static const struct name hows[] = {{"rd", SHUT_RD}, {"wr", SHUT_WR}, {"rdwr", SHUT_RDWR}, {0, 0}};

static void take(const char *slot, int fd)
{
    if (fd >= 0)
        slots[(int)slot[0]] = fd;
    int saved = errno;
    out_ret(fd >= 0 ? 0 : fd);
    errno = saved;
}

/* The client's half of a connection, and the server's, over loopback or the link: each is a line of its own. */
static void op_name(const struct words *w, bool peer)
{
    struct sockaddr_storage addr = {0};
    socklen_t room = (socklen_t)number(w, 2, sizeof addr), len = room;
    long r = peer ? getpeername(fd_of(w->w[1]), (void *)&addr, &len) : getsockname(fd_of(w->w[1]), (void *)&addr, &len);
    out_ret(r);
    if (r == 0 && room >= 8)
        out_addr(&addr, len);
    else if (r == 0)
        out(" /%u", len);
}

static void op_accept(const struct words *w, bool four)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof addr;
    int flags = flags_of(word(w, 3, "0"), types);
    int fd = four ? accept4(fd_of(w->w[1]), (void *)&addr, &len, flags) : accept(fd_of(w->w[1]), (void *)&addr, &len);
    take(w->w[2], fd);
    if (fd >= 0) {
        out_addr(&addr, len);
        out(" fl %x fd %x", (unsigned)fcntl(fd, F_GETFL), (unsigned)fcntl(fd, F_GETFD));
    }
}

static bool made(const struct words *w)
{
    const char *slot = word(w, 1, "");
    if (is(w, "tcp"))
        take(slot, socket(AF_INET, SOCK_STREAM | flags_of(word(w, 2, "0"), types), 0));
    else if (is(w, "udp"))
        take(slot, socket(AF_INET, SOCK_DGRAM | flags_of(word(w, 2, "0"), types), 0));
    else if (is(w, "tcp6"))
        take(slot, socket(AF_INET6, SOCK_STREAM | flags_of(word(w, 2, "0"), types), 0));
    else if (is(w, "udp6"))
        take(slot, socket(AF_INET6, SOCK_DGRAM | flags_of(word(w, 2, "0"), types), 0));
    else if (is(w, "socket"))
        take(slot, socket(flags_of(w->w[2], domains), flags_of(w->w[3], types), (int)number(w, 4, 0)));
    else if (is(w, "accept") || is(w, "accept4"))
        op_accept(w, is(w, "accept4"));
    else if (is(w, "dup"))
        take(word(w, 2, ""), dup(fd_of(slot)));
    else if (is(w, "dup2"))
        out_ret(dup2(fd_of(slot), fd_of(w->w[2])) >= 0 ? 0 : -1);
    else
        return false;
    return true;
}

bool socket_op(const struct words *w)
{
    int fd = w->n > 1 ? fd_of(w->w[1]) : -1;
    struct endpoint e;
    if (made(w))
        return true;
    if (is(w, "bind") || is(w, "connect")) {
        e = endpoint_of(w->w[2]);
        out_ret(is(w, "bind") ? bind(fd, (void *)&e.addr, e.len) : connect(fd, (void *)&e.addr, e.len));
    } else if (is(w, "listen")) {
        out_ret(listen(fd, (int)number(w, 2, 16)));
    } else if (is(w, "server")) { /* listens on P0 (or the port named) of every address, and may come again */
        int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
        char any[32];
        snprintf(any, sizeof any, "any:%s", word(w, 2, "P0"));
        e = endpoint_of(any);
        setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        slots[(int)w->w[1][0]] = s;
        out_ret(bind(s, (void *)&e.addr, e.len) ? -1 : listen(s, (int)number(w, 3, 16)));
    } else if (is(w, "shutdown")) {
        out_ret(shutdown(fd, flags_of(w->w[2], hows)));
    } else if (is(w, "close")) {
        out_ret(close(fd));
    } else if (is(w, "name") || is(w, "peer")) {
        op_name(w, is(w, "peer"));
    } else if (is(w, "nb")) {
        int flags = fcntl(fd, F_GETFL);
        out_ret(fcntl(fd, F_SETFL, number(w, 2, 1) ? flags | O_NONBLOCK : flags & ~O_NONBLOCK));
    } else if (is(w, "fl")) {
        int flags = fcntl(fd, F_GETFL);
        out_ret(flags < 0 ? -1 : 0);
        if (flags >= 0)
            out(" %#x", (unsigned)flags);
    } else if (is(w, "fence")) {
        return true; /* the fence after each step is all */
    } else {
        return false;
    }
    return true;
}
