/* A server that knows the truth: it streams like vLLM on a set schedule and writes down when.

   truth_server CORE FIRST_US GAP_US ALIGNED COUNT FILE

   Answers /v1/completions and /v1/chat/completions on a free port of 127.0.0.1, which it prints.
   A request gets max_tokens events, the first FIRST_US after it was read and the others GAP_US
   apart: on one common grid if ALIGNED (as the steps of an engine), else each in a phase of its
   own. One send() per event, as uvicorn does. One thread, pinned to CORE, that sleeps in
   epoll_pwait2 with a timer slack of 1 ns; in a burst it looks for new requests every few sends.

   Prints "began" when it has read the first request, "ended" when the COUNT-th answer has ended.
   At SIGTERM it writes FILE, a JSON object per request, times in ns of CLOCK_MONOTONIC:
   id, connection (number of its accept), arrived (the kernel's receive stamp of the request's
   last segment), read (this process had it all), sent[] (just before the send() of each event
   with a token), late (the most by which a send missed its time). */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 20, SENDS_PER_LOOK = 4, EVENTS = 256 };

typedef struct Answer {
    char id[128];
    int fd, connection, chat, usage_each, usage_end, prompt, total, made;
    int64_t arrived, read, due, late, *sent;
} Answer;

typedef struct {
    int number;
    char *in;
    size_t used;
} Line;

static Line *lines[1 << 16];
static Answer **answers, **heap;
static size_t answer_count, answer_room, heap_count, heap_room;
static int accepts, ended_count, wanted_count, poller, aligned;
static int64_t first_ns, gap_ns, realtime_ahead;
static volatile sig_atomic_t stop;

