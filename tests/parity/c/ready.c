/* poll and select. */
#include "parity.h"

static const struct test_case cases[] = {
    {"poll_nothing", "a poll 0\na poll 20\na tcp c\na poll 0 -1 c:in\na poll 10 -1", NULL},
    {"poll_asked_only", LINK "b send s x\na poll 0 c:in\na poll 0 c:out\na poll 0 c:pri\na poll 0 c:rdnorm\na poll 0 c:wrnorm\na poll 0 c:rdhup\na poll 0 c:rdband\na poll 0 c:wrband\na poll 0 c:0\na poll 0 c:hup", NULL},
    {"poll_unasked_hup_err", LINK "b close s\na send c x\na await c err\na poll 0 c:0\na poll 0 c:in\na poll 0 c:out", NULL},
    {"poll_wakes_on_data", LINK "a& poll 3000 c:in\nb send s x\na join", NULL},
    {"poll_wakes_on_fin", LINK "a& poll 3000 c:in,rdhup\nb shutdown s wr\na join", NULL},
    {"poll_wakes_on_rdhup_only", LINK "a& poll 3000 c:rdhup\nb send s x\na blocked\nb shutdown s wr\na join", NULL},
    {"poll_wakes_on_connect", "b server l\nb& poll 3000 l:in\na tcp c\na connect c B:P0\nb join", NULL},
    {"poll_wakes_on_room", LINK "a fill c\na& poll 3000 c:out\nb quaff s\na join", NULL},
    {"poll_wakes_on_oob", LINK "a& poll 3000 c:pri\nb send s x\na blocked\nb send s y oob\na join\na recv c 5 oob\na poll 0 c", NULL},
    {"poll_wakes_on_local_shutdown", LINK "a& poll 3000 c:in\na shutdown c rd\na join", NULL},
    {"poll_closed_meanwhile", LINK "a& poll 100 c:in\na close c\na join", NULL},
    {"poll_same_twice", LINK "b send s x\na poll 0 c:in c:out c:in c:0", NULL},
    {"poll_many", LINK "a tcp d\na connect d B:P0\nb accept l t\nb send t x\na poll 0 c:in d:in\na poll 100 c:in d:in\nb send s y\na poll 0 c:in d:in", NULL},
    {"poll_duplicate", LINK "a dup c d\nb send s x\na poll 0 c:in d:in\na close c\na poll 0 d:in\na recv d\na poll 0 d:in", NULL},
    {"poll_udp", "b udp s\nb bind s B:P0\nb& poll 3000 s:in\na udp c\na connect c B:P0\na poll 0 c\na send c x\nb join\nb recv s\nb poll 0 s", NULL},
    {"poll_interrupted", LINK "a sig usr1\na& poll 3000 c:in\na kill 1\na join", NULL},
    {"poll_not_restarted", LINK "a sigr usr1\na& poll 3000 c:in\na kill 1\na join", NULL},
    {"select_basics", LINK "a select 0 r:c w:c e:c\nb send s x\na select 0 r:c w:c e:c\na recv c\nb send s y oob\na select 0 r:c w:c e:c\na pselect 0 r:c w:c e:c\na recv c 1 oob\na select 0 r:c w:c e:c", NULL},
    {"select_bad_descriptor", "a tcp c\na select 0 r:c r:99\na pselect 0 w:99\na select 0 r:c", NULL},
    {"select_wakes", LINK "a& select 3000 r:c\nb send s x\na join\na& pselect 3000 e:c\nb send s y oob\na join", NULL},
    {"select_timeout", LINK "a select 20 r:c\na pselect 20 r:c", NULL},
    {"select_eof_and_error", LINK "b close s\na select 0 r:c w:c e:c\na send c x\na await c err\na select 0 r:c w:c e:c", NULL},
    {"select_connecting", "a tcp c nb\na connect c nobody:P0\na select 0 r:c w:c e:c\na tcp d nb\na connect d B:P0\na await d err\na select 0 r:d w:d e:d", NULL},
    {"rcvlowat", LINK "a set c SO_RCVLOWAT 4\nb send s abc\na poll 0 c:in\na select 0 r:c\nb send s d\na poll 0 c:in\na recv c 2\na poll 0 c:in\nb close s\na poll 0 c:in", NULL},
    {"rcvlowat_blocks", LINK "a set c SO_RCVLOWAT 4\nb send s abc\na& recv c 10\na blocked\nb send s d\na blocked\nb send s efg\na join", NULL},
    {"poll_listener_states", "b tcp l\nb poll 0 l\nb bind l B:P0\nb poll 0 l\nb listen l 2\nb poll 0 l\na tcp c\na connect c B:P0\nb poll 0 l\nb accept l s\nb poll 0 l", NULL},
    {0}};
const struct family ready_family = {"ready", cases};
