/* Socket options: their first values, what is read back, what passes on to accepted sockets. */
#include "parity.h"

static const char *const general[] = {
    "SO_DEBUG", "SO_REUSEADDR", "SO_TYPE", "SO_ERROR", "SO_DONTROUTE", "SO_BROADCAST", "SO_KEEPALIVE", "SO_OOBINLINE", "SO_NO_CHECK",
    "SO_PRIORITY", "SO_LINGER", "SO_REUSEPORT", "SO_RCVLOWAT", "SO_SNDLOWAT", "SO_RCVTIMEO", "SO_SNDTIMEO", "SO_ACCEPTCONN",
    "SO_PROTOCOL", "SO_DOMAIN", "SO_TIMESTAMP", "SO_MARK", "SO_RXQ_OVFL", "SO_TIMESTAMPNS", "SO_PEEK_OFF", "SO_BINDTODEVICE",
    "SO_ZEROCOPY", "SO_BINDTOIFINDEX", "IP_TOS", "IP_TTL", "IP_MTU_DISCOVER", "IP_RECVERR", "IP_PKTINFO", "IP_RECVTTL", "IP_RECVTOS",
    "IP_FREEBIND", "IP_MULTICAST_TTL", "IP_MULTICAST_LOOP", "IP_BIND_ADDRESS_NO_PORT", "IP_TRANSPARENT", "IP_MINTTL", "IP_MULTICAST_ALL",
    "IP_RECVORIGDSTADDR", NULL};
static const char *const of_tcp[] = {"TCP_NODELAY", "TCP_CORK", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_SYNCNT",
                                     "TCP_LINGER2", "TCP_DEFER_ACCEPT", "TCP_WINDOW_CLAMP", "TCP_QUICKACK", "TCP_USER_TIMEOUT",
                                     "TCP_CONGESTION", "TCP_FASTOPEN", "TCP_NOTSENT_LOWAT", "TCP_INQ", "TCP_SAVE_SYN", "TCP_MAXSEG",
                                     "TCP_THIN_LINEAR_TIMEOUTS", NULL};
static const char *const switches[] = {"SO_REUSEADDR", "SO_KEEPALIVE", "SO_OOBINLINE", "SO_BROADCAST", "SO_DONTROUTE", "SO_NO_CHECK",
                                       "SO_REUSEPORT", "SO_TIMESTAMP", "SO_RXQ_OVFL", "IP_RECVERR", "IP_PKTINFO", "IP_RECVTTL",
                                       "IP_RECVTOS", "IP_FREEBIND", "IP_BIND_ADDRESS_NO_PORT", "IP_MULTICAST_LOOP", "IP_MULTICAST_ALL", NULL};

static void each(const char *const *names, char side, char slot)
{
    for (; *names; names++)
        stepf("%c get %c %s", side, slot, *names);
}

static void first_tcp(void) { script("a tcp c"), each(general, 'a', 'c'), each(of_tcp, 'a', 'c'); }
static void first_udp(void) { script("a udp c"), each(general, 'a', 'c'); }
static void first_raw(void) { script("a socket c inet raw 1"), each(general, 'a', 'c'); }
static void first_tcp6(void)
{
    script("a tcp6 c"), each(general, 'a', 'c'), each(of_tcp, 'a', 'c');
    script("a get c IPV6_V6ONLY\na get c IPV6_UNICAST_HOPS\na get c IPV6_TCLASS\na get c IPV6_RECVPKTINFO\na get c IPV6_MTU_DISCOVER\na set c IPV6_V6ONLY 1\na get c IPV6_V6ONLY\na set c IPV6_V6ONLY 0\na bind c 6any:P0\na set c IPV6_V6ONLY 1");
}
static void connected_values(void) { script(LINK), each(of_tcp, 'a', 'c'), each(of_tcp, 'b', 's'), script("a get c IP_MTU"); }

static void switch_all(const char *const *names, const char *value)
{
    for (; *names; names++) {
        stepf("a set c %s %s", *names, value);
        stepf("a get c %s", *names);
    }
}
static void switches_tcp(void) { script("a tcp c"), switch_all(switches, "1"), switch_all(switches, "77"), switch_all(switches, "0"); }
static void switches_udp(void) { script("a udp c"), switch_all(switches, "1"), switch_all(switches, "-1"), switch_all(switches, "0"); }

