/* What benchmarks/team.py measures: barriers of a team, and cache lines that one core writes after another. */
#include "team.h"

typedef struct {
    long rounds, lines;
    char *memory;
} Work;

static void only_barriers(void *work, Thread *thread)
{
    for (long round = 0; round < ((Work *)work)->rounds; round++) barrier(thread);
}

/* In every round one of the threads, in turns, writes all lines. */
static void pass_lines(void *work, Thread *thread)
{
    const Work *w = work;
    for (long round = 0; round < w->rounds; round++) {
        if (round % thread->team_size == thread->number)
            for (long line = 0; line < w->lines; line++) w->memory[64 * line]++;
        barrier(thread);
    }
}

/* Seconds of a round; without lines it is a barrier alone. The first call starts the threads. */
__attribute__((visibility("default"))) double round_seconds(int threads, long rounds, long lines, char *memory)
{
    Work work = {rounds, lines, memory};
    const double start = clock_now();
    run_team(lines > 0 ? pass_lines : only_barriers, &work, threads);
    return (clock_now() - start) / rounds;
}
