// SPDX-License-Identifier: Apache-2.0
/*
 * The first process of an emulated machine: prepares it, runs one command, tells the host, switches off.
 *
 * What to do is in files of the initial file system:
 *   /lab/modules   kernel modules to insert, one path per line, in order
 *   /lab/settings  "key value" lines: channel, address, shell, power, wait
 *   /lab/command   the command's words, each ended by a zero byte
 *   /lab/names     environment variables, "NAME=value" each ended by a zero byte
 *
 * Everything for the host goes through one channel as frames, so that the command's output, its errors and its
 * files arrive unmixed and binary: 0xF5 'L' kind size(4, little endian) payload.  Kinds: H hello, O standard
 * output, E standard error, F a piece of a tar archive of /out, X the exit status (a decimal number).
 * The channel is a device, or port 0xE9 of Bochs's debug console, where a byte costs no interrupt.
 *
 * With the setting "wait", it says that it is ready (R) before it reads the command, and takes frames from the host
 * until one lets it go (G): files to write (W, the path, a zero byte and the content), the time of day (T, decimal
 * nanoseconds) and a seed for the kernel's random numbers (S). While it waits the emulator's state may be saved, and
 * continued any number of times.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <sys/io.h>
#endif

enum { DEBUG_PORT = 0xe9, BOCHS_PORT = 0x8900, CHUNK = 65536, DAY = 86400 };

static int channel = -1; /* the device, or -1 for the port */
static char setting_channel[64] = "port", setting_address[64], setting_shell[64], setting_power[64] = "acpi";
static char setting_wait[64];

static void channel_write(const void *data, size_t size)
{
	const unsigned char *bytes = data;
#if defined(__x86_64__)
	if (channel < 0) {
		outsb(DEBUG_PORT, bytes, size);
		return;
	}
#endif
	while (size > 0) {
		ssize_t written = write(channel, bytes, size);
		if (written < 0 && errno != EINTR && errno != EAGAIN)
			return; /* nobody is left to tell */
		if (written > 0) {
			bytes += written;
			size -= written;
		}
	}
}

static void frame(char kind, const void *data, size_t size)
{
	unsigned char head[7] = { 0xf5, 'L', kind, size, size >> 8, size >> 16, size >> 24 };

	channel_write(head, sizeof head);
	channel_write(data, size);
}

static void frame_text(char kind, const char *format, ...)
{
	char text[1024];
	va_list list;

	va_start(list, format);
	int size = vsnprintf(text, sizeof text, format, list);
	va_end(list);
	frame(kind, text, size < (int)sizeof text ? size : (int)sizeof text - 1);
}

static double uptime(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* The whole file with a zero byte after it, or an empty string when there is none. */
static char *read_file(const char *path, size_t *size)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	struct stat info;
	char *text;

	*size = 0;
	if (file < 0 || fstat(file, &info) || !(text = calloc(1, info.st_size + 1)))
		return calloc(1, 1);
	ssize_t got = read(file, text, info.st_size);
	*size = got > 0 ? got : 0;
	close(file);
	return text;
}

/* Split strings that each end in a zero byte into a vector for execve(). */
static char **vector_of(char *text, size_t size)
{
	size_t count = 0;

	for (size_t i = 0; i < size; i++)
		count += text[i] == 0;
	char **vector = calloc(count + 1, sizeof *vector);
	for (size_t i = 0; i < count; i++, text += strlen(text) + 1)
		vector[i] = text;
	return vector;
}

static void mount_all(void)
{
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mkdir("/dev/shm", 01777);
	mkdir("/dev/pts", 0755);
	mount("devpts", "/dev/pts", "devpts", 0, NULL);
	mount("tmpfs", "/dev/shm", "tmpfs", 0, NULL);
	mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
	mount("tmpfs", "/run", "tmpfs", 0, NULL);
	symlink("/proc/self/fd", "/dev/fd");
}

