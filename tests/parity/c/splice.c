/* splice between pipes and sockets, both ways; sendfile from a socket to a pipe. */
#include "parity.h"

static const struct name splice_flags[] = {{"move", SPLICE_F_MOVE}, {"nonblock", SPLICE_F_NONBLOCK}, {"more", SPLICE_F_MORE}, {"gift", SPLICE_F_GIFT}, {"bad", 0x10}, {0, 0}};

/* `-`: none; `wild`: an address that is none; else the offset's value. */
static loff_t *offset_of(const char *text, loff_t *at)
{
    if (!strcmp(text, "-"))
        return NULL;
    if (!strcmp(text, "wild"))
        return (loff_t *)8;
    *at = atoll(text);
    return at;
}

/* splice IN OUT LENGTH [FLAGS [OFFSET-IN OFFSET-OUT]] */
static void op_splice(const struct words *w)
{
    loff_t in = 0, out = 0;
    unsigned flags = (unsigned)flags_of(word(w, 4, "0"), splice_flags);
    out_ret(splice(fd_of(w->w[1]), offset_of(word(w, 5, "-"), &in), fd_of(w->w[2]), offset_of(word(w, 6, "-"), &out),
                   (size_t)number(w, 3, 100), flags));
}

/* pump IN OUT LENGTH: all of it, in as many calls as it takes. */
static void op_pump(const struct words *w)
{
    size_t left = (size_t)number(w, 3, 100);
    ssize_t r = 1;
    while (left && (r = splice(fd_of(w->w[1]), NULL, fd_of(w->w[2]), NULL, left, 0)) > 0)
        left -= (size_t)r;
    out_ret(r > 0 ? 0 : r);
    out(" left %zu", left);
}

bool splice_op(const struct words *w)
{
    loff_t at = 0;
    if (is(w, "splice"))
        op_splice(w);
    else if (is(w, "pump"))
        op_pump(w);
    else if (is(w, "sendfile")) /* sendfile OUT IN LENGTH [OFFSET] */
        out_ret(sendfile(fd_of(w->w[1]), fd_of(w->w[2]), offset_of(word(w, 4, "-"), &at), (size_t)number(w, 3, 100)));
    else if (is(w, "pipesize"))
        out_ret(fcntl(fd_of(w->w[1]), F_SETPIPE_SZ, (int)number(w, 2, 0)) < 0 ? -1 : 0);
    else if (is(w, "append"))
        out_ret(fcntl(fd_of(w->w[1]), F_SETFL, O_APPEND));
    else if (is(w, "memfd"))
        out_ret((slots[(int)w->w[1][0]] = memfd_create("parity", 0)) >= 0 ? 0 : -1);
    else
        return false;
    return true;
}

#define PIPE LINK "a bpipe r w\n"
#define UDP "a udp c\na bind c A:P0\nb udp s\nb bind s B:P0\na connect c B:P0\nb connect s A:P0\na bpipe r w\n"

