/* Sockets as files: what fstat and other calls for files say of them, flags by every way, addresses of odd lengths. */
#include "parity.h"
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <termios.h>

static void said(const char *what, long ret)
{
    int number = errno;
    printf("a %s -> %ld%s%s\n", what, ret < 0 ? -1 : ret, ret < 0 ? " " : "", ret < 0 ? errno_name(number) : "");
}

static const struct kind {
    const char *name;
    int family, type, protocol;
} kinds[] = {
    {"tcp", AF_INET, SOCK_STREAM, 0},
    {"udp", AF_INET, SOCK_DGRAM, 0},
    {"tcp6", AF_INET6, SOCK_STREAM, 0},
    {"udp6", AF_INET6, SOCK_DGRAM, 0},
    {"raw", AF_INET, SOCK_RAW, IPPROTO_ICMP},
    {"packet", AF_PACKET, SOCK_DGRAM, 0},
    {"netlink", AF_NETLINK, SOCK_RAW, NETLINK_ROUTE},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static int open_kind(const struct kind *k) { return socket(k->family, k->type, k->protocol); }

static void shown(const char *what, int fd)
{
    struct stat st, by_name;
    char path[64], link[64], want[64];
    memset(&st, 0, sizeof st);
    said(what, fstat(fd, &st));
    printf("mode %o socket %d size %ld blocks %ld blksize %ld links %ld rdev %ld own %d\n", st.st_mode, S_ISSOCK(st.st_mode), (long)st.st_size,
           (long)st.st_blocks, (long)st.st_blksize, (long)st.st_nlink, (long)st.st_rdev, st.st_uid == geteuid());
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    memset(&by_name, 0, sizeof by_name);
    said("stat by /proc", stat(path, &by_name));
    printf("the same %d\n", by_name.st_ino == st.st_ino && by_name.st_dev == st.st_dev);
    ssize_t n = readlink(path, link, sizeof link - 1);
    link[n < 0 ? 0 : n] = 0;
    snprintf(want, sizeof want, "socket:[%lu]", (unsigned long)st.st_ino);
    printf("link %d\n", !strcmp(link, want));
    snprintf(path, sizeof path, "/dev/fd/%d", fd);
    said("stat by /dev", stat(path, &by_name));
    said("open by /dev", open(path, O_RDWR));
    said("access by /dev", access(path, W_OK));
}

static void stats(void)
{
    for (int k = 0; k < KINDS; k++) {
        int fd = open_kind(&kinds[k]);
        shown(kinds[k].name, fd);
        close(fd);
        said("closed", fstat(fd, &(struct stat){0}));
    }
    script(LOOP);
    shown("listening", slots['l']);
    shown("accepted", slots['s']);
    struct stat a, b;
    int copy = dup(slots['c']);
    printf("dup the same %d\n", fstat(slots['c'], &a) == 0 && fstat(copy, &b) == 0 && a.st_ino == b.st_ino);
    printf("peers differ %d\n", fstat(slots['s'], &b) == 0 && a.st_ino != b.st_ino);
}

static void calls(void)
{
    script(LOOP "a udp u\n");
    for (const char *which = "clu"; *which; which++) {
        int fd = slots[(int)*which];
        char b[64];
        struct termios tio;
        printf("%c\n", *which);
        said("lseek", lseek(fd, 0, SEEK_SET));
        said("pread", pread(fd, b, 1, 0));
        said("pwrite", pwrite(fd, b, 1, 0));
        said("preadv", preadv(fd, &(struct iovec){b, 1}, 1, 0));
        said("pwritev2", pwritev2(fd, &(struct iovec){b, 1}, 1, 0, 0));
        said("ftruncate", ftruncate(fd, 0));
        said("fsync", fsync(fd));
        said("fallocate", fallocate(fd, 0, 0, 1));
        said("fadvise", posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
        said("flock", flock(fd, LOCK_EX | LOCK_NB));
        said("isatty", isatty(fd) ? 1 : -1);
        said("tcgetattr", tcgetattr(fd, &tio));
        said("fchdir", fchdir(fd));
        said("fchmod", fchmod(fd, 0600));
        said("getdents", syscall(SYS_getdents64, fd, b, sizeof b));
        if (*which == 'u')
            said("mmap", mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED ? -1 : 0);
        said("execveat", syscall(SYS_execveat, fd, "", (char *[]){0}, (char *[]){0}, AT_EMPTY_PATH));
        said("copy_file_range", syscall(SYS_copy_file_range, fd, NULL, fd, NULL, 1, 0));
        said("lock", fcntl(fd, F_SETLK, &(struct flock){.l_type = F_RDLCK}));
        said("pipe size", fcntl(fd, F_GETPIPE_SZ));
        said("seals", fcntl(fd, F_GET_SEALS));
    }
}

static void fdinfo_flags(int fd)
{
    char path[64], line[128];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "pos:", 4) || !strncmp(line, "flags:", 6))
            printf("%s", line);
    if (f)
        fclose(f);
}

static void flags_are(const char *what, int fd)
{
    int fl = fcntl(fd, F_GETFL), fdfl = fcntl(fd, F_GETFD);
    printf("%s: %o %d\n", what, fl, fdfl);
}