static void read_settings(void)
{
	size_t size;
	char *text = read_file("/lab/settings", &size), *rest = text, *line;

	while ((line = strsep(&rest, "\n"))) {
		char key[32], value[64];

		if (sscanf(line, "%31s %63s", key, value) != 2)
			continue;
		if (!strcmp(key, "channel"))
			strcpy(setting_channel, value);
		else if (!strcmp(key, "address"))
			strcpy(setting_address, value);
		else if (!strcmp(key, "shell"))
			strcpy(setting_shell, value);
		else if (!strcmp(key, "power"))
			strcpy(setting_power, value);
		else if (!strcmp(key, "wait"))
			strcpy(setting_wait, value);
	}
	free(text);
}

/* The kernel's command line; the files of /proc have no size. */
static char *command_line(void)
{
	static char text[4096];
	int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t got = read(file, text, sizeof text - 1);

	close(file);
	text[got > 0 ? got : 0] = 0;
	return text;
}

/* Whether a word is "NAME.something", a hyphen being as good as an underscore. */
static int is_of_module(const char *word, const char *name, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if ((word[i] == '-' ? '_' : word[i]) != (name[i] == '-' ? '_' : name[i]))
			return 0;
	return word[length] == '.';
}

/* The parameters of a module on the kernel's command line, as modprobe passes them: NAME.PARAMETER=VALUE. */
static void module_parameters(const char *path, char *parameters, size_t size)
{
	const char *name = strrchr(path, '/') + 1;
	size_t length = strlen(name) - strlen(".ko"), used = 0;
	char *line = strdup(command_line()), *rest = line, *word;

	*parameters = 0;
	while ((word = strsep(&rest, " \n")))
		if (is_of_module(word, name, length) && used + strlen(word) + 2 < size)
			used += sprintf(parameters + used, "%s ", word + length + 1);
	free(line);
}

static void insert_modules(void)
{
	size_t size;
	char *text = read_file("/lab/modules", &size), *rest = text, *path, parameters[1024];

	while ((path = strsep(&rest, "\n"))) {
		if (!*path)
			continue;
		int file = open(path, O_RDONLY | O_CLOEXEC);
		module_parameters(path, parameters, sizeof parameters);
		if (file < 0 || syscall(SYS_finit_module, file, parameters, 0))
			fprintf(stderr, "lab: cannot insert %s: %s\n", path, strerror(errno));
		close(file);
	}
	free(text);
}

static void open_channel(void)
{
#if defined(__x86_64__)
	if (!strcmp(setting_channel, "port")) {
		iopl(3);
		return;
	}
#endif
	for (int tries = 0; tries < 500 && channel < 0; tries++) { /* the device appears a moment after its driver */
		channel = open(setting_channel, O_RDWR | O_CLOEXEC);
		if (channel < 0)
			usleep(10000);
	}
	if (channel < 0)
		fprintf(stderr, "lab: no channel %s: %s\n", setting_channel, strerror(errno));
	struct termios mode;
	if (!tcgetattr(channel, &mode)) {
		cfmakeraw(&mode);
		tcsetattr(channel, TCSANOW, &mode);
	}
}

static void run_on(int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof one, &one))
		fprintf(stderr, "lab: no CPU %d: %s\n", cpu, strerror(errno));
}

/* Also on isolated CPUs, which the first process does not inherit. */
static void run_anywhere(void)
{
	cpu_set_t all;

	memset(&all, 0xff, sizeof all);
	sched_setaffinity(0, sizeof all, &all);
}

static void set_time(long long seconds, long nanoseconds)
{
	struct timespec now = { seconds, nanoseconds };

	if (clock_settime(CLOCK_REALTIME, &now))
		fprintf(stderr, "lab: cannot set the clock: %s\n", strerror(errno));
}

/*
 * QEMU 7.2 saves the registers of a hypervisor's timer, but does not set the timer again (target/arm/machine.c has
 * the physical and the virtual one), so the interrupt that Linux waits for on a CPU never comes. Linux programs the
 * timer again if an alarm of a CPU is suddenly due because the clock was set on another (clock_was_set). Hence an
 * alarm on each CPU, days away when the state is saved, and two leaps of the clock when it is continued.
 */
