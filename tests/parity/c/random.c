/*
 * Random sequences: a seed decides the steps before any is made, so that a sequence can be made again with some of
 * them left out. Over loopback in one process, or between both hosts.
 */
#include "parity.h"

enum { MAX_STEPS = 40, SKIPS = 64 };

static uint64_t state;

static uint32_t random_number(uint32_t below)
{
    /* splitmix64 */
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)((z ^ (z >> 31)) % below);
}

static const char *one_of(const char *const *list)
{
    uint32_t n = 0;
    while (list[n])
        n++;
    return list[random_number(n)];
}

static const char *const sockets[] = {"c", "c", "d", "s", "s", "t", "l", "u", "v", NULL};
static const char *const connected[] = {"c", "c", "c", "d", "s", "s", "s", "t", "u", "v", NULL};
static const char *const sizes[] = {"1", "2", "3", "10", "100", NULL};
static const char *const payload[] = {"x", "ab", "abc", "0123456789", "#100", "#0", NULL};
static const char *const how[] = {"rd", "wr", "wr", "rdwr", NULL};
static const char *const recv_flags[] = {"0", "0", "0", "peek", "trunc", "oob", "waitall", "peek,trunc", "errqueue", NULL};
static const char *const send_flags[] = {"nosignal", "nosignal", "nosignal,oob", "nosignal,dontroute", NULL};
static const char *const interest[] = {"in", "in,et", "out", "in,out,et", "in,oneshot", "in,out,rdhup", "0", "in,out,rdhup,et,oneshot", "in,exclusive", NULL};
static const char *const settings[] = {"SO_REUSEADDR 1", "SO_KEEPALIVE 1", "SO_LINGER 1 0", "SO_OOBINLINE 1", "SO_RCVLOWAT 3", "TCP_NODELAY 1",
                                       "TCP_NODELAY 0", "SO_REUSEPORT 1", "IP_RECVERR 1", "SO_REUSEADDR 0", NULL};
static const char *const readings[] = {"SO_ERROR", "SO_ERROR", "SO_ACCEPTCONN", "SO_KEEPALIVE", "SO_REUSEADDR", "SO_RCVLOWAT", "SO_TYPE", NULL};

/* Which host a socket's slot belongs to: the listening and accepted ones, and one datagram socket, to the server's. */
static char side_of(char slot) { return on_link && strchr("lmstv", slot) ? 'b' : 'a'; }
static const char *server_place(void) { return on_link ? "B" : "lo"; }
static const char *client_place(void) { return on_link ? "A" : "lo"; }

static void name_step(char *line, size_t size, const char *x)
{
    char h = side_of(*x);
    switch (random_number(6)) {
    case 0: snprintf(line, size, "%c name %s", h, x); break;
    case 1: snprintf(line, size, "%c peer %s", h, x); break;
    case 2: snprintf(line, size, "%c get %s %s", h, x, one_of(readings)); break;
    case 3: snprintf(line, size, "%c set %s %s", h, x, one_of(settings)); break;
    case 4: snprintf(line, size, "%c ioctl %s fionread", h, x); break;
    default: snprintf(line, size, "%c listen %s %u", h, x, random_number(3)); break;
    }
}

static void set_step(char *line, size_t size, const char *x)
{
    char h = side_of(*x), e = h == 'a' ? 'e' : 'f';
    switch (random_number(7)) {
    case 0: case 1: snprintf(line, size, "%c add %c %s %s", h, e, x, one_of(interest)); break;
    case 2: snprintf(line, size, "%c mod %c %s %s", h, e, x, one_of(interest)); break;
    case 3: snprintf(line, size, "%c del %c %s", h, e, x); break;
    default: snprintf(line, size, "%c epwait %c 16 0", h, e); break;
    }
}

static void open_step(char *line, size_t size)
{
    static const char *const made[] = {"a tcp c nb", "a tcp d nb", "a udp u nb", NULL};
    static const char *const at_server[] = {"tcp l nb", "udp v nb", "tcp s nb", NULL};
    char h = on_link ? 'b' : 'a';
    switch (random_number(7)) {
    case 0: snprintf(line, size, "%s", one_of(made)); break;
    case 1: snprintf(line, size, "%c %s", h, one_of(at_server)); break;
    case 2: snprintf(line, size, "%c bind %s any:P%u", h, random_number(2) ? "l" : "v", random_number(2)); break;
    case 3: snprintf(line, size, "a bind %s %s:P%u", one_of(sockets), client_place(), random_number(4)); break;
    default: snprintf(line, size, "%c accept4 l %s nb", h, random_number(3) ? "s" : "t"); break;
    }
    /* A bind of the server's own slots takes place there. */
    if (line[0] == 'a' && strstr(line, "bind "))
        line[0] = side_of(line[7]);
}

