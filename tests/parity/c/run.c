/* The steps of a case, here and on the other host; the cases of a family, each in a process of its own. */
#include "parity.h"

bool on_link = true;
const char *addr_a = "10.99.0.1", *addr_b = "10.99.0.2";
int port_base = 5000;

enum { CONTROL_PORT = 4999, FIRST_PORT = 5000, PORTS_A_CASE = 10, CASE_SECONDS = 10, LINE = 1 << 16 };

static const struct family *const families[] = {&conn_family,  &states_family, &errno_family, &fault_family, &ready_family, &epoll_family,
                                                &mixed_family, &udp_family,    &opts_family,  &flags_family, &proc_family,  &ports_family,
                                                &files_family, &mask_family,   &splice_family, &stop_family};
enum { FAMILIES = sizeof families / sizeof *families };

static int control = -1;
static _Thread_local char line_out[LINE];
static _Thread_local size_t line_len;

static void fail(const char *what)
{
    fprintf(stderr, "parity: %s: %s\n", what, strerror(errno));
    exit(3);
}

void out(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line_out + line_len, sizeof line_out - line_len, format, args);
    va_end(args);
    if (n > 0)
        line_len += (size_t)n < sizeof line_out - line_len ? (size_t)n : sizeof line_out - line_len - 1;
}

void out_ret(long ret)
{
    int saved = errno;
    if (ret < 0)
        out(" -> %ld %s", ret, errno_name(saved));
    else
        out(" -> %ld", ret);
    errno = saved;
}

void out_data(const char *data, size_t len)
{
    if (len > 48) {
        uint32_t hash = 2166136261u;
        for (size_t i = 0; i < len; i++)
            hash = (hash ^ (unsigned char)data[i]) * 16777619u;
        out(" <%zu octets %08x>", len, hash);
        return;
    }
    out(" \"");
    for (size_t i = 0; i < len; i++)
        if (data[i] >= ' ' && data[i] <= '~' && data[i] != '"')
            out("%c", data[i]);
        else
            out("\\%02x", (unsigned char)data[i]);
    out("\"");
}

bool is(const struct words *w, const char *op) { return !strcmp(w->w[0], op); }
const char *word(const struct words *w, int i, const char *otherwise) { return i < w->n ? w->w[i] : otherwise; }
long number(const struct words *w, int i, long otherwise) { return i < w->n ? strtol(w->w[i], NULL, 0) : otherwise; }

bool do_op(const char *line)
{
    struct words w = {.n = 0};
    snprintf(w.text, sizeof w.text, "%s", line);
    for (char *at = w.text, *one; (one = strsep(&at, " ")) != NULL && w.n < WORDS;)
        if (*one)
            w.w[w.n++] = one;
    if (w.n == 0)
        return false;
    out("%s", line);
    if (socket_op(&w) || data_op(&w) || ready_op(&w) || option_op(&w) || splice_op(&w) || bg_op(&w))
        return true;
    fprintf(stderr, "parity: no operation: %s\n", line);
    abort();
}

/* Takes the line of this thread so far. */
void bg_capture(char *to, size_t size)
{
    snprintf(to, size, "%s", line_out);
    line_len = 0;
    line_out[0] = 0;
}

/* Control messages: a length, then text. */
static void put(int fd, const char *text, size_t len)
{
    char buf[LINE + 4];
    uint32_t n = (uint32_t)len;
    memcpy(buf, &n, 4);
    memcpy(buf + 4, text, len);
    for (size_t done = 0; done < len + 4;) {
        ssize_t r = send(fd, buf + done, len + 4 - done, MSG_NOSIGNAL);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            fail("control connection");
        done += (size_t)r;
    }
}

static bool get_all(int fd, char *to, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t r = recv(fd, to + done, len - done, 0);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return false;
        done += (size_t)r;
    }
    return true;
}

static bool get(int fd, char *text)
{
    uint32_t len;
    if (!get_all(fd, (char *)&len, 4) || len >= LINE || !get_all(fd, text, len))
        return false;
    text[len] = 0;
    return true;
}

void fence(void)
{
    char answer[LINE];
    if (!on_link)
        return;
    put(control, "", 0);
    if (!get(control, answer))
        fail("control connection");
}

/* Runs a step of this host into `line_out`. */
static void here(const char *line)
{
    line_len = 0;
    line_out[0] = 0;
    if (*line == '&')
        bg_start(line + 2);
    else
        do_op(line);
}

