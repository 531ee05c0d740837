/* An endpoint that swallows events as fast as they come: counts, answers {} and does nothing else.
 *
 *     cc -O2 -o sink sink.c && ./sink [--port N] [--cpu N] [--latency MS]
 *
 * It prints its port on the first line, and when its standard input ends what it took, as JSON. One thread; an answer
 * goes out LATENCY milliseconds after the request was read, without holding up the others. GET asks for the counts.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 4096
#define CAPACITY (1 << 20)
#define EVENT "{\"type\":\"" /* an operation of a batch begins so; a call without one is an event of its own */

static struct { char *data; size_t used; } buffers[CONNECTIONS];
static struct { double due; int fd; unsigned serial; } waiting[CONNECTIONS * 4];
static unsigned serials[CONNECTIONS]; /* so that a late answer never reaches the next user of a descriptor */
static size_t first, last;
static unsigned long events, calls, bytes;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int counts(char *text, size_t size) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    return snprintf(text, size, "{\"events\": %lu, \"calls\": %lu, \"bytes\": %lu, \"cpu_seconds\": %.3f}", events, calls,
                    bytes, cpu);
}

static void answer(int fd, const char *body, int size) {
    char text[512];
    int length = snprintf(text, sizeof text,
                          "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%.*s", size,
                          size, body);
    if (write(fd, text, length) != length) { /* the client is gone; its close comes by itself */ }
}

static void count(const char *body, size_t size) {
    unsigned long found = 0;
    const char *end = body + size, *at = body;
    while ((at = memmem(at, end - at, EVENT, sizeof EVENT - 1)) != NULL) found++, at += sizeof EVENT - 1;
    events += found ? found : 1;
    calls += 1;
    bytes += size;
}

/* Takes a whole request off the head of a buffer; 0 when it is not all there yet. */
static int take(int fd, double latency) {
    char *data = buffers[fd].data;
    char *body = memmem(data, buffers[fd].used, "\r\n\r\n", 4);
    if (body == NULL) return 0;
    body += 4;
    char *field = strcasestr(data, "\r\ncontent-length:");
    size_t length = field != NULL && field < body ? strtoul(field + 17, NULL, 10) : 0;
    size_t whole = body - data + length;
    if (buffers[fd].used < whole) return 0;
    if (strncmp(data, "GET", 3) == 0) {
        char text[256];
        answer(fd, text, counts(text, sizeof text));
    } else {
        count(body, length);
        if (latency > 0) {
            waiting[last].due = now() + latency;
            waiting[last].fd = fd;
            waiting[last].serial = serials[fd];
            last = (last + 1) % (CONNECTIONS * 4);
        } else {
            answer(fd, "{}", 2);
        }
    }
    buffers[fd].used -= whole;
    memmove(data, data + whole, buffers[fd].used + 1);
    return 1;
}

int main(int argc, char **argv) {
    int port = 0;
    double latency = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--port") == 0) port = atoi(argv[i + 1]);
        if (strcmp(argv[i], "--latency") == 0) latency = atof(argv[i + 1]) / 1e3;
        if (strcmp(argv[i], "--cpu") == 0) {
            cpu_set_t cpus;
            CPU_ZERO(&cpus);
            CPU_SET(atoi(argv[i + 1]), &cpus);
            sched_setaffinity(0, sizeof cpus, &cpus);
        }
    }
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 1024) != 0) {
        perror("sink");
        return 1;
    }
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    int poll = epoll_create1(0);
    int watched[] = {listener, STDIN_FILENO};
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = watched[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, watched[i], &event);
    }
    for (;;) {
        int timeout = -1;
        for (; first != last; first = (first + 1) % (CONNECTIONS * 4)) {
            double rest = waiting[first].due - now();
            if (rest > 0) {
                timeout = (int)(rest * 1e3) + 1;
                break;
            }
            if (serials[waiting[first].fd] == waiting[first].serial) answer(waiting[first].fd, "{}", 2);
        }
        struct epoll_event ready[64];
        int many = epoll_wait(poll, ready, 64, timeout);
        for (int i = 0; i < many; i++) {
            int fd = ready[i].data.fd;
            if (fd == STDIN_FILENO) {
                char line[64];
                if (read(fd, line, sizeof line) > 0) continue;
                char text[256];
                counts(text, sizeof text);
                printf("%s\n", text);
                return 0;
            }
            if (fd == listener) {
                int new = accept(listener, NULL, NULL);
                if (new < 0 || new >= CONNECTIONS) {
                    close(new);
                    continue;
                }
                setsockopt(new, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                if (buffers[new].data == NULL) buffers[new].data = malloc(CAPACITY + 1);
                buffers[new].used = 0;
                struct epoll_event event = {.events = EPOLLIN, .data.fd = new};
                epoll_ctl(poll, EPOLL_CTL_ADD, new, &event);
                continue;
            }
            ssize_t got = read(fd, buffers[fd].data + buffers[fd].used, CAPACITY - buffers[fd].used);
            if (got <= 0) {
                serials[fd]++;
                close(fd);
                continue;
            }
            buffers[fd].used += got;
            buffers[fd].data[buffers[fd].used] = 0;
            while (take(fd, latency)) continue;
        }
    }
}
