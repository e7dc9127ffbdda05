/* Operations on options, and requests. */
#include "parity.h"

static bool is_timeout(const char *name) { return !strcmp(name, "SO_RCVTIMEO") || !strcmp(name, "SO_SNDTIMEO"); }

/* set x NAME VALUE…: an int; SO_LINGER "ON SECONDS", timeouts in milliseconds, text for those that are text. */
static void op_set(const struct words *w)
{
    const struct option_name *o = option_of(w->w[2]);
    int fd = fd_of(w->w[1]), value = (int)number(w, 3, 1);
    long ms = number(w, 3, 0);
    const char *text = word(w, 3, "");
    if (!strcmp(w->w[2], "SO_LINGER")) {
        struct linger l = {value, (int)number(w, 4, 0)};
        out_ret(setsockopt(fd, o->level, o->number, &l, sizeof l));
    } else if (is_timeout(w->w[2])) {
        struct timeval tv = {ms / 1000, ms % 1000 * 1000};
        out_ret(setsockopt(fd, o->level, o->number, &tv, sizeof tv));
    } else if (!strcmp(w->w[2], "TCP_CONGESTION") || !strcmp(w->w[2], "SO_BINDTODEVICE") || !strcmp(w->w[2], "TCP_ULP")) {
        out_ret(setsockopt(fd, o->level, o->number, text, (socklen_t)strlen(text)));
    } else {
        out_ret(setsockopt(fd, o->level, o->number, &value, (socklen_t)number(w, 4, sizeof value)));
    }
}

/* get x NAME [ROOM] */
static void op_get(const struct words *w)
{
    const struct option_name *o = option_of(w->w[2]);
    union {
        int value;
        struct linger linger;
        struct timeval tv;
        char text[256];
    } v = {.text = {0}};
    socklen_t len = (socklen_t)number(w, 3, 16);
    long r = getsockopt(fd_of(w->w[1]), o->level, o->number, &v, &len);
    out_ret(r);
    if (r)
        return;
    out(" [%u]", len);
    if (!strcmp(w->w[2], "SO_LINGER"))
        out(" %d %d", v.linger.l_onoff, v.linger.l_linger);
    else if (!strcmp(w->w[2], "SO_ERROR"))
        out(" %s", errno_name(v.value));
    else if (is_timeout(w->w[2]))
        out(" %ld.%06ld", (long)v.tv.tv_sec, (long)v.tv.tv_usec);
    else if (!strcmp(w->w[2], "TCP_CONGESTION") || !strcmp(w->w[2], "SO_BINDTODEVICE"))
        out_data(v.text, strnlen(v.text, len));
    else if (len == 1)
        out(" %d", v.text[0]);
    else if (len)
        out(" %d", v.value);
}

/* group x join|leave GROUP [INTERFACE-ADDRESS] */
static void op_group(const struct words *w)
{
    char text[64];
    struct ip_mreq mreq;
    snprintf(text, sizeof text, "%s:0", w->w[3]);
    struct endpoint e = endpoint_of(text);
    mreq.imr_multiaddr = ((struct sockaddr_in *)&e.addr)->sin_addr;
    snprintf(text, sizeof text, "%s:0", word(w, 4, "any"));
    e = endpoint_of(text);
    mreq.imr_interface = ((struct sockaddr_in *)&e.addr)->sin_addr;
    out_ret(setsockopt(fd_of(w->w[1]), IPPROTO_IP, !strcmp(w->w[2], "join") ? IP_ADD_MEMBERSHIP : IP_DROP_MEMBERSHIP, &mreq, sizeof mreq));
}

static void op_ioctl(const struct words *w)
{
    static const struct name requests[] = {{"fionread", FIONREAD}, {"outq", TIOCOUTQ}, {"atmark", SIOCATMARK}, {"fionbio", FIONBIO},
                                           {"unknown", 0x89fe}, {"tcgets", 0x5401}, {0, 0}};
    int value = (int)number(w, 3, 0);
    char buf[64];
    memcpy(buf, &value, sizeof value);
    long r = ioctl(fd_of(w->w[1]), (unsigned long)flags_of(w->w[2], requests), buf);
    out_ret(r);
    memcpy(&value, buf, sizeof value);
    if (r == 0)
        out(" %d", value);
}

bool option_op(const struct words *w)
{
    if (is(w, "set"))
        op_set(w);
    else if (is(w, "get"))
        op_get(w);
    else if (is(w, "group"))
        op_group(w);
    else if (is(w, "ioctl"))
        op_ioctl(w);
    else if (is(w, "fown"))
        out_ret(fcntl(fd_of(w->w[1]), F_SETOWN, getpid()));
    else if (is(w, "fasync"))
        out_ret(fcntl(fd_of(w->w[1]), F_SETFL, fcntl(fd_of(w->w[1]), F_GETFL) | O_ASYNC));
    else
        return false;
    return true;
}