static void flags(void)
{
    int on = 1, off = 0;
    for (int k = 0; k < KINDS; k++) {
        int fd = open_kind(&kinds[k]);
        printf("%s\n", kinds[k].name);
        flags_are("new", fd);
        fdinfo_flags(fd);
        said("nonblock", fcntl(fd, F_SETFL, O_NONBLOCK));
        flags_are("nonblock", fd);
        said("async", fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_ASYNC));
        flags_are("async", fd);
        said("fionbio off", ioctl(fd, FIONBIO, &off));
        said("fioasync off", ioctl(fd, FIOASYNC, &off));
        flags_are("off", fd);
        said("fionbio on", ioctl(fd, FIONBIO, &on));
        said("fioasync on", ioctl(fd, FIOASYNC, &on));
        int copy = dup(fd), high = fcntl(fd, F_DUPFD_CLOEXEC, 100);
        flags_are("dup", copy);
        flags_are("dupfd", high);
        said("append", fcntl(copy, F_SETFL, O_APPEND | O_WRONLY | O_CREAT));
        flags_are("append", fd);
        said("direct", fcntl(fd, F_SETFL, O_DIRECT));
        said("noatime", fcntl(fd, F_SETFL, O_NOATIME));
        flags_are("refused", fd);
        said("fioclex", ioctl(fd, FIOCLEX));
        flags_are("fioclex", fd);
        said("fionclex", ioctl(fd, FIONCLEX));
        flags_are("fionclex", fd);
        pid_t child = fork();
        if (child == 0) {
            fcntl(fd, F_SETFL, O_NONBLOCK);
            _exit(0);
        }
        waitpid(child, NULL, 0);
        flags_are("by a child", fd);
        close(fd), close(copy), close(high);
    }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    flags_are("made nonblock", fd);
    script(LOOP);
    script("a nb l\na tcp d\na connect d lo:P0");
    flags_are("accept", accept(slots['l'], NULL, NULL));
    script("a tcp e\na connect e lo:P0");
    flags_are("accept4", accept4(slots['l'], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

static size_t filled(void *to, int family)
{
    memset(to, 0, 160);
    *(uint16_t *)to = (uint16_t)family;
    if (family == AF_INET6) {
        struct sockaddr_in6 *six = to;
        six->sin6_port = htons(9);
        inet_pton(AF_INET6, "::ffff:127.0.0.1", &six->sin6_addr);
    } else if (family == AF_PACKET) {
        struct sockaddr_ll *ll = to;
        ll->sll_protocol = htons(0x88b5);
        ll->sll_ifindex = 1;
        ll->sll_halen = 6;
    } else if (family != AF_NETLINK) {
        struct sockaddr_in *four = to;
        four->sin_port = htons(9);
        four->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    }
    return 160;
}

enum call { BIND, CONNECT, SENDTO, SENDMSG, CALLS };
static const char *const call_names[] = {"bind", "connect", "sendto", "sendmsg"};

static long made(enum call call, int fd, void *addr, int len)
{
    struct iovec v = {"xxxxxxxx", 8};
    switch (call) {
    case BIND: return bind(fd, addr, (socklen_t)len);
    case CONNECT: return connect(fd, addr, (socklen_t)len);
    case SENDTO: return sendto(fd, "xxxxxxxx", 8, MSG_NOSIGNAL, addr, (socklen_t)len);
    default: return sendmsg(fd, &(struct msghdr){.msg_name = addr, .msg_namelen = (socklen_t)len, .msg_iov = &v, .msg_iovlen = 1}, MSG_NOSIGNAL);
    }
}

static void odd_addresses(const struct kind *k)
{
    static const int lens[] = {-1, 0, 1, 2, 3, 7, 8, 11, 12, 15, 16, 17, 19, 20, 23, 24, 27, 28, 127, 128, 129};
    static const int address_families[] = {AF_UNSPEC, AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, 99};
    char addr[160];
    for (int call = 0; call < CALLS; call++)
        for (size_t f = 0; f < sizeof address_families / sizeof *address_families; f++) {
            printf("%s %s %d:", k->name, call_names[call], address_families[f]);
            for (size_t l = 0; l < sizeof lens / sizeof *lens; l++) {
                int fd = open_kind(k);
                filled(addr, address_families[f]);
                long ret = made((enum call)call, fd, addr, lens[l]);
                int number = errno;
                printf(" %d=%s", lens[l], ret < 0 ? errno_name(number) : "ok");
                close(fd);
            }
            printf("\n");
        }
}

static void odd_tcp(void) { odd_addresses(&kinds[0]); }
static void odd_udp(void) { odd_addresses(&kinds[1]); }
static void odd_tcp6(void) { odd_addresses(&kinds[2]); }
static void odd_udp6(void) { odd_addresses(&kinds[3]); }
static void odd_raw(void) { odd_addresses(&kinds[4]); }
static void odd_packet(void) { odd_addresses(&kinds[5]); }
static void odd_netlink(void) { odd_addresses(&kinds[6]); }

static const struct test_case cases[] = {{"stats", NULL, stats},         {"calls", NULL, calls},           {"flags", NULL, flags},
                                         {"odd_tcp", NULL, odd_tcp},     {"odd_udp", NULL, odd_udp},       {"odd_tcp6", NULL, odd_tcp6},
                                         {"odd_udp6", NULL, odd_udp6},   {"odd_raw", NULL, odd_raw},       {"odd_packet", NULL, odd_packet},
                                         {"odd_netlink", NULL, odd_netlink}, {0}};
const struct family files_family = {"files", cases};