static void set_alarms(time_t now)
{
	for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_CONF); cpu++) {
		struct itimerspec due = { .it_value.tv_sec = now + (cpu ? DAY : 3 * DAY) };
		int alarm = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC);

		run_on(cpu);
		if (timerfd_settime(alarm, TFD_TIMER_ABSTIME, &due, NULL))
			fprintf(stderr, "lab: no alarm on CPU %d: %s\n", cpu, strerror(errno));
	}
}

static void wake_timers(time_t saved)
{
	run_on(0);
	set_time(saved + 2 * DAY, 0); /* wakes the others */
	if (sysconf(_SC_NPROCESSORS_CONF) > 1) {
		run_on(1);
		set_time(saved + 4 * DAY, 0); /* wakes CPU 0 */
	}
}

static void channel_read(void *data, size_t size)
{
	char *bytes = data;

	while (size > 0) {
		ssize_t got = read(channel, bytes, size);
		if (got > 0) {
			bytes += got;
			size -= got;
		} else {
			sched_yield(); /* the host's end is not there yet; no timer is to be trusted */
		}
	}
}

/* A frame's payload with a zero byte after it. */
static char *take_frame(char *kind, size_t *size)
{
	unsigned char head[7];
	char *payload;

	channel_read(head, sizeof head);
	*kind = head[2];
	*size = head[3] | head[4] << 8 | head[5] << 16 | (size_t)head[6] << 24;
	while (!(payload = calloc(1, *size + 1)))
		pause();
	channel_read(payload, *size);
	return payload;
}

static void write_file(const char *path, const char *content, size_t size)
{
	char *folder = strdup(path);

	*strrchr(folder, '/') = 0; /* paths are absolute, and their folders at the root */
	mkdir(folder, 0755);
	free(folder);
	int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (file < 0 || write(file, content, size) != (ssize_t)size)
		fprintf(stderr, "lab: cannot write %s: %s\n", path, strerror(errno));
	close(file);
}

/* All that continue one state would draw the same random numbers. */
static void seed(const char *bytes, size_t size)
{
	struct rand_pool_info *info = calloc(1, sizeof *info + size);
	int device = open("/dev/urandom", O_WRONLY | O_CLOEXEC);

	info->entropy_count = 8 * size;
	info->buf_size = size;
	memcpy(info->buf, bytes, size);
	if (ioctl(device, RNDADDENTROPY, info) || ioctl(device, RNDRESEEDCRNG))
		fprintf(stderr, "lab: cannot seed the random numbers: %s\n", strerror(errno));
	close(device);
	free(info);
}

static void wait_for_job(void)
{
	time_t saved = time(NULL);
	char kind, *payload;
	size_t size;

	set_alarms(saved);
	frame('R', "", 0);
	do {
		payload = take_frame(&kind, &size);
		if (kind == 'W') {
			write_file(payload, payload + strlen(payload) + 1, size - strlen(payload) - 1);
		} else if (kind == 'S') {
			seed(payload, size);
		} else if (kind == 'T') {
			wake_timers(saved);
			set_time(atoll(payload) / 1000000000, atoll(payload) % 1000000000);
		}
		free(payload);
	} while (kind != 'G');
}

static void interface_up(const char *name, const char *address)
{
	int handle = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq request = { 0 };
	struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;

	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	for (int tries = 0; tries < 300 && ioctl(handle, SIOCGIFFLAGS, &request); tries++)
		usleep(10000);
	in->sin_family = AF_INET;
	inet_pton(AF_INET, address, &in->sin_addr);
	ioctl(handle, SIOCSIFADDR, &request);
	inet_pton(AF_INET, "255.255.255.0", &in->sin_addr);
	if (strcmp(name, "lo"))
		ioctl(handle, SIOCSIFNETMASK, &request);
	ioctl(handle, SIOCGIFFLAGS, &request);
	request.ifr_flags |= IFF_UP | IFF_RUNNING;
	if (ioctl(handle, SIOCSIFFLAGS, &request))
		fprintf(stderr, "lab: interface %s: %s\n", name, strerror(errno));
	close(handle);
}