static const char *const inherited[] = {"SO_KEEPALIVE", "SO_LINGER", "SO_OOBINLINE", "SO_RCVTIMEO", "SO_SNDTIMEO", "SO_RCVLOWAT",
                                        "SO_PRIORITY", "SO_REUSEADDR", "SO_REUSEPORT", "SO_BROADCAST", "IP_TOS", "IP_TTL", "TCP_NODELAY",
                                        "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_CONGESTION", "TCP_CORK", "TCP_USER_TIMEOUT",
                                        "TCP_NOTSENT_LOWAT", "TCP_DEFER_ACCEPT", "TCP_LINGER2", "TCP_SYNCNT", "SO_ACCEPTCONN", NULL};
static void inheritance(void)
{
    script("b server l\nb set l SO_KEEPALIVE\nb set l SO_LINGER 1 3\nb set l SO_OOBINLINE\nb set l SO_RCVTIMEO 1500\nb set l SO_SNDTIMEO 2500\nb set l SO_RCVLOWAT 3\n"
           "b set l SO_PRIORITY 3\nb set l SO_BROADCAST\nb set l IP_TOS 16\nb set l IP_TTL 33\nb set l TCP_NODELAY\nb set l TCP_KEEPIDLE 100\nb set l TCP_KEEPINTVL 7\n"
           "b set l TCP_KEEPCNT 4\nb set l TCP_CONGESTION reno\nb set l TCP_USER_TIMEOUT 5000\nb set l TCP_NOTSENT_LOWAT 4000\nb set l TCP_LINGER2 9\nb set l TCP_SYNCNT 3\n"
           "a tcp c\na connect c B:P0\nb accept l s");
    each(inherited, 'b', 's');
}