static int64_t now_on(clockid_t clock) {
    struct timespec at;
    clock_gettime(clock, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int64_t now(void) { return now_on(CLOCK_MONOTONIC); }

static void on_term(int signal) {
    (void)signal;
    stop = 1;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* The narrowest of many bracketed readings of one clock between two of the other. */
static void compare_clocks(void) {
    int64_t best = INT64_MAX;
    for (int i = 0; i < 1000; i++) {
        int64_t a = now(), realtime = now_on(CLOCK_REALTIME), b = now();
        if (b - a < best) {
            best = b - a;
            realtime_ahead = realtime - (a + b) / 2;
        }
    }
}

static void *grown(void *array, size_t count, size_t *room, size_t item) {
    if (count < *room) return array;
    *room = *room ? 2 * *room : 1024;
    array = realloc(array, *room * item);
    if (!array) fail("realloc");
    return array;
}

static void push(Answer *answer) {
    heap = grown(heap, heap_count, &heap_room, sizeof *heap);
    size_t at = heap_count++;
    while (at && heap[(at - 1) / 2]->due > answer->due) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = answer;
}

static Answer *pop(void) {
    Answer *top = heap[0], *last = heap[--heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= heap_count) break;
        if (child + 1 < heap_count && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= last->due) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

static int send_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd waiting = {.fd = fd, .events = POLLOUT};
            poll(&waiting, 1, 1000);
        } else if (sent < 0) {
            return -1;
        } else {
            data += sent;
            size -= (size_t)sent;
        }
    }
    return 0;
}

static void close_line(int fd) {
    close(fd); /* epoll forgets it by itself */
    if (lines[fd]) free(lines[fd]->in);
    free(lines[fd]);
    lines[fd] = NULL;
}

/* One event in a chunk of its own; returns where it ends. */
static char *framed(char *out, const char *json) {
    size_t size = strlen(json) + 8;
    return out + sprintf(out, "%zx\r\ndata: %s\n\n\r\n", size, json);
}

static void usage_text(char *out, const Answer *a) {
    sprintf(out, "{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d}", a->prompt,
            a->prompt + a->made, a->made);
}

static void head_text(char *out, const Answer *a) {
    sprintf(out, "{\"id\":\"%s-%s\",\"object\":\"%s\",\"created\":1764000000,\"model\":\"tiny\"",
            a->chat ? "chatcmpl" : "cmpl", a->id, a->chat ? "chat.completion.chunk" : "text_completion");
}

static void emit(Answer *a) {
    char head[256], usage[128] = "", json[1024], out[4096], *end = out;
    const char *finish = a->made + 1 == a->total ? "\"length\"" : "null";
    a->made++;
    head_text(head, a);
    if (a->usage_each) {
        strcpy(usage, ",\"usage\":");
        usage_text(usage + strlen(usage), a);
    }
    if (a->chat)
        sprintf(json, "%s,\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,"
                "\"finish_reason\":%s,\"token_ids\":null}]%s}", head, finish, usage);
    else
        sprintf(json, "%s,\"choices\":[{\"index\":0,\"text\":\" token\",\"logprobs\":null,\"finish_reason\":%s,"
                "\"stop_reason\":null,\"token_ids\":null,\"prompt_logprobs\":null,\"prompt_token_ids\":null}]%s}",
                head, finish, usage);
    end = framed(end, json);
    int64_t at = now();
    a->sent[a->made - 1] = at;
    if (at - a->due > a->late) a->late = at - a->due;
    int gone = send_all(a->fd, out, (size_t)(end - out));
    if (!gone && a->made == a->total) {
        if (a->usage_end) {
            usage_text(usage, a);
            sprintf(json, "%s,\"choices\":[],\"usage\":%s}", head, usage);
            gone = send_all(a->fd, out, (size_t)(framed(out, json) - out));
        }
        gone = gone || send_all(a->fd, out, (size_t)(framed(out, "[DONE]") - out)) ||
               send_all(a->fd, "0\r\n\r\n", 5);
    }
    if (gone || a->made == a->total) {
        if (++ended_count == wanted_count) {
            puts("ended");
            fflush(stdout);
        }
        return;
    }
    a->due += gap_ns;
    push(a);
}

static const char *header(const char *in, const char *name) {
    const char *found = strcasestr(in, name);
    return found ? found + strlen(name) : NULL;
}

/* Counts a prompt of ids exactly and one of text by its words. */
static int prompt_tokens(const char *body) {
    const char *at = strstr(body, "\"prompt\":");
    int count = 1;
    if (!at) return 1;
    at += 9 + strspn(at + 9, " ");
    char parting = *at == '[' ? ',' : ' ', closing = *at == '[' ? ']' : '"';
    for (at++; *at && *at != closing; at++) count += *at == parting;
    return count;
}

static int number_after(const char *body, const char *key) {
    const char *at = strstr(body, key);
    return at ? atoi(at + strlen(key) + strspn(at + strlen(key), " ")) : 0;
}

static void begin(int fd, const char *in, const char *body, int64_t arrived) {
    Answer *a = calloc(1, sizeof *a);
    const char *id = header(in, "\r\nx-request-id:");
    a->read = now();
    a->arrived = arrived;
    a->fd = fd;
    a->connection = lines[fd]->number;
    if (id && id < body) sscanf(id, " %127[^\r\n\"\\]", a->id);
    else sprintf(a->id, "%zu", answer_count);
    a->chat = !strncmp(in, "POST /v1/chat/completions", 25);
    a->total = number_after(body, "\"max_tokens\":");
    if (a->total < 1) a->total = number_after(body, "\"max_completion_tokens\":");
    if (a->total < 1) a->total = 16;
    a->prompt = prompt_tokens(body);
    a->usage_end = strstr(body, "\"include_usage\"") != NULL;
    a->usage_each = strstr(body, "\"continuous_usage_stats\"") != NULL;
    a->sent = calloc((size_t)a->total, sizeof *a->sent);
    a->due = a->read + first_ns;
    if (aligned) a->due += gap_ns - a->due % gap_ns;
    else a->due += random() % gap_ns;
    answers = grown(answers, answer_count, &answer_room, sizeof *answers);
    answers[answer_count++] = a;
    const char *reply = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                        "transfer-encoding: chunked\r\n\r\n";
    char json[512], out[1024];
    send_all(fd, reply, strlen(reply));
    if (a->chat) { /* vLLM opens a chat with the role alone */
        head_text(json, a);
        strcat(json, ",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                     "\"logprobs\":null,\"finish_reason\":null}]}");
        send_all(fd, out, (size_t)(framed(out, json) - out));
    }
    push(a);
    if (answer_count == 1) {
        puts("began");
        fflush(stdout);
    }
}

/* What clients ask before they start: the model list and health. */
static void aside(int fd, const char *in) {
    const char *models = "{\"object\":\"list\",\"data\":[{\"id\":\"tiny\",\"object\":\"model\","
                         "\"created\":1764000000,\"owned_by\":\"vllm\",\"max_model_len\":32768}]}";
    const char *body = strstr(in, "/models") ? models : "{}";
    char out[512];
    sprintf(out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
            strlen(body), body);
    send_all(fd, out, strlen(out));
}

static void read_line(int fd) {
    Line *line = lines[fd];
    char control[64];
    struct iovec into = {line->in + line->used, READ_BYTES - 1 - line->used};
    struct msghdr message = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    ssize_t got = recvmsg(fd, &message, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        close_line(fd);
        return;
    }
    int64_t arrived = now();
    struct cmsghdr *stamp = CMSG_FIRSTHDR(&message);
    if (stamp && stamp->cmsg_type == SO_TIMESTAMPNS) {
        struct timespec at;
        memcpy(&at, CMSG_DATA(stamp), sizeof at);
        arrived = at.tv_sec * 1000000000LL + at.tv_nsec - realtime_ahead;
    }
    line->used += (size_t)got;
    line->in[line->used] = 0;
    char *body = strstr(line->in, "\r\n\r\n");
    if (!body) return;
    body += 4;
    const char *length = header(line->in, "\r\ncontent-length:");
    size_t size = length && length < body ? strtoul(length, NULL, 10) : 0;
    if (line->used < (size_t)(body - line->in) + size) return;
    if (!strncmp(line->in, "POST /v1/completions", 20) ||
        !strncmp(line->in, "POST /v1/chat/completions", 25))
        begin(fd, line->in, body, arrived);
    else
        aside(fd, line->in);
    line->used = 0;
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= 1 << 16) exit(1);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
        lines[fd] = calloc(1, sizeof **lines);
        lines[fd]->in = malloc(READ_BYTES);
        lines[fd]->number = accepts++;
        struct epoll_event watched = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &watched);
    }
}