/* Start a command with its output in two pipes, or, for a shell, on a terminal of its own. */
static pid_t start(char **words, char **names, int output[2], int errors[2])
{
	pid_t child = fork();

	if (child)
		return child;
	setsid();
	run_anywhere();
	if (*setting_shell) {
		int terminal = open(setting_shell, O_RDWR);

		ioctl(terminal, TIOCSCTTY, 1);
		for (int fd = 0; fd < 3; fd++)
			dup2(terminal, fd);
	} else {
		dup2(open("/dev/null", O_RDONLY), 0);
		dup2(output[1], 1);
		dup2(errors[1], 2);
	}
	chdir("/root");
	execvpe(words[0], words, names);
	dprintf(2, "lab: cannot run %s: %s\n", words[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* Pass on what one pipe has; false at its end. */
static int pass_on(int from, char kind)
{
	static char buffer[CHUNK];
	ssize_t got = read(from, buffer, sizeof buffer);

	if (got > 0)
		frame(kind, buffer, got);
	return got > 0 || (got < 0 && (errno == EINTR || errno == EAGAIN));
}

/* Pass on a child's output until it has ended; then only what is already there, because a process that it left
 * behind may hold the pipes open for ever. */
static int attend(pid_t child, int output, int errors)
{
	struct pollfd ends[2] = { { output, POLLIN, 0 }, { errors, POLLIN, 0 } };
	const char kinds[2] = { 'O', 'E' };
	int status = 0, ended = 0;

	for (;;) {
		pid_t reaped;
		int result;

		while ((reaped = waitpid(-1, &result, WNOHANG)) > 0)
			if (reaped == child) {
				status = result;
				ended = 1;
			}
		int ready = poll(ends, 2, ended ? 0 : 100);
		if (ready <= 0 && ended)
			break;
		for (int i = 0; i < 2; i++)
			if ((ends[i].revents & (POLLIN | POLLHUP)) && !pass_on(ends[i].fd, kinds[i]))
				ends[i].fd = -1;
	}
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int run(char **words, char **names, char output_kind)
{
	int output[2], errors[2];

	if (pipe2(output, O_CLOEXEC) || pipe2(errors, O_CLOEXEC))
		return 125;
	pid_t child = start(words, names, output, errors);
	close(output[1]);
	close(errors[1]);
	if (child < 0)
		return 125;
	if (output_kind == 'O')
		return attend(child, output[0], errors[0]);
	while (pass_on(output[0], output_kind))
		;
	waitpid(child, NULL, 0);
	close(output[0]);
	close(errors[0]);
	return 0;
}

static void send_results(char **names)
{
	char *tar[] = { "busybox", "tar", "-C", "/out", "-cf", "-", ".", NULL };

	*setting_shell = 0;
	if (rmdir("/out")) /* only an empty folder can be removed */
		run(tar, names, 'F');
}

static void __attribute__((noreturn)) power_off(void)
{
	sync();
#if defined(__x86_64__)
	if (!strcmp(setting_power, "bochs")) {
		tcdrain(1); /* let the console finish: the emulator ends at once */
		iopl(3);
		for (const char *letter = "Shutdown"; *letter; letter++)
			outb(*letter, BOCHS_PORT);
	}
#endif
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

int main(void)
{
	struct utsname system;
	size_t size;

	mount_all();
	read_settings();
	double began = uptime();
	insert_modules();
	open_channel();
	interface_up("lo", "127.0.0.1");
	if (*setting_address)
		interface_up("eth0", setting_address);
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	setrlimit(RLIMIT_MEMLOCK, &unlimited);
	uname(&system);
	double ready = uptime();
	if (*setting_wait)
		wait_for_job();
	frame_text('H', "%s %s, first process after %.2f s, ready after %.2f s", system.sysname, system.release, began,
		   ready);

	char *command = read_file("/lab/command", &size), **words = vector_of(command, size);
	char *environment = read_file("/lab/names", &size), **names = vector_of(environment, size);
	int status = words[0] ? run(words, names, 'O') : 0;
	send_results(names);
	frame_text('X', "%d", status);
	power_off();
}
