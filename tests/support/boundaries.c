/*
 * What a process hands to the disk, or to a server, call by call: a library to preload that counts the calls which change
 * files whose path begins with a given prefix, or else those that send to a Postgres at a given port, and at the N-th of
 * them lets the process die, the call fail, the power or the answer go.
 *
 * Written for tests; see boundaries.py for what each kind means. Until `boundaries_arm` is called it does nothing.
 *
 * One mutex is held over each counted call: whoever dies here dies with nobody else's write half-way, and no thread
 * writes after the power went.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, HALF, AFTER, FAIL, POWER, LOST };

struct unsynced {           /* a write that no fsync has followed yet */
    struct unsynced *older;
    dev_t device;
    ino_t inode;
    off_t offset, size_before;
    size_t old_length, length; /* the bytes replaced, and the bytes written; both stand in `bytes`, in this order */
    char path[512];
    unsigned char bytes[];
};

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static int kind = -1, failure, server;
static long target, reached;
static char prefix[512], deaths[512];
static struct unsynced *newest;

/* `port`: of the server whose messages count; 0: there is none, and files do. */
void boundaries_arm(const char *files, int port, const char *notes, int what, long number, int code)
{
    server = port;
    snprintf(prefix, sizeof prefix, "%s", files);
    snprintf(deaths, sizeof deaths, "%s", notes);
    target = number;
    failure = code;
    reached = 0;
    kind = what;
}

long boundaries_reached(void) { return reached; }

static int is_ours(const char *path) { return !server && strncmp(path, prefix, strlen(prefix)) == 0; }

static int path_of(int fd, char *path, size_t room)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, room - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return is_ours(path);
}