static void connect_step(char *line, size_t size)
{
    const char *x = one_of((const char *const[]){"c", "c", "d", "u", NULL});
    switch (random_number(8)) {
    case 0: snprintf(line, size, "a connect %s unspec", x); break;
    case 1: snprintf(line, size, "a connect %s %s:P1", x, server_place()); break;
    case 2: snprintf(line, size, "a sendto u %s %s:P%u", one_of(payload), server_place(), random_number(2)); break;
    default: snprintf(line, size, "a connect %s %s:P0", x, server_place()); break;
    }
}

static void next_step(char *line, size_t size)
{
    const char *x = one_of(connected);
    char h = side_of(*x);
    switch (random_number(20)) {
    case 0: case 1: open_step(line, size); break;
    case 2: case 3: connect_step(line, size); break;
    case 4: case 5: case 6: snprintf(line, size, "%c send %s %s %s", h, x, one_of(payload), one_of(send_flags)); break;
    case 7: case 8: case 9: snprintf(line, size, "%c recv %s %s dontwait,%s", h, x, one_of(sizes), one_of(recv_flags)); break;
    case 10: snprintf(line, size, "%c shutdown %s %s", h, x = one_of(sockets), one_of(how)); line[0] = side_of(*x); break;
    case 11: snprintf(line, size, "%c close %s", h, x = one_of(sockets)); line[0] = side_of(*x); break;
    case 12: case 13: snprintf(line, size, "%c poll 0 %s", h, x = one_of(sockets)); line[0] = side_of(*x); break;
    case 14: snprintf(line, size, "%c dup2 %s %s", h, x, side_of(*x) == 'a' ? "d" : "t"); break;
    case 15: name_step(line, size, one_of(sockets)); break;
    default: set_step(line, size, one_of(sockets)); break;
    }
}

static int skips[SKIPS], skipped;

static bool is_skipped(int number)
{
    for (int i = 0; i < skipped; i++)
        if (skips[i] == number)
            return true;
    return false;
}

static void sequence(uint64_t seed, int limit)
{
    char line[128], prologue[256];
    char h = on_link ? 'b' : 'a';
    state = seed * 0x2545f4914f6cdd1dull + 1;
    int steps = 8 + (int)random_number(MAX_STEPS - 8);
    snprintf(prologue, sizeof prologue, "%c tcp l nb\n%c set l SO_REUSEADDR 1\n%c bind l any:P0\n%c listen l 3\n%c udp v nb\n%c bind v any:P0\na tcp c nb\na udp u nb\n%c epoll f\na epoll e",
             h, h, h, h, h, h, h);
    script(prologue);
    if (random_number(4))
        stepf("a connect c %s:P0", server_place()), stepf("%c accept4 l s nb", h);
    for (int i = 0; i < steps && i < limit; i++) {
        next_step(line, sizeof line);
        if (is_skipped(i))
            continue;
        printf("%d: ", i);
        step(line);
    }
}

static void close_all(void)
{
    syscall(SYS_close_range, 3, ~0u, 0);
    for (int i = 0; i < SLOTS; i++)
        slots[i] = -1;
}

/* random loop|link FIRST COUNT [STEPS [SKIP…]] */
int random_main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    on_link = !strcmp(argv[0], "link");
    uint64_t first = strtoull(argv[1], NULL, 0), count = strtoull(argv[2], NULL, 0);
    int limit = argc > 3 ? atoi(argv[3]) : MAX_STEPS;
    for (int i = 4; i < argc && skipped < SKIPS; i++)
        skips[skipped++] = atoi(argv[i]);
    for (uint64_t seed = first; seed < first + count; seed++) {
        printf("== random/%llu\n", (unsigned long long)seed);
        port_base = 6000 + (int)(seed % 2500) * 10;
        if (!on_link) {
            sequence(seed, limit);
            close_all();
            continue;
        }
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            end_with_parent();
            alarm(20);
            start_control();
            sequence(seed, limit);
            fflush(stdout);
            _exit(0);
        }
        int status = 0;
        waitpid(pid, &status, 0);
        if (status)
            printf("!! ended %d\n", status);
    }
    if (on_link)
        end_server();
    return 0;
}