static const struct test_case cases[] = {
    {"to_socket", PIPE "a write w hello\na splice r c 100\nb recv s\na write w again\na splice r c 3 move\na splice r c 3 gift\nb recv s", NULL},
    {"to_socket_in_order", PIPE "a write w 12\na send c 3\na splice r c 1\na send c 4\na splice r c 1\na send c 5\nb drain s 5", NULL},
    {"to_socket_much", PIPE "a write w #60000\na pump r c 60000\nb drain s 60000\na pipesize w 1048576\na write w #300000\na& pump r c 300000\nb drain s 300000\na join", NULL},
    {"to_socket_empty", PIPE "a splice r c 100 nonblock\na nb r\na splice r c 100\na nb r 0\na nb c\na splice r c 100 nonblock", NULL},
    {"to_socket_end", PIPE "a write w last\na close w\na splice r c 100\na splice r c 100\na splice r c 100 nonblock\nb recv s", NULL},
    {"to_socket_waits_for_pipe", PIPE "a& splice r c 100\na blocked\na write w x\na join\nb recv s\na nb c\na& splice r c 100\na blocked\na close w\na join", NULL},
    {"to_socket_more", PIPE "a write w abc\na splice r c 3 more\nb recv s 10 dontwait\na write w def\na splice r c 3\nb drain s 6", NULL},
    {"to_socket_full", LINK "a bpipe r w\na fill c\na nb c\na write w xy\na splice r c 2\na nb c 0\na& splice r c 2\na blocked\nb quaff s\na join\na nb r\na read r", NULL},
    {"to_socket_full_time_limit", LINK "a bpipe r w\na fill c\na set c SO_SNDTIMEO 50\na write w xy\na splice r c 2\na nb r\na read r", NULL},
    {"to_socket_shut", PIPE "a sig pipe\na shutdown c wr\na write w x\na splice r c 1\na sigs\na read r\na close w\na splice r c 1\na sigs", NULL},
    {"to_socket_reset", PIPE "a sig pipe\nb set s SO_LINGER 1 0\nb close s\na await c err\na write w x\na splice r c 1\na splice r c 1\na sigs\na read r", NULL},
    {"to_socket_unconnected", "a sig pipe\na tcp c\na bpipe r w\na splice r c 1 nonblock\na write w x\na splice r c 1\na sigs\na server l\na splice r l 1\na sigs\na read r", NULL},
    {"to_socket_interrupted", PIPE "a sig usr1\na& splice r c 100\na kill 1\na join\na sigr usr1\na set c SO_SNDTIMEO 3000\na& splice r c 100\na kill 2\na blocked\na write w x\na join\na sigs", NULL},
    {"to_full_socket_interrupted", LINK "a bpipe r w\na fill c\na write w xy\na sig usr1\na& splice r c 2\na kill 1\na join\na sigr usr1\na& splice r c 2\na kill 2\na blocked 2\nb quaff s\na join\na nb r\na read r", NULL},
    {"to_full_socket_limit_interrupted", LINK "a bpipe r w\na fill c\na write w xy\na sigr usr1\na set c SO_SNDTIMEO 3000\na& splice r c 2\na kill 1\na join\na read r", NULL},
    {"to_datagram", UDP "a write w one\na splice r c 100\na write w two\na splice r c 2\na splice r c 2\nb recv s\nb recv s\nb recv s", NULL},
    {"to_datagram_more", UDP "a write w one\na splice r c 100 more\nb recv s 100 dontwait\na write w two\na splice r c 100\nb recv s", NULL},
    {"to_datagram_too_long", UDP "a write w #65536\na splice r c 65536\na splice r c 65507\nb recv s 65536\na nb r\na read r 100", NULL},
    {"to_datagram_unconnected", "a udp c\na bpipe r w\na write w x\na splice r c 1\na read r\na sigs", NULL},
    {"to_datagram_refused", "a udp c\na connect c lo:P3\na bpipe r w\na write w xyz\na splice r c 1\na splice r c 1\na splice r c 1", NULL},
    {"to_datagram_buffers", UDP "a close r\na close w\na ppipe r w\na write w 1\na write w 2\na write w 3\na splice r c 2\nb recv s\na splice r c 100\nb recv s", NULL},
    {"to_datagram_many_buffers", UDP "a close r\na close w\na ppipe r w\na pipesize w 1048576\na write w a\na write w b\na write w c\na write w d\na write w e\na write w f\na write w g\na write w h\na write w i\na write w j\na write w k\na write w l\na write w m\na write w n\na write w o\na write w p\na splice r c 100\nb recv s 100 dontwait", NULL},
    {"from_socket", PIPE "b send s hello\na await c in\na splice c w 100\na read r\nb send s again\na await c in\na splice c w 3 more\na splice c w 3 gift\na read r", NULL},
    {"from_socket_much", PIPE "a pipesize w 1048576\nb send s #300000\na pump c w 300000\na read r 300000\nb send s y\na await c in\na splice c w 100\na read r", NULL},
    {"from_socket_empty", PIPE "a nb c\na splice c w 100\na splice c w 100 nonblock\na nb c 0\na nb w\na& splice c w 100 nonblock\na blocked\nb send s x\na join\na read r", NULL},
    {"from_socket_end", PIPE "b send s last\nb close s\na await c rdhup\na splice c w 100\na splice c w 100\na nb c\na splice c w 100\na read r", NULL},
    {"from_socket_waits", PIPE "a& splice c w 100\na blocked\nb send s x\na join\na read r\na& splice c w 100\na blocked\nb shutdown s wr\na join", NULL},
    {"from_socket_time_limit", PIPE "a set c SO_RCVTIMEO 50\na splice c w 100\nb send s x\na await c in\na splice c w 100\na read r", NULL},
    {"from_socket_pipe_full", PIPE "b send s abc\na await c in\na write w #65536\na splice c w 100 nonblock\na nb w\na splice c w 100\na nb w 0\na& splice c w 100\na blocked\na read r 65536\na join\na read r", NULL},
    {"from_socket_no_reader", PIPE "a sig pipe\na close r\na splice c w 100\na sigs\nb send s x\na splice c w 100\na sigs\na recv c", NULL},
    {"from_socket_reader_leaves", PIPE "a sig pipe\nb send s x\na await c in\na write w #65536\na& splice c w 100\na blocked\na close r\na join\na sigs\na recv c", NULL},
    {"from_socket_reset", PIPE "b send s x\na await c in\nb set s SO_LINGER 1 0\nb close s\na await c err\na splice c w 100\na splice c w 100\na nb r\na read r", NULL},
    {"from_socket_shut", PIPE "a shutdown c rd\na splice c w 100\nb send s x\na await c in\na splice c w 100\na read r", NULL},
    {"from_socket_unconnected", "a tcp c\na bpipe r w\na splice c w 100\na server l\na splice l w 100\na nb c\na splice c w 100", NULL},
    {"from_socket_refused", "a tcp c nb\na connect c B:P0\na await c err\na bpipe r w\na splice c w 100\na splice c w 100", NULL},
    {"from_socket_peek_offset", PIPE "b send s abcdef\na await c in\na set c SO_PEEK_OFF 2\na recv c 2 peek\na splice c w 3\na read r\na recv c 10", NULL},
    {"from_socket_urgent", PIPE "b send s ab\nb send s X oob\nb send s cd\na await c pri\na recv c 10 peek\na splice c w 100\na splice c w 100\na nb c\na splice c w 100\na read r\na recv c", NULL},
    {"from_socket_interrupted", PIPE "a sig usr1\na& splice c w 100\na kill 1\na join\na sigr usr1\na& splice c w 100\na kill 2\na blocked\nb send s x\na join\na read r\na sigs", NULL},
    {"from_socket_limit_interrupted", PIPE "a sigr usr1\na set c SO_RCVTIMEO 3000\na& splice c w 100\na kill 1\na join", NULL},
    {"from_socket_full_pipe_interrupted", PIPE "b send s x\na await c in\na write w #65536\na sig usr1\na& splice c w 100\na kill 1\na join\na sigr usr1\na set c SO_RCVTIMEO 3000\na& splice c w 100\na kill 2\na blocked\na read r 65536\na join\na read r", NULL},
    {"from_datagram", UDP "b send s one\nb send s two\na splice c w 100\na read r\na splice c w 2\na nb c\na splice c w 100\na read r", NULL},
    {"from_datagram_empty", UDP "a nb c\na splice c w 100\na nb c 0\na& splice c w 100 nonblock\na blocked\nb send s x\na join\na read r\nb sendto s #0 A:P0\na set c SO_RCVTIMEO 50\na splice c w 100", NULL},
    {"from_datagram_long", UDP "b send s #20000\na splice c w 20000\na read r 20000\nb send s #60000\na write w #40960\na splice c w 60000\na read r 65536\na nb r\na read r", NULL},
    {"from_datagram_refused", "a udp c\na connect c lo:P3\na send c x\na bpipe r w\na splice c w 100\na nb c\na splice c w 100", NULL},
    {"sendfile_to_pipe", PIPE "b send s hello\na await c in\na sendfile w c 3\na sendfile w c 100\na read r\na nb c\na sendfile w c 100\na sendfile w c 100 0\na sendfile w c 100 wild\na sendfile w c -1\na sendfile w c 0\na nb c 0\na& sendfile w c 100\nb shutdown s wr\na join", NULL},
    {"sendfile_elsewhere", LINK "b send s x\na await c in\na bpipe r w\na memfd m\na eventfd v\na sendfile m c 10\na sendfile r c 10\na sendfile c c 10\na sendfile 999 c 10\na sendfile v c 10\na sendfile c r 10", NULL},
    {"sendfile_interrupted", LINK "a memfd m\na write m #10\na fill c\na sig usr1\na& sendfile c m 10 0\na kill 1\na join\na sigr usr1\na& sendfile c m 10 0\na kill 2\na blocked\nb quaff s\na join\nb quaff s", NULL},
    {"errors", PIPE "b send s x\na await c in\na write w x\na tcp d\na splice c d 1\na splice c d 1 0 0 -\na splice c d 1 0 wild -\na splice c w 1 0 - 0\na splice c w 1 0 0 -\na splice c w 1 0 wild -\na splice c w 1 0 wild 0\na splice r c 1 0 0 -\na splice r c 1 0 - 0\na splice r c 1 0 - wild\na splice r c 1 0 - -1", NULL},
    {"errors_ends", PIPE "a write w x\na splice w c 1\na splice c r 1\na splice w c 1 0 - wild\na splice w c 1 0 - 0\na splice 999 c 1\na splice c 999 1\na splice c -1 1\na splice c w 0\na splice 999 998 0\na splice r c 1 bad\na splice 999 c 1 bad\na splice r c -1\na splice c w -1", NULL},
    {"errors_others", PIPE "b send s x\na await c in\na memfd m\na epoll e\na eventfd v\na pair x y\na splice c m 1\na splice m c 1\na splice c e 1\na splice e c 1\na splice c v 1\na splice c x 1\na splice x c 1\na append c\na write w x\na splice r c 1\na splice c w 1\na fl c", NULL},
    {0}};
const struct family splice_family = {"splice", cases};