static void note(const char *call, const char *path)
{
    static const char *const names[] = {"", "half-way through", "after", "failed", "power lost at", "unanswered"};
    const char *base = strrchr(path, '/');
    char line[512];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int length = snprintf(line, sizeof line, "{\"pid\":%d,\"at_us\":%lld,\"where\":\"%s %s %ld of %s\"}\n", (int)getpid(),
                          (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000, names[kind], call, reached,
                          base ? base + 1 : path);
    int fd = syscall(SYS_openat, AT_FDCWD, deaths, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) {
        syscall(SYS_write, fd, line, length);
        syscall(SYS_close, fd);
    }
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* ─ power ─ */

static void remember(int fd, const char *path, const void *data, size_t length, off_t offset)
{
    struct stat now;
    if (kind != POWER || strstr(path, "-shm") || fstat(fd, &now) < 0)
        return;
    struct unsynced *one = malloc(sizeof *one + 2 * length);
    if (!one)
        abort();
    one->device = now.st_dev;
    one->inode = now.st_ino;
    one->offset = offset;
    one->size_before = now.st_size;
    one->length = length;
    snprintf(one->path, sizeof one->path, "%s", path);
    /* Through this descriptor: closing another one of the file would drop the process's POSIX locks on it. */
    ssize_t got = syscall(SYS_pread64, fd, one->bytes, length, offset);
    one->old_length = got < 0 ? 0 : (size_t)got;
    memcpy(one->bytes + length, data, length);
    one->older = newest;
    newest = one;
}

static void forget(int fd)
{
    struct stat now;
    if (fstat(fd, &now) < 0)
        return;
    for (struct unsynced **at = &newest; *at;) {
        struct unsynced *one = *at;
        if (one->device == now.st_dev && one->inode == now.st_ino) {
            *at = one->older;
            free(one);
        } else {
            at = &one->older;
        }
    }
}

static void put(const struct unsynced *one, const unsigned char *bytes, size_t length, int cut)
{
    int fd = syscall(SYS_openat, AT_FDCWD, one->path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return; /* deleted meanwhile */
    if (length)
        syscall(SYS_pwrite64, fd, bytes, length, one->offset);
    if (cut)
        syscall(SYS_ftruncate, fd, one->size_before);
}

/* Whatever no fsync had made safe is gone; of what a disk had in its cache a part may have arrived, in any order. */
static void lose_power(void)
{
    uint64_t chance = (uint64_t)target * 0x9E3779B97F4A7C15ull | 1;
    struct unsynced *reversed = NULL;
    while (newest) {
        struct unsynced *one = newest;
        newest = one->older;
        put(one, one->bytes, one->old_length, 1);
        one->older = reversed;
        reversed = one;
    }
    for (; reversed; reversed = reversed->older) {
        chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
        if (target % 3 && chance % 2) /* of every third point nothing arrived */
            put(reversed, reversed->bytes + reversed->length, reversed->length, 0);
    }
}

/* ─ the calls ─ */

/* Count; return whether this is the one, having died already if it is to be before it. */
static int is_it(const char *call, const char *path, int can_be_cut)
{
    reached++;
    if (reached != target || kind <= COUNT)
        return 0;
    note(call, path);
    if (kind == POWER)
        lose_power();
    if (kind == POWER || (kind == HALF && !can_be_cut))
        die();
    return 1;
}

static ssize_t writing(int fd, const void *data, size_t length, off_t offset, int at)
{
    char path[512];
    if (kind < 0 || !path_of(fd, path, sizeof path))
        return at ? syscall(SYS_pwrite64, fd, data, length, offset) : syscall(SYS_write, fd, data, length);
    pthread_mutex_lock(&guard);
    int chosen = is_it("write", path, length > 1);
    ssize_t done;
    if (chosen && kind == FAIL) {
        errno = failure;
        done = -1;
    } else {
        size_t part = chosen && kind == HALF ? length / 2 : length;
        remember(fd, path, data, part, at ? offset : syscall(SYS_lseek, fd, 0, SEEK_CUR));
        done = at ? syscall(SYS_pwrite64, fd, data, part, offset) : syscall(SYS_write, fd, data, part);
        if (chosen)
            die();
    }
    pthread_mutex_unlock(&guard);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return writing(fd, data, length, offset, 1); }
ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset) { return writing(fd, data, length, offset, 1); }
ssize_t write(int fd, const void *data, size_t length) { return writing(fd, data, length, 0, 0); }

typedef long act(int fd, const char *path, const char *other, off_t size);

static int changing(const char *call, const char *path, int fd, act *act, const char *other, off_t size)
{
    pthread_mutex_lock(&guard);
    int chosen = is_it(call, path, 0), done;
    if (chosen && kind == FAIL) {
        errno = failure;
        done = -1;
    } else {
        done = act(fd, path, other, size);
        if (done == 0 && fd >= 0)
            forget(fd); /* safe now; of a file that was cut, for simplicity, too */
        if (chosen)
            die();
    }
    pthread_mutex_unlock(&guard);
    return done;
}

static long do_sync(int fd, const char *path, const char *other, off_t size) { return syscall(SYS_fdatasync, fd); }
static long do_cut(int fd, const char *path, const char *other, off_t size) { return syscall(SYS_ftruncate, fd, size); }
static long do_unlink(int fd, const char *path, const char *other, off_t size) { return syscall(SYS_unlinkat, AT_FDCWD, path, 0); }
static long do_rename(int fd, const char *path, const char *other, off_t size)
{
    return syscall(SYS_renameat2, AT_FDCWD, path, AT_FDCWD, other, 0);
}

static int on_file(const char *call, int fd, act *act, off_t size)
{
    char path[512];
    if (kind < 0 || !path_of(fd, path, sizeof path))
        return act(fd, NULL, NULL, size);
    return changing(call, path, fd, act, NULL, size);
}

int fsync(int fd) { return on_file("fsync", fd, do_sync, 0); }
int fdatasync(int fd) { return on_file("fsync", fd, do_sync, 0); }
int ftruncate(int fd, off_t size) { return on_file("truncate", fd, do_cut, size); }
int ftruncate64(int fd, off_t size) { return on_file("truncate", fd, do_cut, size); }

int unlink(const char *path)
{
    if (kind < 0 || !is_ours(path))
        return do_unlink(-1, path, NULL, 0);
    return changing("unlink", path, -1, do_unlink, NULL, 0);
}

int rename(const char *path, const char *other)
{
    if (kind < 0 || (!is_ours(path) && !is_ours(other)))
        return do_rename(-1, path, other, 0);
    return changing("rename", path, -1, do_rename, other, 0);
}

/* ─ a server ─ */

static int is_to_server(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in four;
        struct sockaddr_in6 six;
        struct sockaddr_un file;
    } peer = {0};
    socklen_t length = sizeof peer;
    char socket_name[32];
    if (kind < 0 || !server || getpeername(fd, &peer.any, &length) < 0)
        return 0;
    if (peer.any.sa_family == AF_INET)
        return ntohs(peer.four.sin_port) == server;
    if (peer.any.sa_family == AF_INET6)
        return ntohs(peer.six.sin6_port) == server;
    snprintf(socket_name, sizeof socket_name, "/.s.PGSQL.%d", server);
    return peer.any.sa_family == AF_UNIX && strstr(peer.file.sun_path, socket_name) != NULL;
}

static ssize_t sending(int fd, const void *data, size_t length, int flags)
{
    pthread_mutex_lock(&guard);
    int chosen = is_it("send", "server", length > 1);
    ssize_t done;
    if (chosen && kind == FAIL) {
        errno = failure;
        done = -1;
    } else {
        done = syscall(SYS_sendto, fd, data, chosen && kind == HALF ? length / 2 : length, flags, NULL, 0);
        if (chosen && kind == LOST)
            shutdown(fd, SHUT_RD); /* the server has it, and whatever it answers is never read */
        else if (chosen)
            die();
    }
    pthread_mutex_unlock(&guard);
    return done;
}

ssize_t send(int fd, const void *data, size_t length, int flags)
{
    return is_to_server(fd) ? sending(fd, data, length, flags) : syscall(SYS_sendto, fd, data, length, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (!is_to_server(fd))
        return syscall(SYS_sendmsg, fd, message, flags);
    size_t length = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++)
        length += message->msg_iov[i].iov_len;
    char *whole = malloc(length + 1), *at = whole;
    if (!whole)
        abort();
    for (size_t i = 0; i < message->msg_iovlen; i++) {
        memcpy(at, message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
        at += message->msg_iov[i].iov_len;
    }
    ssize_t done = sending(fd, whole, length, flags);
    int saved = errno;
    free(whole);
    errno = saved;
    return done;
}