void step(const char *line)
{
    char answer[LINE];
    bool local = line[0] == 'a' || !on_link;
    const char *op = line[1] == ' ' ? line + 2 : line + 1;
    if (local) {
        here(op);
        printf("%c %s\n", line[0], line_out);
    } else {
        put(control, op, strlen(op));
        if (!get(control, answer))
            fail("control connection");
        printf("%c %s\n", line[0], answer);
    }
    if (on_link)
        fflush(stdout);
    fence();
}

void stepf(const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    step(line);
}

void script(const char *lines)
{
    char copy[8192];
    snprintf(copy, sizeof copy, "%s", lines);
    for (char *at = copy, *one; (one = strsep(&at, "\n;")) != NULL;) {
        while (*one == ' ')
            one++;
        if (*one)
            step(one);
    }
}

static int control_socket(const char *addr, bool listening)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons(CONTROL_PORT), .sin_addr.s_addr = inet_addr(addr)};
    if (fd < 0)
        fail("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (listening) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&sin, sizeof sin) || listen(fd, 64))
            fail("control port");
    } else if (connect(fd, (struct sockaddr *)&sin, sizeof sin))
        fail("control connection");
    return fd;
}

/* Out of the way of the numbers that cases use. */
static int move_away(int fd)
{
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, 200);
    close(fd);
    return moved;
}

/* The server shall end. */
void end_server(void)
{
    port_base = 0;
    start_control();
    char nothing;
    while (recv(control, &nothing, 1, 0) > 0)
        continue;
}

void start_control(void)
{
    char text[16];
    control = move_away(control_socket(addr_b, false));
    put(control, text, (size_t)snprintf(text, sizeof text, "%d", port_base));
}

/* No case outlives the program. */
void end_with_parent(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/* A program that has made some calls gets what is there for those that make many: on an emulated host its small arguments then go
 * through memory that it shares with the supervisor. */
static void warm_up(void)
{
    int value;
    socklen_t len = sizeof value;
    for (int i = 0; i < 64; i++)
        getsockopt(-1, SOL_SOCKET, SO_TYPE, &value, &len);
}

static void serve(int fd)
{
    char line[LINE];
    warm_up();
    alarm(CASE_SECONDS);
    if (!get(fd, line))
        return;
    port_base = atoi(line);
    if (port_base == 0) {
        kill(getppid(), SIGUSR1);
        return;
    }
    while (get(fd, line)) {
        line_len = 0;
        line_out[0] = 0;
        if (*line)
            here(line);
        put(fd, line_out, line_len);
    }
}

static void over(int signo)
{
    (void)signo;
    _exit(0);
}

static int server(void)
{
    signal(SIGUSR1, over);
    int l = control_socket(addr_b, true);
    signal(SIGCHLD, SIG_IGN);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int fd = accept(l, NULL, NULL);
        if (fd < 0)
            continue;
        if (fork() == 0) {
            end_with_parent();
            close(l);
            signal(SIGCHLD, SIG_DFL);
            signal(SIGUSR1, SIG_DFL);
            serve(move_away(fd));
            _exit(0);
        }
        close(fd);
    }
}

static void run_case(const struct family *f, int index)
{
    const struct test_case *c = &f->cases[index];
    int status = 0;
    printf("== %s/%s\n", f->name, c->name);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        end_with_parent();
        alarm(CASE_SECONDS);
        warm_up();
        start_control();
        if (c->script)
            script(c->script);
        if (c->code)
            c->code();
        fflush(stdout);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    if (status)
        printf("!! %s %d\n", WIFSIGNALED(status) ? "killed by" : "exit", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc >= 2 && !strcmp(argv[1], "server"))
        return server();
    if (argc >= 2 && !strcmp(argv[1], "random"))
        return random_main(argc - 2, argv + 2);
    if (argc < 2)
        return 2;
    for (int f = 0, first = FIRST_PORT; f < FAMILIES; f++)
        for (int i = 0; families[f]->cases[i].name; i++, first += PORTS_A_CASE) {
            port_base = first;
            if (!strcmp(argv[1], families[f]->name) && (argc < 3 || !strcmp(argv[2], families[f]->cases[i].name)))
                run_case(families[f], i);
        }
    end_server();
    return 0;
}
