/* SPDX-License-Identifier: Apache-2.0 */
/* What the VMM's own threads do beside a guest with tiles: use them for the first time, and take signals. */

struct tile_user {
    const uint8_t *config;
    const uint8_t *tiles;
};

/* A thread's first TILELOADD is #NM in the host, once in the thread's life. */
static void *use_tiles(void *argument)
{
    const struct tile_user *user = argument;
    vmm_host_tiles_load(user->config, user->tiles);
    vmm_host_tiles_release();
    return NULL;
}

long vmm_host_tiles_first_uses(const uint8_t *config, const uint8_t *tiles, uint64_t *line)
{
    struct tile_user user = {config, tiles};
    struct timespec pause = {.tv_nsec = 200000};

    while (!__atomic_load_n(&line[2], __ATOMIC_ACQUIRE)) {
        pthread_t thread;
        int error;

        if (!__atomic_load_n(&line[0], __ATOMIC_ACQUIRE)) {
            nanosleep(&pause, NULL);
            continue;
        }
        if ((error = pthread_create(&thread, NULL, use_tiles, &user)) || (error = pthread_join(thread, NULL)))
            return -error;
        __atomic_add_fetch(&line[1], 1, __ATOMIC_RELEASE);
    }
    return 0;
}

/* Where the kernel says what it put behind the 512 bytes of FXSAVE: the end of them, asm/sigcontext.h. */
#define SOFTWARE_BYTES 464
#define SIGNAL_STACK (256 << 10)

static struct vmm_signal_frames *frames;
static uint8_t *signal_stack;

static void measure_frame(int number, siginfo_t *info, void *context)
{
    const ucontext_t *user = context;
    const uint8_t *software = (const uint8_t *)user->uc_mcontext.fpregs + SOFTWARE_BYTES;
    uint64_t size = (uint64_t)(signal_stack + SIGNAL_STACK - (const uint8_t *)context);
    uint64_t features;
    uint32_t extended;

    (void)number;
    (void)info;
    memcpy(&extended, software + 4, sizeof(extended));
    memcpy(&features, software + 8, sizeof(features));
    if (size > frames->size)
        frames->size = size;
    if (extended > frames->extended)
        frames->extended = extended;
    frames->features |= features;
    frames->count++;
}

long vmm_measure_frames(int number, struct vmm_signal_frames *where)
{
    struct sigaction action;
    stack_t stack;

    memset(&action, 0, sizeof(action));
    memset(&stack, 0, sizeof(stack));
    if (!signal_stack && !(signal_stack = malloc(SIGNAL_STACK)))
        return -ENOMEM;
    stack.ss_sp = signal_stack;
    stack.ss_size = SIGNAL_STACK;
    frames = where;
    if (where) {
        action.sa_sigaction = measure_frame;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    } else {
        action.sa_handler = SIG_IGN;
        stack.ss_flags = SS_DISABLE;
    }
    /* The handler goes before its stack, and the stack before its handler. */
    if (where && sigaltstack(&stack, NULL))
        return -errno;
    if (sigaction(number, &action, NULL) || (!where && sigaltstack(&stack, NULL)))
        return -errno;
    return 0;
}