static void look(int listener, int64_t wait_ns) {
    struct epoll_event events[EVENTS];
    struct timespec wait = {wait_ns / 1000000000, wait_ns % 1000000000};
    int ready = epoll_pwait2(poller, events, EVENTS, wait_ns < 0 ? NULL : &wait, NULL);
    for (int i = 0; i < ready; i++) {
        if (events[i].data.fd == listener) accept_all(listener);
        else if (lines[events[i].data.fd]) read_line(events[i].data.fd);
    }
}

static void write_down(const char *path) {
    FILE *file = fopen(path, "w");
    if (!file) fail(path);
    for (size_t i = 0; i < answer_count; i++) {
        Answer *a = answers[i];
        fprintf(file, "{\"id\":\"%s\",\"connection\":%d,\"arrived\":%lld,\"read\":%lld,\"late\":%lld,\"sent\":[",
                a->id, a->connection, (long long)a->arrived, (long long)a->read, (long long)a->late);
        for (int n = 0; n < a->made; n++) fprintf(file, "%s%lld", n ? "," : "", (long long)a->sent[n]);
        fprintf(file, "]}\n");
    }
    fclose(file);
}

int main(int count, char **words) {
    if (count != 7) {
        fprintf(stderr, "usage: truth_server CORE FIRST_US GAP_US ALIGNED COUNT FILE\n");
        return 2;
    }
    cpu_set_t core;
    CPU_ZERO(&core);
    CPU_SET(atoi(words[1]), &core);
    if (sched_setaffinity(0, sizeof core, &core)) fail("sched_setaffinity");
    first_ns = atoll(words[2]) * 1000;
    gap_ns = atoll(words[3]) * 1000;
    aligned = atoi(words[4]);
    wanted_count = atoi(words[5]);
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct sigaction action = {.sa_handler = on_term};
    sigaction(SIGTERM, &action, NULL);
    compare_clocks();

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event watched = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &watched);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    while (!stop) {
        int64_t left = heap_count ? heap[0]->due - now() : -1;
        look(listener, heap_count ? (left > 0 ? left : 0) : -1);
        for (int sends = 1; heap_count && heap[0]->due <= now(); sends++) {
            emit(pop());
            if (sends % SENDS_PER_LOOK == 0) look(listener, 0);
        }
    }
    write_down(words[6]);
    return 0;
}
