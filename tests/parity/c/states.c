/* What each state of a connection answers: poll, reads, writes, shutdown. */
#include "parity.h"

/* Each way to look at a socket, in the state in which it is. */
static void look(char side, char slot)
{
    stepf("%c poll 0 %c", side, slot);
    stepf("%c select 0 r:%c w:%c e:%c", side, slot, slot, slot);
    stepf("%c name %c", side, slot);
    stepf("%c peer %c", side, slot);
    stepf("%c ioctl %c fionread", side, slot);
    stepf("%c get %c SO_ERROR", side, slot);
    stepf("%c get %c SO_ACCEPTCONN", side, slot);
    stepf("%c epoll e", side);
    stepf("%c add e %c in,out,pri,rdhup", side, slot);
    stepf("%c epwait e", side);
    stepf("%c close e", side);
    stepf("%c recv %c 5 dontwait,peek", side, slot);
    stepf("%c recv %c 50 dontwait", side, slot);
    stepf("%c send %c x nosignal,dontwait", side, slot);
    stepf("%c send %c y oob,nosignal,dontwait", side, slot);
    stepf("%c poll 0 %c", side, slot);
}

static void ways_down(char side, char slot)
{
    stepf("%c shutdown %c rd", side, slot);
    stepf("%c poll 0 %c", side, slot);
    stepf("%c shutdown %c wr", side, slot);
    stepf("%c poll 0 %c", side, slot);
    stepf("%c shutdown %c rdwr", side, slot);
    stepf("%c poll 0 %c", side, slot);
    stepf("%c recv %c 50 dontwait", side, slot);
    stepf("%c recv %c 50 dontwait", side, slot);
    stepf("%c send %c z nosignal,dontwait", side, slot);
}

static void fresh(void) { script("a tcp c"), look('a', 'c'), ways_down('a', 'c'); }
static void bound(void) { script("a tcp c\na bind c A:P0"), look('a', 'c'), ways_down('a', 'c'); }
static void listening(void) { script("a server l"), look('a', 'l'), ways_down('a', 'l'); }
static void listening_with_one(void)
{
    script("b server l\na tcp c\na connect c B:P0");
    look('b', 'l');
}
static void connecting(void) { script("a tcp c nb\na connect c nobody:P0"), look('a', 'c'); }
static void connecting_shut(void)
{
    script("a tcp c nb\na connect c nobody:P0\na shutdown c wr\na poll 0 c\na send c x\na recv c\na connect c nobody:P0");
}
static void refused(void) { script("a tcp c nb\na connect c B:P0\na await c err"), look('a', 'c'), ways_down('a', 'c'); }
static void established(void) { script(LINK), look('a', 'c'), look('b', 's'); }
static void established_down(void) { script(LINK), ways_down('a', 'c'), look('b', 's'); }
static void peer_closed(void) { script(LINK "b shutdown s wr"), look('a', 'c'), look('b', 's'); }
static void peer_gone(void) { script(LINK "b close s"), ways_down('a', 'c'); }
static void peer_sent_and_closed(void) { script(LINK "b send s last\nb close s"), look('a', 'c'), ways_down('a', 'c'); }
static void shut_read(void) { script(LINK "a shutdown c rd\nb send s late"), look('a', 'c'), look('b', 's'); }
static void shut_write(void) { script(LINK "a shutdown c wr"), look('a', 'c'), look('b', 's'); }
static void shut_both(void) { script(LINK "a shutdown c rdwr"), look('a', 'c'), look('b', 's'); }
static void both_closed_write(void) { script(LINK "a shutdown c wr\nb shutdown s wr"), look('a', 'c'), look('b', 's'), ways_down('a', 'c'); }
static void passive_closed(void) { script(LINK "b shutdown s wr\na shutdown c wr"), look('a', 'c'), look('b', 's'); }
static void reset(void) { script(LINK "b set s SO_LINGER 1 0\nb close s\na await c err"), look('a', 'c'), ways_down('a', 'c'); }
static void reset_with_data(void) { script(LINK "b send s last\nb set s SO_LINGER 1 0\nb close s\na await c err"), look('a', 'c'); }
static void reset_after_fin(void) { script(LINK "b close s\na send c x\na await c err"), look('a', 'c'), ways_down('a', 'c'); }
static void full(void) { script(LINK "a fill c"), script("a poll 0 c\na select 0 r:c w:c e:c\na send c x dontwait,nosignal\nb poll 0 s\nb quaff s\na await c out"); }
static void urgent(void) { script(LINK "b send s a!b oob"), look('a', 'c'); }
static void udp_fresh(void) { script("a udp c"), look('a', 'c'), ways_down('a', 'c'); }
static void udp_connected(void) { script("b udp s\nb bind s B:P0\na udp c\na connect c B:P0"), look('a', 'c'), ways_down('a', 'c'), look('b', 's'); }
static void udp_error(void) { script("a udp c\na connect c B:P0\na send c x\na await c err"), look('a', 'c'); }

static const struct test_case cases[] = {
    {"fresh", NULL, fresh}, {"bound", NULL, bound}, {"listening", NULL, listening}, {"listening_with_one", NULL, listening_with_one},
    {"connecting", NULL, connecting}, {"connecting_shut", NULL, connecting_shut}, {"refused", NULL, refused},
    {"established", NULL, established}, {"established_down", NULL, established_down}, {"peer_closed", NULL, peer_closed},
    {"peer_gone", NULL, peer_gone}, {"peer_sent_and_closed", NULL, peer_sent_and_closed}, {"shut_read", NULL, shut_read},
    {"shut_write", NULL, shut_write}, {"shut_both", NULL, shut_both}, {"both_closed_write", NULL, both_closed_write},
    {"passive_closed", NULL, passive_closed}, {"reset", NULL, reset}, {"reset_with_data", NULL, reset_with_data},
    {"reset_after_fin", NULL, reset_after_fin}, {"full", NULL, full}, {"urgent", NULL, urgent}, {"udp_fresh", NULL, udp_fresh},
    {"udp_connected", NULL, udp_connected}, {"udp_error", NULL, udp_error}, {0}};
const struct family states_family = {"states", cases};
