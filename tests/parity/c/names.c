/* Names of numbers. */
#include "parity.h"

const char *errno_name(int number)
{
    const char *name = number ? strerrorname_np(number) : "0";
    return name ? name : "E?";
}

const struct name msg_names[] = {
    {"peek", MSG_PEEK}, {"trunc", MSG_TRUNC}, {"dontwait", MSG_DONTWAIT}, {"waitall", MSG_WAITALL}, {"oob", MSG_OOB},
    {"nosignal", MSG_NOSIGNAL}, {"more", MSG_MORE}, {"errqueue", MSG_ERRQUEUE}, {"eor", MSG_EOR}, {"dontroute", MSG_DONTROUTE},
    {"confirm", MSG_CONFIRM}, {"ctrunc", MSG_CTRUNC}, {"cmsg_cloexec", MSG_CMSG_CLOEXEC}, {"fastopen", MSG_FASTOPEN},
    {"zerocopy", MSG_ZEROCOPY}, {"waitforone", MSG_WAITFORONE}, {0, 0}};

const struct name poll_names[] = {
    {"in", POLLIN}, {"pri", POLLPRI}, {"out", POLLOUT}, {"err", POLLERR}, {"hup", POLLHUP}, {"nval", POLLNVAL},
    {"rdnorm", POLLRDNORM}, {"rdband", POLLRDBAND}, {"wrnorm", POLLWRNORM}, {"wrband", POLLWRBAND}, {"rdhup", POLLRDHUP}, {0, 0}};

const struct name epoll_names[] = {
    {"in", EPOLLIN}, {"pri", EPOLLPRI}, {"out", EPOLLOUT}, {"err", EPOLLERR}, {"hup", EPOLLHUP}, {"rdnorm", EPOLLRDNORM},
    {"rdband", EPOLLRDBAND}, {"wrnorm", EPOLLWRNORM}, {"wrband", EPOLLWRBAND}, {"rdhup", EPOLLRDHUP}, {"et", (int)EPOLLET},
    {"oneshot", EPOLLONESHOT}, {"exclusive", EPOLLEXCLUSIVE}, {"wakeup", EPOLLWAKEUP}, {0, 0}};

const struct name signal_names[] = {{"usr1", SIGUSR1}, {"usr2", SIGUSR2}, {"pipe", SIGPIPE}, {"io", SIGIO}, {"urg", SIGURG},
                                    {"alrm", SIGALRM}, {0, 0}};

int flags_of(const char *text, const struct name *names)
{
    int value = 0;
    char copy[128];
    snprintf(copy, sizeof copy, "%s", text);
    for (char *at = copy, *one; (one = strsep(&at, ",")) != NULL;) {
        const struct name *n = names;
        while (n->name && strcmp(n->name, one))
            n++;
        value |= n->name ? n->value : (int)strtol(one, NULL, 0);
    }
    return value;
}

void out_flags(unsigned value, const struct name *names)
{
    const char *between = "";
    for (; names->name; names++)
        if (value & (unsigned)names->value) {
            out("%s%s", between, names->name);
            between = ",";
            value &= ~(unsigned)names->value;
        }
    if (value)
        out("%s%#x", between, value);
    else if (!*between)
        out("0");
}

#define SOL(n) {#n, SOL_SOCKET, n}
#define TCP(n) {#n, IPPROTO_TCP, n}
#define IP(n) {#n, IPPROTO_IP, n}
#define IP6(n) {#n, IPPROTO_IPV6, n}
static const struct option_name options[] = {
    SOL(SO_DEBUG), SOL(SO_REUSEADDR), SOL(SO_TYPE), SOL(SO_ERROR), SOL(SO_DONTROUTE), SOL(SO_BROADCAST), SOL(SO_SNDBUF),
    SOL(SO_RCVBUF), SOL(SO_KEEPALIVE), SOL(SO_OOBINLINE), SOL(SO_NO_CHECK), SOL(SO_PRIORITY), SOL(SO_LINGER), SOL(SO_REUSEPORT),
    SOL(SO_PASSCRED), SOL(SO_RCVLOWAT), SOL(SO_SNDLOWAT), SOL(SO_RCVTIMEO), SOL(SO_SNDTIMEO), SOL(SO_ACCEPTCONN), SOL(SO_PROTOCOL),
    SOL(SO_DOMAIN), SOL(SO_TIMESTAMP), SOL(SO_MARK), SOL(SO_RXQ_OVFL), SOL(SO_PEEK_OFF), SOL(SO_BUSY_POLL), SOL(SO_INCOMING_CPU),
    SOL(SO_SNDBUFFORCE), SOL(SO_RCVBUFFORCE), SOL(SO_TIMESTAMPNS), SOL(SO_TIMESTAMPING), SOL(SO_MAX_PACING_RATE), SOL(SO_ZEROCOPY),
    SOL(SO_BINDTODEVICE), SOL(SO_PEERCRED), SOL(SO_COOKIE), SOL(SO_LOCK_FILTER), SOL(SO_DETACH_FILTER), SOL(SO_BINDTOIFINDEX),
    TCP(TCP_NODELAY), TCP(TCP_MAXSEG), TCP(TCP_CORK), TCP(TCP_KEEPIDLE), TCP(TCP_KEEPINTVL), TCP(TCP_KEEPCNT), TCP(TCP_SYNCNT),
    TCP(TCP_LINGER2), TCP(TCP_DEFER_ACCEPT), TCP(TCP_WINDOW_CLAMP), TCP(TCP_QUICKACK), TCP(TCP_USER_TIMEOUT), TCP(TCP_CONGESTION),
    TCP(TCP_FASTOPEN), TCP(TCP_NOTSENT_LOWAT), TCP(TCP_INQ), TCP(TCP_SAVE_SYN), TCP(TCP_REPAIR), TCP(TCP_ULP),
    TCP(TCP_THIN_LINEAR_TIMEOUTS), TCP(TCP_THIN_DUPACK), TCP(TCP_TIMESTAMP), TCP(TCP_FASTOPEN_CONNECT), TCP(TCP_INFO),
    IP(IP_TOS), IP(IP_TTL), IP(IP_MTU_DISCOVER), IP(IP_MTU), IP(IP_RECVERR), IP(IP_PKTINFO), IP(IP_RECVTTL), IP(IP_RECVTOS),
    IP(IP_FREEBIND), IP(IP_MULTICAST_TTL), IP(IP_MULTICAST_LOOP), IP(IP_BIND_ADDRESS_NO_PORT), IP(IP_TRANSPARENT), IP(IP_MINTTL),
    IP(IP_HDRINCL), IP(IP_OPTIONS), IP(IP_RETOPTS), IP(IP_RECVOPTS), IP(IP_MULTICAST_ALL), IP(IP_UNICAST_IF),
    IP(IP_RECVORIGDSTADDR), IP(IP_NODEFRAG), IP(IP_CHECKSUM), IP(IP_MULTICAST_IF), IP6(IPV6_V6ONLY), IP6(IPV6_UNICAST_HOPS),
    IP6(IPV6_RECVPKTINFO), IP6(IPV6_TCLASS), IP6(IPV6_RECVTCLASS), IP6(IPV6_MTU_DISCOVER), IP6(IPV6_RECVERR), IP6(IPV6_MULTICAST_HOPS)};

const struct option_name *option_of(const char *text)
{
    static _Thread_local struct option_name other;
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (!strcmp(options[i].name, text))
            return &options[i];
    if (sscanf(text, "%d/%d", &other.level, &other.number) != 2)
        fprintf(stderr, "no option %s\n", text), abort();
    return &other;
}