static const struct test_case cases[] = {
    {"first_tcp", NULL, first_tcp}, {"first_udp", NULL, first_udp}, {"first_raw", NULL, first_raw}, {"first_tcp6", NULL, first_tcp6},
    {"connected_values", NULL, connected_values}, {"switches_tcp", NULL, switches_tcp}, {"switches_udp", NULL, switches_udp},
    {"inheritance", NULL, inheritance},
    {"buffers", "a tcp c\na set c SO_RCVBUF 10000\na get c SO_RCVBUF\na set c SO_SNDBUF 10000\na get c SO_SNDBUF\na set c SO_RCVBUF 1\na get c SO_RCVBUF\na set c SO_SNDBUF 1\na get c SO_SNDBUF\na set c SO_RCVBUF 0\na get c SO_RCVBUF\na set c SO_SNDBUF -1\na set c SO_RCVBUF 65537\na get c SO_RCVBUF\na udp u\na get u SO_RCVBUF\na get u SO_SNDBUF\na set u SO_RCVBUF 5000\na get u SO_RCVBUF", NULL},
    {"buffers_first", "a tcp c\na get c SO_SNDBUF\na get c SO_RCVBUF", NULL},
    {"linger", "a tcp c\na get c SO_LINGER\na set c SO_LINGER 1 5\na get c SO_LINGER\na set c SO_LINGER 0 7\na get c SO_LINGER\na set c SO_LINGER 9 100000\na get c SO_LINGER", NULL},
    {"timeouts", "a tcp c\na set c SO_RCVTIMEO 1240\na get c SO_RCVTIMEO\na set c SO_SNDTIMEO 20\na get c SO_SNDTIMEO\na set c SO_RCVTIMEO 0\na get c SO_RCVTIMEO\na set c SO_RCVTIMEO 2000020\na get c SO_RCVTIMEO", NULL},
    {"rcvlowat", "a tcp c\na set c SO_RCVLOWAT 100\na get c SO_RCVLOWAT\na set c SO_RCVLOWAT 0\na get c SO_RCVLOWAT\na set c SO_RCVLOWAT -1\na get c SO_RCVLOWAT\na set c SO_SNDLOWAT 3", NULL},
    {"keepalive", "a tcp c\na set c SO_KEEPALIVE 1\na set c TCP_KEEPIDLE 11\na get c TCP_KEEPIDLE\na set c TCP_KEEPINTVL 12\na get c TCP_KEEPINTVL\na set c TCP_KEEPCNT 13\na get c TCP_KEEPCNT\na set c TCP_KEEPIDLE 32767\na get c TCP_KEEPIDLE", NULL},
    {"congestion", "a tcp c\na get c TCP_CONGESTION\na set c TCP_CONGESTION reno\na get c TCP_CONGESTION\na get c TCP_CONGESTION 3\na set c TCP_CONGESTION cubic\na get c TCP_CONGESTION\na set c TCP_CONGESTION nosuch\na get c TCP_CONGESTION 0", NULL},
    {"maxseg", LINK "a get c TCP_MAXSEG\na tcp d\na set d TCP_MAXSEG 600\na get d TCP_MAXSEG\na connect d B:P0\na get d TCP_MAXSEG\nb accept l t\nb get t TCP_MAXSEG", NULL},
    {"cork", LINK "a set c TCP_CORK 1\na send c ab\na send c cd\nb recv s 9 dontwait\na get c TCP_CORK\na set c TCP_CORK 0\nb recv s", NULL},
    {"defer_accept", "b server l\nb set l TCP_DEFER_ACCEPT 5\nb get l TCP_DEFER_ACCEPT\na tcp c\na connect c B:P0\nb poll 0 l\na send c x\nb poll 0 l\nb accept l s\nb recv s", NULL},
    {"tcp_values", "a tcp c\na set c TCP_LINGER2 5\na get c TCP_LINGER2\na set c TCP_LINGER2 -1\na get c TCP_LINGER2\na set c TCP_LINGER2 0\na get c TCP_LINGER2\na set c TCP_SYNCNT 3\na get c TCP_SYNCNT\na set c TCP_USER_TIMEOUT 3000\na get c TCP_USER_TIMEOUT\na set c TCP_NOTSENT_LOWAT 1000\na get c TCP_NOTSENT_LOWAT\na set c TCP_WINDOW_CLAMP 100\na get c TCP_WINDOW_CLAMP\na set c TCP_WINDOW_CLAMP 5000\na get c TCP_WINDOW_CLAMP\na set c TCP_QUICKACK 0\na get c TCP_QUICKACK\na set c TCP_NODELAY 5\na get c TCP_NODELAY", NULL},
    {"ip_values", "a udp c\na set c IP_TTL 1\na get c IP_TTL\na set c IP_TOS 0x1c\na get c IP_TOS\na get c SO_PRIORITY\na set c IP_TOS 300\na get c IP_TOS\na set c IP_MTU_DISCOVER 0\na get c IP_MTU_DISCOVER\na set c IP_MTU_DISCOVER 3\na get c IP_MTU_DISCOVER\na set c IP_MULTICAST_TTL 5\na get c IP_MULTICAST_TTL\na set c IP_MULTICAST_TTL -1\na get c IP_MULTICAST_TTL\na set c IP_MINTTL 3\na get c IP_MINTTL\na set c SO_PRIORITY 6\na get c SO_PRIORITY\na connect c B:P0\na get c IP_MTU", NULL},
    {"tos_on_tcp", "a tcp c\na set c IP_TOS 0x13\na get c IP_TOS\na get c SO_PRIORITY\na set c IP_TOS 0xff\na get c IP_TOS", NULL},
    {"oob_inline", LINK "a set c SO_OOBINLINE 1\nb send s ab\nb send s c oob\nb send s de\na poll 0 c\na ioctl c atmark\na recv c\na ioctl c atmark\na recv c 100 dontwait\na recv c 5 oob,dontwait", NULL},
    {"bind_to_device", "a udp c\na get c SO_BINDTODEVICE\na set c SO_BINDTODEVICE lo\na get c SO_BINDTODEVICE\na connect c B:P0\na set c SO_BINDTODEVICE nosuch\na set c SO_BINDTODEVICE eth0\na connect c B:P0\na send c x", NULL},
    {"fionread_and_outq", LINK "b send s abcdef\na ioctl c fionread\na recv c 2\na ioctl c fionread\na ioctl c outq\na ioctl c atmark\nb shutdown s wr\na recv c\na ioctl c fionread", NULL},
    {"fionbio", LINK "a ioctl c fionbio 1\na fl c\na recv c\na ioctl c fionbio 0\na fl c", NULL},
    {"error_is_cleared", "a udp c\na connect c B:P0\na send c x\na await c err\na get c SO_ERROR\na get c SO_ERROR\na poll 0 c", NULL},
    {"status_flags", "a tcp c\na fl c\na nb c\na fl c\na nb c 0\na fl c\na tcp d nb,cloexec\na fl d", NULL},
    {0}};
const struct family opts_family = {"opts", cases};
